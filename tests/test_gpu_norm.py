"""GroupNorm on a GPU, stepped through on the CPU, against rung 0 in float64."""

import norm_helpers
import numpy as np
import pytest
from gpu_helpers import any_order, bf16, double, needs_compiler
from hypothesis import given, settings, strategies as st
from norm_helpers import EPS, arrays, compare, results, with_and_without_silu
from tinydiff_kernels.gpu.columns import cut, tiles_of
from tinydiff_kernels.gpu.moments import remember
from tinydiff_kernels.gpu.order import stepping
from tinydiff_kernels.norm import LADDER

pytest.importorskip("greenlet", reason="kernels in Python are stepped through with greenlet")

__all__ = ["any_order"]
numpy_rung, vector = LADDER["numpy"], LADDER["vector"]
SHAPES = norm_helpers.SHAPES | {
    "many tiles":           ([(2, 17, 16, 24)], 8),
    "several slabs":        ([(2, 3, 3, 520)], 8),
}
FEW = {                                                   # for threads in Python
    "pixels and a rest":    ([(2, 3, 5, 6)], 3),
    "more than threads":    ([(1, 12, 11, 3)], 1),
    "one pixel":            ([(2, 1, 1, 4)], 2),
    "a group in both":      ([(1, 3, 3, 5), (1, 3, 3, 7)], 2),
}
each_shape = pytest.mark.parametrize("shape", SHAPES)
each_type = pytest.mark.parametrize("dtype", [np.float32, bf16], ids=["float32", "bf16"])


@needs_compiler
@each_shape
@each_type
@with_and_without_silu
def test_vector_agrees_with_rung_0(shape, dtype, silu, any_order):
    shapes, groups = SHAPES[shape]
    compare(vector, *arrays(shapes, dtype=dtype), groups, silu)


@pytest.mark.parametrize("idea", ["cuda_twopass", "cuda_shuffle"])
@pytest.mark.parametrize("shape", FEW)
def test_a_rung_in_python_agrees_with_rung_0(idea, shape, any_order):
    shapes, groups = FEW[shape]
    compare(LADDER[idea], *arrays(shapes), groups, silu=True)


@pytest.mark.parametrize("idea", ["cuda_twopass", "cuda_shuffle"])
def test_a_rung_in_python_can_do_without_silu_and_far_from_zero(idea):
    compare(LADDER[idea], *arrays([(2, 3, 5, 6)], 1000, 1), 3, silu=False)


@needs_compiler
@settings(max_examples=40)
@given(st.data())
def test_vector_finds_its_way_through_any_shape(data):
    some = lambda most: data.draw(st.integers(1, most))
    groups, size, leading = some(9), some(40), (some(5), some(20), some(9))
    C1, silu = some(groups * size), data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([np.float32, bf16]))
    xs, dys, *weights = arrays([(*leading, C) for C in (C1, groups * size - C1) if C], dtype=dtype)
    moments = [a.astype(np.float32) for a in numpy_rung.measure(double(*xs), groups, EPS)]
    exact = results(numpy_rung, double(*xs), double(*dys), *double(*weights, *moments), groups,
                    silu)
    largest = max(1, moments[1].max())                    # 1 / √eps for a group of one number
    for name, got in results(vector, xs, dys, *weights, *moments, groups, silu).items():
        near = 2**-8 if got.dtype == bf16 else 1e-4
        np.testing.assert_allclose(got.astype(float), exact[name], rtol=near, atol=1e-4 * largest,
                                   err_msg=name)


def test_the_shapes_above_make_several_tiles_and_slabs():
    tiles, each = tiles_of(2, 17 * 16, 24)
    assert tiles > 4
    assert 17 * 16 % each
    x = np.empty((2, 3, 3, 520), bf16)
    assert cut(x, 2, 1) == ((2, 3), (22, 11))             # 65 vectors in slabs of 22


@needs_compiler
@pytest.mark.parametrize(("mean", "std"), [(100, 0.1), (-1000, 1), (1e4, 1e4), (0, 1e-3)])
@pytest.mark.parametrize("shape", ["a vector and a rest", "many tiles", "a group in both"])
def test_a_mean_far_from_zero_costs_no_digits(shape, mean, std):
    shapes, groups = SHAPES[shape]
    compare(vector, *arrays(shapes, mean, std), groups, True)


@needs_compiler
def test_a_first_tile_unlike_the_rest_costs_few_digits():
    [x], *_ = arrays([(2, 32, 32, 16)])
    x[:, :4] += 1000                                      # an eighth, 160 std away
    _, exact = numpy_rung.measure(double(x), 4, EPS)
    _, rstd = vector.measure([x], 4, EPS)
    np.testing.assert_allclose(rstd, exact, rtol=3e-6)


@needs_compiler
@pytest.mark.parametrize("shape", ["a vector and a rest", "a group in both", "many images"])
def test_a_row_that_all_images_share_is_not_written_out_for_each(shape):
    shapes, groups = SHAPES[shape]
    xs, dys, gamma, beta = arrays(shapes)
    shared = [np.broadcast_to(a[0], a.shape) for a in (gamma, beta)]
    assert vector.by_image(*shared)[2] == 0
    assert vector.by_image(gamma, beta)[2] == vector.by_image(gamma, shared[1])[2] == gamma.shape[1]
    mean, rstd = vector.measure(xs, groups, EPS)
    whole = [np.ascontiguousarray(a) for a in shared]
    for silu in True, False:
        dxs, *sums = vector.backward([dy.copy() for dy in dys], xs, *shared, mean, rstd, silu)
        exact, *all_sums = vector.backward([dy.copy() for dy in dys], xs, *whole, mean, rstd, silu)
        for a, b in zip([*dxs, *sums], [*exact, *all_sums]):
            np.testing.assert_array_equal(a, b)
    for numbers in shared, (gamma, beta), (gamma, shared[1]):
        slope, offset = vector.line(*numbers, mean, rstd)
        each = gamma.shape[1] // groups
        exact = numbers[0] * rstd.astype(float).repeat(each, axis=1)
        np.testing.assert_allclose(slope, exact, rtol=1e-6)
        np.testing.assert_allclose(offset, numbers[1] - exact * mean.repeat(each, axis=1),
                                   rtol=1e-5, atol=1e-6)


@needs_compiler
def test_silu_of_large_numbers_is_themselves_or_nothing():
    norm_helpers.assert_silu_of_large_numbers_is_themselves_or_nothing(vector)


@needs_compiler
@each_type
def test_no_bit_depends_on_the_order_of_threads(dtype):
    shapes, groups = SHAPES["a group in both"]
    given = arrays(shapes, dtype=dtype)
    seen = []
    for order in ("forward", "reverse", 3, 4):
        with stepping(order=order):
            got = results(vector, *given, *vector.measure(given[0], groups, EPS), groups, True)
        seen.append({name: a.tobytes() for name, a in got.items()})
    assert seen[0] == seen[1] == seen[2] == seen[3]


@needs_compiler
def test_what_a_convolution_knows_of_its_result_is_not_read_again(rng):
    x = (3 + rng.standard_normal((2, 6, 5, 16))).astype(bf16)
    skip = rng.standard_normal((2, 6, 5, 8)).astype(bf16)
    exact = numpy_rung.measure(double(x, skip), 3, EPS)
    tiles = np.split(x.astype(np.float32).reshape(2, 30, 16), [12, 24], axis=1)
    mean = np.stack([tile.mean(axis=1) for tile in tiles], axis=1)        # (N, tiles, C)
    squares = np.stack([tile.var(axis=1) * tile.shape[1] for tile in tiles], axis=1)
    remember(x, np.stack([mean, squares], axis=3), np.array([12, 12, 6], np.float32))
    x[...] = np.nan
    for got, right in zip(vector.measure([x, skip], 3, EPS), exact):
        np.testing.assert_allclose(got, right, rtol=1e-5)


@pytest.mark.parametrize("idea", ["cuda_shuffle", pytest.param("vector", marks=needs_compiler)])
def test_dx_lies_where_dy_was_unless_that_is_read_only(idea):
    rung, (xs, dys, gamma, beta) = LADDER[idea], arrays([(2, 3, 3, 8), (2, 3, 3, 8)])
    moments = numpy_rung.measure(xs, 4, EPS)
    exact, *_ = numpy_rung.backward(dys, xs, gamma, beta, *moments, True)
    kept = dys[1].copy()
    dys[1].flags.writeable = False
    dxs, *_ = rung.backward(dys, xs, gamma, beta, *moments, True)
    assert np.shares_memory(dxs[0], dys[0])
    np.testing.assert_array_equal(dys[1], kept)
    for dx, right in zip(dxs, exact):
        np.testing.assert_allclose(dx, right, atol=1e-5)


@needs_compiler
def test_arrays_on_the_device_stay_there_and_give_the_same(cupy):
    shapes, groups = SHAPES["a group in both"]
    xs, dys, gamma, beta = arrays(shapes, dtype=bf16)
    moments = vector.measure(xs, groups, EPS)
    right = results(vector, xs, dys, gamma, beta, *moments, groups, True)
    there = [[cupy.asarray(a) for a in side] for side in (xs, dys, (gamma, beta, *moments))]
    cupy.stand_in.clear()
    got = results(vector, *there[:2], *there[2], groups, True)
    assert not cupy.stand_in.uploads
    assert not cupy.stand_in.synchronisations
    for name, a in got.items():
        np.testing.assert_array_equal(cupy.asnumpy(a), right[name], name)


@needs_compiler
@pytest.mark.parametrize("layout", [
    np.asfortranarray, lambda a: np.repeat(a, 2, axis=-1)[..., ::2]])
def test_arrays_of_any_layout_are_read(layout):
    shapes, groups = SHAPES["two inputs"]
    xs, dys, gamma, beta = arrays(shapes)
    moments = vector.measure(xs, groups, EPS)
    other = results(vector, *([layout(a) for a in side] for side in (xs, dys)),
                    *map(layout, (gamma, beta, *moments)), groups, True)
    for name, right in results(vector, xs, dys, gamma, beta, *moments, groups, True).items():
        np.testing.assert_array_equal(other[name], right, name)


@pytest.mark.parametrize("idea", LADDER.device)
def test_float64_goes_down_and_stays_float64(idea):
    shapes, groups = SHAPES["a group in both"]
    xs, dys, gamma, beta = arrays(shapes, dtype=np.float64)
    weights = double(gamma, beta, *numpy_rung.measure(xs, groups, EPS))
    exact = results(numpy_rung, xs, dys, *weights, groups, True)
    for name, got in results(LADDER[idea], xs, dys, *weights, groups, True).items():
        np.testing.assert_array_equal(got, exact[name], name)


@pytest.mark.parametrize("idea", ["cuda_twopass", "cuda_shuffle"])
def test_a_rung_in_python_hands_bf16_down_and_gives_bf16(idea):
    compare(LADDER[idea], *arrays([(2, 3, 5, 6)], dtype=bf16), 3, silu=True)


@needs_compiler
@pytest.mark.parametrize("where", ["x", "dy"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_spoils_its_group_and_no_other(bad, where):
    shapes, groups = SHAPES["a group in both"]            # 12 channels a group, the seam is at 33
    xs, dys, gamma, beta = arrays(shapes)
    (xs if where == "x" else dys)[1][1, 4, 4, 2] = bad    # channel 35, of the third group
    got = results(vector, xs, dys, gamma, beta, *vector.measure(xs, groups, EPS), groups, True)
    dx = np.concatenate([got["dx0"], got["dx1"]], axis=-1)
    assert not np.isfinite(dx[1, ..., 24:36]).any()
    assert np.isfinite(dx[0]).all()
    assert np.isfinite(dx[1, ..., :24]).all()
    assert np.isfinite(dx[1, ..., 36:]).all()


@needs_compiler
def test_shapes_that_do_not_fit_are_refused_not_read_beyond():
    shapes, groups = SHAPES["two inputs"]
    xs, dys, gamma, beta = arrays(shapes)
    moments = vector.measure(xs, groups, EPS)
    for wrong in ((xs, [dys[0], dys[1][:, 1:]], gamma), (xs, dys, gamma[:, 1:])):
        with pytest.raises(ValueError):                   # noqa: PT011, NumPy's own words
            vector.backward(wrong[1], wrong[0], wrong[2], beta, *moments, True)
