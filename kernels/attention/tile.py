"""Matrices in a thread's own memory: turned, and multiplied block by block."""

from ..simd.functions import WIDTH, at
from ..simd.microkernels import multiply, multiply_add
from ..simd.product import PANEL, ROWS
from ..simd.squares import transpose


def turn(x, x_row, y, y_row, rows, columns):
    """y (columns, rows) = x (rows, columns)ᵀ, both rounded up to whole vectors"""
    for r in range(0, rows, WIDTH):
        for c in range(0, columns, WIDTH):
            transpose(at(x, r * x_row + c), x_row, at(y, c * y_row + r), y_row)


def product(a, a_row, a_k, b, b_k, c, c_row, rows, columns, k, add):
    """c (rows, columns) = a (rows, k) · b (k, columns), plus what was there where `add`

    Rows and columns are rounded up to whole blocks, which must be there in a, b and c.
    """
    for j in range(0, columns, PANEL):
        for i in range(0, rows, ROWS):
            A, C = at(a, i * a_row), at(c, i * c_row + j)
            if add:
                multiply_add(A, a_row, a_k, at(b, j), b_k, C, c_row, k)
            else:
                multiply(A, a_row, a_k, at(b, j), b_k, C, c_row, k)
