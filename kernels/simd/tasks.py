"""A task: a function of the vector language that the machine runs, one numbered item a call.

    @task
    def double(item, worker, x, n): …

item says which part of the work, worker (0 … threads − 1) whose memory to use. The other
parameters are integers; an array is passed as its address.
"""

import ctypes
from functools import cached_property

import numpy as np

TASKS = {}


class Task:
    """A function with its machine code, made or loaded when it is first needed."""

    def __init__(self, function, common, name=None):
        self.function, self.common = function, common
        folders = function.__module__.split(".")[1:]
        self.name = name or ".".join([*folders, function.__name__])
        TASKS[self.name] = self

    @cached_property
    def address(self):
        """Where the machine code stands."""
        from .cache import load
        return load(self)

    @cached_property
    def code(self):
        """The machine code as something ctypes can call; the interpreter runs others meanwhile."""
        return ENTRY(self.address)

    def call(self, item, worker, *arguments):
        """Run one item on this thread."""
        self.code(SPARE, SPARE, pack(arguments), item, worker)


def pack(arguments):
    """The arguments as int64s, for as long as who called holds on to them."""
    return ROWS[len(arguments)](*[a.ctypes.data if type(a) is np.ndarray else a
                                  for a in arguments])


def task(function):
    """Make a Task that is compiled together with all others the first time any is needed."""
    return Task(function, common=True)


def rare_task(function):
    """Make a Task that is compiled when it is itself needed."""
    return Task(function, common=False)


ROWS = [ctypes.c_int64 * n for n in range(64)]            # types of so many arguments
ENTRY = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2)
_spare = (ctypes.c_int64 * 4)()
SPARE = ctypes.addressof(_spare)                          # Numba's place for results: none are used
