"""A GPU's block without a GPU: Python kernels thread by thread, in an order that you choose.

    launch(kernel, grid, block, x, y, order="reverse")    # NumPy arrays

The threads of a block are greenlets. One runs until it waits, at a barrier or for its warp; a warp
runs as far as it can before the next one starts; blocks run one after another. What would be wrong
on a GPU in some order is a Fault here in every order (watched.py), with the line and the thread.
Two things are stricter than some GPUs: no thread may leave while others wait at a barrier; and
shuffles and votes order no accesses to memory, as CUDA's documentation has it: syncwarp does.
"""

import contextvars
import math
import random
from functools import partial
from pathlib import Path
from types import FunctionType

import numpy as np

from .arrays import address
from .faults import Divergence, Fault, Now, Race, caller
from .python import Device, cuda
from .source import triple
from .vocabulary import WARP, Cuda, Dim3, Mathematics
from .watched import Trace, Watched

THREADS = 1024                                            # a block may have


def launch(kernel, grid, block, *args, order="forward", races=True, trace=None):
    """Run a kernel on NumPy arrays; Fault for what would go wrong on a GPU.

    grid, block: a number or up to three; order: "forward", "reverse" or a seed; trace: a list that
    takes a Trace of this launch.
    """
    function = getattr(kernel, "function", kernel)
    grid, block = sizes(grid, "grid"), sizes(block, "block")
    if math.prod(block) > THREADS:
        raise ValueError(f"launch: expected a block of at most {THREADS} threads, got {block}, "
                         f"which is {math.prod(block)}")
    turns = turns_of(order)
    noted = None if trace is None else Trace(function.__name__, block)
    now = Now(function.__code__, races, noted)
    if trace is not None:
        trace.append(noted)
    words = Cuda(now, grid, block)
    body = partial(bound(function, words), *arguments(function, args, now))
    try:
        for index in turns(indices(grid)):
            words.shared.clear()
            run_block(body, index, block, now, turns)
    except Exception as error:
        if now.unwritten and not isinstance(error, Race):
            error = now.unwritten[0]                      # it came first
        if isinstance(error, Fault):
            path = Path(function.__code__.co_filename)
            error.args = (f"{path.name}: {function.__name__}: {error}",)
        raise error from None


def sizes(size, what):
    size = Dim3(*triple(size))
    if min(size) < 1:
        raise ValueError(f"launch: expected a {what} of at least 1 along each axis, got {size}")
    return size


def indices(size):
    """Every index in a grid or a block, x fastest."""
    return [Dim3(x, y, z) for z in range(size.z) for y in range(size.y) for x in range(size.x)]


def turns_of(order):
    """The function that lines up blocks, warps and lanes."""
    if order == "forward":
        return list
    if order == "reverse":
        return lambda line: line[::-1]
    if not isinstance(order, int):
        raise ValueError('launch: expected order "forward", "reverse" or a whole number, '
                         f"got {order!r}")
    rng = random.Random(order)
    return lambda line: rng.sample(line, len(line))


def bound(function, words, made=None):
    """A copy of a kernel's function, and of its helpers, in which `cuda` and `math` are ours."""
    made = {} if made is None else made
    names = dict(function.__globals__)
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__,
                        function.__closure__)
    made[function] = copy
    for name, value in function.__globals__.items():
        if name == "cuda" or value is cuda:
            names[name] = words
        elif value is math:
            names[name] = Mathematics()
        elif isinstance(value, Device):
            names[name] = made.get(value.function) or bound(value.function, words, made)
    return copy


def arguments(function, args, now):
    """The arguments, arrays being watched; the same memory given twice is one array."""
    seen = {}
    for name, value in zip(function.__code__.co_varnames, args):
        if isinstance(value, np.ndarray):
            memory = address(value), value.shape, value.strides
            if memory not in seen:
                seen[memory] = Watched(value, name, now, "global", written(value))
            value = seen[memory]
        yield value


def written(array):
    """A flag for each element: no where all bits of a float are 1, as arrays.empty leaves them."""
    if array.dtype.kind not in "fV":                      # V: bf16
        return bytearray(b"\1") * array.size
    memory = np.ascontiguousarray(array).view(np.uint8).reshape(array.size, array.itemsize)
    return bytearray((memory != 0xFF).any(axis=1))


class Thread:
    """One thread of a block.

    clock[l] tells up to which tick of lane l of its warp it knows: that of the last syncwarp that
    both were in.
    """

    __slots__ = ("index", "block", "number", "warp", "lane", "clock", "tick", "accesses", "frame",
                 "greenlet", "hub", "stop", "answer")

    def __init__(self, index, block, number, greenlet, hub):
        self.index, self.block, self.number = index, block, number
        self.warp, self.lane = divmod(number, WARP)
        self.clock, self.tick, self.accesses = [0] * WARP, 1, 0
        self.greenlet, self.hub = greenlet, hub
        self.stop = self.answer = self.frame = None

    def __str__(self):
        return f"thread {self.index} of block {self.block}"

    def known(self):
        """Itself, having kept the kernel's frame, which tells later where the thread left."""
        if self.frame is None:
            self.frame = caller()
            while self.frame.f_back is not None:
                self.frame = self.frame.f_back
        return self

    def whereabouts(self):
        if self.stop:
            return f"waits at {self.stop.word} at {self.stop.line}"
        return "has left" + (f" at line {self.frame.f_lineno}" if self.frame else "")


def run_block(body, index, block, now, turns):
    """Run every thread of one block to its end."""
    try:
        from greenlet import getcurrent, greenlet
    except ImportError:
        raise ModuleNotFoundError("stepping through kernels in Python needs greenlet; "
                                  "pip install greenlet") from None
    quiet = contextvars.copy_context()                    # a greenlet has a context of its own
    quiet.run(np.seterr, all="ignore")                    # a GPU divides by zero
    threads = [Thread(where, index, number, greenlet(body), getcurrent())
               for number, where in enumerate(indices(block))]
    warps = [threads[i:i + WARP] for i in range(0, len(threads), WARP)]
    for thread in threads:
        thread.greenlet.gr_context = quiet
    try:
        now.born = now.phase = now.phase + 1
        waiting = True
        while waiting:
            for warp in turns(warps):
                run_warp(warp, now, turns)
            waiting = pass_barrier(threads)
            if now.unwritten:
                raise now.unwritten[0]
            now.phase += 1
    finally:
        for thread in threads:
            thread.greenlet.throw()                       # nobody stays behind in a kernel


def run_warp(warp, now, turns):
    """Run lanes until each has left or waits at a barrier of the block."""
    while ready := [lane for lane in warp if not lane.stop and not lane.greenlet.dead]:
        for lane in turns(ready):
            now.thread = lane
            lane.greenlet.switch()
        meet(warp)


def meet(warp):
    """Let lanes go on that wait for lanes of their warp, where all of these are there."""
    groups = {}
    for lane in warp:
        if lane.stop and lane.stop.mask is not None:
            groups.setdefault(lane.stop[:3], []).append(lane)        # word, mask, site
    complete = [(word, group) for (word, mask, _), group in groups.items()
                if group == named(mask, warp)]
    for word, group in complete:
        if word == "syncwarp":
            synchronise(group)
        let_go(group)
    if groups and not complete:
        (_, mask, _), group = next(iter(groups.items()))
        missing = [lane for lane in named(mask, warp) if lane not in group]
        raise apart(group[0], *missing[:1])


def named(mask, warp):
    """The lanes that a mask names and that have not left."""
    return [lane for lane in warp if mask >> lane.lane & 1 and not lane.greenlet.dead]


def synchronise(group):
    """What these lanes have done comes before all that they do from here on."""
    known = [max(ticks) for ticks in zip(*(lane.clock for lane in group))]
    for lane in group:
        known[lane.lane] = lane.tick
        lane.tick += 1
        lane.clock = known                                # only ever replaced, never changed


def pass_barrier(threads):
    """Let a block go on whose threads are all at one barrier; return whether there are any."""
    waiting = [thread for thread in threads if thread.stop]
    for thread in threads if waiting else ():
        if not thread.stop or thread.stop.site != waiting[0].stop.site:
            raise apart(waiting[0], thread)
        thread.accesses = 0
    let_go(waiting)
    return bool(waiting)


def let_go(group):
    values = {thread.number: thread.stop.value for thread in group}
    for thread in group:
        thread.answer = thread.stop.answer(values)
    for thread in group:
        thread.stop = None


def apart(waiting, other=None):
    """The fault of a thread that waits for another, which is elsewhere."""
    why = (f"{other} {other.whereabouts()}" if other else
           f"its mask {waiting.stop.mask:#x} does not name it")
    return Divergence(f"divergence: {waiting.stop.line}: {waiting} waits at "
                      f"{waiting.stop.word}, but {why}")
