"""Elementwise kernels of a GPU, stepped through on the CPU, against their formulas in float64."""

from math import erfc
from types import SimpleNamespace

import numpy as np
import pytest
from gpu_helpers import any_order, as_bf16, bf16, needs_compiler
from tinydiff_kernels import elementwise
from tinydiff_kernels.elementwise import on_device
from tinydiff_kernels.gpu.order import stepping

__all__ = ["any_order"]
pytestmark = needs_compiler
large = elementwise.large                                 # before the stand-in comes
each_type = pytest.mark.parametrize("dtype", [np.float32, bf16], ids=["float32", "bf16"])
each_shape = pytest.mark.parametrize(
    "shape", [(1,), (1001,), (3, 5, 7, 6), (2, 3, 4, 40), (2, 1, 9, 16)], ids=str)


def sigma(x):
    return 1 / (1 + np.exp(-x))


def phi(x):
    """The share of a standard normal below x."""
    return 0.5 * np.vectorize(erfc)(-x / 2**0.5)


def density(x):
    return np.exp(-x * x / 2) / (2 * np.pi) ** 0.5


ONE = {"silu": lambda x: x * sigma(x),
       "gelu": lambda x: x * phi(x)}
TWO = {"add":           lambda x, y: x + y,
       "mul":           lambda x, y: x * y,
       "silu_backward": lambda dy, x: dy * sigma(x) * (1 + x * (1 - sigma(x))),
       "gelu_backward": lambda dy, x: dy * (phi(x) + x * density(x))}


def operands(shape, dtype, count=2):
    rng = np.random.default_rng(0)
    return [(3 * rng.standard_normal(shape)).astype(dtype) for _ in range(count)]


def check(got, exact, dtype, ulps=4):
    """Within some float32 ulps of the largest number, and for bf16 twice its rounding besides."""
    assert (got.dtype, got.shape) == (dtype, exact.shape)
    allowed = ulps * 2**-24 * np.abs(exact).max(initial=0)
    if dtype == bf16:
        allowed = allowed + 2 * np.abs(as_bf16(exact) - exact)
    assert (np.abs(got.astype(np.float64) - exact) <= allowed).all()


@pytest.mark.parametrize("name", [*ONE, *TWO])
@each_shape
@each_type
def test_a_function_of_numbers_is_its_formula(name, shape, dtype, any_order):
    formula = ONE.get(name) or TWO[name]
    given = operands(shape, dtype, 1 if name in ONE else 2)
    exact = formula(*(a.astype(np.float64) for a in given))
    check(getattr(on_device, name)(*given), exact, dtype)


@each_type
def test_functions_of_large_numbers_have_their_limits(dtype):
    x = np.array([-3e4, -200, -90, 90, 200, 3e4], dtype)
    one, limit = np.ones_like(x), np.array([0, 0, 0, 1, 1, 1])
    for name in ("silu", "gelu"):
        y = getattr(on_device, name)(x)
        np.testing.assert_allclose(y.astype(float), limit * x.astype(float), rtol=1e-6, atol=1e-30)
        slope = getattr(on_device, f"{name}_backward")(one, x)
        np.testing.assert_allclose(slope.astype(float), limit, rtol=1e-6, atol=1e-30)


def test_what_is_no_number_stays_so_and_alone():
    x, y = operands((1001,), np.float32)
    x[3], x[1000] = np.nan, np.inf
    for made in (on_device.add(x, y), on_device.silu(x), on_device.gelu_backward(y, x)):
        assert np.isnan(made[3])
        assert np.isfinite(np.delete(made, [3, 1000])).all()


def test_a_sum_may_go_where_its_first_term_was():
    x, y = operands((1001,), np.float32)
    exact = x + y
    assert on_device.add(x, y, out=x) is x
    np.testing.assert_array_equal(x, exact)


@each_type
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 6), (3, 2, 4, 40), (1, 5, 3, 16)],
                         ids=str)
def test_upsampling_and_its_gradient_are_copies_and_their_sums(shape, dtype, any_order):
    [x] = operands(shape, dtype, 1)
    np.testing.assert_array_equal(on_device.upsample2(x), x.repeat(2, axis=1).repeat(2, axis=2))
    N, H, W, C = shape
    [dy] = operands((N, 2 * H, 2 * W, C), dtype, 1)
    exact = dy.astype(np.float64).reshape(N, H, 2, W, 2, C).sum(axis=(2, 4))
    check(on_device.upsample2_backward(dy), exact, dtype)


@each_type
@pytest.mark.parametrize("shape", [(3, 40, 50, 70), (2, 9, 9, 264), (4, 7, 3), (3, 70),
                                   (1, 999, 5)], ids=str)
def test_sums_over_pixels_are_float32_and_exact_to_its_last_digits(shape, dtype, any_order):
    [y] = operands(shape, dtype, 1)
    exact = y.astype(np.float64).sum(axis=tuple(range(1, len(shape) - 1)))
    got = on_device.sum_pixels(y)
    assert (got.dtype, got.shape) == (np.float32, exact.shape)
    plain = y.astype(np.float32).sum(axis=tuple(range(1, len(shape) - 1)))
    floor = 2**-24 * np.abs(exact).max()
    assert np.linalg.norm(got - exact) <= 2 * max(np.linalg.norm(plain - exact),
                                                  floor * exact.size**0.5)


@each_type
@pytest.mark.parametrize("shape", [(3, 5, 4, 24), (40, 9), (2, 3, 3, 520)])
def test_a_sum_over_all_rows_is_in_float32_here_and_there(shape, dtype, monkeypatch):
    [y] = operands(shape, dtype, 1)
    exact = y.astype(np.float64).reshape(-1, shape[-1]).sum(axis=0)
    check(elementwise.sum_rows(y), exact, np.float32, ulps=16)
    monkeypatch.setattr(elementwise, "arrays", SimpleNamespace(on_device=lambda a: True))
    check(elementwise.sum_rows(y), exact, np.float32, ulps=16)


@each_type
def test_a_cast_here_is_the_cast_there(dtype, monkeypatch):
    [x] = operands((3, 5, 8), dtype, 1)
    other = np.float32 if dtype == bf16 else bf16
    here = elementwise.cast(x, other)
    monkeypatch.setattr(elementwise, "arrays", SimpleNamespace(on_device=lambda a: True))
    there = elementwise.cast(x, other)
    assert here.dtype == there.dtype == other
    assert here.tobytes() == there.tobytes()
    assert elementwise.cast(x, x.dtype) is x


def test_no_bit_of_a_sum_depends_on_the_order_of_threads():
    [y] = operands((2, 40, 50, 33), np.float32, 1)
    seen = set()
    for order in ("forward", "reverse", 3):
        with stepping(order=order):
            seen.add(on_device.sum_pixels(y).tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("size", [1, 8, 1001])
def test_a_cast_rounds_to_the_nearest_as_numpy_does(size):
    [x] = operands((size,), np.float32, 1)
    x[0] = np.nan
    half = on_device.cast(x, bf16)
    np.testing.assert_array_equal(half.astype(float), x.astype(bf16).astype(float))
    np.testing.assert_array_equal(on_device.cast(half, np.float32), half.astype(np.float32))
    assert on_device.cast(x, np.float32) is x


@pytest.fixture
def on_gpu(cupy, monkeypatch):
    """The stand-in for CuPy, whose arrays take the GPU's kernels, which the host runs."""
    monkeypatch.setattr(elementwise, "large", large)
    calls = []
    launch = on_device.over
    monkeypatch.setattr(on_device, "over",
                        lambda name, *rest, **how: calls.append(name) or launch(name, *rest, **how))
    return cupy, calls


def test_arrays_on_the_device_take_its_kernels_and_others_its_operators(on_gpu):
    cupy, calls = on_gpu
    x, y = operands((2, 4, 4, 6), np.float32)
    there = [cupy.asarray(a) for a in (x, y)]
    for name in TWO:
        if name != "gelu_backward":
            getattr(elementwise, name)(*there)
    elementwise.silu(there[0])
    elementwise.gelu(there[0])
    assert calls == ["add", "mul", "silu_backward", "silu", "gelu"]
    wide = elementwise.add(there[0], there[1][:, :1])     # shapes that broadcast
    np.testing.assert_array_equal(cupy.asnumpy(wide), x + y[:, :1])
    np.testing.assert_array_equal(cupy.asnumpy(elementwise.mul(there[0], 2.0)), x * 2)
    assert len(calls) == 5
    assert elementwise.add_into(there[0], there[1]) is there[0]
    np.testing.assert_array_equal(cupy.asnumpy(there[0]), x + y)
    assert calls[5:] == ["add"]


def test_upsampling_and_sums_on_the_device_are_those_of_the_host(on_gpu):
    cupy, _ = on_gpu
    [x] = operands((2, 4, 6, 5), np.float32, 1)
    for name in ("upsample2", "upsample2_backward", "sum_pixels"):
        got = getattr(elementwise, name)(cupy.asarray(x))
        assert type(got).__module__ == "cupy"
        np.testing.assert_allclose(cupy.asnumpy(got), getattr(elementwise, name)(x), rtol=1e-6,
                                   atol=1e-6)
    with pytest.raises(ValueError, match="an even height and width, got 3 and 6"):
        elementwise.upsample2_backward(cupy.asarray(x[:, 1:]))
