"""The pool hands out memory that nobody uses, and keeps no more of it than it may."""

from collections import defaultdict

import numpy as np
import pytest
from tinydiff_kernels import memory

MB = 1 << 20


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    """An empty one."""
    monkeypatch.setattr(memory, "_blocks", defaultdict(list))
    return memory


def held():
    """Megabytes, of each block."""
    return sorted(size // MB for size, blocks in memory._blocks.items() for _ in blocks)


def test_memory_that_nobody_uses_serves_again_and_used_memory_does_not():
    x = memory.empty((512, 512))
    y = memory.empty((512, 512))
    assert not np.shares_memory(x, y)
    place = x.ctypes.data
    part = x[1:]
    del x
    assert memory.empty((512, 512)).ctypes.data != place      # a part of it still lives
    del part
    assert memory.empty((512, 512)).ctypes.data == place


def test_of_too_much_that_lies_idle_the_oldest_goes_and_what_is_used_stays(monkeypatch):
    monkeypatch.setattr(memory, "IDLE", 10 * MB)
    used = memory.empty(8 * MB, np.uint8)                 # rounded up to 9
    for size in (3, 4, 5):
        memory.empty(size * MB, np.uint8)
    kept = memory.empty(6 * MB, np.uint8)                 # 12 MB lay idle: 3 had to go
    assert held() == [4, 5, 6, 9]
    del used
    memory.empty(7 * MB, np.uint8)                        # and now 9, older than 4 and 5
    assert held() == [4, 5, 6, 7]
    assert kept.nbytes == 6 * MB


def test_what_was_not_asked_for_in_a_long_time_goes(monkeypatch):
    monkeypatch.setattr(memory, "FORGET", 5)
    memory.empty(3 * MB, np.uint8)
    for _ in range(5):
        memory.empty(4 * MB, np.uint8)
    memory.empty(5 * MB, np.uint8)
    assert held() == [4, 5]
