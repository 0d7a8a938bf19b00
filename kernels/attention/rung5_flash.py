"""Rung 5, flash: tensor cores multiply, and weights go from product to product in registers.

Since rung 4: a warp multiplies 16 × 16 by 16 × 8 numbers of bf16 in one instruction, and what it
gets, 16 × 16 weights, lies in the very registers in which the next product wants them. So neither
scores nor y ever lie in shared memory; keys and values do, and while one tile of them is used
cp.async brings the next. Powers are of 2, log₂ e goes into the scale, and a row's sum is added up
once, at the end.  FlashAttention-2 (2307.08691). The way back owns rows as rung 3 does, so it needs
no atomics and never changes; it finds the scores twice, for 14 d FLOPs a score where 10 d would do.

Prediction: 4 d FLOPs a score at the pace of mma.sync, 500 of an H100's 800 TFLOP/s, which shared
memory can just feed for d = 64; but a score's power takes two thirds as long as its 256 FLOPs, and
half of that shows: 400 TFLOP/s at most, fifty times rung 4. For d = 256 a row of y fills the
registers; a warp then has 16 queries, not 32, and shared memory sets the pace, 300 TFLOP/s. Bytes:
q, k, v and y once; keys and values again for each block of 64 or 128 queries, from the L2 cache.
For bf16 and widths up to 256; float32 goes to rung 4.
"""

from pathlib import Path

import numpy as np

from ..gpu.arrays import contiguous, empty
from ..gpu.source import Source
from . import rung4_cuda_tiled
from .on_device import (
    added,
    backward_by,
    forward_by,
    four,
    grid,
    heads_beside,
    numbers,
    rows,
    take,
)
from .rung2_cuda_naive import grad_bias

__all__ = ["backward", "forward", "grad_bias"]
code      = Source(__file__)
code_back = Source(Path(__file__).with_name("flash_backward.cu"))
THREADS   = 128
# What d and e fit in, and, as the .cu files have it: queries of a block and keys of a tile; on the
# way back, where a block owns 64 rows, columns of a tile.
FORWARD   = {32: (128, 64), 64: (128, 32), 128: (64, 64), 256: (64, 32)}
BACKWARD  = {32: 64, 64: 64, 128: 32, 256: 16}
OWN       = 64


def forward(q, k, v, mask, scale, bias=None):
    if not take("bfloat16", q, k, v, mask=mask, bias=bias):
        return forward_by(rung4_cuda_tiled, q, k, v, mask, scale, bias)
    shape, e, more = q.shape[:-1], v.shape[-1], added(mask, bias, q)
    q, k, v = four(q), four(k), four(v)
    width, d8, e8 = widths(q, v)
    queries, keys = FORWARD[width]
    y, log_sum = heads_beside(q, e8), empty(q.shape[:3], np.float32, q)
    code.forward[grid(q, queries), THREADS, 2 * width * (queries + 4 * keys)](
        *rows(q), *rows(k), *rows(v), *numbers(more), y.swapaxes(1, 2), log_sum,
        q.shape[2], k.shape[2], d8, e8, width, scale)
    return y[..., :e].reshape(*shape, e), log_sum.reshape(shape)


def backward(dy, q, k, v, mask, scale, y, log_sum, bias=None):
    if (not take("bfloat16", q, k, v, dy, y, mask=mask, bias=bias)
            or log_sum.dtype.name != "float32"):
        return backward_by(rung4_cuda_tiled, dy, q, k, v, mask, scale, y, log_sum, bias)
    shapes, more = [a.shape for a in (q, k, v)], added(mask, bias, q)
    q, k, v, y, dy, log_sum = *map(four, (q, k, v, y, dy)), *contiguous(log_sum)
    (N, h, L, _), M = q.shape, k.shape[2]
    width, d8, e8 = widths(q, v)
    dy, mean = rows(dy), empty((N, h, L), np.float32, q)
    code_back.means[grid(q, 32), 256](*dy, *rows(y), mean, L, e8)
    dq, dk, dv = heads_beside(q, d8), heads_beside(k, d8), heads_beside(v, e8)
    blocks = -(-L // OWN) + -(-M // OWN) * (1 if width < 256 else 2)
    shared = 4 * width * (OWN + 2 * BACKWARD[width]) + 16 * BACKWARD[width]
    code_back.slopes[(blocks, h, N), THREADS, shared](
        *rows(q), *rows(k), *rows(v), *dy, *numbers(more), log_sum, mean,
        *(a.swapaxes(1, 2) for a in (dq, dk, dv)), L, M, d8, e8, width, scale)
    return tuple(a[..., :shape[-1]].reshape(shape) for a, shape in zip((dq, dk, dv), shapes))


def widths(q, v):
    """What d and e fit in, and both as multiples of 8."""
    d8, e8 = (-(-a.shape[3] // 8) * 8 for a in (q, v))
    return min(width for width in FORWARD if width >= max(d8, e8)), d8, e8
