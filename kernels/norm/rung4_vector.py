"""Rung 4, vector: a thread has 8 channels of bf16, 16 bytes, and keeps them while pixels pass by.

Since rung 3: there a block reads the channels of one group, 4 of 128 say, 8 bytes in bf16 of the 32
that memory sends at least. Here groups do not matter while memory is read: sums are taken of each
channel over a tile of pixels, a warp reads whole lines, and a small kernel makes the groups' sums
from those. Prediction: every pass moves what it needs, a quarter of what bf16 would cost rung 3.
measure and normalize read x twice and write y, backward reads x and dy twice and writes dx: 3 and 5
tensors where 2 and 3 are the floor. The second reading begins where the first ended, and finds some
30 MB in the L2 cache; what a convolution knows of its result measure does not read at all.
"""

from math import prod

import numpy as np

from ..gpu.arrays import contiguous, empty
from ..gpu.columns import cut, of_type, tiles_of
from ..gpu.moments import recall
from ..gpu.source import Source
from . import lower
from .vector_rows import KINDS, rows, rows_backward

__all__ = ["backward", "from_moments", "line", "measure", "normalize", "rows", "rows_backward"]

forth = Source(__file__)
back = Source(__file__.replace("rung4_vector", "vector_backward"))


def measure(xs, groups, eps):
    C = sum(x.shape[-1] for x in xs)
    if C % groups or not lower.fits(lower.alike(xs), kinds=KINDS):
        return lower.measure(xs, groups, eps)
    return from_moments([known(x) for x in xs], groups, eps)


def known(x):
    """(moments, pivot, counts) of x: as the convolution that made it knows them, or from reading.

    moments (N, tiles, C, 2) are the mean of each channel over a tile, less pivot (N, C) or None for
    zeros, and the sum of squares around that mean; counts (tiles,) are the tiles' pixels.
    """
    if found := recall(x):
        return found[0], None, found[1]
    N, pixels, C = sizes([x])
    tiles, each = tiles_of(N, pixels, C)
    moments, pivot, counts = (empty(shape, np.float32, like=x)
                              for shape in ((N, tiles, C, 2), (N, C), tiles))
    [x] = contiguous(x)
    of_type(forth, "measure", x)[cut(x, N, tiles)](x, moments, pivot, counts, pixels, C, each,
                                                   tiles)
    return moments, pivot, counts


def from_moments(sides, groups, eps):
    """mean and rstd (N, groups) of one input or of two side by side, from what is known of each."""
    N = len(sides[0][0])
    mean, rstd = (empty((N, groups), np.float32, like=sides[0][0]) for _ in range(2))
    left, right = (*((*side, len(side[2]), side[0].shape[2]) for side in sides),
                   (None, None, None, 0, 0))[:2]
    forth.combine[-(-N * groups // 8), 256](*left, *right, mean, rstd, N, groups, eps)
    return mean, rstd


def line(gamma, beta, mean, rstd):
    """slope and offset (N, C) for `normalize`, of γ and β (N, C), in one launch."""
    N, C = gamma.shape
    gamma, beta, step = by_image(gamma, beta)
    slope, offset = (empty((N, C), np.float32, like=mean) for _ in range(2))
    forth.line[-(-N * C // 256), 256](gamma, beta, step, *contiguous(mean, rstd), slope, offset,
                                      N, C, mean.shape[1])
    return slope, offset


def by_image(*numbers):
    """The arrays (N, C), and C; where all images share a row, that row of each, and 0."""
    if all(a.strides[0] == 0 for a in numbers):
        return *contiguous(*(a[0] for a in numbers)), 0
    return *contiguous(*numbers), numbers[0].shape[1]


def normalize(x, scale, shift, silu):
    N, pixels, C = sizes([x])
    if not lower.fits([(x, x.shape)], [(scale, (N, C)), (shift, (N, C))], KINDS):
        return lower.normalize(x, scale, shift, silu)
    x, scale, shift = contiguous(x, scale, shift)
    y = empty(x.shape, x.dtype, like=x)
    tiles, each = tiles_of(N, pixels, C)
    of_type(forth, "apply", x)[cut(x, N, tiles)](x, scale, shift, y, pixels, C, each, tiles, silu)
    return y


def backward(dys, xs, scale, shift, mean, rstd, silu):
    """dx takes dy's place in memory, if that is contiguous and may be written to."""
    N, pixels, C = sizes(xs)
    groups = mean.shape[1]
    images = [*lower.alike(xs), *((dy, x.shape) for dy, x in zip(dys, xs, strict=True))]
    numbers = [(scale, (N, C)), (shift, (N, C)), (mean, (N, groups)), (rstd, (N, groups))]
    if C % groups or not lower.fits(images, numbers, KINDS):
        return lower.backward(dys, xs, scale, shift, mean, rstd, silu)
    xs, (gamma, beta, step) = contiguous(*xs), by_image(scale, shift)
    weights = gamma, beta, step, *contiguous(mean, rstd)
    dxs = [lower.given_up(dy) for dy in dys]
    tiles, each = tiles_of(N, pixels, C)
    sums = empty((N, tiles, C, 2), np.float32, like=xs[0])
    dscale, dshift = (empty((N, C), np.float32, like=xs[0]) for _ in range(2))
    slope, offset = (empty((N, groups), np.float32, like=xs[0]) for _ in range(2))
    for dy, (first, x) in zip(dxs, starts(xs)):
        of_type(back, "sums", x)[cut(x, N, tiles)](
            dy, x, *weights, sums, pixels, x.shape[-1], first, C, groups, each, tiles, silu)
    back.means[-(-N * groups // 8), 256](sums, gamma, step, weights[4], dscale, dshift, slope,
                                         offset, N, pixels, tiles, C, groups)
    for dx, (first, x) in zip(dxs, starts(xs)):           # from dy, which is there
        of_type(back, "gradient", x)[cut(x, N, tiles)](
            dx, x, *weights, slope, offset, pixels, x.shape[-1], first, C, groups, each, tiles,
            silu)
    return dxs, dscale, dshift


def sizes(xs):
    """N, pixels, C"""
    return len(xs[0]), prod(xs[0].shape[1:-1]), sum(x.shape[-1] for x in xs)


def starts(xs):
    """(number of its first channel, x) of each input"""
    first = 0
    for x in xs:
        yield first, x
        first += x.shape[-1]
