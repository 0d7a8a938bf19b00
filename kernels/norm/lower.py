"""What a GPU's rung hands down to rung 0: other types, shapes that do not fit, nothing at all.

bf16 goes there as float32 and comes back as bf16; so `vector` computes with it, too.
"""

import numpy as np

from ..gpu.arrays import contiguous
from . import rung0_numpy


def fits(images, numbers=(), kinds=("float32",)):
    """Whether all (array, its shape) are as a kernel takes them: of that shape, and not empty.

    Images are of one of those kinds, all of the same, numbers of float32.
    """
    kind = images[0][0].dtype
    return kind.name in kinds and all(a.shape == shape and a.size and a.dtype == wanted
                                      for pairs, wanted in ((images, kind), (numbers, np.float32))
                                      for a, shape in pairs)


def alike(xs):
    """Each x with the shape that it has if it goes with the first."""
    return [(x, (*xs[0].shape[:-1], x.shape[-1])) for x in xs]


def given_up(dy):
    """dy itself, if it is contiguous and may be written to, or else a copy."""
    [dx] = contiguous(dy)
    return dx if getattr(dx.flags, "writeable", True) else dx.copy()


def measure(xs, groups, eps):
    return rung0_numpy.measure([wide(x) for x in xs], groups, eps)


def normalize(x, scale, shift, silu):
    return rung0_numpy.normalize(wide(x), scale, shift, silu).astype(x.dtype, copy=False)


def backward(dys, xs, scale, shift, mean, rstd, silu):
    wide_dys, wide_xs = ([wide(a) for a in arrays] for arrays in (dys, xs))
    dxs, *others = rung0_numpy.backward(wide_dys, wide_xs, scale, shift, mean, rstd, silu)
    return [dx.astype(x.dtype, copy=False) for dx, x in zip(dxs, xs)], *others


def rows(x, scale, shift, eps):
    return rung0_numpy.rows(wide(x), scale, shift, eps).astype(x.dtype, copy=False)


def rows_backward(dy, x, scale, eps):
    dx, *others = rung0_numpy.rows_backward(wide(dy), wide(x), scale, eps)
    return dx.astype(x.dtype, copy=False), *others


def wide(x):
    return x.astype(np.float32) if x.dtype.name == "bfloat16" else x
