"""Rung 1, blas: the library that every NumPy brings along.

Since rung 0: BLAS cuts the matrices into blocks for each cache and the registers, on all its
threads. What remains is not its work: an array for each product, and b and add in passes of their
own over y. Prediction: near the machine's peak from C, O = 256 on; for C = 64 -> O = 32, with 43
FLOPs for each number read or written, memory sets the pace, and each pass counts.
"""

import numpy as np


def forward(x, w, b=None, add=None):
    first, *others = pairs(x, w)
    y = np.matmul(*first)
    for part in others:
        y = y + np.matmul(*part)
    for more in (b, add):
        y = y if more is None else y + more
    return y


def grad_input(dy, w, split=None):
    return dy @ w.T if split is None else [dy @ w[:split].T, dy @ w[split:].T]


def grad_weight(x, dy):
    return np.concatenate([part.T @ dy for part in (x if isinstance(x, list) else [x])])


def pairs(x, w):
    """Each part of x with its rows of w."""
    if not isinstance(x, list):
        return [(x, w)]
    C1 = x[0].shape[1]
    return [(x[0], w[:C1]), (x[1], w[C1:])]
