"""LayerNorm's tasks: each row by itself, while it is in L1."""

from math import sqrt

from ..simd.functions import WIDTH, at
from ..simd.tasks import task
from ..simd.vector import fma, load, load1, load_part, splat, store_part, total


def about(row, D, eps):
    """The mean of a row's D numbers and 1 / √(var + eps)."""
    whole = D // WIDTH * WIDTH
    first, terms = splat(load1(row, 0)), splat(0.0)       # sums around it lose no digits
    for i in range(0, whole, WIDTH):
        terms = terms + (load(row, i) - first)
    sum = total(terms) + 0.0                              # float64
    for i in range(whole, D):
        sum += load1(row, i) - load1(row, 0)
    mean = load1(row, 0) + sum / D
    middle, terms = splat(mean), splat(0.0)
    for i in range(0, whole, WIDTH):
        d = load(row, i) - middle
        terms = fma(d, d, terms)
    squares = total(terms) + 0.0
    for i in range(whole, D):
        squares += (load1(row, i) - mean) ** 2
    return mean, 1 / sqrt(squares / D + load1(eps, 0))


@task
def normalize_rows(item, worker, x, scale, shift, eps, y, P, D, each):
    """y (P, D) = (x − mean) / √(var + eps) · scale + shift; an item is `each` rows"""
    for p in range(item * each, min(item * each + each, P)):
        here, there = at(x, p * D), at(y, p * D)
        mean, rstd = about(here, D, eps)
        for i in range(0, D, WIDTH):
            d = (load_part(here, i, D - i) - splat(mean)) * splat(rstd)
            store_part(there, i, fma(d, load_part(scale, i, D - i), load_part(shift, i, D - i)),
                       D - i)


@task
def backward_rows(item, worker, dy, x, scale, eps, dx, dscale, dshift, P, D, each):
    """dx (P, D), and row `item` of dscale and dshift, which come as zeros.

    g = dy · scale, dx = rstd · (g − mean(g) − x̂ · mean(g · x̂))
    """
    dscale, dshift = at(dscale, item * D), at(dshift, item * D)
    for p in range(item * each, min(item * each + each, P)):
        here, above, there = at(x, p * D), at(dy, p * D), at(dx, p * D)
        mean, rstd = about(here, D, eps)
        s, t = splat(0.0), splat(0.0)                     # Σ g, Σ g x̂
        for i in range(0, D, WIDTH):
            n = D - i
            d, e = load_part(here, i, n), load_part(above, i, n)     # e is 0 beyond the row
            x_hat, g = (d - splat(mean)) * splat(rstd), e * load_part(scale, i, n)
            s, t = s + g, fma(g, x_hat, t)
            store_part(dscale, i, fma(e, x_hat, load_part(dscale, i, n)), n)
            store_part(dshift, i, e + load_part(dshift, i, n), n)
        a, b = splat(total(s) / D), splat(total(t) / D)
        for i in range(0, D, WIDTH):
            n = D - i
            x_hat = (load_part(here, i, n) - splat(mean)) * splat(rstd)
            g = load_part(above, i, n) * load_part(scale, i, n)
            store_part(there, i, (g - a - x_hat * b) * splat(rstd), n)
