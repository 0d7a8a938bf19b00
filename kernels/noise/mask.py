"""What dropout keeps, drawn from a seed: the same numbers on the CPU and on a GPU."""

from math import prod

import numpy as np

from ..gpu.arrays import empty, is_bf16, module_of, on_device
from .philox import code

FIRST = 2**256 - 1                                        # NumPy's Philox counts up, then draws


def keep(p, seed, like):
    """0 with probability p, else 1 / (1 − p), with the shape and type of `like`, where it lies.

    seed: a whole number in [0, 2⁶⁴), or on a GPU an array (1,) uint64 that is read when the kernel
    runs. A number takes 16 bits, so p is rounded to a multiple of 2⁻¹⁶.
    """
    least = round(p * 2**16)
    kept = 2**16 / (2**16 - least) if least < 2**16 else 0.0
    if on_device(like) and like.dtype.name in ("float32", "bfloat16"):
        return on_gpu(least, kept, seed, like)
    words = np.random.Philox(key=int(seed), counter=FIRST).random_raw(-(-like.size // 16) * 4)
    bits = words.astype("<u8").view("<u2")[:prod(like.shape)].reshape(like.shape)
    kept = np.array(kept, np.promote_types(like.dtype, np.float32))
    return module_of(like).asarray(((bits >= least) * kept).astype(like.dtype, copy=False))


def on_gpu(least, kept, seed, like):
    out = empty(like.shape, like.dtype, like=like)
    if not hasattr(seed, "dtype") or not seed.ndim:
        seed = module_of(like).full(1, seed, np.uint64)
    kernel = code.keep_bf16 if is_bf16(like) else code.keep_float
    if out.size:
        kernel[-(-out.size // 4096), 256](out, seed, least, kept, out.size)
    return out
