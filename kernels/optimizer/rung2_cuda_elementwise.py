"""Rung 2, cuda_elementwise: a thread a number, and a kernel for each line of the formula.

Since rung 1: a GPU reads memory 20 times as fast, and this is how an array library uses that: every
line is a pass over all its numbers. Prediction: 78 bytes a parameter in eight passes, and each pass
costs a launch; a small network's step is launches and nothing else.
"""

import math
from math import sqrt

import numpy as np

from ..gpu.arrays import empty
from ..gpu.python import cuda, kernel
from . import rung0_numpy

THREADS = 256
EACH = 2**14                                              # numbers whose squares a block adds up
LINE = "float32[::1]"


def step(data, grad, m, v, ema, *, half=None, lr, beta1, beta2, eps, decay, decaying, step,
         ema_decay, scale):
    if not single_and_flat(data, grad, m, v, ema):
        rung0_numpy.step(data, grad, m, v, ema, half=half, lr=lr, beta1=beta1, beta2=beta2, eps=eps,
                         decay=decay, decaying=decaying, step=step, ema_decay=ema_decay,
                         scale=scale)
        return
    everywhere = -(-data.size // THREADS), THREADS
    stretch[everywhere](grad, np.float32(scale))
    approach[everywhere](m, grad, np.float32(1 - beta1))
    approach_square[everywhere](v, grad, np.float32(1 - beta2))
    shrink[everywhere](data, np.float32(lr * decay), decaying)
    move[everywhere](data, m, v, np.float32(lr / (1 - beta1**step)),
                     np.float32(1 / (1 - beta2**step)), np.float32(eps))
    if ema is not None:
        approach[everywhere](ema, data, np.float32(1 - ema_decay))
    clear[everywhere](grad)
    rung0_numpy.copy_into(half, data)


def norm(grad):
    if not single_and_flat(grad):
        return rung0_numpy.norm(grad)
    sums = empty(-(-grad.size // EACH), np.float64, like=grad)
    total = empty(1, np.float64, like=grad)
    squares[sums.size, THREADS](grad, sums)
    add_up[1, 1](sums, total)
    return sqrt(float(total[0]))


def single_and_flat(*buffers):
    """Whether all that are given are float32 of one length, not empty, and may be written to."""
    given = [a for a in buffers if a is not None]
    return len({a.shape for a in given}) == 1 and all(
        a.dtype == np.float32 and a.ndim == 1 and a.size and a.flags.c_contiguous
        and getattr(a.flags, "writeable", True) for a in given)


@kernel(f"{LINE}, float32")
def stretch(x, factor):
    i = cuda.grid(1)
    if i < x.size:
        x[i] *= factor


@kernel(f"{LINE}, float32, int64")
def shrink(x, part, count):
    i = cuda.grid(1)
    if i < count:
        x[i] -= part * x[i]


@kernel(f"{LINE}, {LINE}, float32")
def approach(mean, x, part):
    i = cuda.grid(1)
    if i < x.size:
        mean[i] += part * (x[i] - mean[i])


@kernel(f"{LINE}, {LINE}, float32")
def approach_square(v, g, part):
    i = cuda.grid(1)
    if i < g.size:
        v[i] += part * (g[i] * g[i] - v[i])


@kernel(f"{LINE}, {LINE}, {LINE}, float32, float32, float32")
def move(x, m, v, rate, v_scale, eps):
    i = cuda.grid(1)
    if i < x.size:
        x[i] -= rate * m[i] / (math.sqrt(v[i] * v_scale) + eps)


@kernel(LINE)
def clear(x):
    i = cuda.grid(1)
    if i < x.size:
        x[i] = 0


@kernel(f"{LINE}, float64[::1]")
def squares(x, sums):
    """sums[block] = Σ x² over EACH numbers; half the threads take over the sums of the others."""
    parts = cuda.shared.array(THREADS, cuda.float64)
    t, half, total = cuda.threadIdx.x, THREADS // 2, cuda.float64(0)
    first = cuda.blockIdx.x * EACH
    for i in range(first + t, min(first + EACH, x.size), THREADS):
        total += cuda.float64(x[i]) * x[i]
    parts[t] = total
    cuda.syncthreads()
    while half > 0:
        if t < half:
            parts[t] += parts[t + half]
        cuda.syncthreads()
        half //= 2
    if t == 0:
        sums[cuda.blockIdx.x] = parts[0]


@kernel("float64[::1], float64[::1]")
def add_up(sums, total):
    """One thread, from the first to the last."""
    value = cuda.float64(0)
    for i in range(sums.size):
        value += sums[i]
    total[0] = value
