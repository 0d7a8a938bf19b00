"""One pass over the flat buffers is the AdamW of the papers, on any rung."""

import hashlib
from math import inf, nan, sqrt

import numpy as np
import pytest
from kernel_helpers import python
from optimizer_helpers import NAMES, assert_as_exact_as_plain_arithmetic, buffers, moved
from tinydiff_kernels import optimizer
from tinydiff_kernels.ladder import can_compile

RUNGS = optimizer.LADDER.plain + (optimizer.LADDER.compiled if can_compile() else [])
each_rung = pytest.mark.parametrize("idea", RUNGS)


@each_rung
def test_a_step_is_the_formula_of_the_papers(idea):
    before = buffers(37, np.float64)
    after = moved(idea, [a.copy() for a in before], decaying=20)
    for i, (x, g, m, v, mean) in enumerate(zip(*map(np.ndarray.tolist, before))):
        g *= 0.5                                          # clipped
        m = 0.9 * m + 0.1 * g                             # Kingma & Ba, Alg. 1
        v = 0.99 * v + 0.01 * g**2
        m_hat, v_hat = m / (1 - 0.9**3), v / (1 - 0.99**3)
        if i < 20:
            x -= 2e-3 * 0.01 * x                          # Loshchilov & Hutter, Alg. 2
        x -= 2e-3 * m_hat / (sqrt(v_hat) + 1e-8)
        mean = 0.999 * mean + 0.001 * x
        for name, got, right in zip(NAMES, after, (x, 0, m, v, mean)):
            np.testing.assert_allclose(got[i], right, rtol=1e-12, atol=1e-15, err_msg=name)


@each_rung
@pytest.mark.parametrize("n", [1, 7, 16, 65, 2**14, 2**16 + 33, 100_003])
@pytest.mark.parametrize("decaying", [0, 1, 40_001, 100_003])
def test_float32_is_as_exact_as_plain_arithmetic(idea, n, decaying):
    assert_as_exact_as_plain_arithmetic(idea, n, decaying)


@each_rung
def test_without_a_mean_of_the_weights_all_else_is_the_same(idea):
    *state, ema = buffers(1000)
    kept = ema.copy()
    moved(idea, [*state, None])
    np.testing.assert_array_equal(ema, kept)
    for got, right in zip(state, moved(idea, buffers(1000))):
        np.testing.assert_array_equal(got, right)


@each_rung
def test_weights_without_any_gradient_yet_stay_where_they_are(idea):
    data, *_ = buffers(100)
    state = moved(idea, [data.copy(), *np.zeros((4, 100), np.float32)], decay=0.0, step=1)
    np.testing.assert_array_equal(state[0], data)


@each_rung
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_gradient_that_is_no_number_stays_visible_and_alone(idea, bad):
    for n, i in ((100, 99), (100, 3), (20_000, 16_384)):
        state = buffers(n)
        state[1][i] = bad
        with np.errstate(invalid="ignore"):
            data, grad, m, v, ema = moved(idea, state)
        for a in (data, m, v, ema):
            assert not np.isfinite(a[i])
            assert np.isfinite(np.delete(a, i)).all()
        assert np.isnan(data[i])
        assert np.isnan(ema[i])
        assert not grad.any()


KINDS = {
    "float64":      lambda a: a.astype(np.float64),
    "every second": lambda a: np.repeat(a, 2)[::2],
    "backwards":    lambda a: a[::-1].copy()[::-1],
    "part of more": lambda a: np.pad(a, 40, constant_values=9)[40:-40],
}


@each_rung
@pytest.mark.parametrize("kind", KINDS)
def test_buffers_of_any_kind_are_changed_where_they_lie(idea, kind):
    state = [KINDS[kind](a) for a in buffers(1001)]
    right = moved(idea, buffers(1001))
    for name, got, exact in zip(NAMES, moved(idea, state), right):
        assert got.dtype == (np.float64 if kind == "float64" else np.float32)
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6, err_msg=name)
        if kind == "part of more":
            assert (got.base[:40] == 9).all()
            assert (got.base[-40:] == 9).all()


@each_rung
def test_nothing_gives_nothing_and_read_only_buffers_are_refused(idea):
    moved(idea, buffers(0))
    assert optimizer.LADDER[idea].norm(np.zeros(0, np.float32)) == 0.0
    state = buffers(50)
    state[2].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        moved(idea, state)


@each_rung
@pytest.mark.parametrize("n", [1, 7, 65, 2**14 + 5, 200_001])
def test_the_norm_is_the_root_of_the_sum_of_squares(idea, n):
    norm = optimizer.LADDER[idea].norm
    _, grad, *_ = buffers(n)
    right = sqrt(np.square(grad.astype(np.float64)).sum())
    assert type(norm(grad)) is float
    assert norm(grad) == pytest.approx(right, rel=3e-7)
    assert norm(grad.astype(np.float64)) == pytest.approx(right, rel=1e-12)
    assert norm(np.repeat(grad, 2)[::2]) == pytest.approx(right, rel=3e-7)
    grad[n - 1] = nan
    assert np.isnan(norm(grad))
    grad[n - 1] = -inf
    assert norm(grad) == inf


def digest():
    """A fingerprint of two steps and a norm."""
    rung, state = optimizer.LADDER["onepass"], buffers(100_003)
    norm = rung.norm(state[1])
    state[1] /= norm
    moved("onepass", state)
    state[1][:] = state[0]
    moved("onepass", state, decaying=70_001, step=4)
    return hashlib.sha256(b"".join([*state, np.float64(norm)])).hexdigest()


@pytest.mark.skipif(not can_compile(), reason="needs Numba")
def test_the_number_of_threads_changes_no_bit():
    here = digest()
    for threads in (1, 4):
        code = "from test_kernels_optimizer import digest; print(digest())"
        assert python(code, OMP_NUM_THREADS=str(threads)).strip() == here
