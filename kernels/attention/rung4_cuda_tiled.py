"""Rung 4, cuda_tiled: 16 queries of a block share every tile of keys and values.

Since rung 3: 16 × 16 threads make 16 × 16 scores at a time. What they multiply, they fetch into
shared memory, a slab of 16 columns of 16 queries and of 16 keys, and each reads it from there; then
the weights lie there for the product with the values. The softmax needs but eight shuffles for a
tile: a query's 16 scores lie side by side in half a warp. y stays in shared memory until all keys
are seen. The way back owns rows as rung 3 does. Prediction: a number comes from the caches once for
16 queries, not for each; two loads from shared memory for a multiply-add set the pace, at most
8 TFLOP/s on an H100.
"""

import math

import numpy as np

from ..gpu.python import cuda, device, kernel
from . import rung2_cuda_naive
from .on_device import ROWS, SUMS, WIDEST, backward_with, forward_with
from .rung2_cuda_naive import HIDDEN, finite, grad_bias

__all__ = ["backward", "forward", "grad_bias"]
SIDE = 16
ROOM = SIDE, SIDE + 1                                     # a column's numbers in different banks
WIDE = SIDE, WIDEST + SIDE                                # so do those of two rows side by side
ALL = 0xFFFFFFFF                                          # lanes


@kernel(f"{ROWS}, {ROWS}, {ROWS}, {ROWS}, float32, {ROWS}, {SUMS}")
def attend(q, k, v, more, scale, y, log_sum):
    left = cuda.shared.array(ROOM, np.float32)            # a slab of q; then weights
    right = cuda.shared.array(ROOM, np.float32)           # a slab of k; then one of v
    sums = cuda.shared.array(WIDE, np.float32)            # of y; a thread has every 16th of a row
    n, h, start = cuda.blockIdx.z, cuda.blockIdx.y, cuda.blockIdx.x * SIDE
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    clear(sums, v.shape[3])
    top, total = HIDDEN, np.float32(0)
    for m in range(0, k.shape[2], SIDE):
        s = fit(left, right, q, k, n, h, start, m) * scale
        s += number(more, n, h, start + i, m + j, HIDDEN)
        high = highest(s)
        high = high if high > top else top
        fade, p = math.exp(top - finite(high)), math.exp(s - finite(high))
        top, total = high, total * fade + added_up(p)
        left[i, j] = p
        for c in range(j, v.shape[3], SIDE):
            sums[i, c] = sums[i, c] * fade
        mix(left, right, sums, v, n, h, m)
    share = np.float32(1) / total if total != 0 else np.float32(0)
    store(y, n, h, start + i, sums, share)
    if j == 0 and start + i < q.shape[2]:
        log_sum[n, h, start + i] = finite(top) + math.log(total)


@kernel(f"{ROWS}, {ROWS}, {ROWS}, {ROWS}, {ROWS}, {ROWS}, {ROWS}, float32, {ROWS}")
def slopes(a, b, c, d, more, log_sum, mean, scale, z):
    """z = ds c · scale, for ds = p · (b dᵀ − mean)"""
    left = cuda.shared.array(ROOM, np.float32)
    right = cuda.shared.array(ROOM, np.float32)
    sums = cuda.shared.array(WIDE, np.float32)
    n, h, start = cuda.blockIdx.z, cuda.blockIdx.y, cuda.blockIdx.x * SIDE
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    clear(sums, c.shape[3])
    for m in range(0, c.shape[2], SIDE):
        s = fit(left, right, a, c, n, h, start, m) * scale
        s += number(more, n, h, start + i, m + j, HIDDEN)
        p = math.exp(s - finite(number(log_sum, n, h, start + i, m + j, HIDDEN)))
        dp = fit(left, right, b, d, n, h, start, m)
        left[i, j] = p * (dp - number(mean, n, h, start + i, m + j, np.float32(0)))
        mix(left, right, sums, c, n, h, m)
    store(z, n, h, start + i, sums, scale)


@kernel(f"{ROWS}, {ROWS}, {ROWS}, {ROWS}, {ROWS}, float32, {ROWS}")
def weigh(a, c, d, more, log_sum, scale, z):
    """z = p d"""
    left = cuda.shared.array(ROOM, np.float32)
    right = cuda.shared.array(ROOM, np.float32)
    sums = cuda.shared.array(WIDE, np.float32)
    n, h, start = cuda.blockIdx.z, cuda.blockIdx.y, cuda.blockIdx.x * SIDE
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    clear(sums, d.shape[3])
    for m in range(0, c.shape[2], SIDE):
        s = fit(left, right, a, c, n, h, start, m) * scale
        s += number(more, n, h, start + i, m + j, HIDDEN)
        left[i, j] = math.exp(s - finite(number(log_sum, n, h, start + i, m + j, HIDDEN)))
        mix(left, right, sums, d, n, h, m)
    store(z, n, h, start + i, sums, np.float32(1))


@device
def number(a, n, h, i, j, other):
    """a[n, h, i, j], or `other` outside"""
    return a[n, h, i, j] if i < a.shape[2] and j < a.shape[3] else other


@device
def fit(left, right, x, y, n, h, start, m):
    """This thread's number of x yᵀ, for row start + threadIdx.y of x and m + threadIdx.x of y"""
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    total = np.float32(0)
    for c in range(0, x.shape[3], SIDE):
        cuda.syncthreads()                                # nobody needs what was there any more
        left[i, j] = number(x, n, h, start + i, c + j, np.float32(0))
        right[i, j] = number(y, n, h, m + i, c + j, np.float32(0))
        cuda.syncthreads()                                # both slabs are whole
        for k in range(SIDE):
            total += left[i, k] * right[j, k]
    cuda.syncthreads()
    return total


@device
def mix(p, slab, sums, x, n, h, m):
    """sums += p · rows m … of x, slab after slab of columns"""
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    for c in range(0, x.shape[3], SIDE):
        slab[i, j] = number(x, n, h, m + i, c + j, np.float32(0))
        cuda.syncthreads()                                # p and slab are whole
        total = np.float32(0)
        for k in range(SIDE):
            total += p[i, k] * slab[k, j]
        sums[i, c + j] += total
        cuda.syncthreads()


@device
def highest(s):
    """The highest of a query's 16 scores"""
    for lanes in (8, 4, 2, 1):
        other = cuda.shfl_xor_sync(ALL, s, lanes)
        s = other if other > s else s
    return s


@device
def added_up(p):
    for lanes in (8, 4, 2, 1):
        p += cuda.shfl_xor_sync(ALL, p, lanes)
    return p


@device
def clear(sums, columns):
    for c in range(0, columns, SIDE):
        sums[cuda.threadIdx.y, c + cuda.threadIdx.x] = np.float32(0)


@device
def store(y, n, h, i, sums, factor):
    """y[n, h, i] = sums · factor, where y has such a row"""
    for c in range(cuda.threadIdx.x, y.shape[3], SIDE):
        if i < y.shape[2]:
            y[n, h, i, c] = sums[cuda.threadIdx.y, c] * factor


forward  = forward_with(attend, SIDE, (SIDE, SIDE), rung2_cuda_naive)
backward = backward_with(slopes, weigh, SIDE, (SIDE, SIDE), rung2_cuda_naive)
