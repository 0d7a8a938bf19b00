"""Rung 2, cuda_twopass: a block of a GPU's threads for each group of each image, in Python.

Since rung 1: many threads make one sum. They have some memory in common, and barriers; half of a
block takes over the sums of the other half, then half of those, until one is left. measure goes
over a group for its mean and again for the variance around it; backward takes two sums for each
channel, and goes over all of them again. Prediction: memory sends 32 bytes at least, of which 4
channels a group in float32 are 16; so what moves is twice what is needed, backward 10 numbers for
every one of x where rung 1 has 3, at 20 times its pace.
"""

import math

import numpy as np

from ..gpu.python import cuda, device, kernel
from . import launches

THREADS = 128
ONE, HALF = np.float32(1), np.float32(0.5)                # plain numbers would be float64 on a GPU


def measure(xs, groups, eps):
    return launches.measure(moments, THREADS, xs, groups, eps)


def normalize(x, scale, shift, silu):
    return launches.normalize(apply, x, scale, shift, silu)


def backward(dys, xs, scale, shift, mean, rstd, silu):
    return launches.backward(gradient, THREADS, dys, xs, scale, shift, mean, rstd, silu)


def rows(x, scale, shift, eps):
    return launches.rows(apply_row, 1, THREADS, x, scale, shift, eps)


def rows_backward(dy, x, scale, eps):
    return launches.rows_backward(gradient_row, 1, THREADS, dy, x, scale, eps)


@kernel(launches.MOMENTS)
def moments(x1, x2, size, eps, mean, rstd):
    """mean and 1 / √(var + eps) of a group of `size` channels"""
    parts = cuda.shared.array(THREADS, cuda.float32)
    n, g = divmod(cuda.blockIdx.x, mean.shape[1])
    P, t = x1.shape[1], cuda.threadIdx.x
    count = cuda.float32(P * size)

    total = cuda.float32(0)
    for i in range(t, P * size, THREADS):
        total += at(x1, x2, n, i // size, g * size + i % size)
    middle = block_sum(parts, total) / count

    total = cuda.float32(0)
    for i in range(t, P * size, THREADS):
        d = at(x1, x2, n, i // size, g * size + i % size) - middle
        total += d * d
    var = block_sum(parts, total) / count
    if t == 0:
        mean[n, g] = middle
        rstd[n, g] = ONE / math.sqrt(var + eps)


@kernel(launches.APPLY)
def apply(x, scale, shift, silu, y):
    """y = x · scale + shift, or its SiLU: a thread for each number"""
    i = cuda.grid(1)
    if i < x.size:
        c, p, n = i % x.shape[2], i // x.shape[2] % x.shape[1], i // (x.shape[1] * x.shape[2])
        z = x[n, p, c] * scale[n, c] + shift[n, c]
        y[n, p, c] = z * sigmoid(z) if silu else z


@kernel(launches.GRADIENT)
def gradient(x1, x2, dy1, dy2, size, gamma, beta, mean, rstd, dgamma, dbeta, silu):
    """dy becomes dx in a group: first two sums for each channel, then they are put to use"""
    parts = cuda.shared.array(THREADS, cuda.float32)
    n, g = divmod(cuda.blockIdx.x, mean.shape[1])
    P, t = x1.shape[1], cuda.threadIdx.x
    m, r = mean[n, g], rstd[n, g]

    a = b = cuda.float32(0)                               # Σ γ dz, Σ γ dz x̂
    for c in range(g * size, g * size + size):
        total, total_x = cuda.float32(0), cuda.float32(0)
        for p in range(t, P, THREADS):
            x_hat = (at(x1, x2, n, p, c) - m) * r
            dz = at(dy1, dy2, n, p, c)
            if silu:
                dz *= slope(x_hat * gamma[n, c] + beta[n, c])
            total += dz
            total_x += dz * x_hat
        total, total_x = block_sum(parts, total), block_sum(parts, total_x)
        if t == 0:
            dbeta[n, c], dgamma[n, c] = total, total_x
        a += gamma[n, c] * total
        b += gamma[n, c] * total_x

    count = cuda.float32(P * size)
    for i in range(t, P * size, THREADS):
        p, c = i // size, g * size + i % size
        x_hat = (at(x1, x2, n, p, c) - m) * r
        dz = at(dy1, dy2, n, p, c)
        if silu:
            dz *= slope(x_hat * gamma[n, c] + beta[n, c])
        dx = r * (gamma[n, c] * dz - a / count - x_hat * (b / count))
        if c < dy1.shape[2]:
            dy1[n, p, c] = dx
        else:
            dy2[n, p, c - dy1.shape[2]] = dx


@kernel(launches.ROWS)
def apply_row(x, scale, shift, eps, y):
    """LayerNorm of a row"""
    parts = cuda.shared.array(THREADS, cuda.float32)
    p, D = cuda.blockIdx.x, x.shape[1]
    middle, r = about(parts, x, p, eps)
    for c in range(cuda.threadIdx.x, D, THREADS):
        y[p, c] = (x[p, c] - middle) * r * scale[c] + shift[c]


@kernel(launches.GRADIENT_ROWS)
def gradient_row(dy, x, scale, eps, dx, moments):
    """dx of a row; and its mean and rstd, which the gradients of scale and shift need"""
    parts = cuda.shared.array(THREADS, cuda.float32)
    p, D, t = cuda.blockIdx.x, x.shape[1], cuda.threadIdx.x
    middle, r = about(parts, x, p, eps)
    a, b = cuda.float32(0), cuda.float32(0)               # Σ g, Σ g x̂
    for c in range(t, D, THREADS):
        g = dy[p, c] * scale[c]
        a += g
        b += g * (x[p, c] - middle) * r
    a, b = block_sum(parts, a) / cuda.float32(D), block_sum(parts, b) / cuda.float32(D)
    for c in range(t, D, THREADS):
        dx[p, c] = r * (dy[p, c] * scale[c] - a - (x[p, c] - middle) * r * b)
    if t == 0:
        moments[p, 0], moments[p, 1] = middle, r


@device
def about(parts, x, p, eps):
    """mean and 1 / √(var + eps) of row p"""
    D, t, total = x.shape[1], cuda.threadIdx.x, cuda.float32(0)
    for c in range(t, D, THREADS):
        total += x[p, c]
    middle, total = block_sum(parts, total) / cuda.float32(D), cuda.float32(0)
    for c in range(t, D, THREADS):
        total += (x[p, c] - middle) * (x[p, c] - middle)
    return middle, ONE / math.sqrt(block_sum(parts, total) / cuda.float32(D) + eps)


@device
def block_sum(parts, value):
    """Σ of all threads' values, for each of them."""
    t, half = cuda.threadIdx.x, THREADS // 2
    cuda.syncthreads()                                    # everyone has read the last sum
    parts[t] = value
    cuda.syncthreads()
    while half > 0:
        if t < half:
            parts[t] += parts[t + half]
        cuda.syncthreads()
        half //= 2
    return parts[0]


@device
def at(x1, x2, n, p, c):
    """Channel c of two inputs side by side."""
    if c < x1.shape[2]:
        return x1[n, p, c]
    return x2[n, p, c - x1.shape[2]]


@device
def sigmoid(z):
    return HALF + HALF * math.tanh(HALF * z)              # no overflow


@device
def slope(z):
    """d silu / dz"""
    s = sigmoid(z)
    return s * (ONE + z * (ONE - s))
