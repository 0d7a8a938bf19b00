"""Products of matrices from micro-kernels: rows of A by panels of B."""

from . import isa
from .functions import at
from .microkernels import multiply, multiply_add

ROWS, PANEL = isa.host().rows, isa.host().panel
DEPTH = 256                                               # k's at a time: a panel of B fits in L1


def rows_times_panel(a, a_row, b, c, M, K):
    """c (M, PANEL) = a (M, K) · b (K, PANEL);  a and c must hold M up to whole ROWS"""
    for i in range(0, M, ROWS):
        multiply(at(a, i * a_row), a_row, 1, b, PANEL, at(c, i * PANEL), PANEL, min(K, DEPTH))
    for k in range(DEPTH, K, DEPTH):
        for i in range(0, M, ROWS):
            multiply_add(at(a, i * a_row + k), a_row, 1, at(b, k * PANEL), PANEL,
                         at(c, i * PANEL), PANEL, min(K - k, DEPTH))


def outer(a, a_row, b, b_row, c, c_row, M, K, add):
    """c (M, PANEL) = aᵀ b for a (K, M), b (K, PANEL), plus what was there where `add`

    M up to whole ROWS, as above.
    """
    for i in range(0, M, ROWS):
        if add:
            multiply_add(at(a, i), 1, a_row, b, b_row, at(c, i * c_row), c_row, K)
        else:
            multiply(at(a, i), 1, a_row, b, b_row, at(c, i * c_row), c_row, K)
