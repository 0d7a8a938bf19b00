"""Rung 6, cuda_register: a thread keeps 8 × 8 results in its registers.

Since rung 5: for 8 numbers of either factor that a thread loads from shared memory it does 64
multiply-adds, not 8. A block of 64 threads makes 64 × 64 results, a multiple of 8 apart, so that
the threads of a warp meet neither in a bank nor in a sector. grad_weight, whose sum is as long as
its results are few, is cut into parts that fill the GPU and are added in their order. Prediction:
a quarter of a load for a multiply-add where there were two, which the multipliers can just keep up
with; tiles four times as wide ask L2 for a quarter of the bytes. Up to half of an H100's 67 TFLOP/s
in float32 that does not use tensor cores.
"""

import numpy as np

from ..gpu.arrays import contiguous, empty
from ..gpu.parts import in_parts, sum_parts
from ..gpu.python import cuda, device, kernel
from . import rung1_blas
from .on_device import FORWARD, GRADIENT, MATRIX, fit, forward_by, grad_input_by, grid_over
from .rung5_cuda_shared import beside, number

SIDE = EACH = 8                                           # threads of a block, results of a thread
WIDE = SIDE * EACH                                        # results of a block along either axis
DEEP = 16                                                 # terms of the sums in shared memory
ROOM = DEEP, WIDE + 32 // DEEP                            # so that along() meets no bank twice


@kernel(FORWARD)
def product(x, skip, w, b, add, y):
    left = cuda.shared.array(ROOM, np.float32)            # left[k, i]: term k of row i
    right = cuda.shared.array(ROOM, np.float32)           # right[k, j]: term k of column j
    sums = cuda.local.array((EACH, EACH), np.float32)
    top, start = cuda.blockIdx.x * WIDE, cuda.blockIdx.y * WIDE
    clear(sums)
    for c in range(0, w.shape[0], DEEP):
        along_both(left, x, skip, top, c)
        across(right, w, c, w.shape[0], start)
        multiply(left, right, sums)
    if b.size:
        add_row(sums, b, start)
    if add.size:
        add_tile(sums, add, top, start)
    store(y, top, start, sums)


@kernel(GRADIENT)
def product_wt(dy, w, dx):
    left = cuda.shared.array(ROOM, np.float32)
    right = cuda.shared.array(ROOM, np.float32)
    sums = cuda.local.array((EACH, EACH), np.float32)
    top, start = cuda.blockIdx.x * WIDE, cuda.blockIdx.y * WIDE
    clear(sums)
    for o in range(0, w.shape[1], DEEP):
        along(left, dy, top, o)
        along(right, w, start, o)
        multiply(left, right, sums)
    store(dx, top, start, sums)


@kernel(f"{MATRIX}, {MATRIX}, float32[:,:,::1], int64")
def product_xt(x, dy, parts, each):
    left = cuda.shared.array(ROOM, np.float32)
    right = cuda.shared.array(ROOM, np.float32)
    sums = cuda.local.array((EACH, EACH), np.float32)
    top, start = cuda.blockIdx.x * WIDE, cuda.blockIdx.y * WIDE
    clear(sums)
    part = cuda.blockIdx.z
    end = min(part * each + each, x.shape[0])
    for p in range(part * each, end, DEEP):
        across(left, x, p, end, top)
        across(right, dy, p, end, start)
        multiply(left, right, sums)
    for r in range(EACH):
        for s in range(EACH):
            c, o = top + r * SIDE + cuda.threadIdx.y, start + s * SIDE + cuda.threadIdx.x
            if c < x.shape[1] and o < dy.shape[1]:
                parts[part, c, o] = sums[r, s]


@device
def along(tile, a, row, k):
    """tile[term, i] = a[row + i, k + term]: sums go along a's rows, and threads read along them."""
    thread = cuda.threadIdx.y * SIDE + cuda.threadIdx.x
    term, first = thread % DEEP, thread // DEEP
    for i in range(0, WIDE, SIDE * SIDE // DEEP):
        tile[term, first + i] = number(a, row + first + i, k + term)


@device
def along_both(tile, x, skip, row, k):
    """The same of x with skip beside it."""
    thread = cuda.threadIdx.y * SIDE + cuda.threadIdx.x
    term, first = thread % DEEP, thread // DEEP
    for i in range(0, WIDE, SIDE * SIDE // DEEP):
        tile[term, first + i] = beside(x, skip, row + first + i, k + term)


@device
def across(tile, a, k, end, column):
    """tile[term, j] = a[k + term, column + j] before row `end`: sums go down a's columns."""
    j = cuda.threadIdx.y * SIDE + cuda.threadIdx.x
    for term in range(DEEP):
        inside = k + term < end and column + j < a.shape[1]
        tile[term, j] = a[k + term, column + j] if inside else np.float32(0)


@device
def multiply(left, right, sums):
    """sums += Σ_k left[k, i] right[k, j], for the rows i and the columns j of this thread"""
    cuda.syncthreads()                                    # both tiles are whole
    for k in range(DEEP):
        for r in range(EACH):
            for s in range(EACH):
                sums[r, s] += (left[k, r * SIDE + cuda.threadIdx.y]
                               * right[k, s * SIDE + cuda.threadIdx.x])
    cuda.syncthreads()                                    # nobody needs them any more


@device
def clear(sums):
    for r in range(EACH):
        for s in range(EACH):
            sums[r, s] = np.float32(0)


@device
def add_row(sums, b, start):
    for s in range(EACH):
        j = start + s * SIDE + cuda.threadIdx.x
        more = b[j] if j < b.size else np.float32(0)
        for r in range(EACH):
            sums[r, s] += more


@device
def add_tile(sums, add, top, start):
    for r in range(EACH):
        for s in range(EACH):
            i, j = top + r * SIDE + cuda.threadIdx.y, start + s * SIDE + cuda.threadIdx.x
            if i < add.shape[0] and j < add.shape[1]:
                sums[r, s] += add[i, j]


@device
def store(y, top, start, sums):
    for r in range(EACH):
        for s in range(EACH):
            i, j = top + r * SIDE + cuda.threadIdx.y, start + s * SIDE + cuda.threadIdx.x
            if i < y.shape[0] and j < y.shape[1]:
                y[i, j] = sums[r, s]


forward    = forward_by(product, tile=(WIDE, WIDE), block=(SIDE, SIDE))
grad_input = grad_input_by(product_wt, tile=(WIDE, WIDE), block=(SIDE, SIDE))


def grad_weight(x, dy):
    if isinstance(x, list):
        return np.concatenate([grad_weight(part, dy) for part in x])
    (P, C), O = x.shape, dy.shape[-1]
    if not fit((x, (P, C)), (dy, (P, O))):
        return rung1_blas.grad_weight(x, dy)
    grid = grid_over((C, O), (WIDE, WIDE))
    parts, each = in_parts(P, grid[0] * grid[1], step=DEEP)
    dw = empty((parts, C, O), np.float32, like=dy)
    product_xt[(*grid, parts), (SIDE, SIDE)](*contiguous(x, dy), dw, each)
    return sum_parts(dw)
