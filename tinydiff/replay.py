"""Work on a GPU that is recorded once and then replayed: a CUDA graph.

    work = Replayed(function, like=weights)               # function(x, t) -> [y, …], all arrays
    [y] = work(x, t)                                      # the third time recorded, then replayed

A step is thousands of kernels of some microseconds each, and Python takes longer to ask for one
than the GPU to run it. A graph asks for all of them at once. It repeats what was asked for: the
same kernels on the same memory. So what changes has to lie in arrays, for a number of the host
would stay what it was. Arguments are copied into arrays that the graph knows, answers out of them.
"""

from collections import Counter
from contextlib import contextmanager, suppress
from threading import Lock, local

from tinydiff.backend import alongside, array_module
from tinydiff.kernels import LADDERS, pick

WARM = 2                                                  # calls before: kernels are compiled
KEEP = 4                                                  # graphs at most, of the latest shapes

_state = local()


class Replayed:
    """A function of arrays, or None, to a list of arrays; on a GPU, where `like` is, a graph.

    There is one for each set of shapes and of rungs in use. Arguments may come from the host; the
    function finds all on the GPU. What it does beside, such as moving weights, it does in each
    call. Where its work cannot be recorded it is asked for as ever, and `why_not` says the reason
    in a sentence.
    """

    why_not = ""

    def __init__(self, function, like):
        self.function, self.like = function, like
        self.calls, self.recordings = Counter(), {}       # the latter of the latest shapes
        self.stream = None                                # only to record on
        self.lock = Lock()                                # threads share what graphs work on

    def __call__(self, *arrays):
        arrays = [a if a is None else alongside(a, self.like) for a in arrays]
        with self.lock:
            recording = self.recording_of(arrays)
            return recording.play(arrays) if recording else self.function(*arrays)

    def recording_of(self, arrays):
        """What to play for arrays of such shapes with the rungs in use, or None."""
        if self.why_not or getattr(_state, "one_by_one", False):
            return None
        key = (*(a is None or (a.shape, a.dtype) for a in arrays),
               *(pick(ladder, self.like) for ladder in LADDERS))
        recording = self.recordings.pop(key, None)
        if recording is None:
            self.calls[key] += 1
            if self.calls[key] > WARM:
                recording = self.recorded(arrays)
        if recording is None:
            return None
        self.recordings[key] = recording                  # the latest stands last
        if len(self.recordings) > KEEP:
            oldest = next(iter(self.recordings))
            del self.recordings[oldest], self.calls[oldest]
        return recording

    def recorded(self, arrays):
        """A new Recording; or None, and `why_not` is set."""
        cupy = array_module(self.like)
        cupy.get_default_memory_pool().free_all_blocks()  # what the calls before had needed
        self.stream = self.stream or cupy.cuda.Stream(non_blocking=True)
        pool = cupy.cuda.MemoryPool()                     # whose memory nobody else is lent
        try:
            with cupy.cuda.using_allocator(pool.malloc), nothing_sent(cupy):
                return Recording(self.function, arrays, self.stream, pool)
        except Exception as error:
            self.why_not = f"{type(error).__name__}: {error}"
        return None


class Recording:
    """A function's graph for arrays of these shapes, the arrays it works on, and its answers."""

    def __init__(self, function, arrays, stream, pool):
        """Ask for the work without doing it.  Raises what CuPy does where it cannot be recorded."""
        self.pool = pool
        self.arrays = [a if a is None else a.copy() for a in arrays]
        with stream:
            stream.begin_capture()
            try:
                self.answers = function(*self.arrays)
            except BaseException:
                with suppress(Exception):
                    stream.end_capture()                  # no stream may be left in that state
                raise
            self.graph = stream.end_capture()

    def play(self, arrays):
        """Do the work on new arrays -> copies of its answers"""
        for own, new in zip(self.arrays, arrays, strict=True):
            if own is not None:
                own[...] = new
        self.graph.launch()
        return [y.copy() for y in self.answers]


@contextmanager
def nothing_sent(cupy):
    """Sending an array from the host while a stream records is an error inside.

    CuPy itself lets it pass, and records a copy out of memory that it soon lends to another array.
    """
    lend = cupy.get_default_pinned_memory_pool().malloc

    def unless_recording(size):
        if cupy.cuda.get_current_stream().is_capturing():
            raise RuntimeError(f"{size} bytes came from the host, and would stay what they were")
        return lend(size)

    cupy.cuda.set_pinned_memory_allocator(unless_recording)
    try:
        yield
    finally:
        cupy.cuda.set_pinned_memory_allocator(lend)


@contextmanager
def one_by_one():
    """Nothing is recorded or replayed inside: for those who watch a network at work."""
    before = getattr(_state, "one_by_one", False)
    _state.one_by_one = True
    try:
        yield
    finally:
        _state.one_by_one = before
