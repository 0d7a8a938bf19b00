"""Kernels stepped through: right ones agree with NumPy in every order, wrong ones are named."""

import math
import sys

import numpy as np
import pytest
from tinydiff_kernels.gpu.order import stepping
from tinydiff_kernels.gpu.python import cuda, device, kernel

pytest.importorskip("greenlet")

from tinydiff_kernels.gpu.simulator import launch

FULL = 0xFFFFFFFF
in_every_order = pytest.mark.parametrize("order", ["forward", "reverse", 2, 3])


def whole_numbers(rng, *shape):
    """Small whole numbers as float32: their sums are exact, in any order."""
    return rng.integers(-9, 10, shape).astype(np.float32)


def tiled_product(x, w, y):
    a = cuda.shared.array((8, 8), "float32")
    b = cuda.shared.array((8, 8), "float32")
    column, row = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    total = cuda.float32(0)
    for k in range(0, x.shape[1], 8):
        a[ty, tx] = x[row, k + tx] if row < x.shape[0] and k + tx < x.shape[1] else 0
        b[ty, tx] = w[k + ty, column] if k + ty < w.shape[0] and column < w.shape[1] else 0
        cuda.syncthreads()
        for l in range(8):
            total += a[ty, l] * b[l, tx]
        cuda.syncthreads()
    if row < y.shape[0] and column < y.shape[1]:
        y[row, column] = total


@in_every_order
def test_a_tiled_product_with_ragged_edges_is_the_product(rng, order):
    x, w, y = whole_numbers(rng, 13, 19), whole_numbers(rng, 19, 10), np.empty((13, 10), np.float32)
    launch(tiled_product, (2, 2), (8, 8), x, w, y, order=order)
    assert np.array_equal(y, x @ w)


def test_numbers_do_not_depend_on_the_order_of_threads(rng):
    x, w = rng.standard_normal((9, 30), np.float32), rng.standard_normal((30, 9), np.float32)
    products = [np.empty((9, 9), np.float32) for _ in range(4)]
    for y, order in zip(products, ["forward", "reverse", 2, 3]):
        launch(tiled_product, (2, 2), (8, 8), x, w, y, order=order)
    assert all(np.array_equal(y, products[0]) for y in products)
    assert np.allclose(products[0], x.astype(np.float64) @ w, rtol=0, atol=30 * 2**-22)


@device
def warp_sum(value):
    for half in (16, 8, 4, 2, 1):
        value += cuda.shfl_down_sync(FULL, value, half)
    return value


@device
def block_sum(value):
    sums = cuda.shared.array(32, "float32")
    number = cuda.threadIdx.x + cuda.blockDim.x * cuda.threadIdx.y
    total = warp_sum(value)
    if cuda.laneid == 0:
        sums[number // cuda.warpsize] = total
    cuda.syncthreads()
    warps = cuda.blockDim.x * cuda.blockDim.y // cuda.warpsize
    return warp_sum(sums[number] if number < warps else cuda.float32(0))


def row_sums(x, y):
    number = cuda.threadIdx.x + cuda.blockDim.x * cuda.threadIdx.y
    mine = cuda.float32(0)
    for column in range(number, x.shape[1], cuda.blockDim.x * cuda.blockDim.y):
        mine += x[cuda.blockIdx.x, column]
    total = block_sum(mine)
    if number == 0:
        y[cuda.blockIdx.x] = total


@in_every_order
def test_a_sum_by_shuffles_and_shared_memory_in_helpers_of_helpers_is_the_sum(rng, order):
    x, y = whole_numbers(rng, 3, 200), np.empty(3, np.float32)
    launch(row_sums, 3, (16, 6), x, y, order=order)
    assert np.array_equal(y, x.sum(axis=1))


def histogram(values, counts):
    mine = cuda.shared.array(5, "int32")
    i = cuda.threadIdx.x
    if i < 5:
        mine[i] = 0
    cuda.syncthreads()
    for j in range(cuda.grid(1), values.size, cuda.gridsize(1)):
        cuda.atomic.add(mine, values[j], 1)
    cuda.syncthreads()
    if i < 5:
        cuda.atomic.add(counts, i, mine[i])


@in_every_order
def test_a_histogram_by_atomics_in_shared_and_global_memory_counts_all(rng, order):
    values, counts = rng.integers(0, 5, 300).astype(np.int32), np.zeros(5, np.int32)
    launch(histogram, 3, 40, values, counts, order=order)
    assert np.array_equal(counts, np.bincount(values, minlength=5))


def transpose(x, y):
    tile = cuda.shared.array((8, 9), "float32")
    column, row = cuda.grid(2)
    if row < x.shape[0] and column < x.shape[1]:
        tile[cuda.threadIdx.y, cuda.threadIdx.x] = x[row, column]
    cuda.syncthreads()
    row = cuda.blockIdx.x * 8 + cuda.threadIdx.y
    column = cuda.blockIdx.y * 8 + cuda.threadIdx.x
    if row < y.shape[0] and column < y.shape[1]:
        y[row, column] = tile[cuda.threadIdx.x, cuda.threadIdx.y]


@in_every_order
def test_a_transpose_through_shared_memory_turns_blocks_as_well(rng, order):
    x, y = rng.standard_normal((11, 21), np.float32), np.empty((21, 11), np.float32)
    launch(transpose, (3, 2), (8, 8), x, y, order=order)
    assert np.array_equal(y, x.T)


def sums_up_to_here(x, y):
    lane = cuda.laneid
    total = x[lane]
    for step in (1, 2, 4, 8, 16):
        before = cuda.shfl_up_sync(FULL, total, step)
        if lane >= step:
            total += before
    y[lane] = total
    y[32 + lane] = cuda.shfl_xor_sync(FULL, total, 1)
    y[64 + lane] = cuda.shfl_sync(FULL, total, 37)        # 37 mod 32


@in_every_order
def test_shuffles_fetch_from_below_from_across_and_from_one(rng, order):
    x, y = whole_numbers(rng, 32), np.empty(96, np.float32)
    launch(sums_up_to_here, 1, 32, x, y, order=order)
    sums = x.cumsum()
    assert np.array_equal(y, [*sums, *sums[np.arange(32) ^ 1], *np.repeat(sums[5], 32)])


def votes(y):
    i = cuda.threadIdx.x
    odd = i % 2 == 1
    y[i, 0] = cuda.ballot_sync(FULL, odd)
    y[i, 1] = cuda.any_sync(FULL, i == 33)
    y[i, 2] = cuda.all_sync(FULL, i >= 32)
    y[i, 3] = cuda.syncthreads_count(i % 2)
    y[i, 4] = cuda.syncthreads_and(i + 1)
    y[i, 5] = cuda.syncthreads_or(i // 64)
    if i < 16:
        y[i, 0] = cuda.ballot_sync(0xFFFF, odd)           # half a warp on its own


@in_every_order
def test_votes_count_their_warp_or_their_block(order):
    y = np.empty((64, 6), np.int64)
    launch(votes, 1, 64, y, order=order)
    assert np.array_equal(y[:16, 0], np.full(16, 0xAAAA))
    assert np.array_equal(y[16:, 0], np.full(48, 0xAAAAAAAA))
    assert np.array_equal(y[:, 1:], [[warp, warp, 32, 1, 0] for warp in (0, 1) for _ in range(32)])


def reverse_within_warps(x):
    tile = cuda.shared.array(64, "float32")
    i = cuda.threadIdx.x
    tile[i] = x[i]
    cuda.syncwarp()
    x[i] = tile[i ^ 31]
    if i < 32:
        cuda.syncwarp(FULL)
        tile[i] = 0


@in_every_order
def test_syncwarp_orders_the_accesses_of_its_lanes(rng, order):
    x = rng.standard_normal(64, np.float32)
    wanted = x.reshape(2, 32)[:, ::-1].ravel()
    launch(reverse_within_warps, 1, 64, x, order=order)
    assert np.array_equal(x, wanted)


def passed_on(x):
    lane = cuda.laneid
    if lane == 3:
        x[0] = 7
    if lane < 8:
        cuda.syncwarp(0xFF)
    if lane > 6:
        cuda.syncwarp(0xFFFFFF80)                         # lane 7 was in both
    if lane == 30:
        x[1] = x[0]


@in_every_order
def test_what_one_lane_learnt_at_a_syncwarp_it_passes_on_at_the_next(order):
    x = np.zeros(2, np.float32)
    launch(passed_on, 1, 32, x, order=order)
    assert x.tolist() == [7, 7]


def exchanges(x, old):
    i = cuda.threadIdx.x
    cuda.atomic.max(x, 0, i)
    cuda.atomic.min(x, 1, -i)
    cuda.atomic.cas(x, 2, 0, 7)
    cuda.atomic.cas(x, 2, 1, 8)
    old[i] = cuda.atomic.exch(x, 3, i)


@in_every_order
def test_atomics_keep_the_largest_the_smallest_and_what_was_there(order):
    x, old = np.array([3, 3, 0, 99], np.int32), np.empty(40, np.int32)
    launch(exchanges, 1, 40, x, old, order=order)
    assert x[:3].tolist() == [39, -39, 7]
    assert sorted([*old, x[3]]) == [*range(40), 99]       # each was there once


def fused(x, y):
    y[0] = cuda.fma(x[0], x[1], x[2])
    y[1] = x[0] * x[1] + x[2]


def test_fma_rounds_once():
    e = np.float32(2**-13)
    x, y = np.array([1 + e, 1 - e, -1], np.float32), np.empty(2, np.float32)
    launch(fused, 1, 1, x, y)
    assert y.tolist() == [-2.0**-26, 0]                   # (1 + e)(1 − e) − 1 = −e²


def extremes(x, y):
    y[0] = x[0] * x[0]
    y[1] = x[0] / x[1]
    y[2] = math.sqrt(-x[0])
    y[3] = math.exp(x[0])
    y[4] = (x[0] * x[0]) * x[1] == 0                      # inf · 0, in float64 it were 0
    y[5] = math.floor(x[2]) + math.erf(x[1])


def test_float32_overflows_as_on_a_gpu_and_nothing_raises():
    x, y = np.array([1e30, 0, -1.5], np.float32), np.empty(6, np.float32)
    with np.errstate(all="raise"):
        launch(extremes, 1, 1, x, y)
        with pytest.raises(FloatingPointError):
            x[:1] * x[:1]
    assert np.array_equal(y, [np.inf, np.inf, np.nan, np.inf, 0, -2], equal_nan=True)


def doubled(x, y, factor, nothing):
    i = cuda.grid(1)
    if nothing is None and i < x.size:
        y[i] = factor * x[i]


def test_an_array_may_be_given_twice_and_none_and_numbers_pass(rng):
    x = whole_numbers(rng, 50)
    wanted = 2 * x
    launch(doubled, 2, 32, x, x, 2, None)
    assert np.array_equal(x, wanted)


@kernel("float32[::1], float32[::1], float32, none")
def through_the_door(x, y, factor, nothing):
    i = cuda.grid(1)
    if nothing is None and i < x.size:
        y[i] = factor * x[i]


def test_a_kernel_with_numpy_arrays_is_stepped_through_and_leaves_a_trace(rng):
    x, y, traces = whole_numbers(rng, 50), np.empty(50, np.float32), []
    with stepping(order="reverse", trace=traces):
        through_the_door[2, 32](x, y, 3.0, None)
    assert np.array_equal(y, 3 * x)
    trace, = traces
    assert trace.kernel == "through_the_door"
    assert trace.events[0].thread == (17, 0, 0)           # of block 1, those from 18 are outside
    assert len(trace.events) == 100


def test_the_kernel_and_its_file_stay_as_they_are(rng):
    before = dict(row_sums.__globals__)
    launch(row_sums, 1, 32, whole_numbers(rng, 1, 8), np.empty(1, np.float32))
    with pytest.raises(IndexError):                       # one that the kernel itself raises
        launch(lambda x: [][cuda.threadIdx.x], 1, 4, np.empty(1))
    assert row_sums.__globals__ == before
    with pytest.raises(AttributeError, match="inside a kernel"):
        cuda.threadIdx


@pytest.mark.parametrize(("grid", "block", "order", "message"), [
    (1, (32, 33), 2, r"at most 1024 threads, got \(32, 33, 1\), which is 1056"),
    ((2, 0), 32, 2, r"a grid of at least 1 along each axis, got \(2, 0, 1\)"),
    (1, 32, "random", "got 'random'"),
])
def test_a_launch_that_no_gpu_takes_is_refused(grid, block, order, message):
    with pytest.raises(ValueError, match=message):
        launch(doubled, grid, block, np.empty(1), np.empty(1), 1, None, order=order)


def test_without_greenlet_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "greenlet", None)
    with pytest.raises(ModuleNotFoundError, match="pip install greenlet"):
        launch(doubled, 1, 1, np.empty(1), np.empty(1), 1, None)
