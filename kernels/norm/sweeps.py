"""Passes over the pixels of an image, a vector of channels and a tile of pixels at a time.

What is known of the channels stands in the thread's table: a row for each kind of number, `row`
floats apart. A pass is written once and made twice, for whole vectors and for an input's last
channels where they fill none.
"""

from ..simd.functions import WIDTH, at, exp, silu
from ..simd.vector import divide, fma, load, load_part, prefetch, splat, store, store_part

CENTRE, SCALE, SHIFT, SUM, SUM_D, ROWS = range(6)         # rows of the table; ROWS is how many
TILE  = 2**13                                             # floats of x: 32 kB, as L1 holds
AHEAD = 24                                                # pixels it computes while memory answers


def load_all(x, i, n):
    return load(x, i)


def store_all(x, i, y, n):
    store(x, i, y)


def passes(load, store):
    """What is done to n channels of some pixels: f(x, dy, C, pixels, n, table, row, active)

    d = x − CENTRE, so that sums stay exact where the mean is far from 0.
    """

    def moments(x, dy, C, pixels, n, table, row, active):
        """SUM += Σ d, SUM_D += Σ d²"""
        centre, s, t = load(table, CENTRE * row, n), splat(0.0), splat(0.0)
        for i in range(0, pixels * C, C):
            prefetch(x, i + AHEAD * C)
            d = load(x, i, n) - centre
            s, t = s + d, fma(d, d, t)
        add(s, t, n, table, row)

    def apply(x, y, C, pixels, n, table, row, active):
        """y = x · SCALE + SHIFT, or its SiLU"""
        scale, shift = load(table, SCALE * row, n), load(table, SHIFT * row, n)
        for i in range(0, pixels * C, C):
            prefetch(x, i + AHEAD * C)
            z = fma(load(x, i, n), scale, shift)
            store(y, i, silu(z) if active else z, n)

    def sums(x, dy, C, pixels, n, table, row, active):
        """dy becomes dz, where z = d · SCALE + SHIFT; SUM += Σ dz, SUM_D += Σ dz · d"""
        centre, s, t = load(table, CENTRE * row, n), splat(0.0), splat(0.0)
        scale, shift = load(table, SCALE * row, n), load(table, SHIFT * row, n)
        for i in range(0, pixels * C, C):
            prefetch(x, i + AHEAD * C)
            prefetch(dy, i + AHEAD * C)
            d, dz = load(x, i, n) - centre, load(dy, i, n)
            if active:
                z = fma(d, scale, shift)
                e = exp(splat(0.0) - z)
                sigma = divide(splat(1.0), splat(1.0) + e)
                dz = dz * sigma * fma(z, e * sigma, splat(1.0))     # e · σ = 1 − σ, but exact
                store(dy, i, dz, n)
            s, t = s + dz, fma(dz, d, t)
        add(s, t, n, table, row)

    def gradient(x, dz, C, pixels, n, table, row, active):
        """dz becomes dx = dz · SCALE + d · SUM_D + SUM"""
        centre, scale = load(table, CENTRE * row, n), load(table, SCALE * row, n)
        s, t = load(table, SUM * row, n), load(table, SUM_D * row, n)
        for i in range(0, pixels * C, C):
            d = load(x, i, n) - centre
            store(dz, i, fma(load(dz, i, n), scale, fma(d, t, s)), n)

    def add(s, t, n, table, row):
        store(table, SUM * row, load(table, SUM * row, n) + s, n)
        store(table, SUM_D * row, load(table, SUM_D * row, n) + t, n)

    return moments, apply, sums, gradient


def sweep(whole, part):
    """The function that takes a pass over the pixels of channels first … last − 1 of an image."""

    def over(x1, dy1, x2, dy2, C1, C2, pixels, first, last, table, row, active):
        tile = max(1, TILE // (last - first))
        for side in range(2):
            x, dy, C, before = (x2, dy2, C2, C1) if side else (x1, dy1, C1, 0)
            start, end = max(first - before, 0), min(last - before, C)
            for q in range(0, pixels, tile):
                many = min(tile, pixels - q)
                for c in range(start, end, WIDTH):
                    i, n, entry = q * C + c, min(WIDTH, end - c), at(table, before + c)
                    if n == WIDTH:
                        whole(at(x, i), at(dy, i), C, many, n, entry, row, active)
                    else:
                        part(at(x, i), at(dy, i), C, many, n, entry, row, active)

    return over


moments, apply, sums, gradient = map(sweep, passes(load_all, store_all),
                                     passes(load_part, store_part))
