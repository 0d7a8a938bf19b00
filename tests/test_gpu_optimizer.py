"""AdamW on a GPU, stepped through on the CPU, against rung 0 in float64."""

from math import inf, nan, sqrt

import numpy as np
import pytest
from gpu_helpers import any_order, bf16, needs_compiler
from optimizer_helpers import HOW, NAMES, assert_as_exact_as_plain_arithmetic, buffers, moved
from tinydiff_kernels.gpu.order import stepping
from tinydiff_kernels.optimizer import LADDER

pytest.importorskip("greenlet", reason="kernels in Python are stepped through with greenlet")

__all__ = ["any_order"]
numpy_rung, fused = LADDER["numpy"], LADDER["fused"]
each_rung = pytest.mark.parametrize(
    "idea", ["cuda_elementwise", pytest.param("fused", marks=needs_compiler)])


@each_rung
@pytest.mark.parametrize("n", [1, 7, 65, 1000, 2501])
@pytest.mark.parametrize("decaying", [0, 501, 2501])
def test_a_step_is_as_exact_as_plain_arithmetic(idea, n, decaying, any_order):
    assert_as_exact_as_plain_arithmetic(idea, n, decaying)


@each_rung
@pytest.mark.parametrize("size", [0, 1, 6, 500, 1003])
def test_the_copy_in_bf16_holds_the_first_numbers_as_they_are_now(idea, size):
    half = np.full(size, nan, bf16)
    data, *_ = moved(idea, buffers(1003), half=half)
    np.testing.assert_array_equal(half, data[:size].astype(bf16))


@each_rung
def test_without_a_mean_of_the_weights_all_else_is_the_same(idea):
    *state, ema = buffers(1000)
    kept = ema.copy()
    moved(idea, [*state, None])
    np.testing.assert_array_equal(ema, kept)
    for got, right in zip(state, moved(idea, buffers(1000))):
        np.testing.assert_array_equal(got, right)


@each_rung
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_gradient_that_is_no_number_stays_visible_and_alone(idea, bad):
    state = buffers(300)
    state[1][299] = bad
    data, grad, m, v, ema = moved(idea, state)
    for a in (data, m, v, ema):
        assert not np.isfinite(a[299])
        assert np.isfinite(a[:299]).all()
    assert not grad.any()


KINDS = {
    "float64":      lambda a: a.astype(np.float64),
    "every second": lambda a: np.repeat(a, 2)[::2],
    "part of more": lambda a: np.pad(a, 41, constant_values=9)[41:-41],
}


@each_rung
@pytest.mark.parametrize("kind", KINDS)
def test_buffers_of_any_kind_are_changed_where_they_lie(idea, kind):
    half = np.full(501, nan, bf16)
    state = [KINDS[kind](a) for a in buffers(501)]
    right = moved(idea, buffers(501))
    for name, got, exact in zip(NAMES, moved(idea, state, half=half), right):
        assert got.dtype == (np.float64 if kind == "float64" else np.float32)
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6, err_msg=name)
        if kind == "part of more":
            assert (got.base[:41] == 9).all()
            assert (got.base[-41:] == 9).all()
    np.testing.assert_array_equal(half, state[0].astype(bf16))


@each_rung
def test_nothing_gives_nothing_and_read_only_buffers_are_refused(idea):
    moved(idea, buffers(0))
    assert LADDER[idea].norm(np.zeros(0, np.float32)) == 0.0
    state = buffers(50)
    state[2].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        moved(idea, state)


@each_rung
@pytest.mark.parametrize("n", [1, 7, 1025, 40_003])
def test_the_norm_is_the_root_of_the_sum_of_squares(idea, n):
    norm = LADDER[idea].norm
    _, grad, *_ = buffers(n)
    right = sqrt(np.square(grad.astype(np.float64)).sum())
    assert type(norm(grad)) is float
    assert norm(grad) == pytest.approx(right, rel=1e-14)
    assert norm(np.repeat(grad, 2)[::2]) == pytest.approx(right, rel=3e-7)
    grad[n - 1] = nan
    assert np.isnan(norm(grad))
    grad[n - 1] = -inf
    assert norm(grad) == inf


@needs_compiler
def test_squares_that_float32_cannot_hold_are_counted():
    assert fused.norm(np.full(5, 1e30, np.float32)) == pytest.approx(1e30 * sqrt(5), rel=1e-7)


@each_rung
def test_no_bit_depends_on_the_order_of_threads(idea):
    seen = set()
    for order in ("forward", "reverse", 3):
        with stepping(order=order):
            state = buffers(20_003 if idea == "fused" else 1000)
            norm = LADDER[idea].norm(state[1])
            seen.add(b"".join([*map(np.ndarray.tobytes, moved(idea, state)), np.float64(norm)]))
    assert len(seen) == 1


def in_parts(state, largest, half=None):
    """A step as a captured graph makes it: norm, clipping and step on the device."""
    how = {**HOW, "scale": 1.0}
    numbers, norm = np.full(8, nan, np.float32), np.full(1, nan)
    fused.put(numbers, fused.numbers_of(**how))
    fused.norm_into(norm, state[1])
    fused.clip_into(numbers, norm, largest)
    data, grad, m, v, ema = state
    fused.step_with(numbers, data, grad, m, v, ema, half, len(data) // 2)
    return norm[0]


@needs_compiler
@pytest.mark.parametrize("largest", [1.0, 1e3])
def test_a_step_in_parts_clips_the_gradient_as_the_host_would(largest):
    state, whole = buffers(1003), buffers(1003)
    norm = in_parts(state, largest)
    assert norm == pytest.approx(fused.norm(buffers(1003)[1]))
    moved("fused", whole, scale=min(1.0, largest / norm))
    for name, got, right in zip(NAMES, state, whole):
        np.testing.assert_array_equal(got, right, name)


@needs_compiler
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_norm_that_is_no_number_leaves_everything_as_it_is(bad):
    state, half = buffers(1003), np.zeros(1003, bf16)
    state[1][700] = bad
    before = [a.copy() for a in state]
    assert not np.isfinite(in_parts(state, 1.0, half))
    for name, got, right in zip(NAMES, state, before):
        np.testing.assert_array_equal(got, right, name)
    assert not half.any()


@needs_compiler
def test_the_next_step_finds_new_numbers_where_the_last_ones_were():
    numbers, state, right = np.full(8, nan, np.float32), buffers(100), buffers(100)
    for step in (1, 2, 3):
        how = {**HOW, "step": step, "lr": 1e-3 * step}
        fused.put(numbers, fused.numbers_of(**how))
        fused.step_with(numbers, *state, None, 50)
        moved("fused", right, step=step, lr=1e-3 * step)
        state[1][:] = right[1][:] = state[0]
    for name, got, exact in zip(NAMES, state, right):
        np.testing.assert_array_equal(got, exact, name)


@needs_compiler
def test_a_step_on_the_device_sends_nothing_there_and_asks_for_the_norm_alone(cupy):
    state, right = [cupy.asarray(a) for a in buffers(1003)], buffers(1003)
    half = cupy.asarray(np.zeros(500, bf16))
    cupy.stand_in.clear()
    norm = fused.norm(state[1])
    assert (len(cupy.stand_in.uploads), len(cupy.stand_in.synchronisations)) == (0, 1)
    moved("fused", state, scale=1 / norm, half=half)
    assert (len(cupy.stand_in.uploads), len(cupy.stand_in.synchronisations)) == (0, 1)
    moved("fused", right, scale=1 / fused.norm(right[1]))
    for name, got, exact in zip(NAMES, state, right):
        np.testing.assert_array_equal(cupy.asnumpy(got), exact, name)
    np.testing.assert_array_equal(cupy.asnumpy(half), right[0][:500].astype(bf16))
