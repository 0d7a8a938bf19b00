"""The noise of an address on a GPU, with nothing sent there but the address.  philox.cu"""

from math import prod

import numpy as np

from ..gpu.arrays import empty, module_of
from ..gpu.source import Source

code = Source(__file__)


def normal(seed, images, step, shape, dtype=np.float32, *, purpose, like):
    """Standard normal noise of several images -> (N, *shape), float32 or float64, where `like` is.

    images: whole numbers; those that count up by one need not be sent.
    """
    out = empty((len(images), *shape), dtype, like=like)
    kernel = {"float32": code.normal_float, "float64": code.normal_double}.get(out.dtype.name)
    if kernel is None:
        raise ValueError(f"noise on a GPU is float32 or float64, got {out.dtype}; cast it then")
    if out.size:
        grid, *sizes = shares(out)
        kernel[grid, 256](out, *addressed(images, like), seed, purpose, step, *sizes)
    return out


def normal_into(out, images, state, *, purpose):
    """The same into out (N, …) float32, for the seed and the step in state (2,) uint64.

    state lies beside out and is read when the kernel runs: a captured graph finds what is new.
    images: an array uint64 beside it, or whole numbers that count up by one.
    """
    if out.size:
        grid, *sizes = shares(out)
        code.normal_of_state[grid, 256](out, *addressed(images, out), state, purpose, *sizes)


def shares(out):
    """Blocks of 256 threads; numbers of an image, blocks of four of them, images."""
    N, size = len(out), prod(out.shape[1:])
    blocks = -(-size // 4)
    return -(-N * blocks // 256), size, blocks, N


def addressed(images, like):
    """(array of images or None, the first one)"""
    if hasattr(images, "dtype"):
        return images, 0
    images = list(images)
    if images == list(range(images[0], images[0] + len(images))):
        return None, images[0]
    return module_of(like).asarray(np.array(images, np.uint64)), 0
