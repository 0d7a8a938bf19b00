"""Rung 2, numba: the windows are laid out in the thread's cache, next to a multiplication of ours.

Since rung 1: the matrix of windows, K·K' times the input, is never written to memory. A thread
lays out as many rows as its cache holds (direct.py), multiplies them there by micro-kernels that
Numba compiles, and drops them. All threads work on one convolution. Prediction: of rung 1's
(K·K' + 1)·4 bytes an element some 8 remain; the rest is 2·K·K'·C·O FLOPs a pixel at nearly the
speed of the multipliers.

A fused convolution is a 3 × 3 one with "same" padding that takes its neighbours along: on the way
in silu(x · scale + shift), a GroupNorm applied; on the way out bias, time and residual.
"""

from ..door import contiguous, given, sides, single, up, whole_panels
from ..memory import empty
from ..simd.functions import WIDTH
from ..simd.pool import run, threads
from ..simd.product import PANEL, ROWS
from . import direct, rung1_im2col
from .rung0_loops import out_shape

SEAM = WIDTH                                              # two inputs meet at a multiple of it
SAME = ((1, 1), (1, 1))                                   # padding that keeps the size, for K = 3

CACHE = 1 << 17                                           # floats of windows a thread holds: 512 KB
PARTS = 16                                                # a sum over all pixels is cut into these


def forward(x, w, stride, padding, b=None):
    if not single(x, w, b):
        return rung1_im2col.forward(x, w, stride, padding, b)
    x, w = contiguous(x, w)
    return convolve([x], pack(w), w.shape, stride, padding, base=b)[0]


def grad_input(dy, w, x_shape, stride, padding):
    if not single(dy, w):
        return rung1_im2col.grad_input(dy, w, x_shape, stride, padding)
    dy, w = contiguous(dy, w)
    K, L, C, O = w.shape
    dy, around = rung1_im2col.spread(dy, w.shape, x_shape, stride, padding)
    return convolve([dy], pack(w, turned=True), (K, L, O, C), 1, around)[0]


def grad_weight(dy, x, w_shape, stride, padding):
    if not single(dy, x):
        return rung1_im2col.grad_weight(dy, x, w_shape, stride, padding)
    dy, x = contiguous(dy, x)
    return weight_gradient([x], dy, w_shape, stride, padding)


def fused(xs, w, *, scale=None, shift=None, base=None, add=None, keep=False):
    packed = pack(w)
    return convolve(xs, packed, w.shape, 1, SAME, scale=scale, shift=shift, base=base, add=add)[0]


def fused_grad_input(dy, w, *, split=None):
    K, L, C, O = w.shape
    return convolve([dy], pack(w, turned=True), (K, L, O, C), 1, SAME, split=split)


def fused_grad_weight(dy, xs, *, scale=None, shift=None):
    C = sum(x.shape[3] for x in xs)
    return weight_gradient(xs, dy, (3, 3, C, dy.shape[3]), 1, SAME, scale=scale, shift=shift)


def blocks(depth, wide, deep, most):
    """(rows of results a band, bands an image, bands a block): what fits in the cache."""
    wide, deep, most = max(1, wide), max(1, deep), max(ROWS, min(most, CACHE // depth))
    count = -(-deep // max(1, min(deep, most // wide)))
    high = -(-deep // count)
    return high, count, max(most // (high * wide), 1)


def convolve(xs, packed, w_shape, stride, padding, *, scale=None, shift=None, base=None, add=None,
             split=None):
    """[y (N, H', W', O)] from xs, one or two inputs side by side, and packed weights.

    scale, shift (N, C): y is of silu(x · scale + shift). base, (O,) or (N, O), and add, like y,
    are added. split = O1: two arrays instead, of O1 and of O − O1 channels.
    """
    x, skip, C1, C2 = sides(xs)
    K, L, C, O = w_shape
    N, H, W, _ = x.shape
    _, deep, wide, _ = out_shape((N, H, W, C), w_shape, stride, padding)
    y = [empty((N, deep, wide, width)) for width in ([split, O - split] if split else [O])]
    depth = K * L * C
    high, count, units = blocks(depth, wide, deep, min(96, -(-N * deep * wide // threads())))
    T = up(units * high * wide, ROWS)
    size = scratch_of(T, depth, high, wide, w_shape, stride)
    run(direct.forward, -(-N * count // units), x, skip, C1, C2, given(scale), given(shift), packed,
        given(whole_panels(base, N, O)), given(add), y[0], y[-1], split or O, O, N, H, W, K, L,
        stride, padding[0][0], padding[1][0], deep, wide, high, count, units, T,
        empty(threads() * size), size)
    return y


def weight_gradient(xs, dy, w_shape, stride, padding, *, scale=None, shift=None):
    """dw (K, L, C, O) for the convolution of xs, or of silu(x · scale + shift)."""
    x, skip, C1, C2 = sides(xs)
    K, L, C, O = w_shape
    N, H, W, _ = x.shape
    _, deep, wide, _ = dy.shape
    depth, panels = K * L * C, up(O, PANEL) // PANEL
    high, count, units = blocks(depth, wide, deep, 96)
    splits = max(1, min(PARTS // panels, N * count))
    T = units * high * wide
    size = scratch_of(T, depth, high, wide, w_shape, stride)
    sums, dw = empty((splits * panels * up(depth, ROWS) * PANEL,)), empty(w_shape)
    run(direct.products, splits * panels, x, skip, C1, C2, given(scale), given(shift), dy, O, sums,
        splits, N, H, W, K, L, stride, padding[0][0], padding[1][0], deep, wide, high, count, T,
        empty(threads() * size), size)
    run(direct.collect, depth, sums, dw, depth, O, splits)
    return dw


def scratch_of(T, depth, high, wide, w_shape, stride):
    """The floats a thread holds: T windows and results, and the piece of image they come from."""
    K, L, C, _ = w_shape
    return up(T * (up(depth, 16) + 16 + PANEL)
              + ((high - 1) * stride + K) * ((wide - 1) * stride + L) * C + 16, 16)


def pack(w, *, turned=False):
    """The weights (K, L, C, O) as panels, or turned around with C and O exchanged."""
    w = given(w)
    K, L, C, O = w.shape
    start, strides = w, (L * C * O, C * O, O, 1)          # of row, column, C, O
    if turned:
        start = w.ctypes.data + 4 * (K * L - 1) * C * O   # from the last tap backwards
        strides, C, O = (-L * C * O, -C * O, 1, O), O, C
    depth = K * L * C
    packed = empty((up(O, PANEL) // PANEL, depth, PANEL))
    run(direct.panels, len(packed) * K * L, start, *strides, L, C, O, packed, depth,
        empty((threads(), 2, WIDTH, WIDTH)))
    return packed
