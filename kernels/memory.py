"""Large arrays from a pool: memory that has been used before needs no pages from the system.

The system hands fresh memory out page by page, and zeroes each; that costs three times what
writing it costs. So blocks are kept. A block is free when nobody refers to it any more: an array
holds its block as `base`, so counting references is all the bookkeeping there is.
"""

import os
import sys
import threading
from collections import defaultdict
from math import prod

import numpy as np

SMALL = 1 << 16                                           # bytes; below, NumPy's own way is as fast
FORGET = 5000                                             # requests after which an idle block goes
IDLE = 1 << 30                                            # bytes that may lie idle: a gigabyte
ALIGN = 64                                                # bytes: a line of the cache

_blocks = defaultdict(list)                               # {bytes: [[block, last request], …]}
_lock = threading.Lock()
_requests = 0


def empty(shape, dtype=np.float32):
    """An array with anything in it, its first number at the start of a cache line."""
    count = shape if isinstance(shape, int) else prod(shape)
    size = count * np.dtype(dtype).itemsize
    if size < SMALL:
        return np.empty(shape, dtype)
    block = take(rounded(size + ALIGN))
    start = -block.ctypes.data % ALIGN
    return block[start:start + size].view(dtype).reshape(shape)


def rounded(size):
    """size in steps of an eighth of the power of two below it, so that blocks serve again."""
    step = 1 << (size.bit_length() - 4)
    return -(-size // step) * step


def take(size):
    """A free block of that many bytes, or a new one."""
    global _requests
    with _lock:
        _requests += 1
        for entry in _blocks[size]:
            if sys.getrefcount(entry[0]) == 2:            # the entry, and the question itself
                entry[1] = _requests
                return entry[0]
        drop_idle()
        block = np.empty(size, np.uint8)
        _blocks[size].append([block, _requests])
        return block


def drop_idle():
    """Give memory back that was not asked for in a long time, and the oldest of too much."""
    idle = sorted((entry[1], size) for size, entries in _blocks.items() for entry in entries
                  if sys.getrefcount(entry[0]) == 2)
    excess = sum(size for _, size in idle) - IDLE
    for last, size in idle:
        if excess > 0 or _requests - last >= FORGET:
            excess -= size
            _blocks[size][:] = [entry for entry in _blocks[size] if entry[1] != last]


def forget():
    """After a fork nobody may be left to open the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)
