"""The door of the device rungs in float32: what they take, and how the grid is laid over results.

A kernel gets arrays alone. What is not given comes as an array of no numbers: a kernel tells by its
size, and of two inputs side by side it knows the seam by the width of the first.
"""

import numpy as np

from ..gpu.arrays import contiguous, empty
from . import rung1_blas

MATRIX, ROW = "float32[:,::1]", "float32[::1]"            # Numba's names, for signatures
FORWARD = f"{MATRIX}, {MATRIX}, {MATRIX}, {ROW}, {MATRIX}, {MATRIX}"
GRADIENT = f"{MATRIX}, {MATRIX}, {MATRIX}"


def forward_by(product, tile, block):
    """forward of a rung whose kernel is product(x, skip, w, b, add, y); a block's results: tile."""
    def forward(x, w, b=None, add=None):
        xs = x if isinstance(x, list) else [x]
        P, C, O = len(xs[0]), sum(x.shape[-1] for x in xs), w.shape[-1]
        if not fit(*((x, (P, x.shape[-1])) for x in xs), (w, (C, O)), (b, (O,)), (add, (P, O))):
            return rung1_blas.forward(x, w, b, add)
        y = empty((P, O), np.float32, like=w)
        x, skip = (*xs, nothing(2, w))[:2]
        product[grid_over(y.shape, tile), block](*contiguous(x, skip, w), given(b, 1, w),
                                              given(add, 2, w), y)
        return y

    return forward


def grad_input_by(product, tile, block):
    """grad_input of a rung whose kernel is product(dy, w, dx)."""
    def grad_input(dy, w, split=None):
        if split is not None:
            return [grad_input(dy, part) for part in (w[:split], w[split:])]
        P, (C, O) = len(dy), w.shape
        if not fit((dy, (P, O)), (w, (C, O))):
            return rung1_blas.grad_input(dy, w)
        dx = empty((P, C), np.float32, like=w)
        product[grid_over(dx.shape, tile), block](*contiguous(dy, w), dx)
        return dx

    return grad_input


def grad_weight_by(product, tile, block):
    """grad_weight of a rung whose kernel is product(x, dy, dw)."""
    def grad_weight(x, dy):
        if isinstance(x, list):
            return np.concatenate([grad_weight(part, dy) for part in x])
        (P, C), O = x.shape, dy.shape[-1]
        if not fit((x, (P, C)), (dy, (P, O))):
            return rung1_blas.grad_weight(x, dy)
        dw = empty((C, O), np.float32, like=dy)
        product[grid_over(dw.shape, tile), block](*contiguous(x, dy), dw)
        return dw

    return grad_weight


def fit(*expected):
    """Whether all are float32 of the shape expected, and none is empty."""
    return all(a is None or (a.dtype == np.float32 and a.shape == shape and a.size)
               for a, shape in expected)


def grid_over(shape, tile):
    """How many blocks cover (rows, columns); the many rows along x, where a grid may be longest."""
    return -(-shape[0] // tile[0]), -(-shape[1] // tile[1])


def given(array, axes, like):
    return nothing(axes, like) if array is None else contiguous(array)[0]


def nothing(axes, like):
    return empty((0,) * axes, np.float32, like)
