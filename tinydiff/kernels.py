"""The one door to the kernels: an operation is a ladder of rungs, and `pick` takes one of them.

A ladder maps rung names to modules; every rung of it has the same functions. The compiled rungs
need Numba; without it the highest plain one runs, as it does on a GPU where a ladder has no other.
Arrays of bf16 are a GPU's: on the CPU its rungs are stepped through, which is slow and exact.
"""

from contextlib import contextmanager
from functools import cache

from tinydiff_kernels import attention, conv2d, elementwise, matmul, noise, norm, optimizer
from tinydiff_kernels.gpu.arrays import bfloat16
from tinydiff_kernels.ladder import can_compile
from tinydiff_kernels.simd.pool import threads

from tinydiff.backend import array_module

__all__ = ["LADDERS", "bfloat16", "elementwise", "noise", "pick", "threads", "use"]

LADDERS = {"attention": attention, "conv2d": conv2d, "matmul": matmul, "norm": norm,
           "optimizer": optimizer}
_chosen = {}


def pick(name, *arrays):
    """The rung of ladder `name` to run: the default where the arrays live, unless `use` says else.

    Raises ValueError for arrays on a GPU where `use` chose a rung of the CPU's.
    """
    there = any(array_module(a).__name__ == "cupy" for a in arrays)
    return rung(name, _chosen.get(name), there, there or any(map(is_half, arrays)))


def is_half(x):
    """Whether an array is of bf16."""
    return x is not None and x.dtype.kind == "V"          # NumPy's word for types of others


@cache
def rung(name, idea, on_gpu, for_gpu):
    ladder = LADDERS[name]
    plain, of_gpu = ladder.LADDER.plain[-1], ladder.LADDER.device
    if idea is None and for_gpu:
        idea = getattr(ladder, "ON_GPU", plain)
    elif idea is None:
        idea = ladder.DEFAULT if can_compile() else plain
    if on_gpu and idea not in (plain, *of_gpu):
        raise ValueError(f"use: the rung {idea!r} of {name} runs on the CPU and the arrays are on "
                         f"the GPU; take one of {', '.join((plain, *of_gpu))}")
    return ladder.LADDER[idea]


@contextmanager
def use(**rungs):
    """Run the given rungs inside a `with`:  with td.use(conv2d="loops"): …

    Raises ValueError for an unknown ladder or rung, and for a compiled one without Numba.
    """
    for name, idea in rungs.items():
        if name not in LADDERS:
            raise ValueError(f"use: no ladder {name!r}; there are {', '.join(LADDERS)}")
        ladder = LADDERS[name].LADDER
        if idea not in ladder:
            raise ValueError(f"use: {name} has no rung {idea!r}; there are {', '.join(ladder)}")
        if idea in ladder.compiled and not can_compile():
            raise ValueError(f"use: the rung {idea!r} of {name} needs Numba; pip install numba")
    before = dict(_chosen)
    _chosen.update(rungs)
    try:
        yield
    finally:
        _chosen.clear()
        _chosen.update(before)
