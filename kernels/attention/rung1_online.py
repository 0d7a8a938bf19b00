"""Rung 1, online: softmax in one pass over the keys, for a block of queries at a time.

Since rung 0: the scores of a block of queries and a block of keys stay in the cache, and no L × M
array exists. The highest score so far and the sum of e^(s − highest) run along; when a block of
keys brings a new highest, what is summed shrinks by e^(old − new).  Milakov & Gimelshein 2018;
FlashAttention (2205.14135) Alg. 1. Backward finds the weights again from log_sum.

Prediction: rung 0 moves some 20 bytes a score through memory; here a score never leaves the cache.
What is left is 4 d FLOPs a score on the way forward and 10 d on the way back, at the pace of the
micro-kernel, and some 20 instructions for e^s of each vector of scores.
"""

import numpy as np

from .. import memory
from ..door import up
from ..simd.pool import run, threads
from ..simd.product import PANEL, ROWS
from . import rung0_plain
from .online import backward_part, backward_size, forward_part, forward_size
from .views import table

FORWARD_KEYS, BACKWARD_KEYS = 128, 256                    # of a block, at most
ITEMS = 16                                                # at least, where the work can be cut
grad_bias = rung0_plain.grad_bias                         # as large as the scores are


def forward(q, k, v, mask, scale, bias=None):
    if not usual(q, k, v, mask=mask, bias=bias):
        return rung0_plain.forward(q, k, v, mask, scale, bias)
    N, h, L, d = four(q).shape
    M, e = v.shape[-2:]
    y, sums = like(q, e), memory.empty((2, N, h, L))
    q, k, v, away = rows(q), rows(k), rows(v), added(mask, bias)
    count, block = up(L, PANEL) // PANEL, up(min(M, FORWARD_KEYS), ROWS)
    panels = min(count, max(1, N * h * count // ITEMS), 16)
    size = up(forward_size(block, panels, d, e), 16)
    run(forward_part, N * h * (up(count, panels) // panels), table(q, k, v, away, four(y)),
        np.array([scale], np.float32), sums, query_step(away), N, h, L, M, d, e, panels, block,
        memory.empty(threads() * size), size)
    with np.errstate(divide="ignore"):                    # log 0 = −∞: all is hidden
        log_sum = sums[0] + np.log(sums[1])
    return y, log_sum.reshape(y.shape[:-1])


def backward(dy, q, k, v, mask, scale, y, log_sum, bias=None):
    if not usual(q, k, v, dy, y, log_sum[..., None], mask=mask, bias=bias):
        return rung0_plain.backward(dy, q, k, v, mask, scale, y, log_sum, bias)
    N, h, L, d = four(q).shape
    M, e = v.shape[-2:]
    span = up(-(-M // min(-(-ITEMS // (N * h)), -(-M // 64))), ROWS)    # keys of a part
    parts, block = -(-M // span), min(span, up(BACKWARD_KEYS, ROWS))
    dq, dk, dv = [like(q, d) for _ in range(parts)], like(k, d), like(v, e)
    q, k, v, y, dy, away = *map(rows, (q, k, v, y, dy)), added(mask, bias)
    size = up(backward_size(block, d, e), 16)
    run(backward_part, N * h * parts, table(q, k, v, away, y, dy, *map(four, (dk, dv, *dq))),
        np.array([scale], np.float32), np.ascontiguousarray(log_sum), query_step(away), h, L, M, d,
        e, parts, span, block, memory.empty(threads() * size), size)
    for share in dq[1:]:
        dq[0] += share
    return dq[0], dk, dv


def usual(q, k, v, *others, mask, bias):
    """Whether all are float32 with the same leading axes, at most two, and none is empty."""
    scores = (*q.shape[:-1], k.shape[-2])
    return (all(a.dtype == np.float32 and a.shape[:-2] == q.shape[:-2] for a in (q, k, v, *others))
            and (bias is None or bias.dtype == np.float32)
            and q.ndim <= 4 and min(q.size, k.size, v.size) > 0
            and all(a is None or np.broadcast_shapes(np.shape(a), scores) == scores
                    for a in (mask, bias)))


def four(a):
    """a with four axes: ones in front."""
    return a.reshape((1,) * (4 - a.ndim) + a.shape)


def rows(a):
    """a with four axes, copied only where a row's numbers do not lie one behind the other."""
    return four(a if a.strides[-1] == 4 and a.flags.aligned else np.ascontiguousarray(a))


def like(a, columns):
    """An empty array (…, L, columns) for a (…, L, d); what lies in memory is (N, L, h, columns)."""
    N, h, L, _ = four(a).shape
    return memory.empty((N, L, h, columns)).swapaxes(1, 2).reshape(*a.shape[:-1], columns)


def added(mask, bias):
    """What is added to the scores, turned: (…, M, L), −∞ where a mask hides; axes of 1 stay so."""
    if mask is None and bias is None:
        return None
    away = np.float32(0) if bias is None else bias
    if mask is not None:
        away = np.where(np.asarray(mask, bool), away, np.float32(-np.inf))
    return np.ascontiguousarray(four(away).swapaxes(2, 3))


def query_step(away):
    """From one query's mask to the next: 0 where all queries may see the same."""
    return int(away is not None and away.shape[3] > 1)
