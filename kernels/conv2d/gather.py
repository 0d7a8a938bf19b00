"""The functions of a rung whose kernels are those of gather.cuh, and its tables of taps."""

from functools import cache

import numpy as np

from ..gpu.arrays import as_float, contiguous, empty, is_bf16, module_of, widened
from ..gpu.parts import in_parts, sum_parts
from .rung0_loops import out_shape

SIDE, THREADS, SHARED = 128, 128, 3 * 2 * 128 * 64 * 2    # results, threads, bytes of a block


def functions(code, below, can=is_bf16):
    """forward, grad_input, grad_weight by kernels of `code`; below: who does what it cannot."""

    def forward(x, w, stride, padding, b=None):
        if not can(x, w):
            return below.forward(x, w, stride, padding, b)
        shape = out_shape(x.shape, w.shape, stride, padding)
        taps = table(windows(w.shape, padding), x)
        return collect(code, [x], w, taps, shape, stride=stride, step=1, b=b)

    def grad_input(dy, w, x_shape, stride, padding):
        if not can(dy, w):
            return below.grad_input(dy, w, x_shape, stride, padding)
        taps = table(backwards(w.shape, stride, padding), dy)
        return scatter(code, dy, w, taps, x_shape, stride=1, step=stride)[0]

    def grad_weight(dy, x, w_shape, stride, padding):
        """dw in float32"""
        if not can(dy, x):
            return below.grad_weight(dy, x, w_shape, stride, padding)
        taps = table(windows(w_shape, padding), x)
        return correlate(code, [x], dy, taps, stride=stride, step=1).reshape(w_shape)

    return forward, grad_input, grad_weight


def windows(w_shape, padding):
    """[phase][tap] (y, x, matrix of w): where a window's taps look, seen from its output."""
    K, L = w_shape[:2]
    return [[(u - padding[0][0], v - padding[1][0], u * L + v) for u in range(K) for v in range(L)]]


def backwards(w_shape, stride, padding):
    """The same for dx: which outputs an input went into. Inputs a stride apart share their taps."""
    K, L = w_shape[:2]
    phases = [[((a + padding[0][0] - u) // stride, (b + padding[1][0] - v) // stride, u * L + v)
               for u in range(K) for v in range(L)
               if (a + padding[0][0] - u) % stride == 0 == (b + padding[1][0] - v) % stride]
              for a in range(stride) for b in range(stride)]
    most = max(map(len, phases))
    return [taps + [(0, 0, -1)] * (most - len(taps)) for taps in phases]


def collect(code, xs, w, taps, shape, *, stride, step, b=None):
    """y (N, H', W', O): each output is the sum over the taps of its phase."""
    O = w.shape[-1]
    if any(x.shape[3] % 8 for x in xs) or O % 8:
        *xs, w, b = widened(join(xs), 3), widened(w, -2, -1), widened(b, 0)
        wide = collect(code, xs, w, taps, (*shape[:3], w.shape[-1]), stride=stride, step=step, b=b)
        return contiguous(wide[..., :O])[0]
    *xs, w, b = contiguous(*xs, w, as_float(b))
    (N, H, W, C1), (_, H2, W2, _) = xs[0].shape, shape
    y = empty(shape, w.dtype, like=w)
    if y.size:
        code.forward[grid(shape, O, step), THREADS, SHARED](
            xs[0], xs[-1], w, taps, b, y, N, H, W, C1, w.shape[-2], taps.shape[1], stride, step,
            H2, W2, O)
    return y


def scatter(code, dy, w, taps, shape, *, stride, step, split=None):
    """[dx] of that shape, or [dx, dskip] cut after `split` channels"""
    C = shape[3]
    C1 = C if split is None else split
    if dy.shape[3] % 8 or C % 8 or C1 % 8:
        dy, w = widened(dy, 3), widened(w, -2, -1)
        [wide] = scatter(code, dy, w, taps, (*shape[:3], w.shape[-2]), stride=stride, step=step)
        return contiguous(wide[..., :C1], wide[..., C1:C])[:1 if split is None else 2]
    dy, w = contiguous(dy, w)
    (N, H, W, O), (_, H2, W2, _) = dy.shape, shape
    dxs = [empty((*shape[:3], n), w.dtype, like=w) for n in ((C1, C - C1)[:1 if C1 == C else 2])]
    if dxs[0].size:
        code.grad_input[grid(shape, C, step), THREADS, SHARED](
            dy, w, taps, dxs[0], dxs[-1], N, H, W, O, taps.shape[1], stride, step, H2, W2, C1, C)
    return dxs


def correlate(code, xs, dy, taps, *, stride, step):
    """dw (phases · taps, C, O) in float32: x under each tap against dy."""
    O, C = dy.shape[3], sum(x.shape[3] for x in xs)
    if any(x.shape[3] % 8 for x in xs) or O % 8:
        wide = correlate(code, [widened(join(xs), 3)], widened(dy, 3), taps, stride=stride,
                         step=step)
        return contiguous(wide[:, :C, :O])[0]
    *xs, dy = contiguous(*xs, dy)
    (N, H, W, C1), (_, H2, W2, _) = xs[0].shape, dy.shape
    phases, count, _ = taps.shape
    tiles = -(-C // SIDE), -(-O // SIDE)
    pixels = N * -(-H2 // step) * -(-W2 // step)          # of the largest phase
    parts, each = in_parts(pixels, tiles[0] * tiles[1] * phases * count, step=64)
    dw = empty((parts, phases * count, C, O), np.float32, like=dy)
    code.grad_weight[(*tiles, parts * phases * count), THREADS, SHARED](
        xs[0], xs[-1], dy, taps, dw, N, H, W, C1, C, count, phases, stride, step, H2, W2, O, each)
    return sum_parts(dw)


def grid(shape, O, step):
    N, H, W, _ = shape
    return -(-N * -(-H // step) * -(-W // step) // SIDE), -(-O // SIDE), step * step


def table(phases, like):
    """The taps as an array (phases, taps, 3) where `like` lies."""
    return placed(tuple(map(tuple, phases)), module_of(like))


@cache
def placed(phases, module):
    return module.asarray(np.array(phases, np.int32).reshape(len(phases), -1, 3))


def join(xs):
    return xs[0] if len(xs) == 1 else module_of(xs[0]).concatenate(xs, axis=3)
