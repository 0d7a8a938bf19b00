"""Rung 1, im2col: lay every window out as a row, and the convolution is one matrix product.

Since rung 0: the K·K'·C inputs of an output become one row of a matrix `columns`, so BLAS does all
the arithmetic. Channels-last makes each window K runs of K'·C neighbouring numbers: the copy moves
whole cache lines. Prediction: each input is written K·K' times, (K·K' + 1)·4 bytes an element, for
2·K·K'·O FLOPs; from O = 32 on the product outweighs the copy. A few images at a time keep the
columns in the cache.
"""

import sys
from math import prod

import numpy as np

from .rung0_loops import out_shape

COLUMNS = 2**21                                           # numbers held at a time: 8 MB in float32


def forward(x, w, stride, padding, b=None):
    y = np.zeros(out_shape(x.shape, w.shape, stride, padding), x.dtype, like=x)
    O = w.shape[-1]
    for part, cols in columns(x, w.shape, stride, padding):
        np.matmul(cols, w.reshape(-1, O), out=y[part].reshape(-1, O))
    if b is not None:
        y += b
    return y


def grad_input(dy, w, x_shape, stride, padding):
    """A convolution again: dy, spread out by the stride, with w turned around."""
    if not dy.size:
        return np.zeros(x_shape, dy.dtype, like=dy)
    dy, around = spread(dy, w.shape, x_shape, stride, padding)
    return forward(dy, w[::-1, ::-1].swapaxes(2, 3).copy(), 1, around)


def grad_weight(dy, x, w_shape, stride, padding):
    dw = np.zeros((prod(w_shape[:3]), w_shape[3]), dy.dtype, like=dy)
    for part, cols in columns(x, w_shape, stride, padding):
        dw += cols.T @ dy[part].reshape(-1, w_shape[3])
    return dw.reshape(w_shape)


def columns(x, w_shape, stride, padding):
    """Yield (slice of images, their windows as rows (n·H'·W', K·K'·C)), a few images at a time."""
    K, L, C, _ = w_shape
    N, H, W, _ = out_shape(x.shape, w_shape, stride, padding)
    if 0 in (H, W, *w_shape):
        return                                            # there is nothing to sum
    x = pad(x, padding)
    sN, sH, sW, sC = x.strides
    tricks = sys.modules[type(x).__module__].lib.stride_tricks        # NumPy's, or CuPy's
    windows = tricks.as_strided(x, (N, H, W, K, L * C), (sN, sH * stride, sW * stride, sH, sC))
    step = max(1, COLUMNS // max(1, H * W * K * L * C))
    for n in range(0, N, step):
        part = slice(n, n + step)
        yield part, windows[part].reshape(-1, K * L * C)


def pad(x, padding):
    """x with a border of zeros (cropped where negative), contiguous."""
    (top, bottom), (left, right) = padding
    N, H, W, C = x.shape
    if top == bottom == left == right == 0:
        return x if x.flags.c_contiguous else x.copy()
    out = np.zeros((N, H + top + bottom, W + left + right, C), x.dtype, like=x)
    inside = out[:, max(top, 0):, max(left, 0):]
    source = x[:, max(-top, 0):, max(-left, 0):]
    h, w = min(inside.shape[1], source.shape[1]), min(inside.shape[2], source.shape[2])
    inside[:, :h, :w] = source[:, :h, :w]
    return out


def spread(dy, w_shape, x_shape, stride, padding):
    """dy spread out by the stride, and the padding with which its windows make x's shape again."""
    _, H, W, _ = x_shape
    (top, _), (left, _) = padding
    dy = dilate(dy, stride, *((n - 1) * stride + 1 for n in dy.shape[1:3]))
    return dy, ((w_shape[0] - 1 - top,  H + top - dy.shape[1]),
                (w_shape[1] - 1 - left, W + left - dy.shape[2]))


def dilate(dy, stride, H, W):
    """dy with stride − 1 zeros between neighbours, and behind them up to H × W."""
    if stride == 1:
        return dy
    out = np.zeros((len(dy), H, W, dy.shape[3]), dy.dtype, like=dy)
    out[:, ::stride, ::stride] = dy
    return out
