"""How the kernels in Python are called: float32 as (N, pixels, C) or (rows, D), and their sums.

Two inputs side by side are two arguments; where there is one, it stands in both places, and no
channel is looked for in the second. What is no such array goes down to rung 0.
"""

import numpy as np

from ..gpu.arrays import contiguous, empty
from ..gpu.python import cuda, kernel
from . import lower

IMAGES, TABLE, LINE = "float32[:,:,::1]", "float32[:,::1]", "float32[::1]"   # as Numba has types
MOMENTS  = f"{IMAGES}, {IMAGES}, int64, float32, {TABLE}, {TABLE}"
APPLY    = f"{IMAGES}, {TABLE}, {TABLE}, int64, {IMAGES}"
GRADIENT = f"{', '.join([IMAGES] * 4)}, int64, {', '.join([TABLE] * 6)}, int64"
ROWS     = f"{TABLE}, {LINE}, {LINE}, float32, {TABLE}"
GRADIENT_ROWS = f"{TABLE}, {TABLE}, {LINE}, float32, {TABLE}, {TABLE}"
WIDE = 256                                                # threads of a block that adds nothing up


def measure(moments, threads, xs, groups, eps):
    N, C = len(xs[0]), sum(x.shape[-1] for x in xs)
    if C % groups or not lower.fits(lower.alike(xs)):
        return lower.measure(xs, groups, eps)
    mean, rstd = (empty((N, groups), np.float32, like=xs[0]) for _ in range(2))
    moments[N * groups, threads](*both(xs), C // groups, np.float32(eps), mean, rstd)
    return mean, rstd


def normalize(apply, x, scale, shift, silu):
    N, C = len(x), x.shape[-1]
    if not lower.fits([(x, x.shape)], [(scale, (N, C)), (shift, (N, C))]):
        return lower.normalize(x, scale, shift, silu)
    y = empty(x.shape, np.float32, like=x)
    (flat, _), (out, _) = both([x]), both([y])
    apply[-(-x.size // WIDE), WIDE](flat, *contiguous(scale, shift), int(silu), out)
    return y


def backward(gradient, threads, dys, xs, scale, shift, mean, rstd, silu):
    """dx takes dy's place in memory, if that is contiguous and may be written to."""
    N, C, groups = len(xs[0]), sum(x.shape[-1] for x in xs), mean.shape[1]
    images = [*lower.alike(xs), *((dy, x.shape) for dy, x in zip(dys, xs, strict=True))]
    numbers = [(scale, (N, C)), (shift, (N, C)), (mean, (N, groups)), (rstd, (N, groups))]
    if C % groups or not lower.fits(images, numbers):
        return lower.backward(dys, xs, scale, shift, mean, rstd, silu)
    dxs = [lower.given_up(dy) for dy in dys]
    dscale, dshift = (empty((N, C), np.float32, like=xs[0]) for _ in range(2))
    gradient[N * groups, threads](*both(xs), *both(dxs), C // groups,
                                  *contiguous(scale, shift, mean, rstd), dscale, dshift, int(silu))
    return dxs, dscale, dshift


def rows(apply, each, threads, x, scale, shift, eps):
    """`each` rows have a block."""
    D = x.shape[-1]
    if not lower.fits([(x, x.shape)], [(scale, (D,)), (shift, (D,))]):
        return lower.rows(x, scale, shift, eps)
    x, scale, shift = contiguous(x, scale, shift)
    y, P = empty(x.shape, np.float32, like=x), x.size // D
    apply[-(-P // each), threads](x.reshape(P, D), scale, shift, np.float32(eps), y.reshape(P, D))
    return y


def rows_backward(gradient, each, threads, dy, x, scale, eps):
    D = x.shape[-1]
    if not lower.fits([(x, x.shape), (dy, x.shape)], [(scale, (D,))]):
        return lower.rows_backward(dy, x, scale, eps)
    dy, x, scale = contiguous(dy, x, scale)
    dx, P = empty(x.shape, np.float32, like=x), x.size // D
    moments = empty((P, 2), np.float32, like=x)
    dscale, dshift = (empty(D, np.float32, like=x) for _ in range(2))
    images = dy.reshape(P, D), x.reshape(P, D)
    gradient[-(-P // each), threads](*images, scale, np.float32(eps), dx.reshape(P, D), moments)
    down[-(-D // 32), 32](*images, moments, dscale, dshift)
    return dx, dscale, dshift


def both(xs):
    """Two inputs, or one twice, as (N, pixels, C)."""
    flat = [x.reshape(len(x), -1, x.shape[-1]) for x in contiguous(*xs)]
    return flat[0], flat[-1]


@kernel(f"{TABLE}, {TABLE}, {TABLE}, {LINE}, {LINE}")
def down(dy, x, moments, dscale, dshift):
    """dscale = Σ dy x̂ and dshift = Σ dy over all rows: a thread for each column"""
    c = cuda.grid(1)
    if c < x.shape[1]:
        total, total_x = cuda.float32(0), cuda.float32(0)
        for p in range(x.shape[0]):
            total += dy[p, c]
            total_x += dy[p, c] * (x[p, c] - moments[p, 0]) * moments[p, 1]
        dscale[c], dshift[c] = total_x, total
