"""Ops that bring activations to mean 0 and variance 1.  docs/derivations/norm.md"""

import numpy as np

from tinydiff.autograd.tensor import op, recording
from tinydiff.backend import array_module
from tinydiff.kernels import pick


@op
def layer_norm(x, scale, shift, *, eps=1e-5):
    """(x − mean) / √(var + eps) · scale + shift over the last axis

    x (…, D), scale and shift (D,) -> y like x
    """
    if not recording() and array_module(x) is np:
        return pick("norm").rows(x, scale, shift, eps), None
    xp = array_module(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / xp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    x_hat = centred * rstd

    def vjp(dy):
        rows = tuple(range(x.ndim - 1))
        dx_hat = dy * scale
        dx = dx_hat - dx_hat.mean(axis=-1, keepdims=True)
        dx -= x_hat * (dx_hat * x_hat).mean(axis=-1, keepdims=True)
        return dx * rstd, (dy * x_hat).sum(axis=rows), dy.sum(axis=rows)

    return x_hat * scale + shift, vjp


@op
def group_norm(x, scale, shift, *, groups, eps=1e-5):
    """The same over the pixels and the C / groups channels of each group of each image.

    x (N, …, C), scale and shift (C,), or (N, C) for each image its own -> y like x.
    Raises ValueError where groups do not divide C.
    """
    N, C = x.shape[0], x.shape[-1]
    if C % groups:
        raise ValueError(f"group_norm: {C} channels cannot be shared out among {groups} groups")
    rung = pick("norm")
    mean, rstd = rung.measure([x], groups, eps)           # (N, groups)
    gamma, beta = (np.broadcast_to(p, (N, C)) for p in (scale, shift))
    slope, offset = as_line(gamma, beta, mean, rstd)

    def vjp(dy):
        [dx], dgamma, dbeta = rung.backward([dy.copy()], [x], gamma, beta, mean, rstd, False)
        return dx, dgamma, dbeta

    return rung.normalize(x, slope, offset, False), vjp


def as_line(gamma, beta, mean, rstd):
    """(x − mean) · rstd · γ + β as x · slope + offset, both (N, C)."""
    each = gamma.shape[1] // mean.shape[1]                # channels a group
    slope = gamma * rstd.repeat(each, axis=1)
    return slope, beta - slope * mean.repeat(each, axis=1)
