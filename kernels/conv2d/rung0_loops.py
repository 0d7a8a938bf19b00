"""Rung 0, loops: the definition. Every other rung is compared with this one.

One multiply-add for each of N·H'·W'·O outputs and K·K'·C inputs, written as the formula stands.
"""

import numpy as np


def forward(x, w, stride, padding, b=None):
    y = np.zeros(out_shape(x.shape, w.shape, stride, padding), x.dtype)
    if b is not None:
        y += b
    for n, i, j, o, u, v, c, p, q in terms(x.shape, w.shape, stride, padding):
        y[n, i, j, o] += x[n, p, q, c] * w[u, v, c, o]
    return y


def grad_input(dy, w, x_shape, stride, padding):
    dx = np.zeros(x_shape, dy.dtype)
    for n, i, j, o, u, v, c, p, q in terms(x_shape, w.shape, stride, padding):
        dx[n, p, q, c] += dy[n, i, j, o] * w[u, v, c, o]
    return dx


def grad_weight(dy, x, w_shape, stride, padding):
    dw = np.zeros(w_shape, dy.dtype)
    for n, i, j, o, u, v, c, p, q in terms(x.shape, w_shape, stride, padding):
        dw[u, v, c, o] += dy[n, i, j, o] * x[n, p, q, c]
    return dw


def out_shape(x_shape, w_shape, stride, padding):
    """(N, H', W', O) of the result."""
    N, H, W, _ = x_shape
    K, L, _, O = w_shape
    return (N, (H + sum(padding[0]) - K) // stride + 1, (W + sum(padding[1]) - L) // stride + 1, O)


def terms(x_shape, w_shape, stride, padding):
    """Every product of the sum: output (n, i, j, o), weight (u, v, c, o), input (n, p, q, c)."""
    _, H, W, _ = x_shape
    K, L, C, _ = w_shape
    for n, i, j, o in np.ndindex(*out_shape(x_shape, w_shape, stride, padding)):
        for u, v, c in np.ndindex(K, L, C):
            p = i * stride + u - padding[0][0]
            q = j * stride + v - padding[1][0]
            if 0 <= p < H and 0 <= q < W:             # outside the picture stands a zero
                yield n, i, j, o, u, v, c, p, q
