"""Ops that bring activations to mean 0 and variance 1.  docs/derivations/norm.md"""

from math import prod

from tinydiff.autograd.tensor import op
from tinydiff.backend import array_module


@op
def layer_norm(x, scale, shift, *, eps=1e-5):
    """(x − mean) / √(var + eps) · scale + shift over the last axis

    x (…, D), scale and shift (D,) -> y like x
    """
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

    x (N, …, C), scale and shift (C,) -> y like x. Raises ValueError where groups do not divide C.
    """
    N, C = x.shape[0], x.shape[-1]
    if C % groups:
        raise ValueError(f"group_norm: {C} channels cannot be shared out among {groups} groups")
    xp = array_module(x)
    flat = x.reshape(N, prod(x.shape[1:-1]), C)           # (N, pixels, C)
    n = flat.shape[1] * C // groups

    def over_group(per_channel):                          # sums (N, C) -> group means (N, 1, C)
        means = per_channel.reshape(N, groups, C // groups).sum(axis=2) / n
        return means.repeat(C // groups, axis=1)[:, None]

    centred = flat - over_group(flat.sum(axis=1))
    rstd = 1 / xp.sqrt(over_group(xp.einsum("npc,npc->nc", centred, centred)) + eps)

    def vjp(dy):
        dy = dy.reshape(flat.shape)
        dy_sum = dy.sum(axis=1)                           # (N, C)
        dy_x = xp.einsum("npc,npc->nc", dy, centred) * rstd[:, 0]
        dx = dy * (scale * rstd)
        dx -= over_group(dy_sum * scale) * rstd
        dx -= centred * (over_group(dy_x * scale) * rstd * rstd)
        return dx.reshape(x.shape), dy_x.sum(axis=0), dy_sum.sum(axis=0)

    y = centred * (rstd * scale)
    y += shift
    return y.reshape(x.shape), vjp
