"""Accesses that nothing orders are found in every order of threads, with both threads and lines.

The lines that a message must name are marked with `# here`.
"""

import re

import numpy as np
import pytest
from tinydiff_kernels.gpu.python import cuda

pytest.importorskip("greenlet")

from gpu_faults_helpers import fault_of, in_every_order, lines
from tinydiff_kernels.gpu.faults import Race
from tinydiff_kernels.gpu.simulator import launch

FULL = 0xFFFFFFFF


def forgotten_barrier(x):
    tile = cuda.shared.array(64, "float32")
    i = cuda.threadIdx.x
    if i == 3:
        tile[5] = x[i]                                    # here
    if i == 40:
        x[i] = tile[5]                                    # here


def forgotten_barrier_between_integers(x):
    tile = cuda.shared.array((2, 64), "int32")
    i = cuda.threadIdx.x
    tile[0, i] = i
    cuda.syncthreads()
    if i == 3:
        x[i] = tile[0, 40]                                # here
    if i == 40:
        tile[0, 40] = 0                                   # here


def both_write(x):
    i = cuda.threadIdx.x
    if i == 3 or i == 40:
        x[7] = 1                                          # here


def forgotten_second_barrier(x):
    """The next round writes while the last one is still being read."""
    tile = cuda.shared.array(64, "float32")
    i = cuda.threadIdx.x
    for k in range(2):
        if i == 40:
            tile[0] = k                                   # here
        cuda.syncthreads()
        if i == 3:
            x[k] = tile[0]                                # here


def shuffle_for_a_barrier(x):
    """Shuffles exchange registers; they say nothing about memory."""
    i = cuda.threadIdx.x
    if i == 3:
        x[0] = 1                                          # here
    cuda.shfl_sync(FULL, i, 0)
    if i == 30:
        x[1] = x[0]                                       # here


def syncwarp_for_a_barrier(x):
    """Thread 40 is of another warp."""
    i = cuda.threadIdx.x
    if i == 3:
        x[0] = 1                                          # here
    cuda.syncwarp()
    if i == 40:
        x[1] = x[0]                                       # here


def syncwarp_without_the_reader(x):
    i = cuda.threadIdx.x
    if i == 3:
        x[0] = 1                                          # here
    if i < 8:
        cuda.syncwarp(0xFF)
    if i == 30:
        x[1] = x[0]                                       # here


def after_syncwarp(x):
    """A barrier orders what was before it with what is behind it, not what is behind it."""
    i = cuda.threadIdx.x
    cuda.syncwarp()
    if i == 3:
        x[0] = 1                                          # here
    if i == 30:
        x[1] = x[0]                                       # here


def read_beside_atomic(x):
    i = cuda.threadIdx.x
    if i == 3:
        cuda.atomic.max(x, 0, 1)                          # here
    if i == 40:
        x[1] = x[0]                                       # here


def write_beside_atomic(x):
    i = cuda.threadIdx.x
    if i == 3:
        cuda.atomic.add(x, 0, 1)                          # here
    if i == 40:
        x[0] = 1                                          # here


@in_every_order
@pytest.mark.parametrize(("kernel", "threads", "name"), [
    (forgotten_barrier, {3, 40}, r"shared tile\[5\]"),
    (forgotten_barrier_between_integers, {3, 40}, r"shared tile\[0, 40\]"),
    (both_write, {3, 40}, r"global x\[7\]"),
    (forgotten_second_barrier, {3, 40}, r"shared tile\[0\]"),
    (shuffle_for_a_barrier, {3, 30}, r"global x\[0\]"),
    (syncwarp_for_a_barrier, {3, 40}, r"global x\[0\]"),
    (syncwarp_without_the_reader, {3, 30}, r"global x\[0\]"),
    (after_syncwarp, {3, 30}, r"global x\[0\]"),
    (read_beside_atomic, {3, 40}, r"global x\[0\]"),
    (write_beside_atomic, {3, 40}, r"global x\[0\]"),
])
def test_a_race_is_found_with_both_its_threads_and_lines(kernel, threads, name, order):
    kind, text, named, who, _ = fault_of(kernel, np.zeros(64, np.float32), order=order)
    assert (kind, named, who) == (Race, lines(kernel), threads)
    assert re.search(rf"race: line \d+: thread .* {name}, which thread .*; no barrier", text)


def test_a_race_goes_unseen_only_where_nobody_asked():
    launch(both_write, 1, 64, np.zeros(64, np.float32), races=False)


def two_names(x, y):
    i = cuda.threadIdx.x
    if i == 3:
        x[0] = 1                                          # here
    if i == 40:
        x[1] = y[0]                                       # here


@in_every_order
def test_an_array_with_two_names_is_one(order):
    x = np.zeros(64, np.float32)
    kind, _, named, who, _ = fault_of(two_names, x, x[:], order=order)
    assert (kind, named, who) == (Race, lines(two_names), {3, 40})


def blocks_share(x, y):
    i = cuda.threadIdx.x
    if cuda.blockIdx.x == 1 and i == 3:
        x[3] = 1                                          # here
    elif cuda.blockIdx.x == 4 and i == 3:
        y[4] = x[3]                                       # here


def blocks_read_on(x, y):
    """Block 0 reads early; other blocks touch the element before block 2 writes it."""
    i, block = cuda.threadIdx.x, cuda.blockIdx.x
    if i == 3 and block != 2:
        y[block] = x[3]                                   # here
    cuda.syncthreads()
    if i == 3 and block == 2:
        x[3] = 0                                          # here


@in_every_order
@pytest.mark.parametrize("kernel", [blocks_share, blocks_read_on])
def test_nothing_orders_blocks(kernel, order):
    x, y = np.zeros(64, np.float32), np.zeros(8, np.float32)
    kind, text, named, who, blocks = fault_of(kernel, x, y, grid=5, order=order)
    assert (kind, named, who) == (Race, lines(kernel), {3})
    assert len(blocks) == 2
    assert blocks & {1, 2}
    assert text.endswith("nothing orders blocks")
