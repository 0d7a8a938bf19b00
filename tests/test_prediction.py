"""eps, x0, v, velocity and EDM's F say the same thing in five ways."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tinydiff.diffusion.prediction import (
    PREDICTS,
    TARGETS,
    Prediction,
    edm_scale,
    from_edm,
    from_eps,
    from_mean,
    from_v,
    from_velocity,
    to_edm,
    to_velocity,
)
from tinydiff.diffusion.process import across
from tinydiff.diffusion.schedule import Schedule

SCHEDULE = Schedule.linear()
FAMILIES = [SCHEDULE, Schedule.karras(), Schedule.flow()]


@given(t=st.floats(10, 999), seed=st.integers(0, 99), predicts=st.sampled_from(sorted(PREDICTS)),
       schedule=st.sampled_from(FAMILIES))
def test_the_target_of_a_network_leads_back_to_x0_and_eps(t, seed, predicts, schedule):
    x0, eps = np.random.default_rng(seed).standard_normal((2, 3, 4))
    signal, noise = schedule.levels(t)
    x_t = signal * x0 + noise * eps
    p = PREDICTS[predicts](x_t, TARGETS[predicts](x0, eps, signal, noise), signal, noise)
    np.testing.assert_allclose(p.x0, x0, atol=1e-11)
    np.testing.assert_allclose(p.eps, eps, atol=1e-11)
    assert p.log_variance is None


@given(t=st.floats(10, 999), seed=st.integers(0, 99), predicts=st.sampled_from(sorted(PREDICTS)),
       schedule=st.sampled_from(FAMILIES))
def test_whatever_a_network_says_x0_and_eps_add_up_to_x_t(t, seed, predicts, schedule):
    x_t, said = np.random.default_rng(seed).standard_normal((2, 3, 4))
    signal, noise = schedule.levels(t)
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
    with pytest.raises(ValueError, match=r"no signal is left .* predicts v or x0"):
        from_eps(x_t, v, 0.0, 1.0)


@pytest.mark.parametrize("convert", [*PREDICTS.values(), *TARGETS.values()])
@pytest.mark.parametrize("t", [7, 7.5, np.array([7, 900])])
def test_float32_stays_float32(convert, t):
    x = np.ones((2, 3, 3, 1), np.float32)
    out = convert(x, x, across(SCHEDULE.signal(t), x), across(SCHEDULE.noise(t), x))
    arrays = out[:2] if isinstance(out, Prediction) else [out]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_edm_gives_the_network_variance_one_to_see_and_to_say(sigma, rng):
    schedule, sigma_data = Schedule.karras(), 0.5
    signal, noise = schedule.levels(schedule.time(sigma))
    x0, eps = sigma_data * rng.standard_normal(200_000), rng.standard_normal(200_000)
    x_t = signal * x0 + noise * eps
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)                              # EDM Table 1
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
    c_in = 1 / (sigma**2 + sigma_data**2) ** 0.5
    assert edm_scale(signal, noise) == pytest.approx(c_in)
    assert (edm_scale(signal, noise) * x_t).std() == pytest.approx(1, abs=0.01)
    assert to_edm(x0, eps, signal, noise).std() == pytest.approx(1, abs=0.01)
    F = rng.standard_normal(200_000)
    np.testing.assert_allclose(from_edm(x_t, F, signal, noise).x0, c_skip * x_t + c_out * F)
    np.testing.assert_allclose(from_edm(x_t, 0 * F, signal, noise).x0, c_skip * x_t)
    loss = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 * (                # λ of Table 1
        from_edm(x_t, F, signal, noise).x0 - x0) ** 2                                # EDM Eq. 2
    np.testing.assert_allclose(loss, (F - to_edm(x0, eps, signal, noise)) ** 2, rtol=1e-6)


def test_edm_of_unit_variance_is_minus_v(rng):
    x_t, said = rng.standard_normal((2, 5))
    levels = SCHEDULE.levels(300)
    np.testing.assert_allclose(from_edm(x_t, -said, *levels, sigma_data=1.0)[:2],
                               from_v(x_t, said, *levels)[:2], rtol=1e-9)


def test_a_straight_flow_moves_with_its_velocity(rng):
    x0, eps = rng.standard_normal((2, 5))
    flow = Schedule.flow()
    ahead, behind = flow.q_sample(x0, 501, eps), flow.q_sample(x0, 500, eps)
    np.testing.assert_allclose(1000 * (ahead - behind), to_velocity(x0, eps, 0.5, 0.5))
    assert (from_velocity(eps, eps - x0, 0.0, 1.0).x0 == eps - (eps - x0)).all()


@pytest.mark.parametrize("schedule", FAMILIES)
@pytest.mark.parametrize(("t", "s"), [(1000, 999), (400, 150.5), (2, 1)])
def test_the_posterior_mean_names_x0(schedule, t, s, rng):
    x0, x_t = rng.standard_normal((2, 3, 4))
    p = from_mean(x_t, schedule.posterior(x0, x_t, t, s)[0], schedule, t, s)
    np.testing.assert_allclose(p.x0, x0, atol=1e-8)
    np.testing.assert_allclose(schedule.signal(t) * p.x0 + schedule.noise(t) * p.eps, x_t)
