"""Every rung of the convolution computes what rung 0 defines, for any shape, layout and number."""

import numpy as np
import pytest
from conv2d_helpers import (
    COMPILED,
    FACTOR,
    RUNGS,
    SAME,
    arrays,
    double,
    error,
    fast,
    results,
)
from hypothesis import given, settings, strategies as st
from tinydiff_kernels.conv2d import LADDER

NONE = ((0, 0), (0, 0))

#    name: (x shape, w shape, stride, padding)
SHAPES = {
    "3 x 3, same":         ((2, 5, 7, 3), (3, 3, 3, 4), 1, SAME),
    "1 x 1":               ((3, 5, 3, 2), (1, 1, 2, 3), 1, NONE),
    "1 x 1, one pixel":    ((1, 1, 1, 1), (1, 1, 1, 1), 1, NONE),
    "1 x 1, padded":       ((1, 3, 5, 2), (1, 1, 2, 2), 2, ((1, 2), (0, 1))),
    "halved":              ((2, 7, 5, 3), (3, 3, 3, 2), 2, SAME),
    "halved, rest unread": ((2, 8, 6, 3), (3, 3, 3, 2), 2, NONE),
    "halved, one-sided":   ((2, 6, 8, 3), (3, 3, 3, 2), 2, ((0, 1), (0, 1))),
    "stride 3, 2 x 2":     ((2, 8, 5, 2), (2, 2, 2, 3), 3, ((1, 0), (0, 2))),
    "5 x 3":               ((1, 7, 5, 2), (5, 3, 2, 3), 1, ((2, 2), (1, 1))),
    "as large as x":       ((2, 3, 5, 2), (3, 5, 2, 3), 1, NONE),
    "padding past K":      ((1, 3, 2, 2), (2, 2, 2, 2), 1, ((3, 2), (0, 4))),
    "smaller than K":      ((2, 1, 2, 3), (3, 3, 3, 4), 1, SAME),
    "no image":            ((0, 5, 5, 2), (3, 3, 2, 3), 1, SAME),
    "no row":              ((2, 0, 5, 3), (3, 3, 3, 2), 1, ((2, 1), (1, 1))),
    "no column":           ((2, 5, 0, 3), (3, 3, 3, 2), 1, SAME),
    "no channel":          ((2, 3, 3, 0), (3, 3, 0, 2), 1, SAME),
    "no output channel":   ((2, 3, 3, 2), (3, 3, 2, 0), 1, SAME),
    "no room for K":       ((2, 5, 2, 3), (3, 3, 3, 2), 1, NONE),
    "no room, stride 2":   ((2, 2, 2, 3), (3, 3, 3, 2), 2, NONE),
}
each_rung = pytest.mark.parametrize("rung", RUNGS)


def check(rung, x, w, dy, stride, padding):
    """float32 results, as near to those in float64 as plain float32 arithmetic, times a factor.

    Where few are summed chance decides: one unit of the largest sum's last place is granted.
    """
    exact = results(fast, *double(x, w, dy), stride, padding)
    plain = results(fast, x, w, dy, stride, padding)
    size = results(fast, *map(np.abs, (x, w, dy)), stride, padding)
    for name, got in results(LADDER[rung], x, w, dy, stride, padding).items():
        unit = 2.0**-23 * size[name].max(initial=0)
        allowed = FACTOR.get(rung, 2) * max(error(plain[name], exact[name]), unit)
        assert got.dtype == np.float32
        assert error(got, exact[name]) <= allowed, name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_tests_own_sums_are_those_of_rung_0_to_the_last_bit(shape, dtype):
    *_, stride, padding = case = SHAPES[shape]
    ours, exact = (results(rung, *arrays(*case, dtype=dtype), stride, padding)
                   for rung in (fast, LADDER["loops"]))
    for name, got in ours.items():
        np.testing.assert_array_equal(got, exact[name])


@pytest.mark.parametrize("shape", SHAPES)
@each_rung
def test_a_rung_is_rung_0_in_float64(rung, shape):
    *_, stride, padding = case = SHAPES[shape]
    x, w, dy = arrays(*case, dtype=np.float64)
    exact = results(fast, x, w, dy, stride, padding)      # the same to the last bit, see above
    for name, got in results(LADDER[rung], x, w, dy, stride, padding).items():
        assert got.dtype == np.float64
        assert error(got, exact[name]) < 1e-12, name


@pytest.mark.parametrize("shape", SHAPES)
@each_rung
def test_a_rung_is_rung_0_in_float32(rung, shape):
    *_, stride, padding = case = SHAPES[shape]
    check(rung, *arrays(*case), stride, padding)


@pytest.mark.parametrize("O", [1, 3, 5, 17, 24, 33, 40])
@pytest.mark.parametrize("C", [1, 3, 5, 17, 24, 33, 40])
@pytest.mark.parametrize("rung", COMPILED)
def test_any_number_of_channels(rung, C, O):
    check(rung, *arrays((2, 7, 9, C), (3, 3, C, O), 1, SAME), 1, SAME)
    check(rung, *arrays((2, 6, 5, C), (3, 3, C, O), 2, SAME), 2, SAME)


@pytest.mark.parametrize("rung", COMPILED)
@given(N=st.integers(1, 3), H=st.integers(1, 23), W=st.integers(1, 23), C=st.integers(1, 70),
       O=st.integers(1, 70))
@settings(max_examples=40)
def test_any_picture_keeps_its_size(rung, N, H, W, C, O):
    check(rung, *arrays((N, H, W, C), (3, 3, C, O), 1, SAME), 1, SAME)


@given(sides=st.tuples(*[st.integers(0, 12)] * 2), window=st.tuples(*[st.integers(1, 5)] * 2),
       sums=st.tuples(*[st.tuples(*[st.integers(0, 4)] * 2)] * 2), stride=st.integers(1, 4),
       N=st.integers(0, 4), C=st.integers(1, 20), O=st.integers(1, 40))
@settings(max_examples=150)
@pytest.mark.skipif(not COMPILED, reason="needs Numba")
def test_any_window_stride_and_padding(sides, window, sums, stride, N, C, O):
    padding = tuple((a, max(b, K - n - a)) for (a, b), K, n in zip(sums, window, sides))   # K fits
    check("numba", *arrays((N, *sides, C), (*window, C, O), stride, padding), stride, padding)


MANY = [((2, 12, 13, 256), (3, 3, 256, 64), 1, SAME), ((3, 13, 16, 64), (3, 3, 64, 256), 1, SAME),
        ((2, 17, 15, 128), (3, 3, 128, 40), 2, SAME), ((1, 16, 14, 64), (3, 3, 64, 256), 2, SAME),
        ((2, 16, 17, 200), (1, 1, 200, 70), 1, NONE)]


@pytest.mark.parametrize("case", MANY, ids=str)
def test_the_error_of_sums_of_many_terms_stays_within_the_rule(case):
    *_, stride, padding = case
    x, w, dy = arrays(*case)
    exact = results(LADDER["im2col"], *double(x, w, dy), stride, padding)
    by_hand = results(fast, x, w, dy, stride, padding)
    by_blas = results(LADDER["im2col"], x, w, dy, stride, padding)
    for rung in RUNGS[1:]:
        plain = by_hand if rung == "im2col" else by_blas  # the stricter of the two, where it can be
        for name, got in results(LADDER[rung], x, w, dy, stride, padding).items():
            allowed = FACTOR.get(rung, 2) * error(plain[name], exact[name])
            assert 0 < error(got, exact[name]) <= allowed, f"{rung} {name}"


LAYOUTS = {
    "Fortran order":   np.asfortranarray,
    "every second":    lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "backwards":       lambda a: np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1],
    "axes exchanged":  lambda a: np.ascontiguousarray(a.swapaxes(0, 3)).swapaxes(0, 3),
    "a part of more":  lambda a: np.pad(a, 1, constant_values=np.nan)[1:-1, 1:-1, 1:-1, 1:-1],
    "read-only":       lambda a: np.broadcast_to(a, a.shape),
    "off the grid":    lambda a: off_the_grid(a),
    "other bytes":     lambda a: a.astype(a.dtype.newbyteorder(">")),
}


def off_the_grid(a):
    """a copy of `a` whose first byte has an odd address"""
    copy = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


@each_rung
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rung_reads_arrays_of_any_layout_and_leaves_them_alone(rung, layout, stride, dtype):
    plain = arrays((2, 5, 4, 3), (3, 3, 3, 2), stride, SAME, dtype=dtype)
    other = [LAYOUTS[layout](a) for a in plain]
    exact = results(LADDER[rung], *plain, stride, SAME)
    for name, got in results(LADDER[rung], *other, stride, SAME).items():
        assert error(got, exact[name]) < (1e-12 if dtype == np.float64 else 1e-5), name
    for a, b in zip(plain, other):
        np.testing.assert_array_equal(a, b)


@each_rung
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_no_number_reaches_every_sum_it_belongs_to(rung, value, stride, dtype):
    x, w, dy = arrays((2, 7, 6, 4), (3, 3, 4, 3), stride, SAME, dtype=dtype)
    x[1, 4, 4, 3] = dy[0, 2, 1, 1] = value
    with np.errstate(invalid="ignore"):                   # ∞ − ∞
        exact = results(fast, x, w, dy, stride, SAME)
        got = results(LADDER[rung], x, w, dy, stride, SAME)
    for name, where in {name: ~np.isfinite(y) for name, y in exact.items()}.items():
        assert where.any()
        assert not np.isfinite(got[name][where]).any(), name
    assert np.isfinite(got["forward"][0]).all()           # another picture has no part in it
    assert np.isfinite(got["grad_input"][1]).all()


@pytest.mark.parametrize("rung", RUNGS[1:])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_batch_worked_on_in_parts_gives_each_image_its_own_result(rung, dtype):
    x, w, dy = arrays((1, 64, 48, 80), (3, 3, 80, 1), 2, SAME, dtype=dtype)
    one = results(LADDER[rung], x, w, dy, 2, SAME)
    one["grad_weight"] = 5 * one["grad_weight"]
    five = results(LADDER[rung], x.repeat(5, axis=0), w, dy.repeat(5, axis=0), 2, SAME)
    for name, got in five.items():
        tiny = 1e-12 if dtype == np.float64 else 3e-6
        assert error(got, np.broadcast_to(one[name], got.shape)) < tiny * np.abs(got).max(), name


@each_rung
def test_a_result_is_not_overwritten_by_the_next(rung):
    case = (8, 24, 24, 16), (3, 3, 16, 16), 1, SAME
    if rung == "loops":
        case = SHAPES["3 x 3, same"]
    first = results(LADDER[rung], *arrays(*case), *case[2:])
    before = {name: got.copy() for name, got in first.items()}
    results(LADDER[rung], *arrays(*case, seed=1), *case[2:])
    for name, got in first.items():
        np.testing.assert_array_equal(got, before[name])


def test_nan_and_a_wrong_shape_never_pass():
    exact = np.ones(3)
    assert error(np.array([1, np.nan, 1]), exact) == np.inf
    assert error(np.ones((3, 1)), exact) == np.inf
    assert error(np.array([1, 1.5, 1]), exact) == 0.5
