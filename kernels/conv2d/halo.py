"""The functions of a rung whose kernels are those of halo.cuh: patches in shared memory."""

from functools import cache

import numpy as np

from ..gpu.arrays import as_float, contiguous, empty, is_bf16, module_of
from ..gpu.moments import remember
from .gather import correlate, table, windows

SEAM = 8                                                  # where two inputs may meet: 16 bytes
FUSES = "bfloat16"                                        # what `fused` is for
SIDE, THREADS, TILE = 128, 128, 128 * 64                  # results, threads; numbers of a tile
SAME = ((1, 1), (1, 1))


def functions(code, gathering, lines=8, can=is_bf16):
    """forward, grad_input, fused, fused_grad_input, fused_grad_weight by kernels of `code`.

    gathering: the rung that does what has another window. A mean runs over at most 8 · lines rows.
    """

    def forward(x, w, stride, padding, b=None):
        if not (fits(w.shape, stride, padding) and can(x, w)):
            return gathering.forward(x, w, stride, padding, b)
        return fused([x], w, base=b)

    def grad_input(dy, w, x_shape, stride, padding):
        if not (fits(w.shape, stride, padding) and can(dy, w)):
            return gathering.grad_input(dy, w, x_shape, stride, padding)
        return fused_grad_input(dy, w)[0]

    def fused(xs, w, *, scale=None, shift=None, base=None, add=None, keep=False):
        """y (N, H, W, O) bf16; scale, shift and base float32"""
        *xs, w, add = contiguous(*xs, w, add)
        scale, shift, base = contiguous(*map(as_float, (scale, shift, base)))
        (N, H, W, C1), (_, _, C, O) = xs[0].shape, w.shape
        tall, wide, images = patch(H, W)
        group = min(8 * lines, tall * wide)               # rows of a mean
        across = -(-H // tall) * -(-W // wide)
        blocks = -(-N // images) * across
        y = empty((N, H, W, O), w.dtype, like=w)
        moments = empty((blocks * SIDE // group, O, 2), np.float32, like=w)
        code.fused[(blocks, -(-O // SIDE)), THREADS, shared(tall, wide)](
            xs[0], xs[-1], scale, shift, w, base, add, y, moments, N, H, W, C1, C, O, tall, wide,
            O if base is not None and base.ndim == 2 else 0, group // 8)
        each = across * tall * wide // group              # means of an image
        remember(y, moments.reshape(-1, each, O, 2)[:N], counts(H, W, group, module_of(w)))
        return y

    def fused_grad_input(dy, w, *, split=None):
        dy, w = contiguous(dy, w)
        (N, H, W, O), C = dy.shape, w.shape[2]
        C1 = C if split is None else split
        tall, wide, images = patch(H, W)
        dxs = [empty((N, H, W, n), w.dtype, like=w) for n in (C1, C - C1)]
        blocks = -(-N // images) * -(-H // tall) * -(-W // wide)
        code.fused_grad_input[(blocks, -(-C // SIDE)), THREADS, shared(tall, wide)](
            dy, w, *dxs, N, H, W, O, C1, C, tall, wide)
        return dxs[:1 if split is None else 2]

    def fused_grad_weight(dy, xs, *, scale=None, shift=None):
        """dw (3, 3, C, O) in float32"""
        w_shape = 3, 3, sum(x.shape[3] for x in xs), dy.shape[3]
        if scale is not None:
            xs = normalized(xs, scale, shift)
        taps = table(windows(w_shape, SAME), dy)
        return correlate(gathering.code, xs, dy, taps, stride=1, step=1).reshape(w_shape)

    return forward, grad_input, fused, fused_grad_input, fused_grad_weight


def fits(w_shape, stride, padding):
    """Whether a window is 3 × 3, its stride 1, the size kept, and copies move whole 16 bytes."""
    return (tuple(w_shape[:2]) == (3, 3) and stride == 1 and padding == SAME
            and all(size % 8 == 0 for size in w_shape[2:]))


def normalized(xs, scale, shift):
    """silu(x · scale + shift) of inputs side by side, in memory"""
    from ..norm import rung4_vector as norm
    first, out = 0, []
    for x in xs:
        part = slice(first, first + x.shape[3])
        out.append(norm.normalize(x, *contiguous(scale[:, part], shift[:, part]), True))
        first = part.stop
    return out


def patch(H, W):
    """(height, width, images) of 128 pixels, so that few lie outside."""
    return (4, 4, 8) if max(H, W) <= 4 else (8, 8, 2) if max(H, W) <= 8 else (8, 16, 1)


def shared(tall, wide):
    """Bytes: three tiles of weights, two patches with their halo, where its rows are from."""
    rows = SIDE // (tall * wide) * (tall + 2) * (wide + 2)
    return 2 * (3 * TILE + 2 * rows * 64) + 8 * rows


@cache
def counts(H, W, group, module):
    """Pixels of an image in each of the groups of rows whose mean is taken, (tiles,) float32."""
    tall, wide, _ = patch(H, W)
    m = np.arange(tall * wide)
    inside = [((top + m // wide < H) & (left + m % wide < W)).reshape(-1, group)
              for top in range(0, H, tall) for left in range(0, W, wide)]
    return module.asarray(np.concatenate(inside).sum(axis=1).astype(np.float32))
