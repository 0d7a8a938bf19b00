"""Rung 2, simd: our own micro-kernels, from registers to threads.

Since rung 1: a sum starts at b, and add joins it while the block of y is still in L1; two inputs
are read where they lie; what comes next is fetched while what is here is multiplied; and no second
pool of threads fights with ours. Prediction: the same peak; for C = 64 -> O = 32, where y is
written once, not three times, about twice the speed.
"""

import numpy as np

from ..door import contiguous, given, up, whole_panels
from ..memory import empty
from ..simd.pool import run, threads
from ..simd.product import PANEL, ROWS
from . import rung1_blas
from .blocks import DEPTH, LINE, add_up, forward as forward_block, gradient, pack, passing

TINY  = 2**18                                             # P·C·O; below, BLAS is done sooner
SMALL = 2**22                                             # P·C·O; below, waking threads costs more
BLOCK = 96                                                # rows: with C = 512 a fifth of a small L2
LARGE = 2**16                                             # C·O of a w that is packed as it passes
STAY  = 256                                               # rows, columns by which it passes
DEEP  = 64                                                # rows of dy at a time: 8 KB in L1
TALL, WIDE = 512, 256                                     # a gradient's largest block: 512 KB in L2
SPLIT, PARTS = 512, 16                                    # rows a gradient sums at least; items


def forward(x, w, b=None, add=None):
    xs = x if isinstance(x, list) else [x]
    P, C, O = len(xs[0]), sum(x.shape[-1] for x in xs), w.shape[-1]
    if not fits(P * C * O, *((x, (P, x.shape[-1])) for x in xs), (w, (C, O)),
                (b, (O,)), (add, (P, O))):
        return rung1_blas.forward(x, w, b, add)
    [w] = contiguous(w)
    if C * O >= LARGE:
        return passed_by(xs, w, b, add)
    if O == PANEL or (O % PANEL == 0 and P <= 2 * BLOCK):     # w is as good as its panels
        return multiplied(xs, w, O, PANEL, O, b, add)
    return multiplied(xs, panels(w, O, 1, C, O), PANEL, C * PANEL, O, b, add)


def grad_input(dy, w, split=None):
    """A product again: dy by wᵀ."""
    if split is not None:
        return [grad_input(dy, part) for part in (w[:split], w[split:])]
    P, (C, O) = len(dy), w.shape
    if not fits(P * C * O, (dy, (P, O)), (w, (C, O))):
        return rung1_blas.grad_input(dy, w)
    [w] = contiguous(w)
    return multiplied([dy], panels(w, 1, O, O, C), PANEL, O * PANEL, C)


def grad_weight(x, dy):
    """Sums over rows, cut into parts by the shape alone: the number of threads changes no bit."""
    if isinstance(x, list):
        return np.concatenate([grad_weight(part, dy) for part in x])
    (P, C), O = x.shape, dy.shape[-1]
    if not fits(P * C * O, (x, (P, C)), (dy, (P, O))):
        return rung1_blas.grad_weight(x, dy)
    x, dy = contiguous(x, dy)
    splits = min(PARTS, max(1, P // SPLIT))
    parts = PARTS // splits if P * C * O > SMALL else 1   # if rows are few, cut columns, channels
    o_block = up(min(WIDE, max(64, -(-O // parts))), PANEL)
    across = -(-O // o_block)
    c_block = up(min(TALL, max(128, -(-C * across // parts))), ROWS)
    each = up(-(-P // splits), DEEP)
    splits = -(-P // each)
    size = up(DEEP * (PANEL + ROWS) + PANEL + c_block * o_block, 16)
    sums = empty((splits, C, O))
    run(gradient, splits * across * -(-C // c_block), x, dy, P, C, O, c_block, o_block, each, DEEP,
        sums, empty(threads() * size), size)
    if splits == 1:
        return sums[0]
    dw, part = empty((C, O)), up(max(-(-C * O // threads()), 2**13), 16)
    run(add_up, -(-C * O // part), sums, C * O, splits, part, dw)
    return dw


def fits(work, *expected):
    """Whether all are float32 of the shape expected, none is empty, and the product is worth it."""
    return work > TINY and all(a is None or (a.dtype == np.float32 and a.shape == shape and a.size)
                               for a, shape in expected)


def panels(w, row, column, C, O):
    """w (C, O), whose w[c, o] stands at c·row + o·column, cut into panels."""
    count = up(O, PANEL) // PANEL
    each = count if C * O <= 2**17 else 1                 # small: one thread, at once
    packed = empty((count, C, PANEL))
    run(pack, -(-count // each), w, row, column, C, O, each, packed)
    return packed


def multiplied(xs, w, w_row, w_panel, O, b=None, add=None):
    """y (P, O) = xs · w + b + add;  w[c, j·PANEL …] stands at w + j·w_panel + c·w_row"""
    x, skip = contiguous(*xs) if len(xs) == 2 else (*contiguous(*xs), None)
    add = None if add is None else np.ascontiguousarray(add)
    (P, C1), C2 = x.shape, 0 if skip is None else skip.shape[1]
    base = whole_panels(0 if b is None else b, 1, O)
    block, columns = BLOCK, up(O, PANEL)
    if P * (C1 + C2) * O > SMALL:                         # something for each thread
        block = min(BLOCK, up(-(-P // threads()), ROWS))
        columns = up(-(-O // max(1, threads() * block // P)), PANEL)
    size = up(block * PANEL + ROWS * (C1 + C2), 16)
    y = empty((P, O))
    run(forward_block, -(-P // block) * -(-O // columns), x, given(skip), C1, C2,
        w, w_row, w_panel, base, given(add), y, P, O, block, columns,
        empty(threads() * size), size)
    return y


def passed_by(xs, w, b, add):
    """y (P, O) = xs · w + b + add for a large w, which passes by blocks of rows."""
    x, skip = contiguous(*xs) if len(xs) == 2 else (*contiguous(*xs), None)
    add = None if add is None else np.ascontiguousarray(add)
    (P, C1), O = x.shape, w.shape[1]
    C2 = len(w) - C1
    blocks = -(-P // STAY)
    block = up(-(-P // blocks), ROWS)
    across = max(1, up(blocks * -(-O // STAY), 2 * threads()) // blocks)      # items for everyone
    columns = up(-(-O // across), PANEL)
    size = up(DEPTH * PANEL + block * (columns + LINE) + ROWS * max(C1, C2), 16)
    y = empty((P, O))
    run(passing, -(-P // block) * -(-O // columns), x, given(skip), C1, C2, w,
        whole_panels(0 if b is None else b, 1, O), given(add), y, P, O, block, columns,
        empty(threads() * size), size)
    return y
