"""Attention block by block: a task for the way forward and one for the way back.

Everything is held turned, queries along the vectors: sᵀ = k qᵀ, yᵀ = vᵀ pᵀ, dqᵀ = kᵀ dsᵀ. Then k
and v are only ever the left factor, which the micro-kernel takes in any strides, and of all
arrays only q, dy and the results are transposed, once for all keys.
"""

from math import lcm

from ..door import up
from ..simd.functions import WIDTH, at
from ..simd.product import PANEL, ROWS
from ..simd.tasks import task
from ..simd.vector import (
    divide,
    fma,
    higher,
    load,
    load1,
    load_part,
    read,
    splat,
    store,
    store1,
    store_part,
    total,
)
from .softmax import LOWEST, absorb, hide, slopes
from .tile import product, turn
from .views import LINE, address, gather, scatter, width

Q, K, V, MASK, Y, DY, DK, DV, DQ = range(9)               # in the table
WHOLE   = lcm(ROWS, WIDTH)                                # rows of what is multiplied and turned
QUERIES = lcm(ROWS, PANEL) * max(1, 64 // lcm(ROWS, PANEL))    # at a time, on the way back
STEP    = QUERIES + LINE                                  # floats from one key's scores to the next


def forward_size(block, panels, d, e):
    """Floats that forward_part needs."""
    return (block * (width(d) + width(e) + PANEL) + PANEL * width(max(d, e))
            + panels * PANEL * (up(d, WHOLE) + up(e, WHOLE) + 2))


@task
def forward_part(item, worker, views, scale, log_sum, query_step, N, heads, L, M, d, e, panels,
                 block, scratch, size):
    """An item is `panels` times PANEL queries of one head; they see `block` keys at a time.

    log_sum (2, N, heads, L) receives each query's highest score and its sum of e^(s − highest).
    """
    D, E, deep = width(d), width(e), up(e, WHOLE) * PANEL
    k = at(scratch, worker * size)                        # (block, D)
    v = at(k, block * D)                                  # (block, E)
    rows = at(v, block * E)                               # PANEL rows of q, later of y
    s = at(rows, PANEL * width(max(d, e)))                # (block, PANEL)
    qT = at(s, block * PANEL)                             # panels of (d, PANEL)
    yT = at(qT, panels * up(d, WHOLE) * PANEL)            # panels of (e, PANEL)
    top = at(yT, panels * deep)
    sums = at(top, panels * PANEL)
    parts = (L + panels * PANEL - 1) // (panels * PANEL)
    n, head, start = item // parts // heads, item // parts % heads, item % parts * panels * PANEL
    queries, one = min(panels * PANEL, L - start), splat(1.0)
    for l in range(0, queries, PANEL):
        gather(views, Q, n, head, start + l, min(PANEL, queries - l), d, rows, PANEL,
               splat(load1(scale, 0)))
        turn(rows, D, at(qT, l * up(d, WHOLE)), PANEL, PANEL, d)
        for j in range(0, PANEL, WIDTH):
            store(top, l + j, splat(LOWEST))
    for m in range(0, M, block):
        keys = min(block, M - m)
        gather(views, K, n, head, m, keys, d, k, up(keys, ROWS), one)
        gather(views, V, n, head, m, keys, e, v, keys, one)
        for l in range(0, queries, PANEL):
            y = at(yT, l // PANEL * deep)
            product(k, D, 1, at(qT, l * up(d, WHOLE)), PANEL, s, PANEL, keys, PANEL, d, 0)
            if read(views, 4 * MASK):
                hide(s, PANEL, views, MASK, query_step, n, head, m, start + l, keys,
                     min(PANEL, queries - l))
            absorb(s, keys, at(top, l), at(sums, l), y, e, m == 0)
            product(v, 1, E, s, PANEL, y, PANEL, e, PANEL, keys, m)
    for l in range(0, queries, PANEL):
        y = at(yT, l // PANEL * deep)
        for j in range(0, PANEL, WIDTH):
            share = divide(one, higher(one, load(sums, l + j)))    # below 1 only if all is hidden
            for c in range(e):
                store(y, c * PANEL + j, load(y, c * PANEL + j) * share)
            here = (n * heads + head) * L + start + l + j
            store_part(log_sum, here, load(top, l + j), queries - l - j)
            store_part(log_sum, N * heads * L + here, load(sums, l + j), queries - l - j)
        turn(y, PANEL, rows, E, e, PANEL)
        scatter(rows, views, Y, n, head, start + l, min(PANEL, queries - l), e, one, 0)


def backward_size(block, d, e):
    """Floats that backward_part needs."""
    return (2 * block * (width(d) + width(e) + STEP) + QUERIES * (width(d) + width(e) + 2)
            + STEP * (up(d, WHOLE) + up(e, WHOLE)))


@task
def backward_part(item, worker, views, scale, log_sum, query_step, heads, L, M, d, e, parts, span,
                  block, scratch, size):
    """An item is one of `parts` of one head's keys, `span` of them: dk, dv, and a share of dq.

    The share goes to array DQ + part of the table.
    """
    D, E = width(d), width(e)
    k = at(scratch, worker * size)                        # (block, D)
    dk = at(k, block * D)
    v = at(dk, block * D)                                 # (block, E)
    dv = at(v, block * E)
    p = at(dv, block * E)                                 # (block, STEP), s before
    ds = at(p, block * STEP)                              # (block, STEP), dp before
    q = at(ds, block * STEP)                              # (QUERIES, D), later dq
    dy = at(q, QUERIES * D)                               # (QUERIES, E)
    qT = at(dy, QUERIES * E)                              # (d, STEP), later dqᵀ
    dyT = at(qT, up(d, WHOLE) * STEP)                     # (e, STEP)
    sums = at(dyT, up(e, WHOLE) * STEP)                   # log_sum, −∞ made finite
    mean, one = at(sums, QUERIES), splat(1.0)             # Σ dy · y
    n, head, part = item // parts // heads, item // parts % heads, item % parts
    for m in range(part * span, min(part * span + span, M), block):
        keys = min(block, part * span + span - m, M - m)
        gather(views, K, n, head, m, keys, d, k, up(keys, ROWS), one)
        gather(views, V, n, head, m, keys, e, v, up(keys, ROWS), one)
        for l in range(0, L, QUERIES):
            queries = min(QUERIES, L - l)
            padded = up(queries, PANEL)
            gather(views, Q, n, head, l, queries, d, q, padded, splat(load1(scale, 0)))
            gather(views, DY, n, head, l, queries, e, dy, padded, one)
            turn(q, D, qT, STEP, padded, d)
            turn(dy, E, dyT, STEP, padded, e)
            for r in range(queries):
                store1(mean, r, dot(at(dy, r * E), address(views, Y, n, head, l + r), e))
            for j in range(0, queries, PANEL):
                for c in range(j, j + PANEL, WIDTH):
                    here = load_part(log_sum, (n * heads + head) * L + l + c, queries - c)
                    store(sums, c, higher(splat(LOWEST), here))
                product(k, D, 1, at(qT, j), STEP, at(p, j), STEP, keys, PANEL, d, 0)
                product(v, E, 1, at(dyT, j), STEP, at(ds, j), STEP, keys, PANEL, e, 0)
                if read(views, 4 * MASK):
                    hide(at(p, j), STEP, views, MASK, query_step, n, head, m, l + j, keys,
                         min(PANEL, queries - j))
                slopes(at(p, j), at(ds, j), STEP, keys, at(sums, j), at(mean, j))
            product(p, STEP, 1, dy, E, dv, E, keys, e, queries, l)
            product(ds, STEP, 1, q, D, dk, D, keys, d, queries, l)
            product(k, 1, D, ds, STEP, qT, STEP, d, queries, keys, 0)
            turn(qT, STEP, q, D, d, padded)
            scatter(q, views, DQ + part, n, head, l, queries, d, splat(load1(scale, 0)),
                    m > part * span)
        scatter(dk, views, DK, n, head, m, keys, d, one, 0)
        scatter(dv, views, DV, n, head, m, keys, e, one, 0)


def dot(x, y, n):
    """Σ x · y"""
    terms = splat(0.0)
    for i in range(0, n, WIDTH):
        terms = fma(load_part(x, i, n - i), load_part(y, i, n - i), terms)
    return total(terms)
