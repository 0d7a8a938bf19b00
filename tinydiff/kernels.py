"""The one door to the kernels: an operation is a ladder of rungs, and `pick` takes one of them.

A ladder is a dict {rung name: module}; every rung of it has the same functions.
"""

from contextlib import contextmanager

from tinydiff_kernels import conv2d

LADDERS = {"conv2d": conv2d}
_chosen = {}


def pick(name):
    """The rung of ladder `name` to run: the default, unless `use` says otherwise."""
    ladder = LADDERS[name]
    return ladder.LADDER[_chosen.get(name, ladder.DEFAULT)]


@contextmanager
def use(**rungs):
    """Run the given rungs inside a `with`:  with td.use(conv2d="loops"): …

    Raises ValueError for an unknown ladder or rung.
    """
    for name, rung in rungs.items():
        if name not in LADDERS:
            raise ValueError(f"use: no ladder {name!r}; there are {', '.join(LADDERS)}")
        if rung not in LADDERS[name].LADDER:
            known = ", ".join(LADDERS[name].LADDER)
            raise ValueError(f"use: {name} has no rung {rung!r}; there are {known}")
    before = dict(_chosen)
    _chosen.update(rungs)
    try:
        yield
    finally:
        _chosen.clear()
        _chosen.update(before)
