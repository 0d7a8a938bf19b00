"""eps, x0 and v say the same thing in three ways."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tinydiff.diffusion.prediction import (
    PREDICTS,
    TARGETS,
    Prediction,
    from_eps,
    from_v,
    from_x0,
)
from tinydiff.diffusion.schedule import Schedule, across

SCHEDULE = Schedule.linear()


@given(t=st.floats(1, 1000), seed=st.integers(0, 99), predicts=st.sampled_from(sorted(PREDICTS)))
def test_the_target_of_a_network_leads_back_to_x0_and_eps(t, seed, predicts):
    x0, eps = np.random.default_rng(seed).standard_normal((2, 3, 4))
    signal, noise = SCHEDULE.signal(t), SCHEDULE.noise(t)
    x_t = signal * x0 + noise * eps
    p = PREDICTS[predicts](x_t, TARGETS[predicts](x0, eps, signal, noise), signal, noise)
    np.testing.assert_allclose(p.x0, x0, atol=1e-11)
    np.testing.assert_allclose(p.eps, eps, atol=1e-11)
    assert p.log_variance is None


@given(t=st.floats(1, 1000), seed=st.integers(0, 99), predicts=st.sampled_from(sorted(PREDICTS)))
def test_whatever_a_network_says_x0_and_eps_add_up_to_x_t(t, seed, predicts):
    x_t, said = np.random.default_rng(seed).standard_normal((2, 3, 4))
    signal, noise = SCHEDULE.signal(t), SCHEDULE.noise(t)
    p = PREDICTS[predicts](x_t, said, signal, noise)
    np.testing.assert_allclose(signal * p.x0 + noise * p.eps, x_t, atol=1e-11)


def test_x_t_and_v_are_x0_and_eps_turned_by_an_angle(rng):
    x0, eps = rng.standard_normal((2, 5))
    angle = 0.3
    signal, noise = np.cos(angle), np.sin(angle)
    turn = np.array([[signal, noise], [-noise, signal]])
    x_t, v = turn @ [x0, eps]
    np.testing.assert_allclose(TARGETS["v"](x0, eps, signal, noise), v, atol=1e-15)
    p = from_v(x_t, v, signal, noise)
    np.testing.assert_allclose([p.x0, p.eps], np.linalg.inv(turn) @ [x_t, v], atol=1e-15)


def test_v_is_eps_in_clean_data_and_minus_x0_in_noise(rng):
    x0, eps = rng.standard_normal((2, 5))
    assert (TARGETS["v"](x0, eps, 1.0, 0.0) == eps).all()
    assert (TARGETS["v"](x0, eps, 0.0, 1.0) == -x0).all()


def test_v_needs_no_signal_where_eps_divides_by_it(rng):
    x_t, v = rng.standard_normal((2, 5))
    assert (from_v(x_t, v, 0.0, 1.0).x0 == -v).all()
    with pytest.raises(ZeroDivisionError), np.errstate(divide="raise"):
        from_eps(1.0, 1.0, 0.0, 1.0)


@pytest.mark.parametrize("convert", [from_eps, from_x0, from_v, *TARGETS.values()])
@pytest.mark.parametrize("t", [7, 7.5, np.array([7, 900])])
def test_float32_stays_float32(convert, t):
    x = np.ones((2, 3, 3, 1), np.float32)
    out = convert(x, x, across(SCHEDULE.signal(t), x), across(SCHEDULE.noise(t), x))
    arrays = out[:2] if isinstance(out, Prediction) else [out]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}
