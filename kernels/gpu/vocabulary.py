"""What `cuda` means to a simulated thread: the words of numba.cuda that kernels use."""

import linecache
import math
import re
import sys
from functools import cache
from typing import NamedTuple

import numpy as np

from .faults import Divergence, Fault, caller
from .watched import Checked, Watched

WARP, EVERYONE = 32, 0xFFFFFFFF
STATIC = 48 * 1024                                        # bytes of shared memory a block may have


class Dim3(NamedTuple):
    x: int
    y: int
    z: int

    def __str__(self):
        return str(tuple(self))


class Stop(NamedTuple):
    """Where a thread waits, for its block or for the lanes of its warp that the mask names."""

    word: str
    mask: int | None                                      # None: the whole block
    site: tuple                                           # the instruction, and the calls to there
    line: str
    value: object                                         # what it brings
    answer: object                                        # {thread number: value} -> what it gets


class Cuda:
    """The vocabulary; all of it speaks of the thread whose turn it is."""

    warpsize = WARP
    int8, int16, int32, int64 = np.int8, np.int16, np.int32, np.int64
    uint8, uint16, uint32, uint64 = np.uint8, np.uint16, np.uint32, np.uint64
    float32, float64 = np.float32, np.float64

    def __init__(self, now, grid, block):
        self.now, self.gridDim, self.blockDim = now, grid, block
        self.shared, self.local, self.atomic = Shared(now), Local(now), Atomic()

    @property
    def threadIdx(self):
        return self.now.thread.known().index

    @property
    def blockIdx(self):
        return self.now.thread.known().block

    @property
    def laneid(self):
        return self.now.thread.known().lane

    def grid(self, ndim):
        return first(ndim, [block * size + thread for block, size, thread in
                            zip(self.blockIdx, self.blockDim, self.threadIdx)])

    def gridsize(self, ndim):
        return first(ndim, [blocks * size for blocks, size in zip(self.gridDim, self.blockDim)])

    def syncthreads(self):
        self.wait("syncthreads")

    def syncthreads_count(self, predicate):
        return self.vote("syncthreads_count", None, predicate, sum)

    def syncthreads_and(self, predicate):
        return self.vote("syncthreads_and", None, predicate, all)

    def syncthreads_or(self, predicate):
        return self.vote("syncthreads_or", None, predicate, any)

    def syncwarp(self, mask=EVERYONE):
        self.wait("syncwarp", mask)

    def any_sync(self, mask, predicate):
        return self.vote("any_sync", mask, predicate, any)

    def all_sync(self, mask, predicate):
        return self.vote("all_sync", mask, predicate, all)

    def ballot_sync(self, mask, predicate):
        return self.wait("ballot_sync", mask, bool(predicate), lambda votes: sum(
            vote << number % WARP for number, vote in votes.items()))

    def shfl_sync(self, mask, value, lane):
        return self.fetch("shfl_sync", mask, value, lane % WARP)

    def shfl_up_sync(self, mask, value, delta):
        return self.fetch("shfl_up_sync", mask, value, self.laneid - delta)

    def shfl_down_sync(self, mask, value, delta):
        return self.fetch("shfl_down_sync", mask, value, self.laneid + delta)

    def shfl_xor_sync(self, mask, value, lanes):
        return self.fetch("shfl_xor_sync", mask, value, self.laneid ^ lanes)

    def fma(self, a, b, c):
        """a · b + c, rounded once: the product of two float32 is exact in float64."""
        return np.result_type(a, b, c).type(np.float64(a) * np.float64(b) + np.float64(c))

    def threadfence(self):
        """Nothing to do: here every thread sees at once what another wrote."""

    threadfence_block = threadfence_system = threadfence

    def vote(self, word, mask, predicate, count):
        return self.wait(word, mask, bool(predicate), lambda votes: count(votes.values()))

    def fetch(self, word, mask, value, lane):
        """The value that another lane brings; its own where the warp has no such lane."""
        thread = self.now.thread
        source = thread.number - thread.lane + lane if 0 <= lane < WARP else thread.number

        def answer(values):
            if source not in values:
                raise Divergence(f"divergence: {thread.stop.line}: {thread} wants from {word} "
                                 f"the value of lane {lane}, which takes no part")
            return values[source]

        return self.wait(word, mask, value, answer)

    def wait(self, word, mask=None, value=None, answer=lambda values: None):
        """Give the turn back; go on once all are here, with what the answer makes of the values."""
        thread = self.now.thread
        frame = caller()
        line = self.now.line(frame.f_code, frame.f_lasti)
        thread.stop = Stop(word, mask, site_of(frame), line, value, answer)
        thread.hub.switch()
        return thread.answer


class Shared:
    """Memory of a block: one call of `array` gives all its threads the same one."""

    def __init__(self, now):
        self.now = now
        self.clear()

    def clear(self):
        """For the next block."""
        self.arrays, self.lines = {}, {}

    def array(self, shape, dtype):
        frame = sys._getframe(1)
        site = frame.f_code, frame.f_lasti
        if site not in self.arrays:
            self.arrays[site] = self.new(np.zeros(shape, type_of(dtype)), site, frame.f_lineno)
        return self.arrays[site]

    def new(self, data, site, line):
        code, _ = site
        name = variable(code, line, "shared")
        if self.lines.setdefault((code, line), site) != site:
            raise Fault(f"shared memory: line {line} makes two arrays, which may be given the same "
                        "memory; write one a line")
        used = data.nbytes + sum(array.data.nbytes for array in self.arrays.values())
        if used > STATIC:
            raise Fault(f"shared memory: with {name} of line {line} a block has {used} bytes, "
                        f"a GPU allows {STATIC}")
        if any(array.name == name for array in self.arrays.values()):
            name += f" of line {line}"
        return Watched(data, name, self.now, "shared")


class Local:
    """Memory of a thread."""

    def __init__(self, now):
        self.now = now

    def array(self, shape, dtype):
        frame = sys._getframe(1)
        name = variable(frame.f_code, frame.f_lineno, "array")
        return Checked(np.zeros(shape, type_of(dtype)), name, self.now)


class Atomic:
    """Read, change and write as one step, in memory that many see; what was there comes back."""

    def add(self, array, index, value):
        return array.update(index, lambda old: old + value)

    def max(self, array, index, value):
        return array.update(index, lambda old: max(old, value))

    def min(self, array, index, value):
        return array.update(index, lambda old: min(old, value))

    def exch(self, array, index, value):
        return array.update(index, lambda old: value)

    def cas(self, array, index, expected, value):
        return array.update(index, lambda old: value if old == expected else old)


class Mathematics:
    """`math` as on a GPU: float32 stays float32, and the root of -1 is NaN."""

    def __getattr__(self, word):
        if word in ("floor", "ceil", "trunc") or not hasattr(np, word):
            return getattr(math, word)                    # a whole number, or what NumPy has not
        return getattr(np, word)


def first(ndim, sizes):
    return sizes[0] if ndim == 1 else tuple(sizes[:ndim])


def site_of(frame):
    """The instruction at which a frame stands, and the calls that led there."""
    site = []
    while frame is not None:
        site.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(site)


@cache
def variable(code, line, otherwise):
    """The name before the `=` on a line of source."""
    found = re.match(r"\s*(\w+)\s*=[^=]", linecache.getline(code.co_filename, line))
    return found[1] if found else otherwise


def type_of(dtype):
    """The NumPy type that NumPy, Numba or a string means."""
    try:
        return np.dtype(dtype)
    except TypeError:
        return np.dtype(str(dtype))
