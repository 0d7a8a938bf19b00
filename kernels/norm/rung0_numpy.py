"""Rung 0, numpy: the definition, for any kind of float. Every other rung is compared with this one.

Nearly every operator is a pass over memory and an array of its own.
"""

from math import prod

import numpy as np


def measure(xs, groups, eps):
    """The mean and 1 / √(var + eps) of each group, both (N, groups); no pixels have the sum 0."""
    x = in_groups(np.concatenate(xs, axis=-1), groups)
    mean = average(x)
    var = average(np.square(x - mean[:, None, :, None]))
    return mean, 1 / np.sqrt(var + x.dtype.type(eps))


def normalize(x, scale, shift, silu):
    """y = x · scale + shift, or its SiLU: x (N, …, C), scale and shift (N, C) -> y like x"""
    N, *middle, C = x.shape
    each = (N, *[1] * len(middle), C)
    y = x * scale.reshape(each) + shift.reshape(each)
    return y * sigmoid(y) if silu else y


def rows(x, scale, shift, eps):
    """Each row by itself, LayerNorm: x (…, D), scale and shift (D,) -> y like x"""
    return standard(x, eps)[0] * scale + shift


def rows_backward(dy, x, scale, eps):
    """dx like x, dscale and dshift (D,); the row's mean and rstd are computed again."""
    x_hat, rstd = standard(x, eps)
    g = dy * scale
    dx = g - g.mean(axis=-1, keepdims=True)
    dx -= x_hat * (g * x_hat).mean(axis=-1, keepdims=True)
    others = tuple(range(x.ndim - 1))
    return dx * rstd, (dy * x_hat).sum(axis=others), dy.sum(axis=others)


def standard(x, eps):
    """x̂ (…, D), each row of mean 0 and variance 1, and rstd (…, 1)"""
    centred = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + x.dtype.type(eps))
    return centred * rstd, rstd


def backward(dys, xs, scale, shift, mean, rstd, silu):
    """dxs like xs, dscale and dshift (N, C); the caller gives dys up.  docs/derivations/norm.md"""
    groups = mean.shape[1]
    x, dy = (in_groups(np.concatenate(arrays, axis=-1), groups) for arrays in (xs, dys))
    gamma, beta = (in_groups(a, groups) for a in (scale, shift))          # (N, 1, groups, C/groups)
    mean, rstd = (a[:, None, :, None] for a in (mean, rstd))              # (N, 1, groups, 1)
    x_hat = (x - mean) * rstd
    if silu:
        z = x_hat * gamma + beta
        s = sigmoid(z)
        dy = dy * s * (1 + z * (1 - s))
    g = dy * gamma
    dx = rstd * (g - average(g)[:, None, :, None] - x_hat * average(g * x_hat)[:, None, :, None])
    dscale, dshift = (dy * x_hat).sum(axis=1), dy.sum(axis=1)             # (N, groups, C/groups)
    return as_inputs(dx, xs), dscale.reshape(scale.shape), dshift.reshape(shift.shape)


def in_groups(x, groups):
    """(N, …, C) -> (N, pixels, groups, C / groups)"""
    N, *middle, C = x.shape
    return x.reshape(N, prod(middle), groups, C // groups)


def as_inputs(x, xs):
    """(N, pixels, groups, C / groups) -> arrays like xs"""
    channels = [a.shape[-1] for a in xs]
    x = x.reshape(*xs[0].shape[:-1], sum(channels))
    return np.split(x, np.cumsum(channels)[:-1], axis=-1)


def average(x):
    """The mean over pixels and channels of each group: (N, pixels, groups, …) -> (N, groups)"""
    return x.sum(axis=(1, 3)) / x.dtype.type(max(1, x.shape[1] * x.shape[3]))


def sigmoid(z):
    return 0.5 + 0.5 * np.tanh(0.5 * z)                   # no overflow
