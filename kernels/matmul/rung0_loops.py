"""Rung 0, loops: the definition. Every other rung is compared with this one.

One multiply-add for each of P·O results and C inputs, written as the formula stands.
"""

import numpy as np


def forward(x, w, b=None, add=None):
    x = side_by_side(x)
    y = np.zeros((len(x), w.shape[1]), np.result_type(x, w))
    for p, c, o in np.ndindex(*x.shape, w.shape[1]):
        y[p, o] += x[p, c] * w[c, o]
    for more in (b, add):
        y = y if more is None else y + more
    return y


def grad_input(dy, w, split=None):
    dx = np.zeros((len(dy), len(w)), np.result_type(dy, w))
    for p, c, o in np.ndindex(len(dy), *w.shape):
        dx[p, c] += dy[p, o] * w[c, o]
    return dx if split is None else [dx[:, :split], dx[:, split:]]


def grad_weight(x, dy):
    x = side_by_side(x)
    dw = np.zeros((x.shape[1], dy.shape[1]), np.result_type(x, dy))
    for p, c, o in np.ndindex(*x.shape, dy.shape[1]):
        dw[c, o] += x[p, c] * dy[p, o]
    return dw


def side_by_side(x):
    """x, or the two arrays of a list as one."""
    return np.concatenate(x, axis=1) if isinstance(x, list) else x
