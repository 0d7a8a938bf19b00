"""Rung 0, numpy: the definition, on a piece of the buffers at a time.

Each line is a pass over memory that makes an array; so that those stay small and in the cache, the
buffers are worked on in pieces.
"""

from math import sqrt

import numpy as np

PIECE = 2**16                                             # numbers: 256 KB in float32


def step(data, grad, m, v, ema, *, half=None, lr, beta1, beta2, eps, decay, decaying, step,
         ema_decay, scale):
    m_scale, v_scale = 1 / (1 - beta1**step), 1 / (1 - beta2**step)   # both means started at zero
    for i in range(0, len(data), PIECE):
        g, m_i, v_i, x = (a[i:i + PIECE] for a in (grad, m, v, data))
        g *= scale
        m_i += (1 - beta1) * (g - m_i)
        v_i += (1 - beta2) * (g * g - v_i)
        weights = x[:max(0, decaying - i)]
        weights -= lr * decay * weights
        x -= lr * m_scale * m_i / (np.sqrt(v_i * v_scale) + eps)
        if ema is not None:
            mean = ema[i:i + PIECE]
            mean += (1 - ema_decay) * (x - mean)
        g[...] = 0
    copy_into(half, data)


def copy_into(half, data):
    """The first numbers of data into half, if there is one, as bf16."""
    if half is not None:
        half[...] = data[:half.size].astype(half.dtype)


def norm(grad):
    pieces = (grad[i:i + PIECE] for i in range(0, len(grad), PIECE))
    return sqrt(sum((g * g).sum().astype(np.float64) for g in pieces))
