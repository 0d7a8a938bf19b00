"""The same on a GPU, in float32 or bf16: one pass, 16 bytes a thread, computed in float32.

All arrays of a call are contiguous, of one type and one shape.  on_device.cu
"""

from math import prod

import numpy as np

from ..gpu.arrays import empty
from ..gpu.columns import cut, of_type, tiles_of
from ..gpu.parts import sum_parts
from ..gpu.source import Source

code = Source(__file__)


def add(x, y, out=None):
    return over("add", x, y, out=out)


def mul(x, y):
    return over("mul", x, y)


def gelu(x):
    return over("gelu", x)


def gelu_backward(dy, x):
    return over("gelu_backward", dy, x)


def silu(x):
    return over("silu", x)


def silu_backward(dy, x):
    return over("silu_backward", dy, x)


def over(name, *arrays, out=None):
    """out = f(*arrays), number by number."""
    x = arrays[0]
    out = empty(x.shape, x.dtype, like=x) if out is None else out
    of_type(code, name, x)[blocks(x.nbytes), 256](*arrays, out, x.size)
    return out


def upsample2(x):
    N, H, W, C = x.shape
    y = empty((N, 2 * H, 2 * W, C), x.dtype, like=x)
    rows = -(-C * x.itemsize // 16) * 16                  # bytes of a pixel, up to whole vectors
    of_type(code, "upsample2", x)[blocks(N * H * W * rows), 256](x, y, N * H * W, W, C)
    return y


def upsample2_backward(dy):
    N, H, W, C = dy.shape
    H, W = H // 2, W // 2
    dx = empty((N, H, W, C), dy.dtype, like=dy)
    rows = -(-C * dy.itemsize // 16) * 16
    of_type(code, "upsample2_backward", dy)[blocks(N * H * W * rows), 256](dy, dx, N * H * W, W, C)
    return dx


def sum_pixels(y):
    """y (N, …, C) -> (N, C) float32, in an order that depends on the shape alone"""
    N, *middle, C = y.shape
    tiles, each = tiles_of(N, prod(middle), C)
    sums = empty((tiles, N, C), np.float32, like=y)
    of_type(code, "sums", y)[cut(y, N, tiles)](y, sums, prod(middle), N, C, each, tiles)
    return sum_parts(sums)


def cast(x, dtype):
    """float32 to bf16 or back; what is of that type already stays itself."""
    if x.dtype == dtype:
        return x
    y = empty(x.shape, dtype, like=x)
    if dtype == np.float32:
        code.widen[blocks(x.nbytes), 256](x, y, x.size)
    else:
        code.narrow[blocks(y.nbytes), 256](x, y, x.size)
    return y


def takes(*arrays):
    """Whether these arrays are as the kernels want them."""
    first = arrays[0]
    return first.size > 0 and first.dtype.name in ("float32", "bfloat16") and all(
        type(a) is type(first) and a.dtype == first.dtype and a.shape == first.shape
        and a.flags.c_contiguous for a in arrays)


def blocks(size):
    """Blocks of 256 threads for that many bytes, 16 a thread."""
    return -(-size // 4096)
