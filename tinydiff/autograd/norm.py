"""Ops that bring activations to mean 0 and variance 1.  docs/derivations/norm.md"""

import numpy as np

from tinydiff.autograd.tensor import op
from tinydiff.kernels import pick


@op
def layer_norm(x, scale, shift, *, eps=1e-5):
    """(x − mean) / √(var + eps) · scale + shift over the last axis

    x (…, D), scale and shift (D,) -> y like x
    """
    rung = pick("norm", x)
    return rung.rows(x, scale, shift, eps), lambda dy: rung.rows_backward(dy, x, scale, eps)


@op
def group_norm(x, scale, shift, *, groups, eps=1e-5):
    """The same over the pixels and the C / groups channels of each group of each image.

    x (N, …, C), scale and shift (C,), or (N, C) for each image its own -> y like x.
    Raises ValueError where groups do not divide C.
    """
    return normalized(x, scale, shift, groups, eps, silu=False)


@op
def norm_silu(x, scale, shift, *, groups, eps=1e-5):
    """silu(group_norm(x)), of which only x is kept for the way back"""
    return normalized(x, scale, shift, groups, eps, silu=True)


def normalized(x, scale, shift, groups, eps, silu):
    N, C = x.shape[0], x.shape[-1]
    if C % groups:
        raise ValueError(f"group_norm: {C} channels cannot be shared out among {groups} groups")
    rung = pick("norm", x)
    mean, rstd = rung.measure([x], groups, eps)           # (N, groups)
    gamma, beta = (np.broadcast_to(p, (N, C)) for p in (scale, shift))
    slope, offset = as_line(gamma, beta, mean, rstd)

    def vjp(dy):
        [dx], dgamma, dbeta = rung.backward([dy.copy()], [x], gamma, beta, mean, rstd, silu)
        return dx, dgamma, dbeta

    return rung.normalize(x, slope, offset, silu), vjp


def as_line(gamma, beta, mean, rstd):
    """(x − mean) · rstd · γ + β as x · slope + offset, both (N, C)."""
    rung = pick("norm", mean)
    if mean.size and gamma.dtype == np.float32 and hasattr(rung, "line"):
        return rung.line(gamma, beta, mean, rstd)
    each = gamma.shape[1] // mean.shape[1]                # channels a group
    slope = gamma * rstd.repeat(each, axis=1)
    return slope, beta - slope * mean.repeat(each, axis=1)
