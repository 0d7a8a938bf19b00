"""Softmax on scores that are held turned, sᵀ (keys, queries): a vector is one key's scores.

Highest and sum over the keys then go along columns of vectors and never across lanes.
"""

from ..simd.functions import WIDTH, at, exp
from ..simd.product import PANEL
from ..simd.vector import fma, higher, load, load1, load_part, splat, store
from .views import address

LOWEST = -3e38                                            # where a running highest starts


def weight(x):
    """eˣ for x ≤ 0, but exactly 0 from −87 down: what is hidden counts nothing."""
    return exp(x) - exp(splat(-87.0))


def hide(s, step, views, mask, query_step, n, head, m, l, keys, queries):
    """s (keys, queries) + mask, 0 or −∞, from key m and query l on.

    In the table it is turned, (keys, queries); query_step is 1, or 0 if it is one for all queries.
    """
    for key in range(keys):
        row = at(address(views, mask, n, head, m + key), l * query_step)
        for j in range(0, queries, WIDTH):
            here = at(s, key * step + j)
            away = load_part(row, j, queries - j) if query_step else splat(load1(row, 0))
            store(here, 0, load(here, 0) + away)


def highest_of(s, keys, high):
    """The highest of a column; two run side by side, so that neither waits for the other."""
    other = high
    for m in range(0, keys - 1, 2):
        high, other = higher(load(s, m * PANEL), high), higher(load(s, (m + 1) * PANEL), other)
    return higher(higher(load(s, (keys - 1) * PANEL), high), other)


def absorb(s, keys, top, sums, YT, e, first):
    """s (keys, PANEL) -> e^(s − top), where top is the highest so far.

    sums, Σ e^(s − top), takes these keys in; where others came before, it and YT (e, PANEL) are
    first brought from the old top to the new.
    """
    for j in range(0, PANEL, WIDTH):
        before = load(top, j)
        high = highest_of(at(s, j), keys, before)
        summed = splat(0.0)
        for m in range(keys):
            p = weight(load(s, m * PANEL + j) - high)
            store(s, m * PANEL + j, p)
            summed = summed + p
        if not first:
            fade = weight(before - high)
            summed = fma(load(sums, j), fade, summed)
            for c in range(e):
                store(YT, c * PANEL + j, load(YT, c * PANEL + j) * fade)
        store(top, j, high)
        store(sums, j, summed)


def slopes(p, ds, step, keys, log_sum, mean):
    """p: s -> e^(s − log_sum);  ds: dp -> p · (dp − mean);  (keys, PANEL), `step` apart"""
    for j in range(0, PANEL, WIDTH):
        away, middle = load(log_sum, j), load(mean, j)
        for m in range(keys):
            here = m * step + j
            chance = weight(load(p, here) - away)
            store(p, here, chance)
            store(ds, here, chance * (load(ds, here) - middle))
