"""Products of matrices from micro-kernels: rows of A by panels of B.

Of a panel only the first `columns` are wanted; where they fit into one vector, only that is
computed. M goes up to whole ROWS, which a and c must hold.
"""

from . import isa
from .functions import WIDTH, at
from .microkernels import multiply, multiply_add, multiply_narrow, multiply_narrow_add

ROWS, PANEL = isa.host().rows, isa.host().panel
DEPTH = 256                                               # k's at a time: a panel of B fits in L1


def rows_times_panel(a, a_row, b, c, M, K, columns):
    """c (M, PANEL) = a (M, K) · b (K, PANEL)"""
    for k in range(0, K, DEPTH):
        part(at(a, k), a_row, 1, at(b, k * PANEL), PANEL, c, PANEL, M, min(K - k, DEPTH), columns,
             k > 0)


def outer(a, a_row, b, b_row, c, c_row, M, K, columns, add):
    """c (M, PANEL) = aᵀ b for a (K, M), b (K, PANEL), plus what was there where `add`"""
    part(a, 1, a_row, b, b_row, c, c_row, M, K, columns, add)


def part(a, a_row, a_k, b, b_k, c, c_row, M, K, columns, add):
    for i in range(0, M, ROWS):
        A, C = at(a, i * a_row), at(c, i * c_row)
        if columns > WIDTH:
            if add:
                multiply_add(A, a_row, a_k, b, b_k, C, c_row, K)
            else:
                multiply(A, a_row, a_k, b, b_k, C, c_row, K)
        elif add:
            multiply_narrow_add(A, a_row, a_k, b, b_k, C, c_row, K)
        else:
            multiply_narrow(A, a_row, a_k, b, b_k, C, c_row, K)
