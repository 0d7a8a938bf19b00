"""Rung 3, cuda_online: a warp goes along the keys with a query, and no score is written.

Since rung 2: the 32 lanes of a warp hold a query and its y, each every 32nd number, and read a
key's row side by side; five shuffles add up what they multiplied. The highest score so far and the
sum of e^(s − highest) run along as in rung 1. On the way back a warp owns a query for its dq, or a
key for its dk and dv, and finds the scores again. Prediction: no bytes of scores, and rows of k in
lines of 128 bytes, not one number of each; but the 4 d FLOPs of a score wait for 5 shuffles, one
after another, and each warp reads all keys and values for itself, 4 M (d + e) bytes a query from
the caches.
"""

import math

import numpy as np

from ..gpu.python import cuda, device, kernel
from . import rung2_cuda_naive
from .on_device import ROWS, SUMS, WIDEST, backward_with, forward_with
from .rung2_cuda_naive import HIDDEN, finite, grad_bias

__all__ = ["backward", "forward", "grad_bias"]
WARP, WARPS = 32, 4                                       # lanes, and warps of a block
EACH = WIDEST // WARP                                     # numbers of a row that a lane may have
ALL = 0xFFFFFFFF                                          # lanes


@kernel(f"{ROWS}, {ROWS}, {ROWS}, {ROWS}, float32, {ROWS}, {SUMS}")
def attend(q, k, v, more, scale, y, log_sum):
    mine = cuda.local.array(EACH, np.float32)
    sums = cuda.local.array(EACH, np.float32)
    n, h, l = cuda.blockIdx.z, cuda.blockIdx.y, cuda.blockIdx.x * WARPS + cuda.threadIdx.y
    if l >= q.shape[2]:
        return                                            # the whole warp
    take_row(mine, q, n, h, l)
    clear(sums)
    top, total = HIDDEN, np.float32(0)
    for m in range(k.shape[2]):
        s = dot(mine, k, n, h, m) * scale + more[n, h, l, m]
        if s != HIDDEN:
            high = s if s > top else top
            fade, p = math.exp(top - high), math.exp(s - high)
            top, total = high, total * fade + p
            for i in range(EACH):
                sums[i] = sums[i] * fade
            add_row(sums, p, v, n, h, m)
    share = np.float32(1) / total if total != 0 else np.float32(0)
    store_row(y, n, h, l, sums, share)
    if cuda.threadIdx.x == 0:
        log_sum[n, h, l] = finite(top) + math.log(total)


@kernel(f"{ROWS}, {ROWS}, {ROWS}, {ROWS}, {ROWS}, {ROWS}, {ROWS}, float32, {ROWS}")
def slopes(a, b, c, d, more, log_sum, mean, scale, z):
    """z = ds c · scale, for ds = p · (b dᵀ − mean)"""
    left = cuda.local.array(EACH, np.float32)
    right = cuda.local.array(EACH, np.float32)
    sums = cuda.local.array(EACH, np.float32)
    n, h, i = cuda.blockIdx.z, cuda.blockIdx.y, cuda.blockIdx.x * WARPS + cuda.threadIdx.y
    if i >= a.shape[2]:
        return
    take_row(left, a, n, h, i)
    take_row(right, b, n, h, i)
    clear(sums)
    for j in range(c.shape[2]):
        s = dot(left, c, n, h, j) * scale + more[n, h, i, j]
        p = math.exp(s - finite(log_sum[n, h, i, j]))
        add_row(sums, p * (dot(right, d, n, h, j) - mean[n, h, i, j]), c, n, h, j)
    store_row(z, n, h, i, sums, scale)


@kernel(f"{ROWS}, {ROWS}, {ROWS}, {ROWS}, {ROWS}, float32, {ROWS}")
def weigh(a, c, d, more, log_sum, scale, z):
    """z = p d"""
    mine = cuda.local.array(EACH, np.float32)
    sums = cuda.local.array(EACH, np.float32)
    n, h, i = cuda.blockIdx.z, cuda.blockIdx.y, cuda.blockIdx.x * WARPS + cuda.threadIdx.y
    if i >= a.shape[2]:
        return
    take_row(mine, a, n, h, i)
    clear(sums)
    for j in range(c.shape[2]):
        s = dot(mine, c, n, h, j) * scale + more[n, h, i, j]
        add_row(sums, math.exp(s - finite(log_sum[n, h, i, j])), d, n, h, j)
    store_row(z, n, h, i, sums, np.float32(1))


@device
def take_row(mine, a, n, h, i):
    """mine = a[n, h, i], every 32nd number from this lane's on; zeros behind"""
    for j in range(EACH):
        c = j * WARP + cuda.threadIdx.x
        mine[j] = a[n, h, i, c] if c < a.shape[3] else np.float32(0)


@device
def dot(mine, a, n, h, i):
    """Σ mine · a[n, h, i] over the lanes of a warp, for each of them"""
    total = np.float32(0)
    for j in range(EACH):
        c = j * WARP + cuda.threadIdx.x
        if c < a.shape[3]:
            total += mine[j] * a[n, h, i, c]
    total += cuda.shfl_xor_sync(ALL, total, 16)
    total += cuda.shfl_xor_sync(ALL, total, 8)
    total += cuda.shfl_xor_sync(ALL, total, 4)
    total += cuda.shfl_xor_sync(ALL, total, 2)
    return total + cuda.shfl_xor_sync(ALL, total, 1)


@device
def clear(sums):
    for j in range(EACH):
        sums[j] = np.float32(0)


@device
def add_row(sums, factor, a, n, h, i):
    """sums += factor · a[n, h, i]"""
    for j in range(EACH):
        c = j * WARP + cuda.threadIdx.x
        if c < a.shape[3]:
            sums[j] += factor * a[n, h, i, c]


@device
def store_row(y, n, h, i, sums, factor):
    """y[n, h, i] = sums · factor"""
    for j in range(EACH):
        c = j * WARP + cuda.threadIdx.x
        if c < y.shape[3]:
            y[n, h, i, c] = sums[j] * factor


forward  = forward_with(attend, WARPS, (WARP, WARPS), rung2_cuda_naive)
backward = backward_with(slopes, weigh, WARPS, (WARP, WARPS), rung2_cuda_naive)
