"""Exact answers for Gaussians and their mixtures, each against its own definition."""

from math import pi

import numpy as np
import pytest

from tinydiff.diffusion import Schedule
from tinydiff.diffusion.ideal import Mixture, ideal_predictor, loss_gap
from tinydiff.diffusion.prediction import PREDICTS

FAMILIES = [Schedule.linear(), Schedule.karras(), Schedule.flow()]
families = pytest.mark.parametrize("schedule", FAMILIES, ids=lambda s: s.name)
LINE = Mixture(np.array([[-0.7], [0.2], [0.9]]), np.array([0.1, 0.3, 0.05]), weights=[1, 2, 3])
PLANE = Mixture(np.array([[-0.7, 0.4], [0.2, -0.3], [0.9, 0.8]]), np.array([0.1, 0.3, 0.05]),
                weights=[1, 2, 3])


def density(mixture, x):
    """Σ w_i N(x; mean_i, std_i²) of points x (N, D), straight from its definition."""
    D, v = x.shape[1], mixture.variance
    with np.errstate(under="ignore"):
        d2 = ((x[:, None] - mixture.means) ** 2).sum(-1)
        return (mixture.weights * np.exp(-0.5 * d2 / v) / (2 * pi * v) ** (D / 2)).sum(1)


def plane(n=200):
    """Points of the square [-3, 3]² on a grid, and the area of each."""
    axis = np.linspace(-3, 3, n)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), (axis[1] - axis[0]) ** 2


@families
@pytest.mark.parametrize("t", [300, 650.5])
def test_the_denoiser_is_the_integral_of_bayes_rule(schedule, t):
    x0, area = plane()
    prior, (signal, noise) = density(PLANE, x0) * area, schedule.levels(t)
    x_t = signal * np.array([[0.1, 0.2], [-0.5, 0.9], [1.4, -0.3]])
    p = PLANE.predictor(schedule)(x_t, t)
    for n in range(3):
        with np.errstate(under="ignore"):
            posterior = prior * np.exp(-0.5 * ((x_t[n] - signal * x0) ** 2).sum(1) / noise**2)
        np.testing.assert_allclose(p.x0[n], posterior @ x0 / posterior.sum(), atol=1e-8)
        expected = np.log(posterior.sum() / (2 * pi * noise**2))
        assert PLANE.log_density(x_t, t, schedule)[n] == pytest.approx(expected, abs=1e-8)
    np.testing.assert_allclose(signal * p.x0 + noise * p.eps, x_t, atol=1e-12)


@families
def test_the_score_is_the_slope_of_the_log_density_and_minus_eps_over_noise(schedule):
    t, h, x_t = 400, 1e-5, np.array([[0.1, 0.2], [-0.5, 0.9], [0.9, -0.3]])
    up, down = (np.stack([PLANE.log_density(x_t + d, t, schedule) for d in k * np.eye(2)], 1)
                for k in (h, -h))
    slope = (up - down) / (2 * h)
    score = PLANE.score(x_t, t, schedule)
    np.testing.assert_allclose(score, slope, rtol=1e-6)
    eps = PLANE.predictor(schedule)(x_t, t).eps
    np.testing.assert_allclose(eps, -schedule.noise(t) * score, rtol=1e-9)       # ADM Eq. 11


def test_without_noise_the_density_and_score_are_the_datas_own():
    x = np.array([[0.1, 0.2], [0.3, -0.4]])
    np.testing.assert_allclose(np.exp(PLANE.log_density(x, 0, FAMILIES[0])), density(PLANE, x))
    one = Mixture(np.array([[0.5, 0.5]]), 0.2)
    np.testing.assert_allclose(one.score(x, 0, FAMILIES[0]), (0.5 - x) / 0.04)


@families
@pytest.mark.parametrize("s", [0, 250])
def test_the_posterior_obeys_bayes_rule(schedule, s):
    """q(x_s | x_t) p(x_t) = q(x_t | x_s) p(x_s)."""
    t, x_s, x_t = 500, np.array([[0.1, 0.3]]), np.array([[0.2, -0.1]])
    weights, means, variances = PLANE.posterior(x_t, t, s, schedule)
    q = Mixture(means[0], variances**0.5, weights[0])
    left = density(q, x_s) * np.exp(PLANE.log_density(x_t, t, schedule))
    kept = schedule.signal(t) / schedule.signal(s)
    forward = Mixture(kept * x_s, schedule.step_variance(t, s) ** 0.5)           # LDM Eq. 5
    right = density(forward, x_t) * np.exp(PLANE.log_density(x_s, s, schedule))
    np.testing.assert_allclose(left, right, rtol=1e-9)
    if s == 0:
        mean = PLANE.predictor(schedule)(x_t, t).x0
        np.testing.assert_allclose(weights[0] @ means[0], mean[0], rtol=1e-12)


@families
@pytest.mark.parametrize("data", [LINE, Mixture(np.array([[0.4, -0.2]]), 0.3),
                                  Mixture(np.array([[-1.0], [1.0]]))])
def test_the_flow_solves_the_probability_flow_ode(schedule, data, rng):
    """d(x/signal)/dσ = eps along the path.  DDIM Eq. 14"""
    t, h = 420, 1e-3
    x_t = schedule.signal(t) * rng.normal(0, 1, (6, data.means.shape[1]))
    eps = data.predictor(schedule)(x_t, t).eps
    down, up = (data.flow(x_t, t, u, schedule) / schedule.signal(u) for u in (t - h, t + h))
    d_sigma = schedule.sigma(t + h) - schedule.sigma(t - h)
    np.testing.assert_allclose((up - down) / d_sigma, eps, rtol=2e-5, atol=1e-6)


@families
def test_the_flow_there_and_back_is_the_identity(schedule, rng):
    x = LINE.draw(50)
    noisy = LINE.flow(x, 0, 900, schedule)
    np.testing.assert_allclose(LINE.flow(noisy, 900, 0, schedule), x, atol=1e-9)
    order = np.argsort(x[:, 0])
    assert (np.diff(noisy[order, 0]) > 0).all()                  # ranks are kept


def test_the_flow_of_a_finite_set_ends_on_its_points(rng):
    data, x_T = Mixture(np.array([[-1.0], [0.5]]), weights=[1, 3]), rng.normal(size=(400, 1))
    x0 = data.flow(x_T, 1000, 0, Schedule.cosine())
    assert set(x0.ravel().tolist()) == {-1.0, 0.5}
    cut = -0.6744897501960817                                    # Φ = ¼
    assert (x0[x_T < cut - 0.01] == -1).all()
    assert (x0[x_T > cut + 0.01] == 0.5).all()


def test_drawn_data_have_the_mixtures_moments():
    x0 = PLANE.draw(40_000, seed=1).reshape(-1, 2)
    np.testing.assert_allclose(x0.mean(0), PLANE.weights @ PLANE.means, atol=0.015)
    assert (x0**2).mean() == pytest.approx(PLANE.second_moment, rel=0.01)
    assert Mixture(np.zeros((3, 4, 5))).draw(2).shape == (2, 4, 5)


@pytest.mark.parametrize("t", [50, 200, 500, 900])
def test_the_optimal_curve_is_the_mean_posterior_variance(t):
    schedule = Schedule.cosine()
    signal, noise = schedule.levels(t)
    grid, _ = plane(300)
    x_t = (signal + 2 * noise) * grid
    weights, means, variances = PLANE.posterior(x_t, t, 0, schedule)
    with np.errstate(under="ignore"):
        p = np.exp(PLANE.log_density(x_t, t, schedule))
        mean = (weights[..., None] * means).sum(1)
        spread = (weights * (means**2).mean(2)).sum(1) + weights @ variances - (mean**2).mean(1)
        expected = p @ spread / p.sum()                          # E[Var(x0 | x_t)], per dimension
    loss, error = PLANE.optimal_loss(schedule, t, "x0")
    assert error == 0
    assert loss == pytest.approx(expected, rel=1e-3)


@families
@pytest.mark.parametrize("predicts", PREDICTS)
def test_the_optimal_loss_is_the_loss_of_the_ideal_predictor_in_every_dialect(schedule, predicts):
    n, t = 4000, 600
    for data in (LINE, PLANE, Mixture(np.array([[0.3, 0.1]]), 0.4)):
        ideal = data.predictor(schedule)
        loss, error = data.optimal_loss(schedule, t, predicts)
        drawn, same = loss_gap(ideal, ideal, data.draw(n), schedule, [t], predicts=predicts)
        assert drawn == same
        assert error == 0
        assert drawn[0] == pytest.approx(loss, rel=6 * (2 / n) ** 0.5)


def test_where_the_point_is_plain_to_see_the_optimal_loss_is_zero_and_never_below():
    data = Mixture(np.array([[-0.7], [0.1], [0.6]]), weights=[1, 2, 4])
    losses = [data.optimal_loss(FAMILIES[0], t, "x0")[0] for t in range(1, 15)]
    assert 0 <= min(losses) <= max(losses) < 1e-4


def test_many_points_are_drawn_with_a_stated_error(rng):
    schedule, t = Schedule.cosine(), 400
    split = Mixture(np.repeat(LINE.means, 10, 0), np.repeat(LINE.variance, 10) ** 0.5,
                    np.repeat(LINE.weights, 10))                 # LINE in thirty pieces
    loss, error = split.optimal_loss(schedule, t, draws=2000)
    exact, _ = LINE.optimal_loss(schedule, t)
    assert 0 < error < 0.1 * exact
    assert abs(loss - exact) < 4 * error
    assert split.optimal_loss(schedule, t, draws=2000, seed=1)[0] != loss


def test_the_gap_is_what_a_predictor_loses_against_the_ideal_one():
    schedule, points = Schedule.cosine(), np.array([[-1.0, 0.0], [1.0, 0.5]])
    ideal, times = ideal_predictor(points, schedule), [10, 500, 900]
    worse = ideal_predictor(points + 0.3, schedule)
    loss, best = loss_gap(worse, ideal, Mixture(points).draw(300), schedule, times, predicts="x0")
    assert loss.shape == best.shape == (3,)
    assert (loss > best).all()
    assert loss[0] == pytest.approx(0.09, rel=1e-6)    # both know the point, one is off


def test_what_cannot_be_answered_gets_one_sentence():
    schedule, x = FAMILIES[0], np.zeros((1, 2))
    with pytest.raises(ValueError, match="in one dimension, but there are 3 in 2"):
        PLANE.flow(x, 9, 3, schedule)
    for ask in (Mixture(x).log_density, Mixture(x).score):
        with pytest.raises(ValueError, match="needs t > 0"):
            ask(x, 0, schedule)
    with pytest.raises(ValueError, match="needs t > 0"):
        Mixture(x).flow(x, 0, 3, schedule)
    with pytest.raises(ValueError, match="needs t > 0"):
        PLANE.predictor(schedule)(x, 0)
