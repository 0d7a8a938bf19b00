"""The matrix product's tasks: a thread takes a block of rows, or a block of a weight's gradient.

The cache decides the order. A panel of w, PANEL wide and DEPTH deep, stays in L1 while the block's
rows go by; the block stays in L2 while panel follows panel. So each number of x comes from memory
once, fetched ahead while the first panel is at work, and each of y goes there once.
"""

from ..simd.functions import WIDTH, at, copy, zero
from ..simd.microkernels import multiply_onto, multiply_onto_ahead
from ..simd.product import DEPTH, PANEL, ROWS
from ..simd.tasks import task
from ..simd.vector import load1, load_part, store, store1, store_part

LINE = 16                                                 # floats in a line of the cache


@task
def pack(item, worker, w, row, column, C, O, each, panels):
    """panels (·, C, PANEL) = w (C, O) cut at every PANEL columns, zeros behind; an item is `each`.

    w[c, o] stands at w + c·row + o·column: it may be the transpose of what lies in memory.
    """
    for j in range(item * each, min(item * each + each, (O + PANEL - 1) // PANEL)):
        here, out = at(w, j * PANEL * column), at(panels, j * C * PANEL)
        n = min(PANEL, O - j * PANEL)
        if n < PANEL:
            zero(out, C * PANEL)
        for c in range(C):
            if column == 1:
                copy(at(here, c * row), at(out, c * PANEL), n)
            else:
                for o in range(n):
                    store1(out, c * PANEL + o, load1(here, c * row + o * column))


@task
def forward(item, worker, x, skip, C1, C2, w, w_row, w_panel, base, add, y, P, O, block, columns,
            scratch, size):
    """y = x w + base + add for a block of rows and a block of columns; base (O up to whole panels).

    w[c, j·PANEL …] stands at w + j·w_panel + c·w_row. What is not whole is computed in `tile`; rows
    behind the last whole ROWS are copied to `rest`, since nothing may stand behind them in x.
    """
    across = (O + columns - 1) // columns
    top, left = item // across * block, item % across * columns
    n = min(block, P - top)
    whole = n // ROWS * ROWS
    tile = at(scratch, worker * size)
    rest, rest2 = at(tile, block * PANEL), at(tile, block * PANEL + ROWS * C1)
    copy(at(x, (top + whole) * C1), rest, (n - whole) * C1)
    copy(at(skip, (top + whole) * C2), rest2, (n - whole) * C2)
    for o in range(left, min(left + columns, O), PANEL):
        here, panel = at(y, top * O + o), at(w, o // PANEL * w_panel)
        c, c_row = (here, O) if whole == n and o + PANEL <= O else (tile, PANEL)
        product(at(x, top * C1), rest, C1, panel, w_row, at(base, o), 0, c, c_row, n, o == left)
        product(at(skip, top * C2), rest2, C2, at(panel, C1 * w_row), w_row, c, c_row, c, c_row, n,
                o == left)
        if add:
            finish(c, c_row, at(add, top * O + o), O, here, O, n, min(PANEL, O - o))
        elif c == tile:
            finish(c, c_row, 0, 0, here, O, n, min(PANEL, O - o))


@task
def passing(item, worker, x, skip, C1, C2, w, base, add, y, P, O, block, columns, scratch, size):
    """The same for a large w (C1 + C2, O): `block` rows stay, and w, a piece at a time, passes by.

    A piece, DEPTH × PANEL, is packed into L1 just before all rows of the block are multiplied by
    it, so w is neither copied as a whole nor fetched again for each few rows. The sums stay in L2.
    """
    across = (O + columns - 1) // columns
    top, left = item // across * block, item % across * columns
    n, wide, step = min(block, P - top), min(columns, O - left), columns + LINE
    piece = at(scratch, worker * size)
    sums = at(piece, DEPTH * PANEL)                       # (block, columns)
    rest = at(sums, block * step)
    for side in range(2):
        a, C, first = (skip, C2, C1) if side else (x, C1, 0)
        a, whole = at(a, top * C), n // ROWS * ROWS
        copy(at(a, whole * C), rest, (n - whole) * C)
        for k in range(0, C, DEPTH):
            depth = min(C - k, DEPTH)
            for o in range(0, wide, PANEL):
                lay_out(at(w, (first + k) * O + left + o), O, depth, min(PANEL, wide - o), piece)
                for i in range(0, n, ROWS):
                    rows = at(a, i * C + k) if i < whole else at(rest, k)
                    to = at(sums, i * step + o)
                    s, s_row = (to, step) if first + k else (at(base, left + o), 0)
                    multiply_onto(rows, C, 1, piece, PANEL, to, step, depth, s, s_row)
    finish(sums, step, at(add, top * O + left) if add else 0, O, at(y, top * O + left), O, n, wide)


def lay_out(w, row, depth, n, piece):
    """piece (depth, PANEL) = w (depth, n), rows `row` floats apart; zeros behind"""
    for k in range(depth):
        for o in range(0, PANEL, WIDTH):
            store(piece, k * PANEL + o, load_part(w, k * row + o, n - o))


def product(x, rest, C, w, w_row, s, s_row, c, c_row, n, new):
    """c (n up to ROWS, PANEL) = s + x (n, C) · w (C, PANEL); x is `new`: it comes from memory"""
    for k in range(0, C, DEPTH):
        depth = min(C - k, DEPTH)
        for i in range(0, n, ROWS):
            a, to = at(x, i * C + k) if i + ROWS <= n else at(rest, k), at(c, i * c_row)
            if new:
                multiply_onto_ahead(a, C, 1, at(w, k * w_row), w_row, to, c_row, depth,
                                    at(s, i * s_row), s_row)
            else:
                multiply_onto(a, C, 1, at(w, k * w_row), w_row, to, c_row, depth,
                              at(s, i * s_row), s_row)
        s, s_row = c, c_row


def finish(c, c_row, add, add_row, y, y_row, n, lanes):
    """y (n, lanes) = c + add"""
    for i in range(n):
        for o in range(0, lanes, WIDTH):
            some = min(WIDTH, lanes - o)
            value = load_part(c, i * c_row + o, some)
            if add:
                value = value + load_part(add, i * add_row + o, some)
            store_part(y, i * y_row + o, value, some)


@task
def gradient(item, worker, x, dy, P, C, O, c_block, o_block, each, deep, sums, scratch, size):
    """sums (splits, C, O): xᵀ dy over `each` rows; an item is a split's block (c_block, o_block).

    `deep` rows at a time: a panel of dy, packed, stays in L1 while the channels of x go by. What is
    not whole is summed in `tile`; channels behind the last whole ROWS are copied to `rest`.
    """
    down, across = (C + c_block - 1) // c_block, (O + o_block - 1) // o_block
    split, c, o = item // (down * across), item // across % down * c_block, item % across * o_block
    tall, wide = min(c_block, C - c), min(o_block, O - o)
    whole = tall // ROWS * ROWS
    panel = at(scratch, worker * size)
    nothing = at(panel, deep * PANEL)
    rest = at(nothing, PANEL)
    tile = at(rest, deep * ROWS)
    out = at(sums, (split * C + c) * O + o)
    sum, step = (out, O) if whole == tall and wide % PANEL == 0 else (tile, o_block)
    zero(nothing, PANEL)
    first, last = split * each, min(split * each + each, P)
    for p in range(first, last, deep):
        n = min(deep, last - p)
        for q in range(n):
            copy(at(x, (p + q) * C + c + whole), at(rest, q * ROWS), tall - whole)
        for j in range(0, wide, PANEL):
            for q in range(n):
                copy(at(dy, (p + q) * O + o + j), at(panel, q * PANEL), min(PANEL, wide - j))
            for i in range(0, tall, ROWS):
                a, a_k = (at(x, p * C + c + i), C) if i < whole else (rest, ROWS)
                to = at(sum, i * step + j)
                s, s_row = (to, step) if p > first else (nothing, 0)
                if j == 0:
                    multiply_onto_ahead(a, 1, a_k, panel, PANEL, to, step, n, s, s_row)
                else:
                    multiply_onto(a, 1, a_k, panel, PANEL, to, step, n, s, s_row)
    if sum == tile:
        finish(tile, o_block, 0, 0, out, O, tall, wide)


@task
def add_up(item, worker, sums, n, splits, each, total):
    """total (n,) = Σ_splits sums (splits, n), in order; an item is `each` numbers"""
    first, last = item * each, min(item * each + each, n)
    for i in range(first, last, WIDTH):
        lanes = min(WIDTH, last - i)
        value = load_part(sums, i, lanes)
        for s in range(1, splits):
            value = value + load_part(sums, s * n + i, lanes)
        store_part(total, i, value, lanes)
