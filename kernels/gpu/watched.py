"""Memory as a simulated thread finds it: arrays that know their bounds, their gaps and their races.

`Checked` belongs to one thread. `Watched` is seen by many, in global or in shared memory: every
access leaves a record, and a later one by another thread must be ordered with it: by a barrier
between them, by syncwarp within a warp, or by both being atomic. Blocks are never ordered.
"""

import sys
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .faults import OutOfBounds, Race, Uninitialised, caller

CLASHES = {"read": ("write", "atomic"), "write": ("write", "read", "atomic"),
           "atomic": ("write", "read")}
DOES = {"read": "reads", "write": "writes", "atomic": "updates"}
DID  = {"read": "read",  "write": "wrote",  "atomic": "updated"}


class Event(NamedTuple):
    """One access, as a trace keeps it."""

    step: tuple                                           # (barriers passed, accesses since): time
    block: tuple                                          # its index
    thread: tuple                                         # its index in the block
    line: int                                             # of the source
    array: str
    index: object                                         # what stood in the brackets
    kind: str                                             # "read", "write" or "atomic"


class Layout(NamedTuple):
    """An array, as a trace keeps it."""

    space: str                                            # "global" or "shared"
    shape: tuple
    itemsize: int                                         # bytes an element


@dataclass
class Trace:
    """Every access of one launch to global and shared memory."""

    kernel: str
    block: tuple                                          # threads along x, y, z
    arrays: dict = field(default_factory=dict)            # {name: Layout}
    events: list = field(default_factory=list)


class Places(dict):
    """{index: position} in an array of this shape; IndexError for an index it does not have."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def __missing__(self, index):
        indices = as_tuple(index)
        if not (all(map(whole, indices)) and inside(indices, self.shape)):
            raise IndexError
        self[index] = int(np.ravel_multi_index(indices, self.shape)) if indices else 0
        return self[index]


places = lru_cache(64)(Places)                            # by shape: blocks come and go


def as_tuple(index):
    return index if isinstance(index, tuple) else (index,)


def whole(i):
    return isinstance(i, (int, np.integer))


def inside(indices, shape):
    return len(indices) == len(shape) and all(0 <= i < n for i, n in zip(indices, shape))


class Checked:
    """An array in which every index is looked up, and no element is read before it is written."""

    __slots__ = ("data", "name", "now", "space", "place", "filled",
                 "shape", "ndim", "size", "dtype")

    def __init__(self, data, name, now, space="local", filled=None):
        self.data, self.name, self.now, self.space = data, name, now, space
        self.place = places(data.shape)
        self.filled = bytearray(data.size) if filled is None else filled     # a flag an element
        self.shape, self.ndim, self.size, self.dtype = data.shape, data.ndim, data.size, data.dtype

    def __getitem__(self, index):
        try:
            at, value = self.place[index], self.data[index]
        except (IndexError, TypeError) as error:
            raise self.refused(index, "read", error) from None
        if not self.filled[at]:
            self.unwritten(index)
        return value

    def __setitem__(self, index, value):
        try:
            at = self.place[index]
            self.data[index] = value
        except (IndexError, TypeError) as error:
            raise self.refused(index, "write", error) from None
        self.filled[at] = True

    def __len__(self):
        return len(self.data)

    def refused(self, index, kind, error):
        """What to raise for an index; the error itself where the index is not to blame."""
        if not all(map(whole, as_tuple(index))):
            why = "an index is a whole number"
        elif not inside(as_tuple(index), self.shape):
            why = f"its shape is {self.shape}"
        else:
            return error
        return OutOfBounds(f"out of bounds: {self.now.here()} {DOES[kind]} {self.at(index)}; {why}")

    def unwritten(self, index):
        raise self.never(index)

    def never(self, index):
        return Uninitialised(f"uninitialised: {self.now.here()} reads {self.at(index)}, "
                             "which nobody has written")

    def at(self, index):
        return f"{self.space} {self.name}[{', '.join(map(str, as_tuple(index)))}]"


class Watched(Checked):
    """An array that many threads see; its space is "global" or "shared"."""

    __slots__ = ("seen",)

    def __init__(self, data, name, now, space, filled=None):
        super().__init__(data, name, now, space, filled)
        self.seen = [None] * data.size                    # a Slot for each element touched
        if now.trace is not None:
            now.trace.arrays[name] = Layout(space, data.shape, data.itemsize)

    def __getitem__(self, index):
        value = Checked.__getitem__(self, index)
        self.touch(index, "read", sys._getframe(1))
        return value

    def __setitem__(self, index, value):
        Checked.__setitem__(self, index, value)
        self.touch(index, "write", sys._getframe(1))

    def update(self, index, change):
        """Put change(old) in the place of old at once; return old."""
        old = Checked.__getitem__(self, index)
        self.data[index] = change(old)
        self.touch(index, "atomic", caller())
        return old

    def touch(self, index, kind, frame):
        """Leave a record of this access, and compare it with those before it."""
        now = self.now
        thread = now.thread
        if now.trace is not None:
            step = now.phase - now.born, thread.accesses
            now.trace.events.append(Event(step, thread.block, thread.index, frame.f_lineno,
                                          self.name, index, kind))
            thread.accesses += 1
        if not now.races:
            return
        at = self.place[index]
        slot = self.seen[at]
        if slot is None:
            slot = self.seen[at] = Slot(now.born)
        elif slot.born != now.born:
            slot.turn(now.born)
        for other in CLASHES[kind]:
            for record in slot.records[other].values():
                if record[0] is not thread and unordered(record, now):
                    raise self.race(index, kind, other, record)
        if kind == "write":
            slot.clear()                                  # what comes after this, is after them
        slot.records[kind][thread] = (thread, now.phase, thread.tick, frame.f_code, frame.f_lasti)

    def unwritten(self, index):
        """Wait for the phase's end with this: if another thread does write here, it is a race."""
        self.now.unwritten.append(self.never(index))

    def race(self, index, kind, other, record):
        thread, _, _, *site = record
        who, why = f"thread {thread.index}", "no barrier between them"
        if thread.block != self.now.thread.block:
            who, why = thread, "nothing orders blocks"
        return Race(f"race: {self.now.here()} {DOES[kind]} {self.at(index)}, which {who} "
                    f"{DID[other]} at {self.now.line(*site)}; {why}")


class Slot:
    """Who touched one element: records (thread, phase, tick, code, instruction) of each kind.

    Of the blocks before this one, one record of a kind is enough: it is ordered with nobody.
    """

    __slots__ = ("born", "records")

    def __init__(self, born):
        self.born = born
        self.records = {"read": {}, "write": {}, "atomic": {}}       # each {thread: record}

    def turn(self, born):
        """Another block has begun."""
        self.born = born
        for records in self.records.values():
            while len(records) > 1:
                records.popitem()

    def clear(self):
        for records in self.records.values():
            records.clear()


def unordered(record, now):
    """Whether nothing puts another thread's access before what the present thread does."""
    before, phase, tick, _, _ = record
    thread = now.thread
    if phase < now.phase:
        return phase < now.born                           # a barrier, unless of another block
    return before.warp != thread.warp or thread.clock[before.lane] < tick
