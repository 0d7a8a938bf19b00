"""Rung 5, cuda_shared: a block of threads reads a tile once for all of them.

Since rung 4: 16 × 16 threads fetch 16 × 16 numbers of either factor into shared memory, each one of
each, wait for one another, and then all of them multiply from there. So a number comes from afar
once for 16 results, not for one. What is transposed is fetched along its rows all the same, and
turned by the index afterwards. Prediction: a sixteenth of rung 4's traffic with L1 and L2; now two
loads from shared memory for each multiply-add set the pace, an eighth of that of the multipliers:
about 8 TFLOP/s on an H100.
"""

import numpy as np

from ..gpu.python import cuda, device, kernel
from .on_device import FORWARD, GRADIENT, forward_by, grad_input_by, grad_weight_by

SIDE  = 16
TILE  = SIDE, SIDE                                        # results of a block; numbers of a tile
APART = SIDE, SIDE + 1                                    # a tile whose columns lie in 16 banks


@kernel(FORWARD)
def product(x, skip, w, b, add, y):
    left = cuda.shared.array(TILE, np.float32)
    right = cuda.shared.array(TILE, np.float32)
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    top, start = cuda.blockIdx.x * SIDE, cuda.blockIdx.y * SIDE
    total = np.float32(0)
    for c in range(0, w.shape[0], SIDE):
        left[i, j] = beside(x, skip, top + i, c + j)
        right[i, j] = number(w, c + i, start + j)
        cuda.syncthreads()                                # both tiles are whole
        for k in range(SIDE):
            total += left[i, k] * right[k, j]
        cuda.syncthreads()                                # nobody needs them any more
    p, o = top + i, start + j
    if p < y.shape[0] and o < y.shape[1]:
        if b.size:
            total += b[o]
        if add.size:
            total += add[p, o]
        y[p, o] = total


@kernel(GRADIENT)
def product_wt(dy, w, dx):
    left = cuda.shared.array(TILE, np.float32)
    right = cuda.shared.array(APART, np.float32)
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    top, start = cuda.blockIdx.x * SIDE, cuda.blockIdx.y * SIDE
    total = np.float32(0)
    for o in range(0, w.shape[1], SIDE):
        left[i, j] = number(dy, top + i, o + j)
        right[i, j] = number(w, start + i, o + j)         # wᵀ: a row of w for each column of dx
        cuda.syncthreads()
        for k in range(SIDE):
            total += left[i, k] * right[j, k]
        cuda.syncthreads()
    if top + i < dx.shape[0] and start + j < dx.shape[1]:
        dx[top + i, start + j] = total


@kernel(GRADIENT)
def product_xt(x, dy, dw):
    left = cuda.shared.array(TILE, np.float32)
    right = cuda.shared.array(TILE, np.float32)
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    top, start = cuda.blockIdx.x * SIDE, cuda.blockIdx.y * SIDE
    total = np.float32(0)
    for p in range(0, x.shape[0], SIDE):
        left[i, j] = number(x, p + i, top + j)            # xᵀ: a column of x for each row of dw
        right[i, j] = number(dy, p + i, start + j)
        cuda.syncthreads()
        for k in range(SIDE):
            total += left[k, i] * right[k, j]
        cuda.syncthreads()
    if top + i < dw.shape[0] and start + j < dw.shape[1]:
        dw[top + i, start + j] = total


@device
def number(a, i, j):
    """a[i, j], or the zero that stands around it"""
    return a[i, j] if i < a.shape[0] and j < a.shape[1] else np.float32(0)


@device
def beside(x, skip, p, c):
    """Column c of x with skip beside it."""
    return number(x, p, c) if c < x.shape[1] else number(skip, p, c - x.shape[1])


forward     = forward_by(product, TILE, block=TILE)
grad_input  = grad_input_by(product_wt, TILE, block=TILE)
grad_weight = grad_weight_by(product_xt, TILE, block=TILE)
