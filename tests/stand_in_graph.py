"""Streams and graphs of the stand-in for CuPy: what is asked of a stream that records is not done.

Its result is memory of the right shape whose bits are all 1, NaN, until the graph is launched,
which does all that was asked for, in order, on the memory it was asked for.
"""

from contextlib import contextmanager
from functools import wraps
from threading import local
from types import SimpleNamespace
from weakref import WeakSet

import numpy as np
from stand_in_cuda import CUDARuntimeError

_here = local()                                           # each thread has a stream of its own
_here.stream = None


class Graph:
    """What a stream has recorded. `launches` counts, `nodes` are functions without arguments."""

    def __init__(self, nodes):
        self.nodes, self.launches = nodes, 0

    def launch(self, stream=None):
        assert recording() is None, "a graph within a graph is not imitated"
        self.launches += 1
        with np.errstate(all="ignore"):
            for node in self.nodes:
                node()


class Stream:
    """cupy.cuda.Stream, which works at once or records; the default stream cannot record."""

    def __init__(self, null=False, non_blocking=False):
        self.null, self.nodes, self.spoilt = null, None, False

    def __enter__(self):
        self.before, _here.stream = current(), self
        return self

    def __exit__(self, *_):
        _here.stream = self.before

    def begin_capture(self, mode=None):
        if self.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.nodes, self.spoilt = [], False

    def end_capture(self):
        nodes, self.nodes = self.nodes, None
        if self.spoilt:
            raise CUDARuntimeError(901, "cudaErrorStreamCaptureInvalidated: operation failed due "
                                        "to a previous error during capture")
        graph = Graph(nodes)
        graphs.add(graph)
        return graph

    def is_capturing(self):
        return self.nodes is not None

    def synchronize(self):
        refuse_waiting()


NULL = Stream(null=True)
graphs = WeakSet()                                        # all that somebody still has
pinned = SimpleNamespace(malloc=lambda size: size, lend=None)        # the pool, and who is asked


def clear():
    pinned.lend = pinned.malloc


def current():
    return getattr(_here, "stream", None) or NULL


def recording():
    """The nodes of the stream that is asked now, if it records."""
    return current().nodes


def refuse_waiting():
    """The host cannot wait for what is only recorded; having tried, nothing comes of it."""
    if recording() is not None:
        current().spoilt = True
        raise CUDARuntimeError(900, "cudaErrorStreamCaptureUnsupported: operation not permitted "
                                    "when stream is capturing")


def refuse_cublas(name):
    if recording() is not None and name.strip("_") in ("matmul", "rmatmul", "imatmul", "einsum"):
        raise NotImplementedError("calling cuBLAS API during stream capture is currently "
                                  "unsupported")


def sent(x):
    """What arrives of an array of the host: itself, or, recorded, what its place holds later."""
    pinned.lend(x.nbytes)
    if recording() is not None:
        recording().append(lambda: spoil(x))
        spoil(x)
    return x


def computed(function, *args, **options):
    """function(*args, **options) on NumPy arrays, new ones or views; or a recording of it."""
    nodes = recording()
    if nodes is None:
        return function(*args, **options)
    if options.get("out") is not None:
        nodes.append(lambda: function(*args, **options))
        return options["out"]
    with done_at_once():
        y = function(*args, **options)
    several = isinstance(y, (list, tuple))
    parts = [np.asarray(part) for part in (y if several else [y])]
    given = [a for a in flat((args, *options.values())) if isinstance(a, np.ndarray)]
    if not any(np.may_share_memory(part, a) for part in parts for a in given if a.size):
        def fill():
            again = function(*args, **options)
            for part, new in zip(parts, again if several else [again], strict=True):
                part[...] = new

        for part in parts:
            spoil(part)
        nodes.append(fill)
    return type(y)(parts) if several else parts[0]


def asked(function, *args):
    """Do what changes an array of its arguments, or record it."""
    if recording() is None:
        function(*args)
    else:
        recording().append(lambda: function(*args))


@contextmanager
def done_at_once():
    """Nothing records inside."""
    before, _here.stream = current(), NULL
    try:
        yield
    finally:
        _here.stream = before


def as_a_kernel(function, in_use):
    """A rung's function that is recorded as what it stands for, one kernel: also its products.

    Only where in_use() says that it was asked for, not where a rung of the GPU came down to it.
    """
    from stand_in_cupy import bare, ours

    def again(x):
        return ours(x) if isinstance(x, np.ndarray) else \
            type(x)(map(again, x)) if isinstance(x, (list, tuple)) else x

    @wraps(function)
    def f(*args):
        if recording() is None or not in_use():
            return function(*args)
        return ours(computed(lambda *args: bare(function(*again(args))), *bare(args)))
    return f


def as_a_launch(launch):
    """`launch` of a kernel, which changes arrays among its arguments."""
    return wraps(launch)(lambda *args: asked(launch, *args))


def spoil(x):
    """All bits of an array are 1, as in memory that nobody has written to."""
    if x.dtype == bool:
        x[...] = True
    else:
        x.view(f"u{x.itemsize}")[...] = np.iinfo(f"u{x.itemsize}").max


def flat(x):
    if not isinstance(x, (list, tuple)):
        return [x]
    return [inner for part in x for inner in flat(part)]


class MemoryPool:
    def malloc(self, size):
        raise AssertionError("memory is NumPy's here")

    def free_all_blocks(self):
        pass

    def total_bytes(self):
        return 0


@contextmanager
def using_allocator(allocator=None):
    yield


def set_pinned_memory_allocator(allocator=None):
    pinned.lend = allocator or pinned.malloc
