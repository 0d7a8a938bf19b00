"""Sums, SiLU and upsampling of arrays: on all threads where arrays are large, else plain NumPy.

    add(x, y) -> x + y                      add_into(x, y) -> x, after x += y
    mul(x, y) -> x · y
    gelu(x) -> x · Φ(x), and gelu_backward(dy, x) -> dx, of an x that is large
    silu(x) -> x · σ(x)                     silu_backward(dy, x) -> dx
    upsample2(x) -> y, each pixel of x (N, H, W, C) four times: (N, 2H, 2W, C)
    upsample2_backward(dy) -> dx, the sums of those four
    sum_pixels(y (N, …, C)) -> (N, C), what a bias of each image sees of a gradient
    sum_rows(y (…, C)) -> (C,), what a bias sees that all images share
    cast(x, dtype) -> x in another type; what has it already stays itself

Large means contiguous float32 of equal shapes, on a GPU also bf16; everything else is right too, as
NumPy or CuPy has it. Sums of bf16 are taken in float32, and those for a bias stay there.
"""

import numpy as np

from ..gpu import arrays
from ..ladder import can_compile

LARGE = 2**15                                             # numbers; below, NumPy is done sooner


def add(x, y):
    return fast(x).add(x, y) if large(x, y, work=4) else x + y


def add_into(x, y):
    if large(x, y, work=4) and getattr(x.flags, "writeable", True):
        fast(x).add(x, y, out=x)
    else:
        x += y
    return x


def mul(x, y):
    return fast(x).mul(x, y) if large(x, y, work=4) else x * y


def gelu(x):
    return fast(x).gelu(x)


def gelu_backward(dy, x):
    """d gelu / dx = Φ(x) + x φ(x)"""
    return fast(x).gelu_backward(dy, x)


def silu(x):
    return fast(x).silu(x) if large(x) else (x * sigmoid(x)).astype(x.dtype, copy=False)


def silu_backward(dy, x):
    """d silu / dx = σ (1 + x (1 − σ))"""
    if large(dy, x):
        return fast(x).silu_backward(dy, x)
    s = sigmoid(x)
    return (dy * (s * (1 + x * (1 - s)))).astype(dy.dtype, copy=False)


def upsample2(x):
    if large(x):
        return fast(x).upsample2(x)
    return x.repeat(2, axis=1).repeat(2, axis=2)


def upsample2_backward(dy):
    N, H, W, C = dy.shape
    if H % 2 or W % 2:
        raise ValueError(f"upsample2: expected an even height and width, got {H} and {W}")
    if large(dy):
        return fast(dy).upsample2_backward(dy)
    return total(dy.reshape(N, H // 2, 2, W // 2, 2, C), (2, 4)).astype(dy.dtype, copy=False)


def sum_pixels(y):
    if not large(y):
        return total(y, tuple(range(1, y.ndim - 1)))
    if arrays.on_device(y):
        return fast(y).sum_pixels(y)
    from . import pixels
    return pixels.sum_pixels(y.reshape(len(y), -1, y.shape[-1]))


def sum_rows(y):
    if arrays.on_device(y) and large(y):
        return fast(y).sum_pixels(y.reshape(1, -1, y.shape[-1]))[0]
    return sum_pixels(y if y.ndim > 2 else y[None]).sum(axis=0)


def cast(x, dtype):
    if x.dtype == dtype:
        return x
    return fast(x).cast(x, dtype) if arrays.on_device(x) and large(x) else x.astype(dtype)


def total(x, axes):
    """Σ x over these axes, in float32 at least"""
    return x.sum(axis=axes, dtype=np.promote_types(x.dtype, np.float32))


def sigmoid(x):
    return 0.5 + 0.5 * np.tanh(0.5 * x)                   # never overflows


def large(*operands, work=16):
    """Whether threads pay; a sum is so little work that memory sets its pace. A GPU always does."""
    first = operands[0]
    if arrays.on_device(first):
        return fast(first).takes(*operands)
    return type(first) is np.ndarray and first.size * work >= LARGE * 16 and can_compile() and all(
        type(a) is np.ndarray and a.dtype == np.float32 and a.flags.c_contiguous
        and a.shape == first.shape for a in operands)


def fast(x):
    """The module for large arrays where x lies, imported when first needed."""
    if arrays.on_device(x):
        from . import on_device
        return on_device
    from . import parallel
    return parallel
