"""Attention block by block is what the definition says, whatever the shape, mask or memory."""

import hashlib
import math
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tinydiff_kernels.attention import DEFAULT, LADDER

plain, online = LADDER["plain"], LADDER["online"]
NAMES = "y log_sum dq dk dv".split()

#          N, h,  L,   M,   d,  e
SHAPES = [(1, 1,  1,   1,   1,  1), (2, 3,  7,   1,   5,  5), (1, 2,  1,  33,  24, 24),
          (2, 1, 33,   7,  40, 24), (1, 1, 64,  64,  64, 64), (3, 2, 65, 130,   1, 40),
          (1, 3, 70, 300,  24, 33), (2, 9, 50, 270,  40,  5), (1, 1,  5, 700,  17, 16)]
#        of the axes N, h, L, M, those that the mask has
MASKS = {"none": "", "of keys": "M", "of queries": "Lx", "of each image's keys": "NxxM",
         "of pairs": "LM", "of each head": "hLM", "of each head's keys": "hxM", "of all": "NhLM"}


def arrays(N, h, L, M, d, e, seed=0):
    """q, k, v, dy in float32, as the network has them: heads side by side, then the axes moved."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((N, n, h, c), dtype=np.float32).transpose(0, 2, 1, 3)
            for n, c in ((L, d), (M, d), (M, e), (L, e))]


def mask_of(axes, N, h, L, M, seed=1):
    """A mask with the axes named (x is one of length 1) in which query 0 may look nowhere."""
    if not axes:
        return None
    sizes = {"N": N, "h": h, "L": L, "M": M, "x": 1}
    mask = np.random.default_rng(seed).random([sizes[axis] for axis in axes]) < 0.6
    if "L" in axes:
        mask[..., 0, :] = False
    return mask


def results(rung, q, k, v, dy, mask=None, scale=None, bias=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    y, log_sum = rung.forward(q, k, v, mask, scale, bias)
    return [y, log_sum, *rung.backward(dy, q, k, v, mask, scale, y, log_sum, bias)]


def exactly(q, k, v, dy, mask=None, scale=None, bias=None):
    """What rung 0 says in float64."""
    return results(plain, *(a.astype(np.float64) for a in (q, k, v, dy)), mask, scale, bias)


def close(got, exact, atol):
    for name, a, b in zip(NAMES, got, exact):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol, err_msg=name, strict=False)
        assert a.shape == b.shape


def test_rung_0_is_the_formula_for_one_query_after_the_other():
    q, k, v, _ = (a.astype(np.float64)[0, 0] for a in arrays(1, 1, 4, 5, 3, 2))
    mask = mask_of("LM", 1, 1, 4, 5)
    y, log_sum = plain.forward(q, k, v, mask, 0.3)
    assert (y[0] == 0).all()
    assert log_sum[0] == -np.inf
    for l in range(1, 4):
        weights = {m: math.exp(0.3 * q[l] @ k[m]) for m in range(5) if mask[l, m]}
        total = sum(weights.values())
        np.testing.assert_allclose(log_sum[l], math.log(total))
        np.testing.assert_allclose(y[l], sum(p * v[m] for m, p in weights.items()) / total)


@pytest.mark.parametrize("axes", MASKS.values(), ids=MASKS)
def test_rung_0_goes_back_along_central_differences(axes):
    *qkv, dy = (a.astype(np.float64) for a in arrays(2, 2, 3, 5, 4, 3))
    mask = mask_of(axes, 2, 2, 3, 5)
    _, _, *slopes = results(plain, *qkv, dy, mask, 0.7)
    for i, slope in enumerate(slopes):
        away = np.random.default_rng(i).standard_normal(slope.shape)
        ends = [[a + sign * 1e-6 * away if j == i else a for j, a in enumerate(qkv)]
                for sign in (1, -1)]
        up, down = ((plain.forward(*end, mask, 0.7)[0] * dy).sum() for end in ends)
        np.testing.assert_allclose((slope * away).sum(), (up - down) / 2e-6, rtol=1e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axes", MASKS.values(), ids=MASKS)
def test_online_agrees_with_the_definition(shape, axes):
    mask, case = mask_of(axes, *shape[:4]), arrays(*shape)
    close(results(online, *case, mask), exactly(*case, mask), 1e-5)


@pytest.mark.parametrize("masked", ["", "NxxM", "LM"])
@pytest.mark.parametrize("axes", ["M", "hxM", "hLM", "NhLM"])
def test_what_is_added_to_the_scores_moves_all_results_and_has_its_own_slope(axes, masked):
    shape, rng = (2, 3, 9, 133, 8, 5), np.random.default_rng(3)
    sizes = dict(zip("NhLMx", (*shape[:4], 1)))
    bias = rng.standard_normal([sizes[axis] for axis in axes], dtype=np.float32)
    mask, case = mask_of(masked, *shape[:4]), arrays(*shape)
    exact = exactly(*case, mask, None, bias.astype(np.float64))
    close(results(online, *case, mask, None, bias), exact, 1e-5)
    assert np.abs(exact[0] - exactly(*case, mask)[0]).max() > 0.1
    q, k, v, dy = (a.astype(np.float64) for a in case)
    away, slope = rng.standard_normal(bias.shape), plain.grad_bias(dy, q, k, v, mask, 8**-0.5,
                                                                   *exact[:2], bias)
    up, down = ((plain.forward(q, k, v, mask, 8**-0.5, bias + step * away)[0] * dy).sum()
                for step in (1e-6, -1e-6))
    np.testing.assert_allclose((slope * away).sum(), (up - down) / 2e-6, rtol=1e-6)


@settings(max_examples=40)
@given(st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 150)] * 2, *[st.integers(1, 70)] * 2),
       st.sampled_from(list(MASKS.values())), st.integers(0, 99))
def test_online_agrees_on_any_shape(shape, axes, seed):
    mask, case = mask_of(axes, *shape[:4], seed), arrays(*shape, seed)
    close(results(online, *case, mask), exactly(*case, mask), 3e-5)    # dk may cancel to 0


@pytest.mark.parametrize("shape", [(4, 2, 96, 96, 64, 64), (1, 2, 64, 700, 40, 40)], ids=str)
def test_the_float32_error_is_at_most_twice_that_of_plain_arithmetic(shape):
    case = arrays(*shape)
    exact = exactly(*case)
    for name, got, usual, true in zip(NAMES, results(online, *case), results(plain, *case), exact):
        assert got.dtype == np.float32
        error, allowed = (np.square(a - true).mean() ** 0.5 for a in (got, usual))
        assert 0 < error <= 2 * allowed, name


def among_other_bytes(a):
    """The rows of `a` in records with one byte more."""
    records = np.zeros(a.shape[:-1], [("row", a.dtype, a.shape[-1:]), ("byte", np.uint8)])
    records["row"] = a
    return records["row"]


LAYOUTS = {
    "contiguous":     np.ascontiguousarray,
    "Fortran order":  np.asfortranarray,
    "every second":   lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards":      lambda a: np.ascontiguousarray(a[:, ::-1, ::-1])[:, ::-1, ::-1],
    "a part of more": lambda a: np.pad(a, 1, constant_values=np.nan)[1:-1, 1:-1, 1:-1, 1:-1],
    "unaligned":      lambda a: np.frombuffer(b"_" + a.tobytes(), a.dtype, offset=1)
                                  .reshape(a.shape),
    "in records":     among_other_bytes,
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_online_reads_arrays_of_any_layout_and_leaves_them_as_they_were(layout):
    case, mask = arrays(2, 3, 9, 17, 5, 20), mask_of("hLM", 2, 3, 9, 17)
    other = [LAYOUTS[layout](a) for a in case]
    close(results(online, *other, LAYOUTS[layout](mask[None])), exactly(*case, mask), 1e-5)
    for a, b in zip(case, other):
        np.testing.assert_array_equal(a, b)


def test_the_heads_of_what_comes_out_lie_side_by_side():
    y, _, *slopes = results(online, *arrays(2, 3, 40, 50, 8, 6))
    assert all(a.transpose(0, 2, 1, 3).flags.c_contiguous for a in (y, *slopes))


def test_arrays_of_two_three_or_five_axes_are_right():
    case, mask = arrays(2, 3, 9, 17, 5, 20), mask_of("hLM", 2, 3, 9, 17)
    whole = exactly(*case, mask)
    close(results(online, *(a[1] for a in case), mask), [a[1] for a in whole], 1e-5)
    close(results(online, *(a[1, 2] for a in case), mask[2]), [a[1, 2] for a in whole], 1e-5)
    close(results(online, *(a[None] for a in case), mask), [a[None] for a in whole], 1e-5)


def test_heads_that_share_keys_and_values_broadcast():
    q, k, v, dy = arrays(2, 3, 9, 17, 5, 20)
    shared = [np.broadcast_to(a[:, :1], a.shape) for a in (k, v)]
    close(results(online, q, k[:, :1], v[:, :1], dy), exactly(q, *shared, dy), 1e-5)
    close(results(online, q, *shared, dy), exactly(q, *shared, dy), 1e-5)


def test_float64_stays_float64_and_as_exact():
    case = [a.astype(np.float64) for a in arrays(2, 2, 5, 7, 3, 4)]
    for got, exact in zip(results(online, *case), exactly(*case)):
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize("rung", [plain, online])
@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 5, 6), (2, 2, 0, 4, 5, 6), (2, 2, 3, 0, 5, 6),
                                   (2, 2, 3, 4, 5, 0)], ids=str)
def test_no_images_no_queries_no_keys_and_no_values_are_no_trouble(rung, shape):
    case = arrays(*shape)
    y, log_sum, *slopes = results(rung, *case)
    assert (y == 0).all()
    assert shape[3] or (log_sum == -np.inf).all()
    assert all((a == 0).all() and a.shape == b.shape for a, b in zip(slopes, case))


@pytest.mark.parametrize("axes", ["LM", "Lx", "NhLM"])
def test_a_query_that_may_look_nowhere_gets_zeros_and_sends_no_gradient(axes):
    case, mask = arrays(2, 2, 40, 70, 9, 8), mask_of(axes, 2, 2, 40, 70)
    y, log_sum, dq, *_ = results(online, *case, mask)
    assert (y[..., 0, :] == 0).all()
    assert (log_sum[..., 0] == -np.inf).all()
    assert (dq[..., 0, :] == 0).all()
    nowhere = results(online, *case, np.zeros((1, 1), bool))
    assert all((a == 0).all() for a in (nowhere[0], *nowhere[2:]))


@pytest.mark.parametrize("M", [9, 300])
def test_what_is_hidden_counts_exactly_nothing(M):
    q, k, v, dy = arrays(1, 2, 20, M, 8, 8)
    mask = mask_of("M", 1, 2, 20, M)
    before = results(online, q, k, v, dy, mask)
    k[..., ~mask, :], v[..., ~mask, :] = -50, 1e37
    after = results(online, q, k, v, dy, mask)
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a, b)
    assert (after[3][..., ~mask, :] == 0).all()
    assert (after[4][..., ~mask, :] == 0).all()


@pytest.mark.parametrize("rung", [plain, online])
def test_scores_of_ten_thousand_neither_overflow_nor_lose_the_loudest(rung):
    q = np.full((1, 1, 3, 1), 50, np.float32)
    k = np.arange(-200, 201, 4, dtype=np.float32).reshape(1, 1, -1, 1)
    v = np.arange(101, dtype=np.float32).reshape(1, 1, -1, 1)
    for sign, loudest in ((1, 100), (-1, 0)):
        y, log_sum, dq, dk, dv = results(rung, sign * q, k, v, np.ones_like(q))
        np.testing.assert_array_equal(y, loudest)
        np.testing.assert_array_equal(log_sum, 10_000)
        np.testing.assert_array_equal(dv, 3 * (v == loudest))
        assert not dq.any()
        assert not dk.any()


@pytest.mark.parametrize("which", range(4), ids="q k v dy".split())
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_come_out_where_the_definition_has_them(which, bad):
    case = arrays(2, 2, 40, 300, 9, 8)
    case[which][1, 0, 33, 4] = bad
    with np.errstate(invalid="ignore"):                   # ∞ − ∞
        exact = exactly(*case)
    for name, got, true in zip(NAMES, results(online, *case), exact):
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(true), err_msg=name)
    assert not np.isfinite(exact[2]).all()


def test_no_array_of_queries_times_keys_exists():
    case = arrays(1, 1, 4096, 4096, 8, 8)
    results(online, *case)
    tracemalloc.start()
    results(online, *case)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4096 * 4096                             # bytes: a quarter of the array


def digest():
    """A fingerprint of results on shapes of one and of many items, blocks and parts."""
    found = hashlib.sha256()
    for shape in [(1, 1, 70, 300, 24, 40), (1, 2, 200, 600, 8, 8), (5, 4, 65, 130, 40, 24)]:
        for a in results(online, *arrays(*shape)):
            found.update(np.ascontiguousarray(a))
    return found.hexdigest()


def fresh(code, **environment):
    """What a fresh process prints that runs `code` after importing this file as `here`."""
    start = f"import sys; sys.path[:] = {[os.path.dirname(__file__), *sys.path]!r}\n"
    run = subprocess.run([sys.executable, "-c", f"{start}import {__name__} as here\n{code}"],
                         env={**os.environ, **environment}, capture_output=True, text=True,
                         check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_any_number_of_threads_gives_the_same_bytes():
    found = {fresh("print(here.digest())", OMP_NUM_THREADS=n) for n in "14"}
    assert found == {digest()}


BEHIND = """
import ctypes, mmap, numpy as np

def last(a):
    '''a copy that ends where memory ends: touching what is behind it kills the process'''
    size = -(-a.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + size
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    y = np.frombuffer(pages, a.dtype, a.size, size - a.nbytes).reshape(a.shape)
    y[...] = a
    return y

for L, M, d, e in [(1, 1, 1, 1), (33, 7, 5, 24), (7, 130, 40, 3)]:
    case = [last(np.ascontiguousarray(a)) for a in here.arrays(1, 2, L, M, d, e)]
    y, log_sum = here.online.forward(*case[:3], last(np.ones((L, M), bool)), 1.0)
    here.online.backward(case[3], *case[:3], None, 1.0, last(np.ascontiguousarray(y)),
                         last(log_sum))
    print("alive")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages by mprotect")
def test_nothing_behind_an_array_is_read():
    assert fresh(BEHIND).split() == ["alive"] * 3


def test_the_ladder_starts_at_the_definition_and_runs_online():
    assert LADDER.plain + LADDER.compiled == ["plain", "online"]
    assert DEFAULT == "online"
