"""Predictors made from predictors."""

import numpy as np
import pytest

from tinydiff.diffusion import Prediction, Schedule, clipped, guided, ideal_predictor, trace
from tinydiff.diffusion.prediction import from_eps

SCHEDULE = Schedule.cosine()
LEFT, RIGHT = np.array([[-1.0]]), np.array([[1.0]])


def branches():
    both = ideal_predictor(np.concatenate([LEFT, RIGHT]), SCHEDULE)
    return ideal_predictor(RIGHT, SCHEDULE), both


@pytest.mark.parametrize("w", [0, 0.5, 1, 3, np.float64(7.5)])
def test_guidance_mixes_eps_and_x0_by_the_formula(w):
    cond, uncond = branches()
    x_t = np.linspace(-2, 2, 9).reshape(-1, 1)
    p, c, u = (f(x_t, 600) for f in (guided(cond, uncond, w), cond, uncond))
    np.testing.assert_allclose(p.eps, u.eps + w * (c.eps - u.eps), rtol=1e-14)
    np.testing.assert_allclose(p.x0, u.x0 + w * (c.x0 - u.x0), rtol=1e-14)


def test_guided_x0_and_eps_still_add_up_to_x_t():
    x_t = np.linspace(-2, 2, 9).reshape(-1, 1)
    p = guided(*branches(), 4.0)(x_t, 300)
    again = SCHEDULE.signal(300) * p.x0 + SCHEDULE.noise(300) * p.eps
    np.testing.assert_allclose(again, x_t, atol=1e-13)


def test_w_is_one_plus_the_papers_weight():
    cond, uncond = branches()
    x_t = np.linspace(-2, 2, 9).reshape(-1, 1)
    c, u, w_paper = cond(x_t, 700).eps, uncond(x_t, 700).eps, 1.7
    np.testing.assert_allclose(guided(cond, uncond, 1 + w_paper)(x_t, 700).eps,
                               (1 + w_paper) * c - w_paper * u, rtol=1e-12)     # CFG Eq. 6


def test_guidance_follows_the_gradient_of_the_implicit_classifier():
    cond, uncond = branches()
    x_t, t, w = np.array([[0.3]]), 600, 3.0
    signal, noise = SCHEDULE.signal(t), SCHEDULE.noise(t)
    p_right = 1 / (1 + np.exp(-2 * signal * x_t / noise**2))                    # Bayes, two points
    gradient = (1 - p_right) * 2 * signal / noise**2
    np.testing.assert_allclose(guided(cond, uncond, w)(x_t, t).eps,
                               uncond(x_t, t).eps - w * noise * gradient, rtol=1e-12)


def test_w_one_is_the_conditional_predictor_itself():
    cond, uncond = branches()
    assert guided(cond, uncond, 1) is cond
    assert guided(cond, uncond, np.float32(1.0)) is cond


def test_w_zero_is_the_unconditional_prediction():
    cond, uncond = branches()
    x_t = np.linspace(-2, 2, 9).reshape(-1, 1)
    p, u = guided(cond, uncond, 0)(x_t, 600), uncond(x_t, 600)
    assert (p.x0 == u.x0).all()
    assert (p.eps == u.eps).all()


def test_guidance_and_clipping_keep_the_conditional_log_variance():
    def saying(log_variance):
        return lambda x_t, t: Prediction(x_t, x_t, log_variance)

    p = guided(saying(-1.0), saying(-2.0), 3.0)
    assert p(np.ones((1, 1)), 5).log_variance == -1.0
    assert clipped(p, SCHEDULE)(np.ones((1, 1)), 5).log_variance == -1.0


def test_clipped_bounds_x0_and_keeps_eps_consistent(rng):
    x_t, eps = rng.standard_normal((2, 4, 5))
    signal, noise = SCHEDULE.signal(800), SCHEDULE.noise(800)
    free = from_eps(x_t, eps, signal, noise)
    p = clipped(lambda x_t, t: free, SCHEDULE, -0.5, 0.7)(x_t, 800)
    assert p.x0.min() == -0.5
    assert p.x0.max() == 0.7
    np.testing.assert_allclose(signal * p.x0 + noise * p.eps, x_t, atol=1e-14)
    inside = (free.x0 > -0.5) & (free.x0 < 0.7)
    np.testing.assert_allclose(p.eps[inside], eps[inside], atol=1e-13)


def test_trace_keeps_every_prediction_in_order():
    cond, _ = branches()
    traced, x_t = trace(cond), np.zeros((1, 1))
    said = [traced(x_t, t) for t in (900, 20)]
    assert len(traced.predictions) == 2
    assert all(a is b for a, b in zip(said, traced.predictions))
    assert (said[0].x0 == cond(x_t, 900).x0).all()


@pytest.mark.parametrize("w", [0, 0.5, np.float64(3)])
def test_float32_stays_float32(w):
    x_t = np.ones((2, 1), np.float32)
    for predict in (guided(*branches(), w), clipped(branches()[0], SCHEDULE)):
        p = predict(x_t, 400)
        assert p.x0.dtype == p.eps.dtype == np.float32
