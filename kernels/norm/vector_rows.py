"""LayerNorm on a GPU: a warp has a row.  vector_rows.cu"""

import numpy as np

from ..gpu.arrays import contiguous, empty
from ..gpu.columns import cut, of_type, tiles_of
from ..gpu.parts import sum_parts
from ..gpu.source import Source
from . import lower

code = Source(__file__)
KINDS = "float32", "bfloat16"


def rows(x, scale, shift, eps):
    P, D = x.size // max(1, x.shape[-1]), x.shape[-1]
    if not lower.fits([(x, x.shape)], [(scale, (D,)), (shift, (D,))], KINDS):
        return lower.rows(x, scale, shift, eps)
    x, scale, shift = contiguous(x, scale, shift)
    y = empty(x.shape, x.dtype, like=x)
    of_type(code, "rows", x)[-(-P // 8), 256](x, scale, shift, y, P, D, eps)
    return y


def rows_backward(dy, x, scale, eps):
    P, D = x.size // max(1, x.shape[-1]), x.shape[-1]
    if not lower.fits([(x, x.shape), (dy, x.shape)], [(scale, (D,))], KINDS):
        return lower.rows_backward(dy, x, scale, eps)
    dy, x, scale = contiguous(dy, x, scale)
    dx, moments = empty(x.shape, x.dtype, like=x), empty((P, 2), np.float32, like=x)
    of_type(code, "gradient", x)[-(-P // 8), 256](dy, x, scale, dx, moments, P, D, eps)
    tiles, each = tiles_of(1, P, D)
    sums = empty((tiles, 2, D), np.float32, like=x)
    of_type(code, "sums", x)[cut(x, 1, tiles)](dy, x, moments, sums, P, D, each, tiles)
    dscale, dshift = sum_parts(sums)
    return dx, dscale, dshift
