"""Sums, SiLU and upsampling on all threads are what they are in plain NumPy."""

import hashlib
from math import erfc, exp, pi

import numpy as np
import pytest
from kernel_helpers import python
from tinydiff_kernels import elementwise

FUNCTIONS = {
    "add":                lambda x, y: elementwise.add(x, y),
    "add_into":           lambda x, y: elementwise.add_into(x.copy(order="K"), y),
    "mul":                lambda x, y: elementwise.mul(x, y),
    "silu":               lambda x, y: elementwise.silu(x),
    "silu_backward":      lambda x, y: elementwise.silu_backward(y, x),
    "upsample2":          lambda x, y: elementwise.upsample2(x),
    "upsample2_backward": lambda x, y: elementwise.upsample2_backward(x),
}
SHAPES = [(1, 2, 2, 1), (2, 4, 6, 3), (3, 6, 4, 33), (1, 128, 64, 5), (2, 64, 64, 65), (0, 4, 4, 3)]
LARGE  = (2, 64, 128, 37)                                 # enough for every threshold
each_function = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(params=["as it is", "all threads"])
def where(request, monkeypatch):
    """With the threshold as it is, and without one."""
    if request.param == "all threads":
        monkeypatch.setattr(elementwise, "LARGE", 1 / 16)


def arrays(shape, dtype=np.float32):
    return [a.astype(dtype) for a in np.random.default_rng(1).standard_normal((2, *shape)) * 3]


def formula(name, x, y):
    """As the definitions stand, in the precision of the arrays."""
    N, H, W, C = x.shape
    s = 1 / (1 + np.exp(-x))
    if name == "upsample2":
        return np.einsum("nhwc,ij->nhiwjc", x, np.ones((2, 2), x.dtype)).reshape(N, 2 * H, 2 * W, C)
    if name == "upsample2_backward":
        return np.einsum("nhiwjc->nhwc", x.reshape(N, H // 2, 2, W // 2, 2, C))
    return {"mul": x * y, "silu": x * s,
            "silu_backward": y * (s + x * s * (1 - s))}.get(name, x + y)


def agree(name, got, x, y):
    """Whether errors are at most twice those of plain arithmetic, or four roundings."""
    exact = formula(name, x.astype(np.float64), y.astype(np.float64))
    plain = np.abs(formula(name, x, y) - exact).max(initial=0)
    roundings = 4 * np.finfo(got.dtype).eps * np.abs(exact).max(initial=1)
    assert got.shape == exact.shape
    assert np.abs(got - exact).max(initial=0) <= max(2 * plain, roundings)


@each_function
@pytest.mark.parametrize("shape", [*SHAPES, LARGE])
def test_float32_is_as_exact_as_plain_arithmetic(name, shape, where):
    x, y = arrays(shape)
    got = FUNCTIONS[name](x, y)
    assert got.dtype == np.float32
    agree(name, got, x, y)


LAYOUTS = {
    "Fortran order":  np.asfortranarray,
    "every second":   lambda a: np.repeat(a, 2, axis=3)[..., ::2],
    "backwards":      lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "a part of more": lambda a: np.pad(a, 1, constant_values=np.nan)[(slice(1, -1),) * 4],
    "float64":        lambda a: a.astype(np.float64),
}


@each_function
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 6, 4, 33), LARGE])
def test_arrays_of_any_kind_are_right(name, layout, shape, where):
    x, y = arrays(shape)
    got = FUNCTIONS[name](LAYOUTS[layout](x), LAYOUTS[layout](y))
    assert got.dtype == (np.float64 if layout == "float64" else np.float32)
    agree(name, got, x, y)


def test_sums_broadcast_as_in_numpy(where):
    x, y = arrays(LARGE)
    np.testing.assert_array_equal(elementwise.add(x, y[:, :1]), x + y[:, :1])
    np.testing.assert_array_equal(elementwise.add(x, 2.0), x + 2.0)
    np.testing.assert_array_equal(elementwise.add_into(x.copy(), y[0]), x + y[0])
    assert elementwise.add(x, y.astype(np.float64)).dtype == np.float64
    with pytest.raises(ValueError, match="broadcast"):
        elementwise.add(x, y[:, 1:])


def test_a_sum_into_an_array_stays_there(where):
    for shape in (SHAPES[1], LARGE):
        x, y = arrays(shape)
        right = x + y
        assert elementwise.add_into(x, y) is x
        np.testing.assert_array_equal(x, right)
        np.testing.assert_array_equal(elementwise.add_into(x, x), right + right)
        x.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            elementwise.add_into(x, y)


@each_function
def test_nan_stays_and_spreads_no_further_than_the_formula(name, where):
    for i in (0, 5, 2 * 64 * 128 * 37 - 1):
        x, y = arrays(LARGE)
        x.ravel()[i] = np.nan
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(np.isnan(FUNCTIONS[name](x, y)),
                                          np.isnan(formula(name, x, y)))


def test_silu_of_huge_numbers_is_themselves_or_nothing(where):
    x = np.tile(np.float32([-1e20, -1e4, -100, 0, 100, 1e4, 3e38]), 20_000)
    with np.errstate(under="ignore"):
        np.testing.assert_allclose(elementwise.silu(x), np.maximum(x, 0), atol=1e-15)
        np.testing.assert_allclose(elementwise.silu_backward(np.ones_like(x), x)[x != 0],
                                   (x > 0)[x != 0], atol=1e-15)


def test_gelu_is_exact_to_a_few_units_in_the_last_place_also_where_it_is_nearly_nothing():
    pytest.importorskip("numba")
    x = np.float32([*np.linspace(-12.5, 12.5, 100_001), 0, 1e-30, -1e20, -3e38, 1e20, 3e38])
    exact = np.array([max(v, 0) - abs(v) / 2 * erfc(abs(v) / 2**0.5) for v in x.astype(float)])
    with np.errstate(under="ignore"):                     # 1e-35 of the largest
        y = elementwise.gelu(x)
    bound = (4 + x.astype(float).clip(-12.5, 0) ** 2) * 2.0**-23      # of e^(−x²/2): x² is rounded
    assert (np.abs(y - exact) <= bound * np.abs(exact) + 1e-37).all()
    assert np.isnan(elementwise.gelu(np.full(100, np.nan, np.float32))).all()


def test_the_slope_of_gelu_is_that_of_its_formula_everywhere():
    pytest.importorskip("numba")
    x = np.float32([*np.linspace(-12.5, 12.5, 100_001), 0, 1e-30, -1e-30, -1e20, -3e38, 1e20, 3e38])
    exact = [erfc(-v / 2**0.5) / 2 + v * exp(-v * v / 2) / (2 * pi) ** 0.5
             for v in x.astype(float).clip(-40, 40)]
    with np.errstate(under="ignore", over="ignore"):      # e^(−x²/2) of the largest is 0
        slope = elementwise.gelu_backward(np.full_like(x, 3), x) / 3
    np.testing.assert_allclose(slope, exact, rtol=2e-6, atol=2e-7)
    assert np.isnan(elementwise.gelu_backward(np.ones(100, np.float32), x[:100] * np.nan)).all()


def test_upsampled_sizes_are_even():
    with pytest.raises(ValueError, match="even height and width, got 3 and 4"):
        elementwise.upsample2_backward(np.zeros((1, 3, 4, 1), np.float32))


def digest():
    x, y = arrays((1, 128, 128, 64))
    return hashlib.sha256(b"".join(f(x, y) for f in FUNCTIONS.values())).hexdigest()


def test_the_number_of_threads_changes_no_bit():
    here = digest()
    for threads in (1, 4):
        code = "from test_kernels_elementwise import digest; print(digest())"
        assert python(code, OMP_NUM_THREADS=str(threads)).strip() == here
