"""Ops that make one number of many: sums, means, extremes, softmax."""

from math import prod

import numpy as np

from tinydiff.autograd.tensor import op
from tinydiff.backend import array_module


@op
def sum(x, *, axis=None, keepdims=False):
    """Σ x over `axis` (an int, several, or None for all)"""
    xp = array_module(x)

    def vjp(dy):
        return (xp.broadcast_to(spread(dy, x, axis, keepdims), x.shape),)

    return x.sum(axis=axis, keepdims=keepdims), vjp


@op
def mean(x, *, axis=None, keepdims=False):
    """The average over `axis`"""
    xp = array_module(x)
    n = count(x, axis)

    def vjp(dy):
        dx = (dy / n).astype(dy.dtype, copy=False)        # bf16 / n would be wider
        return (xp.broadcast_to(spread(dx, x, axis, keepdims), x.shape),)

    y = x.mean(axis=axis, keepdims=keepdims, dtype=np.promote_types(x.dtype, np.float32))
    return y.astype(x.dtype, copy=False), vjp


@op
def var(x, *, axis=None, keepdims=False):
    """mean((x − mean(x))²) over `axis`"""
    away = x - x.mean(axis=axis, keepdims=True)
    n = count(x, axis)

    def vjp(dy):                                          # the mean's own share sums to zero
        return (spread(dy, x, axis, keepdims) * away * (2 / n),)

    return (away * away).mean(axis=axis, keepdims=keepdims), vjp


@op
def max(x, *, axis=None, keepdims=False):
    """The largest over `axis`; equal ones share the gradient"""
    y = x.max(axis=axis, keepdims=True)

    def vjp(dy):
        winners = (x == y).astype(x.dtype)
        return (spread(dy, x, axis, keepdims) * winners / winners.sum(axis=axis, keepdims=True),)

    return (y if keepdims else x.max(axis=axis)), vjp


@op
def softmax(x, *, axis=-1):
    """e^x / Σ e^x over one axis.  docs/derivations/softmax.md"""
    y = softmax_array(x, axis)

    def vjp(dy):
        return (y * (dy - (dy * y).sum(axis=axis, keepdims=True)),)

    return y, vjp


@op
def logsumexp(x, *, axis=-1, keepdims=False):
    """log Σ e^x over `axis`"""
    xp = array_module(x)
    top = x.max(axis=axis, keepdims=True)
    e = xp.exp(x - top)
    total = e.sum(axis=axis, keepdims=True)
    y = xp.log(total) + top

    def vjp(dy):
        return (spread(dy, x, axis, keepdims) * e / total,)

    return (y if keepdims else y.squeeze(axis)), vjp


def softmax_array(x, axis=-1):
    """softmax on arrays; e⁰ is the largest power taken"""
    with np.errstate(under="ignore"):                     # e⁻¹⁰⁰⁰ is zero, and may be
        e = array_module(x).exp(x - x.max(axis=axis, keepdims=True))
        e /= e.sum(axis=axis, keepdims=True)
    return e


def spread(dy, x, axis, keepdims):
    """dy with the reduced axes put back as axes of length 1."""
    if keepdims:
        return dy
    axes = every(axis, x.ndim)
    return dy.reshape(tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def count(x, axis):
    """How many numbers of x fall together."""
    return prod(x.shape[i] for i in every(axis, x.ndim))


def every(axis, ndim):
    """`axis` as a tuple of axes counted from the front."""
    axes = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return tuple(i % ndim for i in axes)
