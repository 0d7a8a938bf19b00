"""Every fault planted in a kernel is found in every order, with its lines and its threads.

The lines that a message must name are marked with `# here`.
"""

import re

import numpy as np
import pytest
from tinydiff_kernels.gpu.arrays import empty
from tinydiff_kernels.gpu.python import cuda, device

pytest.importorskip("greenlet")

from gpu_faults_helpers import fault_of, in_every_order, lines
from tinydiff_kernels.gpu.faults import Divergence, Fault, OutOfBounds, Uninitialised
from tinydiff_kernels.gpu.simulator import launch

FULL = 0xFFFFFFFF


def early_leaver(x):
    i = cuda.threadIdx.x
    if i == 40:
        return                                            # here
    x[i] = 1
    cuda.syncthreads()                                    # here


def two_barriers(x):
    if cuda.threadIdx.x != 40:
        cuda.syncthreads()                                # here
    else:
        cuda.syncthreads()                                # here


def barrier_in_half_a_warp(x):
    if cuda.threadIdx.x != 40:
        cuda.syncwarp()                                   # here
    else:
        cuda.syncthreads()                                # here


def different_words(x):
    i = cuda.threadIdx.x
    if i != 40:
        cuda.any_sync(FULL, True)                         # here
    else:
        cuda.shfl_sync(FULL, i, 0)                        # here


@device
def meeting(i):
    cuda.syncthreads()                                    # here
    return i


def one_barrier_from_two_places(x):
    if cuda.threadIdx.x != 40:
        meeting(1)
    else:
        meeting(2)


@in_every_order
@pytest.mark.parametrize(("kernel", "helpers"), [
    (early_leaver, []), (two_barriers, []), (barrier_in_half_a_warp, []), (different_words, []),
    (one_barrier_from_two_places, [meeting.function])])
def test_threads_that_part_before_they_meet_are_named(kernel, helpers, order):
    kind, _, named, who, _ = fault_of(kernel, np.zeros(64, np.float32), order=order)
    assert (kind, named) == (Divergence, lines(kernel, *helpers))
    assert 40 in who
    assert len(who) == 2


def not_in_its_mask(x):
    if cuda.threadIdx.x == 40:
        cuda.syncwarp(0xFF)                               # here


def from_a_lane_that_left(x):
    i = cuda.threadIdx.x
    if i < 41:
        x[i] = cuda.shfl_down_sync(FULL, i, 1)            # here


@in_every_order
@pytest.mark.parametrize(("kernel", "message"), [
    (not_in_its_mask, "its mask 0xff does not name it"),
    (from_a_lane_that_left, "wants from shfl_down_sync the value of lane 9, which takes no part"),
])
def test_a_warp_exchanges_only_what_its_lanes_bring(kernel, message, order):
    kind, text, named, who, _ = fault_of(kernel, np.zeros(64, np.float32), order=order)
    assert (kind, named, who) == (Divergence, lines(kernel), {40})
    assert message in text


def before_the_first(x):
    tile = cuda.shared.array(64, "float32")
    i = cuda.threadIdx.x
    tile[i] = 1 if i != 40 else x[i - 41]                 # here


def behind_the_last(x):
    tile = cuda.shared.array((2, 32), "float32")
    i = cuda.threadIdx.x
    tile[i // 32, i % 32 if i != 40 else 32] = 1          # here


def behind_the_last_of_its_own(x):
    mine = cuda.local.array(4, "float32")
    i = cuda.threadIdx.x
    mine[0 if i != 40 else 4] = 1                         # here


def half_an_index(x):
    i = cuda.threadIdx.x
    x[i if i != 40 else i / 1] = 1                        # here


def two_indices_for_one(x):
    if cuda.threadIdx.x == 40:
        cuda.atomic.add(x, (0, 0), 1)                     # here


def many_elements(x):
    if cuda.threadIdx.x == 40:
        x[1:3] = 1                                        # here


@in_every_order
@pytest.mark.parametrize(("kernel", "message"), [
    (before_the_first, r"reads global x\[-1\]; its shape is \(64,\)"),
    (behind_the_last, r"writes shared tile\[1, 32\]; its shape is \(2, 32\)"),
    (behind_the_last_of_its_own, r"writes local mine\[4\]; its shape is \(4,\)"),
    (half_an_index, r"writes global x\[40.0\]; an index is a whole number"),
    (two_indices_for_one, r"x\[0, 0\]; its shape is \(64,\)"),
    (many_elements, r"writes global x\[slice\(.*\)\]; an index is a whole number"),
])
def test_an_index_that_the_array_does_not_have_is_refused(kernel, message, order):
    kind, text, named, who, _ = fault_of(kernel, np.zeros(64, np.float32), order=order)
    assert (kind, named, who) == (OutOfBounds, lines(kernel), {40})
    assert re.search(message, text)


def never_filled(x, y):
    tile = cuda.shared.array(64, "float32")
    i = cuda.threadIdx.x
    if i != 40:
        tile[i] = 1
    cuda.syncthreads()
    y[i] = tile[i]                                        # here


def never_counted(x, y):
    count = cuda.shared.array(1, "int32")
    i = cuda.threadIdx.x
    if i == 40:
        y[i] = x[count[0]]                                # here


def never_summed(x, y):
    sums = cuda.local.array((2, 2), "float32")
    i = cuda.threadIdx.x
    sums[0, 0] = 0
    y[i] = sums[0, 0 if i != 40 else 1]                   # here


def never_given(x, y):
    i = cuda.threadIdx.x
    if i == 40:
        x[i] += y[i]                                      # here


@in_every_order
@pytest.mark.parametrize(("kernel", "name"), [
    (never_filled, r"shared tile[40]"), (never_counted, r"shared count[0]"),
    (never_summed, r"local sums[0, 1]"), (never_given, r"global y[40]")])
def test_a_read_of_what_nobody_wrote_is_found(kernel, name, order):
    x = np.zeros(64, np.float32)
    kind, text, named, who, _ = fault_of(kernel, x, empty(64, np.float32, x), order=order)
    assert (kind, named, who) == (Uninitialised, lines(kernel), {40})
    assert f"reads {name}, which nobody has written" in text


def fills(x, y):
    tile = cuda.shared.array(64, "float32")
    if cuda.blockIdx.x == 0:
        tile[cuda.threadIdx.x] = 1
    else:
        y[cuda.threadIdx.x] = tile[cuda.threadIdx.x]      # here


def test_shared_memory_does_not_outlive_its_block():
    kind, _, named, _, blocks = fault_of(fills, np.zeros(1), np.zeros(64), grid=2)
    assert (kind, named, blocks) == (Uninitialised, lines(fills), {1})


def two_on_a_line(x):
    a, b = cuda.shared.array(4, "int8"), cuda.shared.array(4, "int8")      # here
    x[0] = a[0] + b[0]


def too_large(x):
    a = cuda.shared.array((64, 64), "float32")
    b = cuda.shared.array((64, 129), "float32")           # here
    x[0] = a[0, 0] + b[0, 0]


@pytest.mark.parametrize(("kernel", "message"), [
    (two_on_a_line, "makes two arrays"),
    (too_large, "a block has 49408 bytes, a GPU allows 49152"),
])
def test_shared_memory_that_a_gpu_would_not_give_is_refused(kernel, message):
    kind, text, named, _, _ = fault_of(kernel, np.zeros(1))
    assert (kind, named) == (Fault, lines(kernel))
    assert message in text


def test_what_python_refuses_in_a_kernel_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        launch(lambda x: 1 // cuda.threadIdx.x, 1, 4, np.zeros(1))


def test_after_a_fault_nobody_stays_behind_in_the_kernel():
    left = []

    def note(x):
        i = cuda.threadIdx.x
        try:
            cuda.syncthreads()
            x[i] = 1
        finally:
            left.append(i)

    kind, _, _, who, _ = fault_of(note, np.zeros(40))
    assert (kind, who) == (OutOfBounds, {40})
    assert sorted(left) == [*range(64)]
