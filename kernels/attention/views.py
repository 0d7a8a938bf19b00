"""How a kernel finds rows of arrays (N, h, L, d) of any strides, and copies them.

A table holds four int64s for each array: its address, and the steps, in floats, from one image,
head and row to the next. The numbers of a row lie one behind the other. A head of (N, L, h·d) is
such an array; no axis need be moved to read it.

A copy has zeros around it, up to whole blocks of the micro-kernel, so that nothing is read behind
an array's end nor multiplied that nobody wrote; and its rows are one cache line longer than they
must be: rows a power of two apart would share the cache's sets.
"""

import numpy as np

from ..door import up
from ..simd.functions import WIDTH, at
from ..simd.product import PANEL
from ..simd.vector import load, load_part, read, splat, store, store_part

LINE = 16                                                 # floats in a line of the cache


def table(*arrays):
    """The table of arrays with four axes, zeros for None; they must outlive its use."""
    views = np.zeros((len(arrays), 4), np.int64)
    for view, a in zip(views, arrays):
        if a is not None:
            steps = [step // 4 if n > 1 else 0 for n, step in zip(a.shape, a.strides[:3])]
            view[:] = a.ctypes.data, *steps
    return views


def address(views, which, n, head, row):
    """Where a row of array number `which` begins."""
    view = views + 32 * which
    return at(read(view, 0), n * read(view, 1) + head * read(view, 2) + row * read(view, 3))


def width(columns):
    """Floats from one row of a copy to the next."""
    return up(columns, PANEL) + LINE


def gather(views, which, n, head, first, rows, columns, y, tall, factor):
    """y (tall, width) = rows first … first + rows − 1 of an array, times factor; zeros around"""
    whole, padded = columns // WIDTH * WIDTH, up(columns, PANEL)
    for r in range(rows):
        source, target = address(views, which, n, head, first + r), at(y, r * width(columns))
        for c in range(0, whole, WIDTH):
            store(target, c, load(source, c) * factor)
        for c in range(whole, padded, WIDTH):
            store(target, c, load_part(source, c, columns - c) * factor)
    for r in range(rows, tall):
        for c in range(0, padded, WIDTH):
            store(y, r * width(columns) + c, splat(0.0))


def scatter(x, views, which, n, head, first, rows, columns, factor, add):
    """The way back: rows of an array = x (rows, width) · factor, plus what they were where `add`"""
    for r in range(rows):
        source, target = at(x, r * width(columns)), address(views, which, n, head, first + r)
        for c in range(0, columns, WIDTH):
            lanes = min(WIDTH, columns - c)
            value = load(source, c) * factor
            if add:
                value = value + load_part(target, c, lanes)
            store_part(target, c, value, lanes)
