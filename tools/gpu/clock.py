"""How long does the GPU take?  Milliseconds between two of its events, without the host's share.

While the host prepares launches, the GPU is kept busy with a copy. So the launches are all queued
when their time begins, and nothing they read is in the cache any more. CuPy and PyTorch use the
same stream, the default one, so one clock times both.
"""

from itertools import pairwise
from math import ceil
from statistics import median, quantiles
from time import perf_counter

BYTES   = 2**30                                           # of the copy: far beyond any L2 cache
LONGEST = 0.05                                            # seconds of launching that are hidden
WARM, STEPS = 5, 20                                       # whole steps before those that count


class Clock:
    def __init__(self):
        import cupy
        self.cupy = cupy
        self.start, self.stop = cupy.cuda.Event(), cupy.cuda.Event()
        self.here, self.there = (cupy.zeros(BYTES, "uint8") for _ in range(2))
        self.copy()
        self.seconds = self.between([self.copy] * 5) / 1e3            # of one copy
        self.kept = None

    def copy(self):
        """Bytes read, and as many written"""
        self.there[...] = self.here

    def between(self, calls):
        """Milliseconds of one of these calls, on the average."""
        self.start.record()
        self.kept = [call() for call in calls]            # no result takes another one's memory
        self.stop.record()
        self.stop.synchronize()
        return self.cupy.cuda.get_elapsed_time(self.start, self.stop) / len(calls)

    def times(self, calls, repeats, refresh=lambda: None):
        """[milliseconds of a call], one for each repeat; refresh() undoes what calls wrote over."""
        begin = perf_counter()
        self.kept = [call() for call in calls]
        host = perf_counter() - begin                     # what the host needs to launch them
        self.cupy.cuda.Device().synchronize()
        copies = ceil(1.5 * min(host, LONGEST) / self.seconds) + 1
        found = []
        for _ in range(repeats):
            refresh()
            for _ in range(copies):
                self.copy()
            found.append(self.between(calls))
        return found


def one_by_one(step, on_gpu=True):
    """[milliseconds of each step], one behind the other: also what the host makes the GPU wait."""
    for _ in range(WARM):
        step()
    marks = []
    for _ in range(STEPS + 1):
        if marks:
            step()
        marks.append(mark(on_gpu))
    if not on_gpu:
        return [1e3 * (b - a) for a, b in pairwise(marks)]
    import cupy
    marks[-1].synchronize()
    return [cupy.cuda.get_elapsed_time(a, b) for a, b in pairwise(marks)]


def mark(on_gpu):
    """An event of the GPU's, or the time on the CPU."""
    if not on_gpu:
        return perf_counter()
    import cupy
    event = cupy.cuda.Event()
    event.record()
    return event


def spread(times):
    """How far the middle half of them lies apart, as a share of the median."""
    low, middle, high = quantiles(times, n=4)
    return (high - low) / middle


def noise(first, second):
    """How far the medians of the same thing, timed twice, lie apart, as a share of both's."""
    return abs(median(first) - median(second)) / median(first + second)
