"""Every rung of the matrix product computes what the loops define: any shape, layout and thread."""

import ctypes
import hashlib
import mmap
import sys

import numpy as np
import pytest
from kernel_helpers import python
from tinydiff_kernels import matmul
from tinydiff_kernels.ladder import can_compile

ROWS    = (1, 7, 9, 65)
WIDTHS  = (1, 3, 5, 24, 33, 100)
RUNGS   = matmul.LADDER.plain + (matmul.LADDER.compiled if can_compile() else [])
EPS     = 2 * float(np.finfo(np.float32).eps)
RESULTS = ("forward", "fused", "grad_input", "grad_weight")
each_rung = pytest.mark.parametrize("idea", RUNGS)
fast_rung = pytest.mark.parametrize("idea", RUNGS[1:])


@pytest.fixture(autouse=True, params=["weights stay", "weights pass by"])
def no_product_is_too_small(monkeypatch, request):
    if can_compile():
        monkeypatch.setattr(matmul.LADDER["simd"], "TINY", 0)
        large = 0 if request.param == "weights pass by" else 1 << 60
        monkeypatch.setattr(matmul.LADDER["simd"], "LARGE", large)


def arrays(P, C, O, dtype=np.float32):
    """x, w, b, add, dy"""
    rng = np.random.default_rng(P + 7 * C + 49 * O)
    return [rng.standard_normal(shape).astype(dtype)
            for shape in ((P, C), (C, O), (O,), (P, O), (P, O))]


@np.errstate(invalid="ignore")           # BLAS may flag lanes it discards: error() sees instead
def results(rung, x, w, b, add, dy):
    return dict(zip(RESULTS, (rung.forward(x, w), rung.forward(x, w, b, add),
                              rung.grad_input(dy, w), rung.grad_weight(x, dy))))


def exact(*of):
    """The definition in float64, by the rung that the loops have judged."""
    return results(matmul.LADDER["blas"], *(a.astype(np.float64) for a in of))


def error(got, right):
    """The largest distance; infinite for NaN and for another shape, so that neither ever passes."""
    if got.shape != right.shape or not np.isfinite(got).all():
        return np.inf
    return np.abs(got - right).max(initial=0)


def plain(x, w, b, add, dy):
    """Rung 0 in the arrays' own precision: its loops, a row of w at a time."""
    def product(x, w):
        y = np.zeros((len(x), w.shape[1]), x.dtype)
        for c in range(len(w)):
            y += x[:, c, None] * w[c]
        return y

    y = product(x, w)
    return dict(zip(RESULTS, (y, y + b + add, product(dy, w.T), product(x.T, dy))))


def agree(got, of, floor=EPS):
    """Whether errors are at most twice those of plain float32; `floor` · Σ |x| |w| always passes.

    A single sum may be lucky in one order and not in another; the largest of many errors is not.
    """
    right, rounded, large = exact(*of), plain(*of), exact(*map(np.abs, of))
    for name, y in got.items():
        assert y.dtype == np.float32
        allowed = max(2 * error(rounded[name], right[name]), floor * large[name].max(initial=0))
        assert error(y, right[name]) <= allowed, name


@each_rung
@pytest.mark.parametrize("P", [1, 7])
@pytest.mark.parametrize(("C", "O"), [(1, 1), (3, 5), (5, 3), (24, 33)])
def test_float64_is_the_formula_to_the_last_digits(idea, P, C, O):
    x, w, b, add, dy = of = arrays(P, C, O, np.float64)
    formula = {"forward": np.einsum("pc,co->po", x, w),
               "fused": np.einsum("pc,co->po", x, w) + b + add,
               "grad_input": np.einsum("po,co->pc", dy, w),
               "grad_weight": np.einsum("pc,po->co", x, dy)}
    for name, y in results(matmul.LADDER[idea], *of).items():
        assert y.dtype == np.float64
        assert error(y, formula[name]) < 1e-12, name


@fast_rung
@pytest.mark.parametrize("P", ROWS)
@pytest.mark.parametrize("C", WIDTHS)
def test_float32_is_as_exact_as_plain_arithmetic(idea, P, C):
    for O in WIDTHS:
        of = arrays(P, C, O)
        agree(results(matmul.LADDER[idea], *of), of)


@fast_rung
@pytest.mark.parametrize("shape", [(1500, 40, 64), (200, 600, 64), (97, 64, 320), (2100, 16, 8),
                                   (300, 40, 600)])
def test_large_products_are_cut_into_blocks_and_sums_into_parts(idea, shape):
    of = arrays(*shape)
    agree(results(matmul.LADDER[idea], *of), of, floor=0)


@each_rung
@pytest.mark.parametrize(("P", "C1", "C2", "O"), [(9, 3, 5, 24), (7, 16, 1, 33), (65, 33, 24, 5)])
def test_two_inputs_side_by_side_are_one(idea, P, C1, C2, O):
    rung = matmul.LADDER[idea]
    x, w, b, add, dy = of = arrays(P, C1 + C2, O)
    parts = [x[:, :C1], x[:, C1:]]
    dx = rung.grad_input(dy, w, C1)
    assert [part.shape for part in dx] == [(P, C1), (P, C2)]
    got = {"forward": rung.forward(parts, w), "fused": rung.forward(parts, w, b, add),
           "grad_input": np.concatenate(dx, axis=1), "grad_weight": rung.grad_weight(parts, dy)}
    if idea != "loops":
        agree(got, of)
    else:
        for name, y in got.items():
            np.testing.assert_array_equal(y, results(rung, *of)[name])


@fast_rung
def test_one_of_two_inputs_may_be_empty_and_a_third_is_refused(idea):
    rung = matmul.LADDER[idea]
    x, w, b, add, _ = of = arrays(9, 24, 33)
    for parts in ([x[:, :0], x], [x, x[:, :0]]):
        agree({"fused": rung.forward(parts, w, b, add)}, of)
    with pytest.raises(ValueError, match=r"too many values|size"):
        rung.forward([x[:, :8], x[:, 8:16], x[:, 16:]], w)


LAYOUTS = {
    "Fortran order":  np.asfortranarray,
    "every second":   lambda a: np.repeat(a, 2, axis=0)[::2],
    "backwards":      lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "a part of more": lambda a: np.pad(a, 1, constant_values=np.nan)[(slice(1, -1),) * a.ndim],
    "read-only":      lambda a: np.broadcast_to(a, a.shape),
}


@fast_rung
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rung_reads_arrays_of_any_layout_and_leaves_them(idea, layout):
    of = arrays(65, 24, 33)
    other = [LAYOUTS[layout](a) for a in of]
    agree(results(matmul.LADDER[idea], *other), of)
    for before, after in zip(of, other):
        np.testing.assert_array_equal(before, after)


@fast_rung
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_nothing_gives_nothing(idea, shape):
    of = arrays(*shape)
    for name, y in results(matmul.LADDER[idea], *of).items():
        assert error(y, exact(*of)[name]) < 1e-6, name


@fast_rung
def test_shapes_that_do_not_fit_are_refused(idea):
    rung = matmul.LADDER[idea]
    x, w, b, _, dy = arrays(9, 24, 33)
    for call in (lambda: rung.forward(x, w[1:]), lambda: rung.forward([x, x], w),
                 lambda: rung.forward(x, w, b[1:]), lambda: rung.forward(x, w, None, dy[1:]),
                 lambda: rung.grad_input(dy[:, 1:], w), lambda: rung.grad_weight(x, dy[1:])):
        with pytest.raises(ValueError, match=r"3|2|8"):
            call()


@fast_rung
def test_mixed_precision_is_worked_out_in_the_higher_one(idea):
    x, w, *_ = arrays(65, 24, 33)
    y = matmul.LADDER[idea].forward(x, w.astype(np.float64))
    assert y.dtype == np.float64
    assert error(y, x.astype(np.float64) @ w) < 1e-12


@fast_rung
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_reaches_what_depends_on_it_and_nothing_else(idea, bad):
    rung = matmul.LADDER[idea]
    with np.errstate(invalid="ignore"):
        for P in (9, 65):                                 # 9: in the rows behind the last block
            x, w, b, add, dy = arrays(P, 33, 100)
            x[P - 1, 32] = dy[P - 1, 99] = bad
            x[P - 1, 31] = dy[P - 1, 98] = -bad
            w[31:] = np.abs(w[31:])
            w[:, 98:] = np.abs(w[:, 98:])
            rows = np.arange(P) == P - 1
            for y in (rung.forward(x, w), rung.forward(x, w, b, add), rung.grad_input(dy, w)):
                assert np.isnan(y[rows]).all()
                assert np.isfinite(y[~rows]).all()
            x, w, b, add, dy = arrays(P, 33, 100)
            x[0, 32] = bad
            dw = rung.grad_weight(x, dy)
            assert not np.isfinite(dw[32]).any()
            assert np.isfinite(dw[:32]).all()
            results(rung, *(np.full_like(a, bad) for a in (x, w, b, add, dy)))
            of = arrays(P, 33, 100)                       # nothing is left over from before
            agree(results(rung, *of), of)


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
@fast_rung
def test_nothing_is_read_behind_the_end_of_an_array(idea):
    pages = []

    def at_the_edge(a):
        """A copy of `a` whose last byte is the last that may be read."""
        size = -(-a.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        pages.append(mmap.mmap(-1, size + mmap.PAGESIZE))
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages[-1]))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, 0) == 0
        out = np.frombuffer(pages[-1], np.float32, a.size, size - a.nbytes).reshape(a.shape)
        out[...] = a
        return out

    for P, C, O in ((9, 33, 5), (65, 24, 32), (97, 5, 64), (7, 100, 33)):
        of = arrays(P, C, O)
        agree(results(matmul.LADDER[idea], *map(at_the_edge, of)), of)


def digest():
    """A fingerprint of products of many blocks, and of a few too small for that."""
    rung, found, rng = matmul.LADDER["simd"], hashlib.sha256(), np.random.default_rng(0)
    for P, C, O in ((1, 512, 256), (16, 512, 256), (65, 33, 24), (300, 256, 256), (3000, 40, 64)):
        x, w, dy = (rng.standard_normal(s, dtype=np.float32) for s in ((P, C), (C, O), (P, O)))
        for y in (rung.forward(x, w, w[0], dy), rung.grad_input(dy, w), rung.grad_weight(x, dy)):
            found.update(y)
    return found.hexdigest()


@pytest.mark.skipif(not can_compile(), reason="needs Numba")
def test_the_number_of_threads_changes_no_bit(monkeypatch):
    monkeypatch.undo()                                    # tiny products go to BLAS again
    here = digest()
    for threads in (1, 4):
        code = "from test_kernels_matmul import digest; print(digest())"
        assert python(code, OMP_NUM_THREADS=str(threads)).strip() == here
