"""Rung 1, onepass: every number is read once and written once.

Since rung 0: its passes move some 100 bytes a parameter through the cache, 36 to and from memory;
and one core cannot keep the memory busy. Here a vector of parameters stays in registers from the
gradient to the mean, on all threads. Prediction: 40 bytes a parameter at the memory's pace.
"""

import numpy as np

from ..simd.functions import WIDTH
from ..simd.pool import run
from ..simd.tasks import task
from ..simd.vector import (
    divide,
    fma,
    load,
    load1,
    load_part,
    splat,
    sqrt,
    store,
    store1,
    store_part,
    total,
)
from . import rung0_numpy

EACH = 2**14                                              # numbers an item takes of each array


def step(data, grad, m, v, ema, *, half=None, lr, beta1, beta2, eps, decay, decaying, step,
         ema_decay, scale):
    buffers = [a for a in (data, grad, m, v, ema) if a is not None]
    if not all(map(single_and_flat, buffers)) or len({a.shape for a in buffers}) > 1:
        rung0_numpy.step(data, grad, m, v, ema, half=half, lr=lr, beta1=beta1, beta2=beta2, eps=eps,
                         decay=decay, decaying=decaying, step=step, ema_decay=ema_decay,
                         scale=scale)
        return
    numbers = np.array([scale, 1 - beta1, 1 - beta2, lr / (1 - beta1**step), 1 / (1 - beta2**step),
                        eps, -lr * decay, 0, 1 - ema_decay], np.float32)
    run(adamw, -(-data.size // EACH), data, grad, m, v, 0 if ema is None else ema, data.size,
        decaying, numbers)
    rung0_numpy.copy_into(half, data)


def norm(grad):
    """The squares of EACH numbers are summed in float32, these sums in float64."""
    if not single_and_flat(grad):
        return rung0_numpy.norm(grad)
    sums = np.zeros(-(-grad.size // EACH), np.float32)
    run(squares, len(sums), grad, grad.size, sums)
    return float(np.sqrt(sums.sum(dtype=np.float64)))


def single_and_flat(a):
    """Whether `a` is float32, one number behind the other, and may be changed."""
    return a.dtype == np.float32 and a.ndim == 1 and a.flags.carray


@task
def adamw(item, worker, data, grad, m, v, ema, n, decaying, numbers):
    first, last = item * EACH, min(item * EACH + EACH, n)
    seam = min(max(first, decaying), last)                # what stands before it decays
    for i, end, shrink in ((first, seam, load1(numbers, 6)), (seam, last, load1(numbers, 7))):
        while i + WIDTH <= end:
            update(data, grad, m, v, ema, i, WIDTH, numbers, shrink)
            i += WIDTH
        if i < end:
            update_part(data, grad, m, v, ema, i, end - i, numbers, shrink)


def updates(load, store):
    """The step of the numbers i … i + n − 1."""

    def update(data, grad, m, v, ema, i, n, numbers, shrink):
        g = load(grad, i, n) * splat(load1(numbers, 0))
        x, mean, square = load(data, i, n), load(m, i, n), load(v, i, n)
        mean = fma(g - mean, splat(load1(numbers, 1)), mean)
        square = fma(g * g - square, splat(load1(numbers, 2)), square)
        x = fma(x, splat(shrink), x)
        root = sqrt(square * splat(load1(numbers, 4))) + splat(load1(numbers, 5))
        x = x - divide(mean * splat(load1(numbers, 3)), root)
        store(data, i, x, n)
        store(grad, i, splat(0.0), n)
        store(m, i, mean, n)
        store(v, i, square, n)
        if ema:
            old = load(ema, i, n)
            store(ema, i, fma(x - old, splat(load1(numbers, 8)), old), n)

    return update


update      = updates(lambda x, i, n: load(x, i), lambda x, i, y, n: store(x, i, y))
update_part = updates(load_part, store_part)


@task
def squares(item, worker, x, n, sums):
    """sums[item] = Σ x² over an item's numbers, in four sums side by side"""
    first, last = item * EACH, min(item * EACH + EACH, n)
    a = b = c = d = splat(0.0)
    i = first
    while i + 4 * WIDTH <= last:
        a = fma(load(x, i), load(x, i), a)
        b = fma(load(x, i + WIDTH), load(x, i + WIDTH), b)
        c = fma(load(x, i + 2 * WIDTH), load(x, i + 2 * WIDTH), c)
        d = fma(load(x, i + 3 * WIDTH), load(x, i + 3 * WIDTH), d)
        i += 4 * WIDTH
    while i < last:
        rest = load_part(x, i, min(WIDTH, last - i))
        a = fma(rest, rest, a)
        i += WIDTH
    store1(sums, item, total((a + b) + (c + d)))
