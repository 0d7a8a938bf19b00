"""Sums over pixels: what a bias and a time shift see of the gradient."""

import numpy as np

from ..simd.functions import WIDTH, at
from ..simd.pool import run
from ..simd.tasks import task
from ..simd.vector import load, load_part, splat, store_part

PIXELS = 256                                              # summed by an item, so that it is enough


@task
def partial_sums(item, worker, y, sums, P, O, each, parts):
    """sums (N, parts, O) of y (N, P, O) over `each` pixels; an item is one of those rows"""
    first = item % parts * each
    here = at(y, (item // parts * P + first) * O)
    count = min(each, P - first)
    for o in range(0, O - WIDTH + 1, WIDTH):
        total = splat(0.0)
        for i in range(count):
            total = total + load(here, i * O + o)
        store_part(sums, item * O + o, total, WIDTH)
    n = O % WIDTH
    if n:
        total = splat(0.0)
        for i in range(count):
            total = total + load_part(here, i * O + O - n, n)
        store_part(sums, item * O + O - n, total, n)


def sum_pixels(y):
    """y (N, pixels, O) -> (N, O)"""
    N, P, O = y.shape
    parts = -(-P // PIXELS)
    sums = np.empty((N, parts, O), np.float32)
    run(partial_sums, N * parts, y, sums, P, O, PIXELS, parts)
    return sums.sum(axis=1)
