"""Each word of the vector language computes what it says, in whole vectors and in parts of them."""

import ctypes
import mmap
import os
from functools import cache

import numpy as np
import pytest

pytest.importorskip("numba")

from kernel_helpers import compiled, forked
from tinydiff_kernels.simd import vector
from tinydiff_kernels.simd.functions import WIDTH, at, copy, exp, sigmoid, silu, zero
from tinydiff_kernels.simd.tasks import pack
from tinydiff_kernels.simd.vector import (
    Word,
    divide,
    external,
    fetch_add,
    fma,
    higher,
    highest,
    invoke,
    load,
    load1,
    load_part,
    lower,
    nearest,
    power_of_two,
    prefetch,
    read,
    same,
    splat,
    sqrt,
    store,
    store1,
    store_part,
    total,
    write,
)

N = 64 * WIDTH
magnitude = external("abs", 1)


def lanes(item, worker, a, b, c, y, n):
    """y (rows, n): a word a row, of a, b, c (n,)"""
    for i in range(0, n, WIDTH):
        p, q, r = load(a, i), load(b, i), load(c, i)
        store(y, i, p + q)
        store(y, n + i, p - q)
        store(y, 2 * n + i, p * q)
        store(y, 3 * n + i, fma(p, q, r))
        store(y, 4 * n + i, divide(p, q))
        store(y, 5 * n + i, sqrt(p * p))
        store(y, 6 * n + i, lower(p, q))
        store(y, 7 * n + i, higher(p, q))
        store(y, 8 * n + i, nearest(p))
        store(y, 9 * n + i, power_of_two(nearest(lower(higher(p, splat(-126.0)), splat(127.0)))))
        store(y, 10 * n + i, splat(load1(a, i)))
        store(y, 11 * n + i, exp(p))
        store(y, 12 * n + i, sigmoid(p))
        store(y, 13 * n + i, silu(p))


def sums(item, worker, a, b, y, n):
    """y (3, n / WIDTH): total and highest of each vector of a, and whether it is b's"""
    for i in range(n // WIDTH):
        store1(y, i, total(load(a, i * WIDTH)))
        store1(y, n // WIDTH + i, highest(load(a, i * WIDTH)))
        store1(y, 2 * (n // WIDTH) + i, np.float32(same(load(a, i * WIDTH), load(b, i * WIDTH))))


def parts(item, worker, x, y, n):
    store(y, 0, load_part(x, 0, n))
    store_part(y, WIDTH, splat(1.0), n)


def fill(item, worker, x, n):
    zero(x, n)


def move(item, worker, x, y, n):
    prefetch(x, 2**40)                                    # far from all that may be read
    copy(x, y, n)


def integers(item, worker, x, function, arguments):
    write(x, 0, read(x, 1) + magnitude(-5))
    write(x, 2, fetch_add(x, 1, 3))
    invoke(function, arguments, item, worker)


KERNELS = [lanes, sums, parts, fill, move, integers]
task = cache(compiled)


def lanes_of(*arrays):
    """{name of a word: its answers} for arrays (N,)"""
    names = ("add", "subtract", "multiply", "fma", "divide", "sqrt", "lower", "higher", "nearest",
             "power_of_two", "splat", "exp", "sigmoid", "silu")
    arrays = [np.resize(np.asarray(a, np.float32), N) for a in arrays]
    y = np.full((len(names), N), np.nan, np.float32)
    task(lanes).call(0, 0, *arrays, y, N)
    return dict(zip(names, y))


def ulps(got, exact):
    """The largest distance of float32s from exact numbers, in units of the last place."""
    with np.errstate(under="ignore"):
        unit = np.spacing(np.abs(np.float32(exact)))
        return np.max(np.abs(got.astype(np.float64) - exact) / unit)


@pytest.fixture
def abc(rng):
    """Three arrays of numbers of all sizes and both signs, whose products stay in range."""
    return [np.float32(rng.choice([-1, 1], N) * np.exp2(rng.uniform(-40, 40, N))) for _ in range(3)]


def test_every_word_is_tested_here():
    used = {name for kernel in KERNELS for name in kernel.__code__.co_names}
    assert {name for name, word in vars(vector).items() if isinstance(word, Word)} <= used


def test_arithmetic_is_that_of_float32(abc):
    a, b, c = abc
    y = lanes_of(a, b, c)
    exact = {"add": a + b, "subtract": a - b, "multiply": a * b, "sqrt": np.sqrt(a * a),
             "lower": np.minimum(a, b), "higher": np.maximum(a, b), "nearest": np.rint(a),
             "splat": a[::WIDTH].repeat(WIDTH)}
    for name, expected in exact.items():
        np.testing.assert_array_equal(y[name], expected, err_msg=name)
    assert ulps(y["divide"], a / b.astype(np.float64)) <= 2


def test_fma_rounds_once(abc):
    a, b, _ = abc
    c = -(a * b)                                          # what is left is the product's rounding
    exact = a.astype(np.float64) * b + c
    np.testing.assert_array_equal(lanes_of(a, b, c)["fma"], exact.astype(np.float32))
    assert np.count_nonzero(exact) > N / 2


def test_half_rounds_to_even():
    y = lanes_of([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -0.49], 1, 1)["nearest"]
    np.testing.assert_array_equal(y, np.resize([0, 2, 2, 0, -2, 1e9, 0], N))


def test_powers_of_two_are_exact():
    n = np.resize(np.arange(-126, 128), N)
    np.testing.assert_array_equal(lanes_of(n, 1, 1)["power_of_two"], np.ldexp(np.float32(1), n))


def test_lower_and_higher_give_the_second_where_one_is_no_number():
    y = lanes_of([np.nan, 1, 2, 3], [5, np.nan, 1, 4], 1)
    for name in ("lower", "higher"):
        np.testing.assert_array_equal(y[name][:2], [5, np.nan])
    assert [*y["lower"][2:4], *y["higher"][2:4]] == [1, 3, 2, 4]


@pytest.mark.parametrize("name", ["exp", "sigmoid", "silu"])
def test_a_function_is_right_to_a_few_units_in_the_last_place(name, rng):
    x = np.concatenate([[-87, 88, 0, -0.0, 1e-30, -1e-30], np.linspace(-87, 88, N // 2),
                        rng.uniform(-3, 3, N // 2 - 6)]).astype(np.float32)
    wide = x.astype(np.float64)
    exact = {"exp": np.exp(wide), "sigmoid": 1 / (1 + np.exp(-wide)),
             "silu": wide / (1 + np.exp(-wide))}[name]
    assert ulps(lanes_of(x, 1, 1)[name], exact) <= (1 if name == "exp" else 4)


def test_functions_far_out_stay_near_their_limits():
    x = [-np.inf, -1e30, -100, 100, 1e30, np.inf]
    y = lanes_of(x, 1, 1)
    assert (np.abs(y["exp"][:3]) < 1e-37).all()
    assert (y["exp"][3:6] > 1e38).all()
    np.testing.assert_allclose(y["sigmoid"][:6], [0, 0, 0, 1, 1, 1], atol=1e-37)
    np.testing.assert_allclose(y["silu"][2:6], [0, 100, 1e30, np.inf], rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("name", ["exp", "sigmoid", "silu", "nearest", "sqrt", "divide"])
def test_what_is_no_number_stays_none(name):
    got = lanes_of([np.nan, 1], 1, 1)[name]
    np.testing.assert_array_equal(np.isnan(got), np.resize([True, False], N))


def test_total_and_highest_run_over_all_lanes(abc):
    a, b, _ = abc
    b = np.where(np.arange(N) < N // 2, a, b)
    b[WIDTH - 1] = np.nextafter(a[WIDTH - 1], np.float32(9))
    y = np.empty((3, N // WIDTH), np.float32)
    task(sums).call(0, 0, a, b, y, N)
    rows = a.reshape(-1, WIDTH).astype(np.float64)
    assert (np.abs(y[0] - rows.sum(axis=1)) <= 4 * 2**-24 * np.abs(rows).sum(axis=1)).all()
    np.testing.assert_array_equal(y[1], rows.max(axis=1))
    np.testing.assert_array_equal(y[2], (a == b).reshape(-1, WIDTH).all(axis=1))


@pytest.mark.parametrize("n", [-1, 0, 1, WIDTH - 1, WIDTH, WIDTH + 1])
def test_a_part_is_its_first_lanes_with_zeros_behind(n):
    x = np.where(np.arange(2 * WIDTH) < n, np.arange(1, 2 * WIDTH + 1), np.nan).astype(np.float32)
    y = np.full(3 * WIDTH, 7, np.float32)
    task(parts).call(0, 0, x, y, n)
    inside = np.arange(WIDTH) < n
    np.testing.assert_array_equal(y[:WIDTH], np.where(inside, np.arange(1, WIDTH + 1), 0))
    np.testing.assert_array_equal(y[WIDTH:2 * WIDTH], np.where(inside, 1, 7))
    assert (y[2 * WIDTH:] == 7).all()


@pytest.mark.parametrize("n", range(0, 3 * WIDTH, 3))
def test_zero_and_copy_stop_where_they_are_told(n):
    numbers = np.arange(1, 4 * WIDTH + 1, dtype=np.float32)
    x, y = numbers.copy(), np.zeros_like(numbers)
    task(move).call(0, 0, x, y, n)
    np.testing.assert_array_equal(y, np.where(numbers <= n, numbers, 0))
    task(fill).call(0, 0, x, n)
    np.testing.assert_array_equal(x, np.where(numbers <= n, 0, numbers))


@pytest.mark.skipif(os.name != "posix", reason="needs mprotect")
def test_nothing_behind_the_end_is_read_or_written():
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    end = (start // page + 1) * page
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), page, 0) == 0
    y = np.zeros(3 * WIDTH, np.float32)
    tasks = task(parts), task(move), task(fill)

    def at_the_edge():
        for n in range(3 * WIDTH):
            x = end - 4 * n
            if n <= WIDTH:
                tasks[0].call(0, 0, x, y, n)
            tasks[1].call(0, 0, x, y, n)
            tasks[1].call(0, 0, y, x, n)
            tasks[2].call(0, 0, x, n)

    assert forked(at_the_edge) == 0
    assert forked(lambda: tasks[1].call(0, 0, end - 4, y, 2)) < 0, "the page was open after all"


def test_integers_are_read_written_added_and_functions_found():
    x, out = np.array([0, 40, 0]), np.full(4, 9, np.float32)
    inner = pack((out, 3))
    task(integers).call(0, 0, x, task(fill).address, ctypes.addressof(inner))
    np.testing.assert_array_equal(x, [45, 43, 40])
    np.testing.assert_array_equal(out, [0, 0, 0, 9])


def test_an_index_counts_floats():
    assert at(1000, 3) == 1012
