"""How the threads of a block take turns where a kernel is stepped through on the CPU.

    with stepping(order="reverse"):
        rung.forward(x, w)                        # NumPy arrays: no GPU is asked for

A right kernel gives the same numbers in every order.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Turns:
    order: object = "forward"     # whose turn is first: "forward", "reverse", or a seed from 2 on
    races: bool = True            # look for races (kernels in Python)
    trace: object = None          # a list that takes every access (kernels in Python)

    def number(self):
        """The order as one number, for C++."""
        return {"forward": 0, "reverse": 1}.get(self.order, self.order)


USUAL = Turns()
_turns = ContextVar("turns", default=USUAL)


def turns():
    return _turns.get()


@contextmanager
def stepping(**changes):
    """Let threads take turns as these fields of Turns say, inside a `with`.

    ValueError for an order that does not exist.
    """
    chosen = replace(turns(), **changes)
    if chosen.order not in ("forward", "reverse") and not (
            isinstance(chosen.order, int) and chosen.order > 1):
        raise ValueError('stepping: expected order "forward", "reverse" or a whole number from 2, '
                         f"got {chosen.order!r}")
    token = _turns.set(chosen)
    try:
        yield
    finally:
        _turns.reset(token)
