"""The one door to the kernels: an operation is a ladder of rungs, and `pick` takes one of them.

A ladder maps rung names to modules; every rung of it has the same functions. The compiled rungs
need Numba; without it the highest plain one runs.
"""

from contextlib import contextmanager
from functools import cache

from tinydiff_kernels import attention, conv2d, elementwise, matmul, norm, optimizer
from tinydiff_kernels.ladder import can_compile
from tinydiff_kernels.simd.pool import threads

__all__ = ["LADDERS", "elementwise", "pick", "threads", "use"]

LADDERS = {"attention": attention, "conv2d": conv2d, "matmul": matmul, "norm": norm,
           "optimizer": optimizer}
_chosen = {}


def pick(name):
    """The rung of ladder `name` to run: the default, unless `use` says otherwise."""
    return rung(name, _chosen.get(name))


@cache
def rung(name, idea):
    ladder = LADDERS[name]
    if idea is None:
        idea = ladder.DEFAULT if can_compile() else ladder.LADDER.plain[-1]
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
