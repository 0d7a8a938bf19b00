"""Micro-kernels multiply matrices, and Winograd's transforms are his matrices, exactly."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, strategies as st

pytest.importorskip("numba")

from kernel_helpers import compiled
from tinydiff_kernels.simd.functions import WIDTH
from tinydiff_kernels.simd.microkernels import (
    microkernel,
    multiply,
    multiply_add,
    multiply_onto,
    multiply_onto_ahead,
)
from tinydiff_kernels.simd.product import DEPTH, PANEL, ROWS, outer, rows_times_panel
from tinydiff_kernels.simd.squares import square
from tinydiff_kernels.simd.transforms import AT, BT, TRANSFORMS, G, transposed
from tinydiff_kernels.simd.vector import load

multiply_row = microkernel(accumulate=False, rows=1)
KINDS = ["multiply", "multiply_add", "multiply_onto", "multiply_onto_ahead", "multiply_row"]


def block(item, worker, kind, a, a_row, a_k, b, b_k, c, c_row, K, s, s_row):
    if kind == 0:
        multiply(a, a_row, a_k, b, b_k, c, c_row, K)
    elif kind == 1:
        multiply_add(a, a_row, a_k, b, b_k, c, c_row, K)
    elif kind == 2:
        multiply_onto(a, a_row, a_k, b, b_k, c, c_row, K, s, s_row)
    elif kind == 3:
        multiply_onto_ahead(a, a_row, a_k, b, b_k, c, c_row, K, s, s_row)
    else:
        multiply_row(a, a_row, a_k, b, b_k, c, c_row, K)


def rows_by_panel(item, worker, a, a_row, b, c, M, K):
    rows_times_panel(a, a_row, b, c, M, K, PANEL)


def outer_product(item, worker, a, a_row, b, b_row, c, c_row, M, K, add):
    outer(a, a_row, b, b_row, c, c_row, M, K, PANEL, add)


task = cache(compiled)


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def check(got, a, b, c=0):
    """got = a b + c, with no more rounding than a sum of that many terms may have."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    bound = (a.shape[1] + 2) * 2.0**-24 * (np.abs(a) @ np.abs(b) + np.abs(c))
    assert got.shape == (a @ b).shape
    assert (np.abs(got - (a @ b + c)) <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turned", [False, True], ids=["A", "A transposed"])
@given(K=st.integers(1, 40), gaps=st.tuples(*[st.integers(0, 9)] * 3), one=st.booleans())
def test_a_micro_kernel_multiplies_a_block_and_touches_nothing_else(kind, turned, K, gaps, one):
    rng = np.random.default_rng(K)
    rows = 1 if kind == "multiply_row" else ROWS
    a = normal(rng, *((K, rows) if turned else (rows, K)))
    b = normal(rng, K, PANEL)
    held = [np.full((len(m), m.shape[1] + gap), np.nan, np.float32) for m, gap in zip((a, b), gaps)]
    for whole, m in zip(held, (a, b)):
        whole[:, :m.shape[1]] = m
    c = np.full((rows + 1, PANEL + gaps[2]), np.float32(7))
    s = normal(rng, rows, PANEL + gaps[2])                # onto which: rows, or its first for all
    a_row, a_k = (1, held[0].shape[1]) if turned else (held[0].shape[1], 1)
    task(block).call(0, 0, KINDS.index(kind), held[0], a_row, a_k, held[1], held[1].shape[1],
                     c, c.shape[1], K, s, 0 if one else s.shape[1])
    there = {"multiply_add": 7, "multiply_onto": s[:1 if one else rows, :PANEL]}
    there["multiply_onto_ahead"] = there["multiply_onto"]
    check(c[:rows, :PANEL], a.T if turned else a, b, there.get(kind, 0))
    assert (c[rows] == 7).all()
    assert (c[:, PANEL:] == 7).all()


@pytest.mark.parametrize("M", [1, ROWS, 2 * ROWS + 1])
@pytest.mark.parametrize("K", [1, 5, DEPTH, DEPTH + 1, 2 * DEPTH + 3])
def test_rows_by_a_panel_of_any_depth(rng, M, K):
    whole = -(-M // ROWS) * ROWS
    a, b = np.full((whole, K + 3), np.nan, np.float32), normal(rng, K, PANEL)
    a[:M, :K] = normal(rng, M, K)
    c = np.full((whole, PANEL), np.nan, np.float32)
    task(rows_by_panel).call(0, 0, a, K + 3, b, c, M, K)
    check(c[:M], a[:M, :K], b)


@pytest.mark.parametrize("M", [1, ROWS, 2 * ROWS + 1])
@pytest.mark.parametrize("add", [False, True])
def test_an_outer_product_is_set_or_added(rng, M, add):
    K, whole = 11, -(-M // ROWS) * ROWS
    a, b = normal(rng, K, whole + 2), normal(rng, K, PANEL + 1)
    c = np.full((whole, PANEL + 2), np.float32(7))
    task(outer_product).call(0, 0, a, whole + 2, b, PANEL + 1, c, PANEL + 2, M, K, add)
    check(c[:M, :PANEL], a.T[:M], b[:, :PANEL], 7 if add else 0)
    assert (c[:, PANEL:] == 7).all()


def one_square(item, worker, w, row, column, rows, columns, out, spare):
    square(w, row, column, rows, columns, out, spare)


@pytest.mark.parametrize("turned", [False, True])
@given(rows=st.integers(0, WIDTH), columns=st.integers(0, WIDTH), gap=st.integers(0, 3))
def test_a_square_is_loaded_as_it_lies_or_turned_with_zeros_behind(turned, rows, columns, gap):
    w = np.full((columns, rows + gap) if turned else (rows, columns + gap), np.nan, np.float32)
    inside = w[:, :rows] if turned else w[:, :columns]
    inside[...] = np.arange(1, rows * columns + 1).reshape(inside.shape)
    expected = np.zeros((WIDTH, WIDTH), np.float32)
    expected[:rows, :columns] = inside.T if turned else inside
    out, spare = (np.full((WIDTH + 1, WIDTH), 7, np.float32) for _ in range(2))
    row, column = (1, w.shape[1]) if turned else (w.shape[1], 1)
    task(one_square).call(0, 0, w, row, column, rows, columns, out, spare)
    np.testing.assert_array_equal(out[:rows], expected[:rows])
    assert (out[WIDTH] == 7).all()
    assert (spare[WIDTH] == 7).all()


def exact(M):
    """A matrix of numbers as fractions: 1/3 and not the float near it."""
    return np.array([[Fraction(x).limit_denominator(10**6) for x in row] for row in M])


def correlate(d, g):
    """The convolution as networks mean it: every place of g inside d."""
    R, C = (n - k + 1 for n, k in zip(d.shape, g.shape))
    return np.array([[(d[i:i + len(g), j:j + len(g)] * g).sum() for j in range(C)]
                     for i in range(R)])


def whole_numbers(side):
    """Matrices of small whole numbers, as fractions."""
    rows = st.lists(st.integers(-9, 9), min_size=side * side, max_size=side * side)
    return rows.map(lambda n: np.array([Fraction(x) for x in n]).reshape(side, side))


@pytest.mark.parametrize("m", [2, 4])
@given(data=st.data())
def test_winograd_is_the_direct_convolution_exactly(m, data):
    d, g, dy = (data.draw(whole_numbers(side)) for side in (m + 2, 3, m))
    Bt, g_to, At = exact(BT[m]), exact(G[m]), exact(AT[m])
    D, U = Bt @ d @ Bt.T, g_to @ g @ g_to.T
    assert (At @ (U * D) @ At.T == correlate(d, g)).all()
    gradient = g_to.T @ (D * (At.T @ dy @ At)) @ g_to
    assert (gradient == correlate(d, dy)).all()


def kernel(word):
    """A kernel of just this word."""
    def bare(item, worker, x, x_row, x_col, y, y_row, y_col, bias, add):
        word(x, x_row, x_col, y, y_row, y_col)

    def with_bias(item, worker, x, x_row, x_col, y, y_row, y_col, bias, add):
        word(x, x_row, x_col, y, y_row, y_col, load(bias, 0))

    def with_both(item, worker, x, x_row, x_col, y, y_row, y_col, bias, add):
        word(x, x_row, x_col, y, y_row, y_col, load(bias, 0), add)

    return compiled([bare, with_bias, with_both][len(word.arguments) - 6])


@pytest.mark.parametrize(("m", "name"), [(m, name) for m in TRANSFORMS for name in TRANSFORMS[m]])
def test_a_transform_is_m_x_m_transposed_in_every_lane(rng, m, name):
    M = np.array({"input": BT[m], "output": AT[m], "residual": AT[m], "weight": G[m],
                  "gradient": transposed(AT[m]), "dweight": transposed(G[m])}[name])
    word = TRANSFORMS[m][name]
    R, C = M.shape
    x = normal(rng, C, C + 1, WIDTH + 3)                  # lines and vectors with gaps between
    y = np.full((R + 1, R + 2, WIDTH + 1), np.float32(7))
    bias, add = normal(rng, WIDTH), normal(rng, *y.shape)
    kernel(word).call(0, 0, x, (C + 1) * (WIDTH + 3), WIDTH + 3,
                      y, (R + 2) * (WIDTH + 1), WIDTH + 1, bias, add)
    X = x[:, :C, :WIDTH].astype(np.float64)
    expected = np.einsum("rc,cdk,sd->rsk", M, X, M)
    bound = 14 * 2.0**-24 * (np.einsum("rc,cdk,sd->rsk", np.abs(M), np.abs(X), np.abs(M)) + 9)
    if len(word.arguments) > 6:
        expected = expected + bias
    if len(word.arguments) > 7:
        expected = expected + add[:R, :R, :WIDTH]
    assert (np.abs(y[:R, :R, :WIDTH] - expected) <= bound).all()
    assert (y[R:] == 7).all()
    assert (y[:, R:] == 7).all()
    assert (y[..., WIDTH:] == 7).all()
