"""Rung 0, plain: the definition. Every other rung is compared with this one.

All L × M scores of all heads are written to memory, and read and written again for each step of
the softmax. BLAS multiplies; with d multiply-adds a score, the steps between cost as much.
"""

import numpy as np


def forward(q, k, v, mask, scale, bias=None):
    s = scores(q, k, mask, scale, bias)
    top = finite(highest(s))
    with np.errstate(under="ignore", divide="ignore"):    # far from the top e^s is 0, and log 0 −∞
        p = np.exp(s - top)                               # (…, L, M)
        total = p.sum(axis=-1, keepdims=True)
        log_sum = top + np.log(total)
        y = (p @ v) / np.maximum(total, 1)                # all hidden: 0, not 0 / 0
    return y, log_sum[..., 0]


def backward(dy, q, k, v, mask, scale, y, log_sum, bias=None):
    with np.errstate(under="ignore"):
        p, ds = slopes(dy, q, k, v, mask, scale, y, log_sum, bias)
        ds = ds * scale
        return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dy


def grad_bias(dy, q, k, v, mask, scale, y, log_sum, bias):
    with np.errstate(under="ignore"):
        return slopes(dy, q, k, v, mask, scale, y, log_sum, bias)[1]


def slopes(dy, q, k, v, mask, scale, y, log_sum, bias):
    """The weights p (…, L, M), found again from log_sum, and the gradient of the scores"""
    p = np.exp(scores(q, k, mask, scale, bias) - finite(log_sum)[..., None])
    dp = dy @ v.swapaxes(-1, -2)
    return p, p * (dp - (dy * y).sum(axis=-1, keepdims=True))


def scores(q, k, mask, scale, bias):
    """s (…, L, M) = q kᵀ · scale + bias, −∞ where a query may not look"""
    s = (q * scale) @ k.swapaxes(-1, -2)
    s = s if bias is None else s + bias
    return s if mask is None else s + np.where(mask, 0, -np.inf).astype(s.dtype)


def highest(s):
    """The largest of each row, (…, 1); −∞ where there is none."""
    if s.shape[-1]:
        return s.max(axis=-1, keepdims=True)
    return np.zeros((*s.shape[:-1], 1), s.dtype, like=s) - np.inf


def finite(top):
    """top with 0 for −∞: then e^(−∞ − top) is 0, not NaN."""
    return np.where(top == -np.inf, 0, top)
