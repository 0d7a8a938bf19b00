"""LayerNorm's task: each row by itself, while it is in L1."""

from math import sqrt

from ..simd.functions import WIDTH, at
from ..simd.tasks import task
from ..simd.vector import fma, load, load1, load_part, splat, store_part, total


@task
def normalize_rows(item, worker, x, scale, shift, eps, y, P, D, each):
    """y (P, D) = (x − mean) / √(var + eps) · scale + shift; an item is `each` rows"""
    whole = D // WIDTH * WIDTH
    for p in range(item * each, min(item * each + each, P)):
        here, there = at(x, p * D), at(y, p * D)
        first, terms = splat(load1(here, 0)), splat(0.0)  # sums around it lose no digits
        for i in range(0, whole, WIDTH):
            terms = terms + (load(here, i) - first)
        sum = total(terms) + 0.0                          # float64
        for i in range(whole, D):
            sum += load1(here, i) - load1(here, 0)
        mean = load1(here, 0) + sum / D
        middle, terms = splat(mean), splat(0.0)
        for i in range(0, whole, WIDTH):
            d = load(here, i) - middle
            terms = fma(d, d, terms)
        squares = total(terms) + 0.0
        for i in range(whole, D):
            squares += (load1(here, i) - mean) ** 2
        slope = splat(1 / sqrt(squares / D + load1(eps, 0)))
        for i in range(0, D, WIDTH):
            d = (load_part(here, i, D - i) - middle) * slope
            store_part(there, i, fma(d, load_part(scale, i, D - i), load_part(shift, i, D - i)),
                       D - i)
