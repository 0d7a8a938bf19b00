"""Rung 3, cuda_shuffle: a warp sums in registers; a block meets once for a sum, not nine times.

Since rung 2: the 32 threads of a warp move in step, and can read each other's registers: five
exchanges make a sum of theirs without memory or barrier. So a warp takes a channel and needs
nobody; what a block adds are the few sums of its warps. A row of tokens has a warp to itself.
Prediction: the same bytes, and where a group is small, 64 pixels of 4 channels say, half the time:
there a thread of rung 2 waits at 18 barriers for each two numbers of a channel.
"""

import math

import numpy as np

from ..gpu.python import cuda, device, kernel
from . import launches
from .rung2_cuda_twopass import apply, at, slope

WARPS = 4                                                 # of a block
THREADS, ALL = 32 * WARPS, 0xFFFFFFFF
ONE = np.float32(1)


def measure(xs, groups, eps):
    return launches.measure(moments, THREADS, xs, groups, eps)


def normalize(x, scale, shift, silu):
    return launches.normalize(apply, x, scale, shift, silu)


def backward(dys, xs, scale, shift, mean, rstd, silu):
    return launches.backward(gradient, THREADS, dys, xs, scale, shift, mean, rstd, silu)


def rows(x, scale, shift, eps):
    return launches.rows(apply_rows, WARPS, THREADS, x, scale, shift, eps)


def rows_backward(dy, x, scale, eps):
    return launches.rows_backward(gradient_rows, WARPS, THREADS, dy, x, scale, eps)


@device
def warp_sum(value):
    """Σ over the lanes of a warp, for each of them."""
    step = 16
    while step > 0:
        value += cuda.shfl_xor_sync(ALL, value, step)
        step //= 2
    return value


@device
def block_sum(parts, which, value):
    """Σ over the warps of what each thread of a warp has alike; `which` place of parts to use."""
    if cuda.threadIdx.x % 32 == 0:
        parts[which, cuda.threadIdx.x // 32] = value
    cuda.syncthreads()
    total = cuda.float32(0)
    for warp in range(WARPS):
        total += parts[which, warp]
    return total


@kernel(launches.MOMENTS)
def moments(x1, x2, size, eps, mean, rstd):
    """mean and 1 / √(var + eps) of a group of `size` channels"""
    parts = cuda.shared.array((2, WARPS), cuda.float32)
    n, g = divmod(cuda.blockIdx.x, mean.shape[1])
    P, t = x1.shape[1], cuda.threadIdx.x
    count = cuda.float32(P * size)

    total = cuda.float32(0)
    for i in range(t, P * size, THREADS):
        total += at(x1, x2, n, i // size, g * size + i % size)
    middle = block_sum(parts, 0, warp_sum(total)) / count

    total = cuda.float32(0)
    for i in range(t, P * size, THREADS):
        d = at(x1, x2, n, i // size, g * size + i % size) - middle
        total += d * d
    var = block_sum(parts, 1, warp_sum(total)) / count
    if t == 0:
        mean[n, g] = middle
        rstd[n, g] = ONE / math.sqrt(var + eps)


@kernel(launches.GRADIENT)
def gradient(x1, x2, dy1, dy2, size, gamma, beta, mean, rstd, dgamma, dbeta, silu):
    """dy becomes dx in a group; a warp takes every WARPS-th channel, a lane every 32nd pixel"""
    parts = cuda.shared.array((2, WARPS), cuda.float32)
    n, g = divmod(cuda.blockIdx.x, mean.shape[1])
    P, warp, lane = x1.shape[1], cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
    m, r, last = mean[n, g], rstd[n, g], g * size + size

    a = b = cuda.float32(0)                               # Σ γ dz, Σ γ dz x̂
    for c in range(g * size + warp, last, WARPS):
        total, total_x = cuda.float32(0), cuda.float32(0)
        for p in range(lane, P, 32):
            x_hat = (at(x1, x2, n, p, c) - m) * r
            dz = at(dy1, dy2, n, p, c)
            if silu:
                dz *= slope(x_hat * gamma[n, c] + beta[n, c])
            total += dz
            total_x += dz * x_hat
        total, total_x = warp_sum(total), warp_sum(total_x)
        if lane == 0:
            dbeta[n, c], dgamma[n, c] = total, total_x
        a += gamma[n, c] * total
        b += gamma[n, c] * total_x

    count = cuda.float32(P * size)
    a, b = block_sum(parts, 0, a) / count, block_sum(parts, 1, b) / count
    for i in range(cuda.threadIdx.x, P * size, THREADS):
        p, c = i // size, g * size + i % size
        x_hat = (at(x1, x2, n, p, c) - m) * r
        dz = at(dy1, dy2, n, p, c)
        if silu:
            dz *= slope(x_hat * gamma[n, c] + beta[n, c])
        dx = r * (gamma[n, c] * dz - a - x_hat * b)
        if c < dy1.shape[2]:
            dy1[n, p, c] = dx
        else:
            dy2[n, p, c - dy1.shape[2]] = dx


@device
def about(x, p, eps):
    """mean and 1 / √(var + eps) of row p, by a warp"""
    D, lane, total = x.shape[1], cuda.threadIdx.x % 32, cuda.float32(0)
    for c in range(lane, D, 32):
        total += x[p, c]
    middle, total = warp_sum(total) / cuda.float32(D), cuda.float32(0)
    for c in range(lane, D, 32):
        total += (x[p, c] - middle) * (x[p, c] - middle)
    return middle, ONE / math.sqrt(warp_sum(total) / cuda.float32(D) + eps)


@kernel(launches.ROWS)
def apply_rows(x, scale, shift, eps, y):
    """LayerNorm: a warp has a row"""
    p = cuda.grid(1) // 32
    if p < x.shape[0]:                                    # for a whole warp or none of it
        middle, r = about(x, p, eps)
        for c in range(cuda.threadIdx.x % 32, x.shape[1], 32):
            y[p, c] = (x[p, c] - middle) * r * scale[c] + shift[c]


@kernel(launches.GRADIENT_ROWS)
def gradient_rows(dy, x, scale, eps, dx, moments):
    """dx of a row; and its mean and rstd, which the gradients of scale and shift need"""
    p, lane, D = cuda.grid(1) // 32, cuda.threadIdx.x % 32, x.shape[1]
    if p < x.shape[0]:
        middle, r = about(x, p, eps)
        a, b = cuda.float32(0), cuda.float32(0)           # Σ g, Σ g x̂
        for c in range(lane, D, 32):
            g = dy[p, c] * scale[c]
            a += g
            b += g * (x[p, c] - middle) * r
        a, b = warp_sum(a) / cuda.float32(D), warp_sum(b) / cuda.float32(D)
        for c in range(lane, D, 32):
            dx[p, c] = r * (dy[p, c] * scale[c] - a - (x[p, c] - middle) * r * b)
        if lane == 0:
            moments[p, 0], moments[p, 1] = middle, r
