"""Attention's rungs for a GPU, stepped through on the CPU, against the definition in float64."""

import sys

import numpy as np
import pytest
from gpu_helpers import ORDERS, as_bf16, bf16, distance, double, needs_compiler
from test_gpu_host import sanitized
from test_kernels_attention import LAYOUTS, MASKS, NAMES, arrays, mask_of, results
from tinydiff_kernels.attention import LADDER, ON_GPU, on_device
from tinydiff_kernels.gpu.order import stepping
from tinydiff_kernels.gpu.python import Kernel
from tinydiff_kernels.gpu.source import Entry

pytest.importorskip("greenlet", reason="stepping through a kernel in Python needs greenlet")

plain, flash = LADDER["plain"], LADDER["flash"]
IN_PYTHON = ["cuda_naive", "cuda_online", "cuda_tiled"]
each_rung = pytest.mark.parametrize("idea", [*IN_PYTHON,
                                             pytest.param("flash", marks=needs_compiler)])
EPS = float(np.finfo(np.float32).eps)

#          N, h,  L,  M,  d,  e: one of each; several tiles of 16, ragged; two numbers a lane
SMALL = [(1, 1, 1, 1, 1, 1), (1, 1, 17, 18, 18, 33), (1, 2, 3, 5, 34, 4)]
# each width of tiles, in several blocks and several tiles, whole and ragged
LARGE = [(1, 1,   1,   1,   1,   1), (1, 2, 130, 150,  16,  16), (2, 3,  70,  77,  40,  40),
         (1, 1, 256,  64,  64,  64), (2, 1,  65, 130,  80, 120), (1, 1,  66,  70, 160, 160),
         (1, 1, 130, 130, 256, 256), (1, 2,   9,   8, 200,   5), (1, 1, 129,   3,   5,  33)]


def case_of(idea, shape, seed=0):
    """q, k, v, dy in the rung's own precision."""
    return [a.astype(bf16) if idea == "flash" else a for a in arrays(*shape, seed)]


def agree(idea, case, got, mask=None, scale=None, bias=None):
    """Whether results are at most twice as far from the truth as plain arithmetic is.

    The truth of gradients is for the y and log_sum that they were given. Plain arithmetic in bf16:
    weights and slopes are rounded before they multiply, for that is what tensor cores take, and so
    is each result.
    """
    scale = case[0].shape[-1] ** -0.5 if scale is None else scale
    y, log_sum, *slopes = got
    q, k, v, dy = exact = double(*case)
    bias = None if bias is None else bias.astype(np.float64)
    true = results(plain, *exact, mask, scale, bias)
    back = mask, scale, *double(y, log_sum), bias
    true[2:] = plain.backward(dy, q, k, v, *back)
    if idea == "flash":
        with np.errstate(under="ignore"):
            p, ds = map(as_bf16, plain.slopes(dy, q, k, v, *back))
            usual = [as_bf16(a) for a in (p @ v, ds @ k * scale, ds.swapaxes(-1, -2) @ q * scale,
                                          p.swapaxes(-1, -2) @ dy)]
        usual.insert(1, true[1])
    else:
        usual = results(plain, *case, mask, scale, None if bias is None else bias.astype("f4"))
    seen = np.isfinite(true[1])
    np.testing.assert_array_equal(log_sum[~seen], true[1][~seen])
    for name, a, b, c in zip(NAMES, (y, log_sum, *slopes), true, usual):
        assert a.dtype == (np.float32 if name == "log_sum" else case[0].dtype)
        a, b, c = (x[seen] for x in (a, b, c)) if name == "log_sum" else (a, b, c)
        allowed = max(2 * distance(c, b), (8 if name == "log_sum" else 2) * EPS)
        assert distance(a, b) <= allowed, f"{name}: {distance(a, b)} > {allowed}"


def pairs(second, of_all, of_some):
    """Parameters (idea, second): what two rungs try, and what the others, behind the same door."""
    values = [(idea, value) for idea in [*IN_PYTHON, "flash"]
              for value in (of_all if idea in ("cuda_naive", "flash") else of_some)]
    return pytest.mark.parametrize(("idea", second), [
        pytest.param(*pair, marks=needs_compiler if pair[0] == "flash" else ()) for pair in values])


CASES = [(idea, shape) for idea in IN_PYTHON for shape in SMALL]
CASES += [pytest.param("flash", shape, marks=needs_compiler) for shape in LARGE]


@pytest.mark.parametrize(("idea", "shape"), CASES, ids=str)
@pytest.mark.parametrize("axes", ["", "NhLM"])
def test_a_rung_is_as_exact_as_plain_arithmetic_in_any_order_of_threads(idea, shape, axes):
    case, mask = case_of(idea, shape), mask_of(axes, *shape[:4])
    orders = ORDERS if idea == "flash" or shape == SMALL[-1] else ORDERS[2:]
    first, *others = [stepped(idea, order, *case, mask) for order in orders]
    agree(idea, case, first, mask)
    for other in others:
        for a, b in zip(first, other):
            np.testing.assert_array_equal(a, b)


def stepped(idea, order, *case):
    with stepping(order=order):
        return results(LADDER[idea], *case)


@pairs("axes", list(MASKS.values())[1:], ["hxM"])
def test_a_mask_may_have_any_axes(idea, axes):
    shape = (2, 2, 70, 90, 24, 16) if idea == "flash" else (2, 2, 3, 5, 4, 3)
    case, mask = case_of(idea, shape), mask_of(axes, *shape[:4])
    agree(idea, case, results(LADDER[idea], *case, mask), mask)


@pairs("axes", ["M", "hLM", "NxLM"], ["hLM"])
def test_what_is_added_to_the_scores_moves_all_results_and_has_its_own_slope(idea, axes, rng):
    shape = (2, 2, 40, 70, 8, 16) if idea == "flash" else (2, 2, 3, 5, 4, 3)
    sizes = dict(zip("NhLMx", (*shape[:4], 1)))
    case, mask = case_of(idea, shape), mask_of("NxxM", *shape[:4])
    bias = rng.standard_normal([sizes[axis] for axis in axes]).astype(case[0].dtype)
    got = results(LADDER[idea], *case, mask, 0.3, bias)
    agree(idea, case, got, mask, 0.3, bias)
    back = mask, 0.3, *got[:2], bias
    slope = LADDER[idea].grad_bias(case[3], *case[:3], *back)
    exact = plain.grad_bias(*double(case[3], *case[:3]), mask, 0.3, *double(*got[:2], bias))
    assert slope.dtype == np.float32
    assert distance(slope, exact) < 1e-6
    silent = results(LADDER[idea], *case, mask, 0.3)
    assert distance(silent[0], double(got[0])[0]) > 0.1


@pairs("axes", ["LM", "Lx", "NhLM"], ["LM"])
def test_a_query_that_may_look_nowhere_gets_zeros_and_sends_no_gradient(idea, axes):
    shape = (1, 2, 40, 70, 9, 8) if idea == "flash" else (1, 2, 3, 5, 4, 3)
    case, mask = case_of(idea, shape), mask_of(axes, *shape[:4])
    y, log_sum, dq, *_ = results(LADDER[idea], *case, mask)
    assert (y[..., 0, :] == 0).all()
    assert (log_sum[..., 0] == -np.inf).all()
    assert (dq[..., 0, :] == 0).all()
    nowhere = results(LADDER[idea], *case, np.zeros((1, 1), bool))
    assert all((a == 0).all() for a in (nowhere[0], *nowhere[2:]))


@each_rung
def test_what_is_hidden_counts_exactly_nothing(idea):
    shape = (1, 2, 20, 70, 8, 8) if idea == "flash" else (1, 1, 4, 18, 4, 3)
    case, mask = case_of(idea, shape), mask_of("M", *shape[:4])
    before = results(LADDER[idea], *case, mask)
    case[1][..., ~mask, :], case[2][..., ~mask, :] = -50, 1e37
    after = results(LADDER[idea], *case, mask)
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a, b)
    assert (after[3][..., ~mask, :] == 0).all()
    assert (after[4][..., ~mask, :] == 0).all()


@each_rung
def test_scores_of_a_thousand_neither_overflow_nor_lose_the_loudest(idea):
    dtype = case_of(idea, SMALL[0])[0].dtype
    q = np.full((1, 1, 3, 1), 8, dtype)
    k = np.arange(-128, 129, 16).astype(dtype).reshape(1, 1, -1, 1)
    v = np.arange(17).astype(dtype).reshape(1, 1, -1, 1)
    for sign, loudest in ((1, 16), (-1, 0)):
        y, log_sum, dq, dk, dv = results(LADDER[idea], (sign * q).astype(dtype), k, v,
                                         np.ones_like(q))
        np.testing.assert_array_equal(y, loudest)
        np.testing.assert_allclose(log_sum, 1024, rtol=2 * EPS)
        np.testing.assert_allclose(dv.astype(float), 3 * (v == loudest), atol=1e-3)
        assert not dq.astype(float).any()
        assert not dk.astype(float).any()


@each_rung
@pytest.mark.parametrize("which", range(4), ids="q k v dy".split())
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_come_out_where_the_definition_has_them(idea, which, bad):
    shape = (2, 1, 40, 70, 9, 8) if idea == "flash" else (2, 1, 3, 4, 3, 2)
    case = case_of(idea, shape)
    case[which][1, 0, 2, 1] = bad
    with np.errstate(invalid="ignore"):                   # ∞ − ∞
        exact = results(plain, *double(*case))
        got = results(LADDER[idea], *case)
    for name, a, b in zip(NAMES, got, exact):
        np.testing.assert_array_equal(np.isfinite(a.astype(float)), np.isfinite(b), err_msg=name)
    assert not np.isfinite(exact[2]).all()


@each_rung
def test_heads_are_read_where_they_lie_and_come_out_side_by_side(idea, monkeypatch):
    monkeypatch.setattr(on_device, "rows_in_chunks", lambda a: pytest.fail("a copy was made"))
    N, h, L, d = (2, 3, 70, 40) if idea == "flash" else (2, 2, 3, 4)
    x, dy = (np.random.default_rng(0).standard_normal((N, L, n, h, d)) for n in (3, 1))
    x, dy = (a.astype(case_of(idea, SMALL[0])[0].dtype) for a in (x, dy))
    q, k, v, dy = (a.swapaxes(1, 2) for a in (*np.moveaxis(x, 2, 0), dy[:, :, 0]))
    got = results(LADDER[idea], q, k, v, dy)
    agree(idea, [q, k, v, dy], got)
    assert all(a.transpose(0, 2, 1, 3).flags.c_contiguous for a in (got[0], *got[2:]))


@pairs("layout", sorted(LAYOUTS.keys() - {"in records", "other byte order"}), ["backwards"])
def test_arrays_of_any_layout_are_read_and_left_as_they_were(idea, layout):
    shape = (2, 2, 20, 40, 16, 8) if idea == "flash" else (2, 2, 2, 3, 4, 3)
    case, mask = case_of(idea, shape), mask_of("hLM", *shape[:4])
    other = [LAYOUTS[layout](a) for a in case]
    agree(idea, case, results(LADDER[idea], *other, LAYOUTS[layout](mask[None])), mask)
    for a, b in zip(case, other):
        np.testing.assert_array_equal(a, b)


@each_rung
def test_arrays_of_two_or_three_axes_are_right(idea):
    shape = (2, 2, 20, 40, 16, 8) if idea == "flash" else (2, 2, 2, 3, 4, 3)
    case, mask = case_of(idea, shape), mask_of("hLM", *shape[:4])
    for where in (1, (1, 1)):
        part = [a[where] for a in case]
        hidden = mask if where == 1 else mask[1]
        agree(idea, part, results(LADDER[idea], *part, hidden), hidden)


@each_rung
@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 5, 6), (2, 2, 0, 4, 5, 6), (2, 2, 3, 0, 5, 6),
                                   (2, 2, 3, 4, 5, 0)], ids=str)
def test_what_kernels_have_no_room_for_goes_to_the_definition(idea, shape, monkeypatch):
    for launched in (Kernel, Entry):
        monkeypatch.setattr(launched, "launch", lambda *_: pytest.fail("a kernel was launched"))
    q, k, v, dy = case = case_of(idea, shape)
    y, log_sum, *slopes = results(LADDER[idea], *case)
    scale, (Q, K, V, DY) = shape[4] ** -0.5, on_device.widen(*case)
    exact = [*plain.forward(Q, K, V, None, scale),
             *plain.backward(DY, Q, K, V, None, scale, *on_device.widen(y), log_sum)]
    for a, b in zip((y, log_sum, *slopes), exact):
        np.testing.assert_array_equal(a, b.astype(a.dtype))
    assert [a.dtype for a in (y, *slopes)] == [a.dtype for a in (dy, q, k, v)]


@each_rung
@pytest.mark.parametrize("shape", [(1, 2, 3, 4, 264, 6), (2, 1, 3, 2, 8, 300)], ids=str)
def test_what_is_too_wide_is_still_a_gpu_s_work(idea, shape, monkeypatch, rng):
    for function in "forward", "backward", "grad_bias":
        monkeypatch.setattr(plain, function, lambda *_: pytest.fail("left to the definition"))
    case, bias = case_of(idea, shape), rng.standard_normal(shape[1:4]).astype(np.float32)
    got = results(LADDER[idea], *case, None, 0.1, bias)
    slope = LADDER[idea].grad_bias(case[3], *case[:3], None, 0.1, *got[:2], bias)
    monkeypatch.undo()
    agree(idea, case, got, None, 0.1, bias)
    exact = plain.grad_bias(*double(case[3], *case[:3]), None, 0.1, *double(*got[:2], bias))
    assert distance(slope, exact) < 1e-6


@each_rung
def test_heads_that_share_keys_and_values_broadcast(idea):
    q, k, v, _ = case_of(idea, (2, 2, 3, 4, 8, 8))
    y, log_sum = LADDER[idea].forward(q, k[:, :1], v[:, :1], None, 1.0)
    exact, sums = plain.forward(*double(q, k[:, :1], v[:, :1]), None, 1.0)
    assert distance(y, exact) < (4e-3 if idea == "flash" else 1e-6)
    assert distance(log_sum, sums) < 1e-6


@each_rung
def test_float64_stays_float64_and_as_exact(idea):
    case = double(*arrays(1, 2, 3, 4, 3, 2))
    for got, exact in zip(results(LADDER[idea], *case), results(plain, *case)):
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, exact)


def test_float32_goes_down_from_flash_and_bf16_is_float32_on_the_rungs_below(monkeypatch):
    case = arrays(*SMALL[2])
    for got, tiled in zip(results(flash, *case), results(LADDER["cuda_tiled"], *case)):
        np.testing.assert_array_equal(got, tiled)
    half = [a.astype(bf16) for a in case]
    agree("flash", half, results(LADDER["cuda_naive"], *half))


OUTSIDE = """
import sys
sys.path[:] = {path!r}
import test_gpu_attention as here
for shape in [(1, 2, 3, 70, 40, 16), (1, 1, 70, 3, 200, 256)]:
    mask = here.mask_of("hLM", *shape[:4])
    here.results(here.flash, *here.case_of("flash", shape), mask)
print("came through")
"""


@needs_compiler
def test_flash_reads_nothing_outside_an_array():
    done = sanitized("-c", OUTSIDE.format(path=sys.path))
    assert (done.returncode, done.stdout) == (0, "came through\n"), done.stderr


def test_the_ladder_of_a_gpu_ends_with_flash():
    assert LADDER.device == [*IN_PYTHON, "flash"]
    assert ON_GPU == "flash"
