"""What a kernel's accesses cost, in closed form, and what the pictures of them hold."""

import math

import numpy as np
import pytest
from tinydiff_kernels.gpu.python import cuda

pytest.importorskip("greenlet")

from tinydiff_kernels.gpu.faults import OutOfBounds
from tinydiff_kernels.gpu.simulator import launch
from tinydiff_kernels.gpu.trace import as_text, bank_conflicts, coalescing, draw, record


def strided(x, stride, first):
    x[first + stride * cuda.grid(1)] = 0


@pytest.mark.parametrize(("dtype", "stride", "first", "sectors", "segments", "used"), [
    (np.float32,  1, 0,  4,  1, 1),
    (np.float32,  2, 0,  8,  2, 1 / 2),
    (np.float32, 32, 0, 32, 32, 4 / 32),                  # a column of a matrix of 32
    (np.float32,  1, 1,  5,  2, 128 / 160),               # one off
    (np.float64,  1, 0,  8,  2, 1),
    (np.float16,  1, 0,  2,  1, 1),
])
def test_a_warp_touches_as_many_sectors_as_its_stride_says(dtype, stride, first, sectors,
                                                           segments, used):
    x = np.zeros(96 * 32, dtype)
    line = strided.__code__.co_firstlineno + 1
    row, = coalescing(record(strided, 1, 64, x, stride, first))
    assert row == (line, "x", "write", 2, sectors, segments, used)


def broadcast(x, y):
    y[cuda.grid(1)] = x[7]


def test_a_number_that_all_lanes_want_is_one_sector():
    read, write = coalescing(record(broadcast, 3, 40, np.zeros(8, np.float32), np.zeros(120)))
    assert read[1:] == ("x", "read", 6, 1, 1, 4 / 32)     # in each block 32 lanes and 8
    assert write[1:4] == ("y", "write", 6)


def narrow_columns(x):
    tile = cuda.shared.array((32, 32), "float32")
    i, j = cuda.threadIdx.x, cuda.threadIdx.y
    tile[j, i] = x[j, i]
    cuda.syncthreads()
    x[j, i] = tile[i, j]


def padded_columns(x):
    tile = cuda.shared.array((32, 33), "float32")
    i, j = cuda.threadIdx.x, cuda.threadIdx.y
    tile[j, i] = x[j, i]
    cuda.syncthreads()
    x[j, i] = tile[i, j]


@pytest.mark.parametrize(("kernel", "ways"), [(narrow_columns, 32), (padded_columns, 1)])
def test_a_column_of_a_square_tile_is_in_one_bank_unless_rows_are_padded(kernel, ways):
    trace = record(kernel, 1, (32, 32), np.zeros((32, 32), np.float32))
    write, read = bank_conflicts(trace)
    assert write[1:] == ("tile", "write", 32, 1, 1)
    assert read[1:] == ("tile", "read", 32, ways, ways)


def spread(x, stride, same):
    tile = cuda.shared.array(128, "float32")
    wide = cuda.shared.array(32, "float64")
    i = cuda.threadIdx.x
    tile[stride * i] = 0
    wide[i] = 0
    cuda.syncwarp()
    x[i] = tile[stride * (i // same)]


@pytest.mark.parametrize(("stride", "same", "ways"), [(1, 1, 1), (2, 1, 2), (4, 1, 4), (3, 1, 1),
                                                      (4, 8, 1), (4, 2, 2), (1, 32, 1)])
def test_a_bank_gives_one_word_at_a_time_to_all_who_want_it(stride, same, ways):
    tile, wide, read = bank_conflicts(record(spread, 1, 32, np.zeros(32), stride, same))
    assert read[1:] == ("tile", "read", 1, ways, ways)
    assert tile.ways == math.gcd(stride, 32)
    assert wide[1:] == ("wide", "write", 1, 2, 2)         # 256 bytes, two for each bank


def uneven(x):
    tile = cuda.shared.array(32, "float32")
    i = cuda.threadIdx.x
    for k in range(1 + i // 16):                          # half a warp comes once, half twice
        tile[i] = k


def test_what_lanes_do_for_the_first_time_they_do_together():
    write, = bank_conflicts(record(uneven, 1, 32, np.zeros(1)))
    assert write.accesses == 2


def rounds(x):
    tile = cuda.shared.array(32, "float32")
    for k in range(3):
        tile[cuda.threadIdx.x] = k
        cuda.syncthreads()


def test_what_lanes_do_in_different_rounds_they_do_apart():
    write, = bank_conflicts(record(rounds, 1, 32, np.zeros(1)))
    assert write.accesses == 3


def in_two_steps(x, y):
    tile = cuda.shared.array(2, "float32")
    i = cuda.threadIdx.x
    tile[i] = x[0, i]
    cuda.syncthreads()
    cuda.atomic.add(y, 0, tile[1 - i])


def test_a_trace_holds_every_access_in_lockstep_time():
    trace = record(in_two_steps, (1, 2), 2, np.zeros((1, 2), np.float32), np.zeros(40, np.float32))
    first = in_two_steps.__code__.co_firstlineno
    wanted = [((0, 0), 3, "x", (0, i), "read") for i in range(2)]
    wanted += [((0, 1), 3, "tile", i, "write") for i in range(2)]
    wanted += [((1, 0), 5, "tile", 1 - i, "read") for i in range(2)]
    wanted += [((1, 1), 5, "y", 0, "atomic") for i in range(2)]
    for block in ((0, 0, 0), (0, 1, 0)):
        found = [event for event in trace.events if event.block == block]
        found.sort(key=lambda event: (event.step, event.thread))
        assert [(e.step, e.line - first, e.array, e.index, e.kind) for e in found] == wanted
        assert [e.thread for e in found] == [(0, 0, 0), (1, 0, 0)] * 4
    assert trace.block == (2, 1, 1)
    assert trace.arrays == {"x": ("global", (1, 2), 4), "y": ("global", (40,), 4),
                            "tile": ("shared", (2,), 4)}


def test_what_happened_before_a_fault_is_in_the_trace():
    traces = []
    with pytest.raises(OutOfBounds):
        launch(strided, 1, 4, np.zeros(4), 2, 0, trace=traces)
    assert [event.index for event in traces[0].events] == [0, 2]


def test_rows_as_text_stand_in_columns():
    rows = coalescing(record(strided, 1, 64, np.zeros(128, np.float32), 2, 0))
    line = strided.__code__.co_firstlineno + 1
    assert as_text(rows).splitlines() == [
        "line  array  kind   accesses  sectors  segments  used",
        f"{line:<4}  x      write  2         8        2         0.5"]
    assert as_text([]) == "no accesses"


def pictures(fig):
    return [np.asarray(ax.images[0].get_array().filled(-1)) for ax in fig.axes if ax.images]


def test_a_figure_shows_who_touched_an_element_first_and_then_each_step():
    pytest.importorskip("matplotlib")
    trace = record(in_two_steps, 1, 2, np.zeros((1, 2), np.float32), np.zeros(40, np.float32))
    fig = draw(trace, "tile")
    overview, write, read = pictures(fig)
    nobody = [-1] * 30
    assert overview.tolist() == write.tolist() == [[0, 1, *nobody]]
    assert read.tolist() == [[1, 0, *nobody]]
    line = in_two_steps.__code__.co_firstlineno
    assert [ax.get_title() for ax in fig.axes[:3]] == [
        "who first, in which step", f"0: write, line {line + 3}", f"1: read, line {line + 5}"]
    assert [text.get_text() for text in fig.axes[0].texts] == ["0", "0"]
    assert fig.get_supxlabel() == as_text(bank_conflicts(trace))


def test_a_figure_of_global_memory_lays_one_dimension_out_in_rows_of_32():
    pytest.importorskip("matplotlib")
    trace = record(in_two_steps, 1, 2, np.zeros((1, 2), np.float32), np.zeros(40, np.float32))
    overview, _ = pictures(draw(trace, "y"))
    assert overview.shape == (2, 32)
    assert overview[0, 0] == 0                            # of two at once the first is shown
    assert (overview.ravel()[1:] == -1).all()
    fig = draw(trace, "x")
    assert pictures(fig)[0].tolist() == [[0, 1]]
    assert fig.get_supxlabel() == as_text(coalescing(trace)[:1])


def test_an_array_that_nobody_touched_cannot_be_drawn():
    trace = record(strided, 1, 4, np.zeros(4), 1, 0)
    with pytest.raises(ValueError, match=r"that was touched \(x\), got 'tile'"):
        draw(trace, "tile")
