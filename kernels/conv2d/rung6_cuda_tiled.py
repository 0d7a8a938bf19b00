"""Rung 6, cuda_tiled: a tile of pixels with its halo stays in shared memory for all its taps.

Since rung 5: a block of 256 threads makes 8 × 8 pixels of 64 channels. For some 32 channels of x at
a time it fetches the pixels that the tile's windows meet, the halo with them, once instead of K·K'
times. A thread has 16 results, 8 pixels of a row in two channels: with 8 numbers of x from shared
memory and two of w it does 16 multiply-adds. Prediction: 10 loads for 16 multiply-adds where there
were 32, so some 25 TFLOP/s of an H100's 67 where O ≥ 64 and images are at least 8 × 8.

The gradient for the input is a convolution again, of dy with w turned around; where the stride is 2
dy is spread out in shared memory, and three of four multiplications are with zeros. The gradient
for the weights takes 64 × 64 of them under one tap and goes through dy by 8 pixels of a row; rows
are shared out among blocks in parts that fill the GPU, whose sums are added in their order.
"""

import numpy as np

from ..gpu.arrays import contiguous, empty
from ..gpu.parts import in_parts, sum_parts
from ..gpu.python import cuda, device, kernel
from ..matmul.on_device import ROW, fit, given
from . import rung5_cuda_naive
from .rung0_loops import out_shape
from .rung5_cuda_naive import IMAGES, NUMBERS, corner, fits

ROWS, LANES = 8, 32                                       # a warp makes a row of a tile
EACH  = ROWS                                              # its pixels, which a thread all makes
WIDE  = 2 * LANES                                         # channels of a tile, two a thread
SLAB  = 32                                                # channels of x held at a time, at most
ROOM  = 8192                                              # numbers of x held at a time: 32 KB
BLOCK = LANES, ROWS


@kernel(f"{IMAGES}, {IMAGES}, {ROW}, {NUMBERS}, int64, int64, {IMAGES}")
def convolve(x, w, b, stride, top, left, spread, slab, y):
    """y = x * w; between x's pixels stand spread − 1 zeros.  slab: channels that fit in ROOM."""
    pixels = cuda.shared.array(ROOM, np.float32)          # (rows, columns, slab)
    sums = cuda.local.array((EACH, 2), np.float32)
    down, across = -(-y.shape[1] // ROWS), -(-y.shape[2] // EACH)
    n, tile = cuda.blockIdx.x // (down * across), cuda.blockIdx.x % (down * across)
    i0, j0 = tile // across * ROWS, tile % across * EACH
    o = cuda.blockIdx.y * WIDE + cuda.threadIdx.x
    columns = (EACH - 1) * stride + w.shape[1]

    clear(sums)
    for c in range(0, x.shape[3], slab):
        fetch(pixels, x, n, i0 * stride - top, j0 * stride - left, c, spread, slab,
              (ROWS - 1) * stride + w.shape[0], columns)
        cuda.syncthreads()                                # pixels are there
        for u in range(w.shape[0]):
            for v in range(w.shape[1]):
                here = ((cuda.threadIdx.y * stride + u) * columns + v) * slab
                for k in range(min(slab, x.shape[3] - c)):
                    w1 = w[u, v, c + k, o] if o < w.shape[3] else np.float32(0)
                    w2 = w[u, v, c + k, o + LANES] if o + LANES < w.shape[3] else np.float32(0)
                    for e in range(EACH):
                        number = pixels[here + e * stride * slab + k]
                        sums[e, 0] += number * w1
                        sums[e, 1] += number * w2
        cuda.syncthreads()                                # nobody needs them any more

    i = i0 + cuda.threadIdx.y
    for half in range(2):
        channel = o + half * LANES
        for e in range(EACH):
            if i < y.shape[1] and j0 + e < y.shape[2] and channel < y.shape[3]:
                more = b[channel] if b.size else np.float32(0)
                y[n, i, j0 + e, channel] = sums[e, half] + more


@device
def fetch(pixels, x, n, top, left, c, spread, slab, rows, columns):
    """Put rows × columns pixels from (top, left) on, channels c …, into shared memory."""
    k = cuda.threadIdx.x
    for r in range(cuda.threadIdx.y, rows, ROWS):
        p, between = (top + r) // spread, (top + r) % spread
        row_inside = between == 0 and 0 <= p < x.shape[1] and c + k < x.shape[3]
        q, between = left // spread, left % spread
        for s in range(columns):
            inside = row_inside and between == 0 and 0 <= q < x.shape[2]
            number = x[n, p, q, c + k] if inside else np.float32(0)
            if k < slab:
                pixels[(r * columns + s) * slab + k] = number
            between += 1
            if between == spread:                         # here a division would take longer
                q, between = q + 1, 0


@kernel(f"{IMAGES}, {IMAGES}, {NUMBERS}, int64, int64, float32[:,:,:,::1]")
def correlate(dy, x, stride, top, left, L, each, parts):
    """parts[part, tap, c, o] = Σ x · dy under a tap, over `each` rows of dy's images."""
    left_side = cuda.shared.array((EACH, WIDE), np.float32)       # pixels of x, channels
    right_side = cuda.shared.array((EACH, WIDE), np.float32)      # pixels of dy, channels
    sums = cuda.local.array((EACH, 2), np.float32)
    H, W = dy.shape[1], dy.shape[2]
    wide = -(-x.shape[3] // WIDE)
    tap, c0 = cuda.blockIdx.x // wide, cuda.blockIdx.x % wide * WIDE
    o0, part = cuda.blockIdx.y * WIDE, cuda.blockIdx.z

    clear(sums)
    for row in range(part * each, min(part * each + each, dy.shape[0] * H)):
        n, i = row // H, row % H
        p = i * stride + tap // L - top
        for j0 in range(0, W, EACH):
            j = j0 + cuda.threadIdx.y
            q = j * stride + tap % L - left
            inside = j < W and 0 <= p < x.shape[1] and 0 <= q < x.shape[2]
            take(left_side, x, n, p, q, c0, inside)
            take(right_side, dy, n, i, j, o0, inside)
            cuda.syncthreads()
            for k in range(EACH):
                dy1, dy2 = right_side[k, cuda.threadIdx.x], right_side[k, cuda.threadIdx.x + LANES]
                for e in range(EACH):
                    number = left_side[k, cuda.threadIdx.y * EACH + e]
                    sums[e, 0] += number * dy1
                    sums[e, 1] += number * dy2
            cuda.syncthreads()

    for half in range(2):
        o = o0 + half * LANES + cuda.threadIdx.x
        for e in range(EACH):
            c = c0 + cuda.threadIdx.y * EACH + e
            if c < x.shape[3] and o < dy.shape[3]:
                parts[part, tap, c, o] = sums[e, half]


@device
def take(side, x, n, p, q, c, inside):
    """A pixel of x for each warp, 64 of its channels: side[warp, k] = x[n, p, q, c + k]"""
    for k in range(cuda.threadIdx.x, WIDE, LANES):
        there = inside and c + k < x.shape[3]
        side[cuda.threadIdx.y, k] = x[n, p, q, c + k] if there else np.float32(0)


@device
def clear(sums):
    for e in range(EACH):
        sums[e, 0] = sums[e, 1] = np.float32(0)


def forward(x, w, stride, padding, b=None):
    shape = out_shape(x.shape, w.shape, stride, padding)
    if not (fits(x, w, shape, b) and slab_of(w, stride)):
        return rung5_cuda_naive.forward(x, w, stride, padding, b)
    return convolution(x, w, b, stride, corner(padding), 1, shape)


def grad_input(dy, w, x_shape, stride, padding):
    K, L, _, _ = w.shape
    if not (fits(dy, w.swapaxes(2, 3), x_shape) and slab_of(w, 1)):
        return rung5_cuda_naive.grad_input(dy, w, x_shape, stride, padding)
    top, left = corner(padding)
    return convolution(dy, w[::-1, ::-1].swapaxes(2, 3), None, 1, (K - 1 - top, L - 1 - left),
                       stride, x_shape)


def grad_weight(dy, x, w_shape, stride, padding):
    K, L, C, O = w_shape
    if not fit((dy, (len(x), *dy.shape[1:3], O)), (x, (*x.shape[:3], C))):
        return rung5_cuda_naive.grad_weight(dy, x, w_shape, stride, padding)
    wide, high = K * L * -(-C // WIDE), -(-O // WIDE)     # blocks
    parts, each = in_parts(len(dy) * dy.shape[1], wide * high, step=1)
    dw = empty((parts, K * L, C, O), np.float32, like=dy)
    correlate[(wide, high, parts), BLOCK](*contiguous(dy, x), stride, *corner(padding), L, each, dw)
    return sum_parts(dw).reshape(w_shape)


def slab_of(w, stride):
    """How many channels of a tile's pixels fit in shared memory; 0 for too large a window."""
    K, L, _, _ = w.shape
    return min(SLAB, ROOM // (((ROWS - 1) * stride + K) * ((EACH - 1) * stride + L)))


def convolution(x, w, b, stride, corner, spread, shape):
    y = empty(shape, np.float32, like=x)
    N, H, W, O = shape
    grid = N * -(-H // ROWS) * -(-W // EACH), -(-O // WIDE)
    convolve[grid, BLOCK](*contiguous(x, w), given(b, 1, x), stride, *corner, spread,
                          slab_of(w, stride), y)
    return y
