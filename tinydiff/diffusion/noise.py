"""Random numbers with an address: the noise of (seed, image, step) is always the same.

Philox is a cipher run over a counter. The seed and the purpose are its key; the image and the
step stand in the counter, so any number can be had without drawing those before it: a picture
depends neither on the batch it was drawn in nor on the pictures beside it, and a training run
that resumes needs to know nothing but its step.
"""

from itertools import count

import numpy as np

from tinydiff.backend import array_module
from tinydiff.kernels import noise as of_gpu

X_T, SAMPLER, TRAIN_T, TRAIN_EPS, CAPTION, DROPOUT, DATA, GIVEN = range(8)     # never share a word


def words(seed, purpose, image, step, n):
    """The first n raw 64-bit words of one address: Philox4x64-10 -> (n,) uint64.

    Key (seed, purpose), counter (block, image, step, 0) with block = 0, 1, 2 …, four words each.
    ValueError unless every part of the address is a whole number in [0, 2⁶⁴).
    """
    return rows(seed, purpose, [image], step, n)[0]


def rows(seed, purpose, images, step, n):
    """The same for several images -> (N, n), from one generator, which costs more than its words"""
    out = np.empty((len(images), n), np.uint64)
    philox = _philox(seed, purpose, 0, step)
    fresh = philox.state
    for row, image in zip(out, images):
        fresh["state"]["counter"] = _counter(*_checked(seed, purpose, image, step)[2:])
        philox.state = fresh
        row[:] = philox.random_raw(n)
    return out


def generator(seed, step, *, purpose):
    """A numpy Generator on the same words, for what has no fixed size: choices, permutations."""
    return np.random.Generator(_philox(seed, purpose, 0, step))


def unit(words):
    """Words as uniform numbers in [0, 1), each a multiple of 2⁻⁵³."""
    return (words >> 11) * 2.0**-53


def normal(seed, image, step, shape, dtype=np.float32, *, purpose=X_T):
    """Standard normal noise of one address -> `shape`."""
    return batch(seed, [image], step, shape, dtype, purpose=purpose)[0]


def batch(seed, images, step, shape, dtype=np.float32, *, purpose=X_T, like=None):
    """The noise of several images, `normal` for each index -> (N, *shape), where `like` lives.

    ValueError for a dtype that noise would be cut off in: pictures must be floats.
    """
    if np.dtype(dtype).kind != "f":
        raise ValueError(f"noise needs floats, and x is of {np.dtype(dtype)}; give pictures as "
                         f"floats in [-1, 1]")
    if array_module(like) is not np:
        images = [_checked(seed, purpose, image, step)[2] for image in images]
        return of_gpu.normal(seed, images, step, shape, dtype, purpose=purpose, like=like)
    size = int(np.prod(shape))
    n = size + size % 2                                           # words come in pairs
    w = rows(seed, purpose, images := list(images), step, n)
    return _box_muller(w)[:, :size].reshape(len(images), *shape).astype(dtype)


def alike(x, seed, step, *, purpose):
    """Noise for a whole batch x (N, …), in its dtype and where it lives; row n is image n."""
    return batch(seed, range(len(x)), step, x.shape[1:], x.dtype, purpose=purpose, like=x)


def stream(seed, images, shape, dtype=np.float32, draw=None):
    """Yield the sampler's noise (N, *shape) for step 0, 1, 2 …: what samplers take as `noise`."""
    images = list(images)
    for step in count():
        yield (draw or batch)(seed, images, step, shape, dtype, purpose=SAMPLER)


def _box_muller(w):
    """Two uniform words to two independent normals, along the last axis, in float64."""
    u1 = ((w[:, 0::2] >> 11) + 1) * 2.0**-53                      # in (0, 1]: its log is finite
    u2 = unit(w[:, 1::2])                                         # in [0, 1)
    r, angle = np.sqrt(-2 * np.log(u1)), 2 * np.pi * u2
    return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=-1).reshape(w.shape)


def _philox(*address):
    seed, purpose, image, step = _checked(*address)
    return np.random.Philox(key=seed + (purpose << 64), counter=_counter(image, step))


def _counter(image, step):
    """(4,) uint64: one less than (0, image, step, 0), for Philox counts up before it draws."""
    before = ((image << 64) + (step << 128) - 1) % 2**256
    return np.array([before >> 64 * k & 2**64 - 1 for k in range(4)], np.uint64)


def _checked(*address):
    """The parts of an address as Python's whole numbers; ValueError for those that are none."""
    for name, part in zip(("seed", "purpose", "image", "step"), address):
        if not 0 <= part < 2**64 or part != int(part):
            raise ValueError(f"{name} must be a whole number from 0 to 2⁶⁴ − 1, got {part}")
    return tuple(map(int, address))
