"""GroupNorm's rungs: the first is checked by differences, the others by the first."""

import hashlib

import norm_helpers
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from kernel_helpers import python
from norm_helpers import EPS, arrays, compare, results, with_and_without_silu
from tinydiff_kernels.norm import LADDER

numpy_rung, onepass = LADDER["numpy"], LADDER["onepass"]
SHAPES = norm_helpers.SHAPES | {
    "several tiles":        ([(2, 32, 32, 24)], 8),
    "many parts":           ([(1, 32, 32, 128)], 32),
    "tokens":               ([(3, 9, 48)], 8),
}
each_shape = pytest.mark.parametrize("shape", SHAPES)


def as_float64(arrays):
    return [a.astype(np.float64) for a in arrays]


def test_numbers_that_are_normal_already_stay_so():
    mean, rstd = numpy_rung.measure([np.array([[-1.0, 1, 4, 8]])], 2, 0.0)
    assert mean.tolist() == [[0, 6]]
    assert rstd.tolist() == [[1, 0.5]]


def test_two_numbers_become_minus_one_and_one_so_nothing_moves_them():
    x, weights = np.array([[1.0, 3]]), np.ones((1, 2))
    mean, rstd = numpy_rung.measure([x], 1, 0.0)
    [dx], dscale, dshift = numpy_rung.backward(
        [np.array([[5.0, -7]])], [x], weights, weights, mean, rstd, False)
    assert dx.tolist() == [[0, 0]]
    assert dscale.tolist() == [[-5, -7]]
    assert dshift.tolist() == [[5, -7]]


@with_and_without_silu
@pytest.mark.parametrize("shape", ["less than a vector", "a group in both", "vectors"])
def test_rung_0_goes_back_along_central_differences(shape, silu):
    shapes, groups = SHAPES[shape]
    xs, dys, gamma, beta = arrays(shapes, dtype=np.float64)
    moves, _, move_gamma, move_beta = arrays(shapes, mean=1.0, std=1.0, dtype=np.float64)
    dy = np.concatenate(dys, axis=-1)

    def loss(h):
        """Σ y · dy a step of h along the moves"""
        mean, rstd = numpy_rung.measure([x + h * m for x, m in zip(xs, moves)], groups, EPS)
        mean, rstd = (a.repeat(gamma.shape[1] // groups, axis=1) for a in (mean, rstd))
        scale = rstd * (gamma + h * move_gamma)
        x = np.concatenate([x + h * m for x, m in zip(xs, moves)], axis=-1)
        y = numpy_rung.normalize(x, scale, beta + h * move_beta - mean * scale, silu)
        return np.sum(y * dy)

    dxs, dscale, dshift = numpy_rung.backward(
        dys, xs, gamma, beta, *numpy_rung.measure(xs, groups, EPS), silu)
    slope = sum(np.sum(a * b) for a, b in zip([*dxs, dscale, dshift],
                                              [*moves, move_gamma, move_beta]))
    h = 1e-6
    assert slope == pytest.approx((loss(h) - loss(-h)) / (2 * h), rel=1e-6)


@each_shape
@with_and_without_silu
def test_onepass_agrees_with_rung_0(shape, silu):
    shapes, groups = SHAPES[shape]
    compare(onepass, *arrays(shapes), groups, silu)


@settings(max_examples=40)
@given(st.data())
def test_onepass_finds_its_way_through_any_shape(data):
    some = lambda most: data.draw(st.integers(1, most))
    groups, size, leading = some(9), some(20), (some(5), some(20), some(3))
    C1, silu = some(groups * size), data.draw(st.booleans())
    xs, dys, gamma, beta = arrays([(*leading, C) for C in (C1, groups * size - C1) if C])
    arguments = [xs, dys, gamma, beta, *numpy_rung.measure(xs, groups, EPS), groups, silu]
    exact = results(numpy_rung, *arguments)
    for name, got in results(onepass, *arguments).items():
        largest = max(1, arguments[5].max())              # 1 / √eps for a group of one number
        np.testing.assert_allclose(got, exact[name], rtol=1e-4, atol=1e-4 * largest, err_msg=name)


@pytest.mark.parametrize(("mean", "std"), [(100, 0.1), (-1000, 1), (1e4, 1e4), (0, 1e-3)])
@pytest.mark.parametrize("shape", ["a vector and a rest", "several tiles", "a group in both"])
def test_a_mean_far_from_zero_costs_no_digits(shape, mean, std):
    shapes, groups = SHAPES[shape]
    compare(onepass, *arrays(shapes, mean, std), groups, True)


def test_a_first_tile_unlike_the_rest_costs_few_digits():
    [x], *_ = arrays([(2, 64, 64, 16)])
    x[:, :8] += 1000                                      # an eighth, 160 std away
    _, exact = numpy_rung.measure(as_float64([x]), 4, EPS)
    _, rstd = onepass.measure([x], 4, EPS)
    np.testing.assert_allclose(rstd, exact, rtol=3e-6)


def test_silu_of_large_numbers_is_themselves_or_nothing():
    norm_helpers.assert_silu_of_large_numbers_is_themselves_or_nothing(onepass)


@with_and_without_silu
def test_two_inputs_give_what_one_gives_that_holds_both(silu):
    shapes, groups = SHAPES["a group in both"]
    xs, dys, gamma, beta = arrays(shapes)
    joined = [np.concatenate(a, axis=-1) for a in (xs, dys)]
    moments = onepass.measure(xs, groups, EPS)
    dxs, *weights = onepass.backward(dys, xs, gamma, beta, *moments, silu)
    one_moments = onepass.measure(joined[:1], groups, EPS)
    [dx], *one_weights = onepass.backward(joined[1:], joined[:1], gamma, beta, *moments, silu)
    for a, b in zip([np.concatenate(dxs, axis=-1), *weights, *moments],
                    [dx, *one_weights, *one_moments]):
        np.testing.assert_array_equal(a, b)               # to the last bit


def test_dx_lies_where_dy_was():
    xs, dys, gamma, beta = arrays([(2, 3, 3, 8), (2, 3, 3, 8)])
    dxs, *_ = onepass.backward(dys, xs, gamma, beta, *onepass.measure(xs, 4, EPS), True)
    assert all(np.shares_memory(dx, dy) for dx, dy in zip(dxs, dys))


LAYOUTS = {
    "Fortran order":  np.asfortranarray,
    "every second":   lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards":      lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "a part of more": lambda a: np.pad(a, 1, constant_values=np.nan)[(slice(1, -1),) * a.ndim],
    "read-only":      lambda a: np.broadcast_to(a, a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@with_and_without_silu
def test_onepass_reads_arrays_of_any_layout_and_leaves_them_alone(layout, silu):
    shapes, groups = SHAPES["two inputs"]
    xs, dys, gamma, beta = arrays(shapes)
    moments = onepass.measure(xs, groups, EPS)
    expected = results(onepass, xs, dys, gamma, beta, *moments, groups, silu)
    plain = [*xs, *dys, gamma, beta, *moments]
    other = [LAYOUTS[layout](a) for a in plain]
    got = onepass.measure(other[:2], groups, EPS)
    np.testing.assert_array_equal(got, moments)
    y = onepass.normalize(other[0], other[4][:, :32], other[5][:, :32], silu)
    np.testing.assert_array_equal(y, expected["y"])
    dxs, dscale, dshift = onepass.backward(other[2:4], other[:2], *other[4:], silu)
    for name, a in zip(("dx0", "dx1", "dscale", "dshift"), (*dxs, dscale, dshift)):
        np.testing.assert_array_equal(a, expected[name])
    for a, b in zip(plain, other):
        np.testing.assert_array_equal(a, b)


def test_float64_stays_float64_and_right():
    shapes, groups = SHAPES["a group in both"]
    xs, dys, gamma, beta = arrays(shapes, dtype=np.float64)
    arguments = (xs, dys, gamma, beta, *numpy_rung.measure(xs, groups, EPS), groups, True)
    exact = results(numpy_rung, *arguments)
    for name, got in results(onepass, *arguments).items():
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, exact[name])


@pytest.mark.parametrize("rung", LADDER)
@pytest.mark.parametrize("shapes", [[(0, 4, 4, 8)], [(2, 0, 4, 8)], [(2, 3, 0)],
                                    [(2, 3, 3, 8), (2, 3, 3, 0)], [(0, 2, 8), (0, 2, 8)]])
def test_where_there_is_nothing_nothing_goes_wrong(rung, shapes):
    xs, dys, gamma, beta = arrays(shapes)
    moments = LADDER[rung].measure(xs, 4, EPS)
    got = results(LADDER[rung], xs, dys, gamma, beta, *moments, 4, True)
    assert all(np.isfinite(a).all() for a in got.values())
    assert [got[f"dx{i}"].shape for i in range(len(xs))] == shapes
    assert got["mean"].shape == got["rstd"].shape == (shapes[0][0], 4)
    assert got["dscale"].shape == got["dshift"].shape == gamma.shape


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "dy"])
@with_and_without_silu
def test_what_is_no_number_spoils_its_group_and_no_other(bad, where, silu):
    shapes, groups = SHAPES["a group in both"]            # 12 channels a group, the seam is at 33
    xs, dys, gamma, beta = arrays(shapes)
    (xs if where == "x" else dys)[1][1, 4, 4, 2] = bad    # channel 35, of the third group
    with np.errstate(invalid="ignore"):
        moments = onepass.measure(xs, groups, EPS)
        got = results(onepass, xs, dys, gamma, beta, *moments, groups, silu)
        exact = results(numpy_rung, xs, dys, gamma, beta, *moments, groups, silu)
    for name in exact.keys() - {"mean"}:
        np.testing.assert_array_equal(np.isfinite(got[name]), np.isfinite(exact[name]), name)
    dx = np.concatenate([got["dx0"], got["dx1"]], axis=-1)
    assert not np.isfinite(dx[1, ..., 24:36]).any()
    assert np.isfinite(dx[0]).all()
    assert np.isfinite(dx[1, ..., :24]).all()
    assert np.isfinite(dx[1, ..., 36:]).all()


def test_a_bad_pixel_spoils_the_pixel_that_normalize_makes_of_it():
    [x], _, gamma, beta = arrays([(2, 3, 3, 20)])
    x[1, 2, 2, 17] = np.nan
    y = onepass.normalize(x, gamma, beta, True)
    assert np.argwhere(np.isnan(y)).tolist() == [[1, 2, 2, 17]]


@pytest.mark.parametrize("change", [
    lambda xs, dys, *rest: (xs, [dys[0], dys[1][:, 1:]], *rest),
    lambda xs, dys, *rest: (xs, dys[:1], *rest),
    lambda xs, dys, *rest: ([xs[0], xs[1][:, 1:]], dys, *rest),
    lambda xs, dys, gamma, *rest: (xs, dys, gamma[:, 1:], *rest),
    lambda xs, dys, gamma, beta, mean, rstd: (xs, dys, gamma, beta, mean, rstd[:, 1:]),
    lambda xs, dys, gamma, beta, mean, rstd: (xs, dys, gamma, beta, mean[:, :7], rstd[:, :7]),
])
def test_shapes_that_do_not_fit_are_refused_not_read_beyond(change):
    shapes, groups = SHAPES["two inputs"]
    xs, dys, gamma, beta = arrays(shapes)
    xs, dys, *weights = change(xs, dys, gamma, beta, *onepass.measure(xs, groups, EPS))
    with pytest.raises(ValueError):                       # noqa: PT011, NumPy's own words
        onepass.backward(dys, xs, *weights, True)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="reshape"):
        onepass.measure([np.ones((1, 2, 2, 10), np.float32)], 4, EPS)


def test_results_are_the_same_to_the_bit_on_any_number_of_threads():
    code = "import test_kernels_norm; print(test_kernels_norm.digest())"
    prints = [python(code, OMP_NUM_THREADS=threads) for threads in "143"]
    assert len(set(prints)) == 1
    assert len(prints[0]) > 32


def digest():
    """A digest of what onepass makes of every shape."""
    made = hashlib.sha256()
    for shapes, groups in SHAPES.values():
        given = arrays(shapes)
        got = results(onepass, *given, *onepass.measure(given[0], groups, EPS), groups, True)
        for a in got.values():
            made.update(a.tobytes())
    return made.hexdigest()


@pytest.mark.parametrize(("P", "D"), [(1, 1), (7, 5), (3, 33), (600, 64), (500, 77), (130, 1280)])
@pytest.mark.parametrize("mean", [0, 100])
def test_each_row_is_normalized_by_itself(rng, P, D, mean, monkeypatch):
    x = (mean + 3 * rng.standard_normal((P, D))).astype(np.float32)
    scale, shift = rng.standard_normal((2, D), dtype=np.float32)
    x[0] = mean                                           # no variance: only eps stands below
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + EPS) * scale + shift
    plain = np.abs(numpy_rung.rows(x, scale, shift, EPS) - exact).max()
    monkeypatch.setattr(onepass, "GRAIN", 1)
    for rung in (numpy_rung, onepass):
        y = rung.rows(x.reshape(1, P, D), scale, shift, EPS)
        assert (y.shape, y.dtype) == ((1, P, D), np.float32)
        assert np.abs(y[0] - exact).max() <= 2 * plain + 1e-6
    y = onepass.rows(wide, scale, shift, EPS)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("P", "D"), [(1, 1), (7, 5), (3, 33), (600, 64), (500, 77), (130, 1280)])
@pytest.mark.parametrize("mean", [0, 100])
def test_the_gradient_of_a_row_is_that_of_the_definition(rng, P, D, mean, monkeypatch):
    x = (mean + 3 * rng.standard_normal((P, D))).astype(np.float32)
    dy = rng.standard_normal((P, D), dtype=np.float32)
    scale = rng.standard_normal(D, dtype=np.float32)
    exact = numpy_rung.rows_backward(*(a.astype(np.float64) for a in (dy, x, scale)), EPS)
    plain = numpy_rung.rows_backward(dy, x, scale, EPS)
    monkeypatch.setattr(onepass, "GRAIN", 1)
    got = onepass.rows_backward(dy.reshape(1, P, D), x.reshape(1, P, D), scale, EPS)
    for a, b, c in zip(got, plain, exact, strict=True):
        assert a.dtype == np.float32
        assert a.size == c.size
        assert np.abs(a.reshape(c.shape) - c).max() <= 3 * np.abs(b - c).max() + 1e-5
