"""Rung 1, onepass: a number comes from memory once, all else happens in the cache.

Since rung 0: groups never meet, so a thread takes a *block*, some groups of one image, and no sum
leaves it. measure needs no second pass for Σ (x − mean)²: it sums around the mean of the first few
pixels, which costs no digits. backward sums over its block and leaves dz = dy · silu'(z) where dy
was; a second sweep makes dx of dz and x, which the cache still has. Prediction: rung 0's backward
with SiLU moves some 55 numbers to or from memory for every one of x, this one 3: x, dy, dx. Its 55
instructions for a vector of them take no longer than that, if memory is asked early enough.
"""

from math import gcd, prod, sqrt

import numpy as np

from .. import memory
from ..simd.functions import WIDTH, at, copy, zero
from ..simd.pool import run, threads
from ..simd.tasks import task
from ..simd.vector import load1, store1
from . import rung0_numpy
from .sweeps import CENTRE, ROWS, SCALE, SHIFT, SUM, SUM_D, TILE, apply, gradient, moments, sums
from .tokens import backward_rows, normalize_rows

SHARES = 16                                               # blocks to make, for that many threads
GRAIN  = 2**15                                            # floats of x worth waking a thread for


def measure(xs, groups, eps):
    N, _, C1, C2 = shape = sizes(xs)
    if (C1 + C2) % groups or not plain(*alike(xs)):
        return rung0_numpy.measure(xs, groups, eps)
    mean, rstd = np.empty((N, groups), np.float32), np.empty((N, groups), np.float32)
    share(measure_blocks, shape, groups, *pair(xs), np.array([eps], np.float32), mean, rstd)
    return mean, rstd


def normalize(x, scale, shift, silu):
    N, _, C, _ = shape = sizes([x])
    if not plain((x, x.shape), (scale, (N, C)), (shift, (N, C))):
        return rung0_numpy.normalize(x, scale, shift, silu)
    y = memory.empty(x.shape)
    share(normalize_blocks, shape, C, *map(np.ascontiguousarray, (x, scale, shift)), y, silu)
    return y


def rows(x, scale, shift, eps):
    D = x.shape[-1]
    if x.size < GRAIN or not plain((x, x.shape), (scale, (D,)), (shift, (D,))):
        return rung0_numpy.rows(x, scale, shift, eps)
    y, P = memory.empty(x.shape), x.size // D
    each = max(1, GRAIN // (2 * D))
    run(normalize_rows, -(-P // each), *map(np.ascontiguousarray, (x, scale, shift)),
        np.array([eps], np.float32), y, P, D, each)
    return y


def rows_backward(dy, x, scale, eps):
    D = x.shape[-1]
    if x.size < GRAIN or not plain((x, x.shape), (dy, x.shape), (scale, (D,))):
        return rung0_numpy.rows_backward(dy, x, scale, eps)
    dx, P = memory.empty(x.shape), x.size // D
    each = max(1, GRAIN // (2 * D))
    items = -(-P // each)
    dscale, dshift = np.zeros((2, items, D), np.float32)
    run(backward_rows, items, *map(np.ascontiguousarray, (dy, x, scale)),
        np.array([eps], np.float32), dx, dscale, dshift, P, D, each)
    return dx, dscale.sum(axis=0), dshift.sum(axis=0)


def backward(dys, xs, scale, shift, mean, rstd, silu):
    """dx takes dy's place in memory, if that is contiguous and may be written to."""
    N, _, C1, C2 = shape = sizes(xs)
    C, groups = C1 + C2, mean.shape[1]
    if C % groups or not plain(*alike(xs), *((dy, x.shape) for dy, x in zip(dys, xs, strict=True)),
                               (scale, (N, C)), (shift, (N, C)),
                               (mean, (N, groups)), (rstd, (N, groups))):
        return rung0_numpy.backward(dys, xs, scale, shift, mean, rstd, silu)
    dxs = [np.require(dy, requirements="CW") for dy in dys]
    dscale, dshift = np.empty((N, C), np.float32), np.empty((N, C), np.float32)
    share(backward_blocks, shape, groups, *pair(xs), *pair(dxs),
          *map(np.ascontiguousarray, (scale, shift, mean, rstd)), dscale, dshift, silu)
    return dxs, dscale, dshift


def sizes(xs):
    """N, pixels, C1, C2; C2 = 0 where there is one input."""
    C1, C2 = [x.shape[-1] for x in xs] + [0] * (2 - len(xs))
    return len(xs[0]), prod(xs[0].shape[1:-1]), C1, C2


def alike(xs):
    """Each x with the shape that it has if it goes with the first."""
    return [(x, (*xs[0].shape[:-1], x.shape[-1])) for x in xs]


def plain(*pairs):
    """Whether every array is of float32, of the shape beside it, and not empty."""
    return all(a.dtype == np.float32 and a.shape == shape and a.size for a, shape in pairs)


def pair(arrays):
    """Two arguments of a task; where there is one array, the other is no address."""
    return [*map(np.ascontiguousarray, arrays), 0][:2]


def share(task, shape, groups, *arguments):
    """Run a task on all blocks: whole groups of one image, whole vectors where that can be.

    They are cut by the shape alone, so no result depends on the number of threads.
    """
    N, P, C1, C2 = shape
    C = C1 + C2
    step = C // groups * WIDTH // gcd(C // groups, WIDTH)
    wide = min(C, -(-max(N * C // SHARES, GRAIN // P, 1) // step) * step)   # channels of a block
    blocks = -(-C // wide)                                # of an image
    units = max(1, GRAIN // (P * wide))                   # blocks of an item
    row = C + WIDTH
    table = np.zeros((threads(), ROWS * row), np.float32)     # not empty: denormals would be slow
    run(task, -(-N * blocks // units), *shape, groups, wide, blocks, units, table, row, *arguments)


@task
def measure_blocks(item, worker, N, P, C1, C2, groups, wide, blocks, units, table, row,
                   x1, x2, eps, mean, rstd):
    C, size = C1 + C2, (C1 + C2) // groups
    table = at(table, worker * ROWS * row)
    for unit in range(item * units, min(item * units + units, N * blocks)):
        n, first = unit // blocks, unit % blocks * wide
        last = min(first + wide, C)
        image1, image2 = at(x1, n * P * C1), at(x2, n * P * C2)

        zero(table, ROWS * row)
        few = min(P, max(1, TILE // (last - first)))      # pixels whose mean is near that of all
        moments(image1, 0, image2, 0, C1, C2, few, first, last, table, row, 0)
        for c in range(first, last):
            store1(table, CENTRE * row + c, load1(table, SUM * row + c) / few)
        zero(at(table, SUM * row), 2 * row)
        moments(image1, 0, image2, 0, C1, C2, P, first, last, table, row, 0)

        for g in range(first // size, last // size):
            m, var = 0.0, 0.0                             # float64
            for c in range(g * size, g * size + size):
                m += load1(table, CENTRE * row + c) + load1(table, SUM * row + c) / P
            m /= size
            for c in range(g * size, g * size + size):
                e = m - load1(table, CENTRE * row + c)    # x − m = d − e
                var += (load1(table, SUM_D * row + c) - 2 * e * load1(table, SUM * row + c)) / P
                var += e * e
            store1(mean, n * groups + g, m)
            store1(rstd, n * groups + g, 1 / sqrt(var / size + load1(eps, 0)))


@task
def normalize_blocks(item, worker, N, P, C, C2, groups, wide, blocks, units, table, row,
                     x, scale, shift, y, silu):
    table = at(table, worker * ROWS * row)
    for unit in range(item * units, min(item * units + units, N * blocks)):
        n, first = unit // blocks, unit % blocks * wide
        copy(at(scale, n * C), at(table, SCALE * row), C)
        copy(at(shift, n * C), at(table, SHIFT * row), C)
        apply(at(x, n * P * C), at(y, n * P * C), 0, 0, C, 0, P, first, min(first + wide, C),
              table, row, silu)


@task
def backward_blocks(item, worker, N, P, C1, C2, groups, wide, blocks, units, table, row,
                    x1, x2, dy1, dy2, gamma, beta, mean, rstd, dgamma, dbeta, silu):
    C, size = C1 + C2, (C1 + C2) // groups
    table = at(table, worker * ROWS * row)
    for unit in range(item * units, min(item * units + units, N * blocks)):
        n, first = unit // blocks, unit % blocks * wide
        last = min(first + wide, C)
        image1, image2 = at(x1, n * P * C1), at(x2, n * P * C2)
        grad1, grad2 = at(dy1, n * P * C1), at(dy2, n * P * C2)

        zero(table, ROWS * row)
        for g in range(first // size, last // size):
            m, r = load1(mean, n * groups + g), load1(rstd, n * groups + g)
            for c in range(g * size, g * size + size):
                store1(table, CENTRE * row + c, m)
                store1(table, SCALE * row + c, r * load1(gamma, n * C + c))
                store1(table, SHIFT * row + c, load1(beta, n * C + c))
        sums(image1, grad1, image2, grad2, C1, C2, P, first, last, table, row, silu)

        for g in range(first // size, last // size):
            r, s, t = load1(rstd, n * groups + g), 0.0, 0.0
            for c in range(g * size, g * size + size):
                dz, dz_d = load1(table, SUM * row + c), load1(table, SUM_D * row + c)
                store1(dbeta, n * C + c, dz)
                store1(dgamma, n * C + c, dz_d * r)       # x̂ = d · r
                s += load1(gamma, n * C + c) * dz
                t += load1(gamma, n * C + c) * dz_d
            for c in range(g * size, g * size + size):    # dx = r · (γ·dz − s/m − r²·d · t/m)
                store1(table, SUM * row + c, -r * s / (P * size))
                store1(table, SUM_D * row + c, -r * r * r * t / (P * size))
        gradient(image1, grad1, image2, grad2, C1, C2, P, first, last, table, row, silu)
