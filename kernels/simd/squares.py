"""Blocks of WIDTH × WIDTH floats, turned in registers: a vector of columns becomes one of rows."""

from . import isa
from .functions import WIDTH
from .vector import Word, floats, integer, ir, load_part, pointer, splat, store


def emit_transpose(b, x, x_row, y, y_row):
    """y = xᵀ, WIDTH × WIDTH: rows 1 apart exchange every other number, rows 2 apart pairs, …"""
    width = isa.host().width
    lanes = ir().VectorType(ir().IntType(32), width)

    def place(address, row, i):
        return pointer(b, address, b.mul(row, integer(i)), floats())

    rows = [b.load(place(x, x_row, i), align=4) for i in range(width)]
    far = 1
    while far < width:
        low  = [width + i - far if i & far else i for i in range(width)]      # of both rows
        high = [width + i if i & far else i + far for i in range(width)]
        for i in (i for i in range(width) if not i & far):
            pair = rows[i], rows[i + far]
            rows[i], rows[i + far] = (b.shuffle_vector(*pair, ir().Constant(lanes, lane))
                                      for lane in (low, high))
        far *= 2
    for i in range(width):
        b.store(rows[i], place(y, y_row, i), align=4)


transpose = Word(emit_transpose, "none", ["int"] * 4)


def square(w, row, column, rows, columns, out, spare):
    """out (rows up to WIDTH, WIDTH) = w[i·row + j·column] for i < rows, j < columns; zeros beyond

    row or column is 1. spare: WIDTH² floats of scratch.
    """
    if column == 1:
        for i in range(rows):
            store(out, i * WIDTH, load_part(w, i * row, columns))
    else:
        for j in range(WIDTH):
            store(spare, j * WIDTH, splat(0.0))
        for j in range(columns):
            store(spare, j * WIDTH, load_part(w, j * column, rows))
        transpose(spare, WIDTH, out, WIDTH)
