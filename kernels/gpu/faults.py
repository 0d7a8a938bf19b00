"""What a simulated kernel can do wrong, and how a message says where."""

import sys
from dataclasses import dataclass, field

from .host import Fault

OURS = {f"{__package__}.{module}" for module in ("faults", "watched", "vocabulary", "simulator")}


class Race(Fault):
    """Two threads touch one element, and nothing says who comes first."""


class Divergence(Fault):
    """Threads that should wait for each other wait at different places, or have left."""


class OutOfBounds(Fault):
    """An index that the array does not have."""


class Uninitialised(Fault):
    """A read of what nobody wrote."""


@dataclass
class Now:
    """Whose turn it is, and in which phase of the launch: one ends with a barrier, or a block."""

    code: object                                          # the kernel's own
    races: bool                                           # whether to look for them
    trace: object                                         # where accesses are noted, or None
    thread: object = None
    phase: int = 0
    born: int = 0                                         # the phase in which the block began
    unwritten: list = field(default_factory=list)         # faults, unless a race explains them

    def here(self):
        """line 12: thread (3, 0, 0) of block (0, 0, 0)"""
        frame = caller()
        return f"{self.line(frame.f_code, frame.f_lasti)}: {self.thread}"

    def line(self, code, instruction):
        """line 12, or, in another function than the kernel, line 12 of warp_sum"""
        line = next(line for start, end, line in code.co_lines() if start <= instruction < end)
        return f"line {line}" if code is self.code else f"line {line} of {code.co_name}"


def caller():
    """The frame of the kernel, or of its helper, that called the simulator."""
    frame = sys._getframe(1)
    while frame.f_globals["__name__"] in OURS:
        frame = frame.f_back
    return frame
