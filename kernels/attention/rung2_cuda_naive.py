"""Rung 2, cuda_naive: three kernels, a thread for each number, the scores in memory between them.

Since rung 1: nothing of it; this is rung 0 for a GPU's threads. One makes a score, one goes along a
row of scores for the softmax, one makes a number of y. The way back has the same kernels, since all
its products are x yᵀ or p x, of arrays whose axes may be swapped. Prediction: each multiply-add
loads two numbers from a cache, and 7 TFLOP/s are then the most on an H100, whose multipliers could
do 67 in float32; the threads of a warp that make neighbouring scores read from 32 rows of k, and
that costs most of it. 28 bytes a score go to and from memory on the way forward.
"""

import math

import numpy as np

from ..gpu.arrays import empty
from ..gpu.python import cuda, device, kernel
from . import rung0_plain
from .on_device import (
    ROWS,
    SUMS,
    added_to_all,
    backward_by,
    for_each_score,
    forward_by,
    four,
    heads_beside,
    take,
    widen,
)

__all__ = ["backward", "forward", "grad_bias"]
BLOCK = 256
HIDDEN = np.float32(-np.inf)


@kernel(f"{ROWS}, {ROWS}, {ROWS}, float32, {ROWS}")
def fits(x, y, more, scale, s):
    """s = x yᵀ · scale + more"""
    thread = cuda.grid(1)
    if thread < s.size:
        n, h, i, j = place(thread, s)
        total = np.float32(0)
        for c in range(x.shape[3]):
            total += x[n, h, i, c] * y[n, h, j, c]
        s[n, h, i, j] = total * scale + more[n, h, i, j]


@kernel(f"{ROWS}, {SUMS}")
def normalize(s, log_sum):
    """s -> e^s / Σ e^s, a thread for a row"""
    thread = cuda.grid(1)
    if thread < log_sum.size:
        L, heads, total = log_sum.shape[2], log_sum.shape[1], np.float32(0)
        n, h, l = thread // L // heads, thread // L % heads, thread % L
        top = HIDDEN
        for m in range(s.shape[3]):
            top = s[n, h, l, m] if s[n, h, l, m] > top else top
        top = finite(top)
        for m in range(s.shape[3]):
            s[n, h, l, m] = math.exp(s[n, h, l, m] - top)
            total += s[n, h, l, m]
        for m in range(s.shape[3]):
            s[n, h, l, m] = s[n, h, l, m] / total if total != 0 else np.float32(0)
        log_sum[n, h, l] = top + math.log(total)


@kernel(f"{ROWS}, {ROWS}, float32, {ROWS}")
def mix(p, x, scale, z):
    """z = p x · scale"""
    thread = cuda.grid(1)
    if thread < z.size:
        n, h, i, c = place(thread, z)
        total = np.float32(0)
        for j in range(x.shape[2]):
            total += p[n, h, i, j] * x[n, h, j, c]
        z[n, h, i, c] = total * scale


@kernel(f"{ROWS}, {ROWS}, {ROWS}, {ROWS}")
def slopes(s, dp, log_sum, mean):
    """s -> p = e^(s − log_sum);  dp -> ds = p · (dp − mean)"""
    thread = cuda.grid(1)
    if thread < s.size:
        n, h, l, m = place(thread, s)
        p = math.exp(s[n, h, l, m] - finite(log_sum[n, h, l, m]))
        s[n, h, l, m] = p
        dp[n, h, l, m] = p * (dp[n, h, l, m] - mean[n, h, l, m])


@device
def place(number, a):
    """The four indices of an array's element, of which this many stand before it."""
    number, d = number // a.shape[3], number % a.shape[3]
    number, c = number // a.shape[2], number % a.shape[2]
    return number // a.shape[1], number % a.shape[1], c, d


@device
def finite(top):
    """top with 0 for −∞: then e^(−∞ − top) is 0, not NaN."""
    return np.float32(0) if top == HIDDEN else top


def forward(q, k, v, mask, scale, bias=None):
    if not take("float32", q, k, v, mask=mask, bias=bias, widest=math.inf):
        return forward_by(rung0_plain, q, k, v, mask, scale, bias)
    shape, q, k, v = q.shape[:-1], four(q), four(k), four(v)
    log_sum, y = empty(q.shape[:3], np.float32, q), heads_beside(q, v.shape[3])
    s = products(q, k, added_to_all(mask, bias, q, k), scale)
    run(normalize, log_sum, s, log_sum)
    run(mix, y, s, v, np.float32(1), y)
    return y.reshape(*shape, -1), log_sum.reshape(shape)


def backward(dy, q, k, v, mask, scale, y, log_sum, bias=None):
    if not takes_back(dy, q, k, v, mask, y, log_sum, bias):
        return backward_by(rung0_plain, dy, q, k, v, mask, scale, y, log_sum, bias)
    shapes = q.shape, k.shape, v.shape
    p, ds = found_again(dy, q, k, v, mask, scale, y, log_sum, bias)
    q, k, v, dy = map(four, (q, k, v, dy))
    dq, dk, dv = (heads_beside(a, a.shape[3]) for a in (q, k, v))
    run(mix, dq, ds, k, np.float32(scale), dq)
    run(mix, dk, ds.swapaxes(2, 3), q, np.float32(scale), dk)
    run(mix, dv, p.swapaxes(2, 3), dy, np.float32(1), dv)
    return tuple(a.reshape(shape) for a, shape in zip((dq, dk, dv), shapes))


def grad_bias(dy, q, k, v, mask, scale, y, log_sum, bias):
    """The gradient of the scores, in float32 also where the arrays are bf16"""
    case = *widen(dy, q, k, v), mask, scale, *widen(y), log_sum, *widen(bias)
    if not takes_back(*case[:5], *case[6:]):
        return rung0_plain.grad_bias(*case)
    return found_again(*case)[1].reshape(*q.shape[:-1], k.shape[-2])


def takes_back(dy, q, k, v, mask, y, log_sum, bias):
    return take("float32", q, k, v, dy, y, log_sum[..., None], mask=mask, bias=bias,
                widest=math.inf)


def found_again(dy, q, k, v, mask, scale, y, log_sum, bias):
    """The weights p (N, h, L, M), and the gradient of the scores"""
    more, log_sum, mean = for_each_score(dy, q, k, mask, y, log_sum, bias)
    q, k, v, dy = map(four, (q, k, v, dy))
    p, ds = products(q, k, more, scale), products(dy, v, added_to_all(None, None, q, k), 1)
    run(slopes, p, p, ds, log_sum, mean)
    return p, ds


def products(x, y, more, scale):
    """x yᵀ · scale + more (N, h, L, M), a score for each row of x and of y"""
    s = empty((*x.shape[:3], y.shape[2]), np.float32, x)
    run(fits, s, x, y, more, np.float32(scale), s)
    return s


def run(kernel, result, *arguments):
    """Launch with a thread for each of an array's numbers."""
    kernel[-(-result.size // BLOCK), BLOCK](*arguments)
