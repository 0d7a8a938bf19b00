"""The exact predictor of a finite data set."""

import numpy as np
import pytest

from tinydiff.diffusion import Schedule, ideal_predictor

SCHEDULE = Schedule.linear()


def log_density(x_t, t, data, weights):
    """log p(x_t) of the noised data set, straight from its definition."""
    signal, noise = SCHEDULE.signal(t), SCHEDULE.noise(t)
    d2 = ((x_t[:, None] - signal * data[None]) ** 2).sum(-1)                         # (N, M)
    return np.log((weights * np.exp(-d2 / (2 * noise**2))).sum(1))


@pytest.mark.parametrize("t", [150, 400.5, 1000])
def test_the_predictor_is_bayes_rule(t, rng):
    data, weights, x_t = rng.uniform(-1, 1, (7, 3)), rng.uniform(1, 2, 7), rng.normal(size=(5, 3))
    signal, noise = SCHEDULE.signal(t), SCHEDULE.noise(t)
    p = ideal_predictor(data, SCHEDULE, weights=weights)(x_t, t)
    for n in range(5):
        posterior = weights * np.exp(-((x_t[n] - signal * data) ** 2).sum(1) / (2 * noise**2))
        np.testing.assert_allclose(p.x0[n], posterior @ data / posterior.sum(), atol=1e-10)
    np.testing.assert_allclose(signal * p.x0 + noise * p.eps, x_t, atol=1e-12)


@pytest.mark.parametrize("t", [200, 777.7])
def test_eps_is_minus_noise_times_the_score(t, rng):
    data, weights, x_t = rng.uniform(-1, 1, (4, 2)), np.array([1, 2, 3, 4]), rng.normal(size=(6, 2))
    h, score = 1e-5, np.empty((6, 2))
    for i in range(2):
        dx = h * np.eye(2)[i]
        score[:, i] = (log_density(x_t + dx, t, data, weights)
                       - log_density(x_t - dx, t, data, weights)) / (2 * h)
    eps = ideal_predictor(data, SCHEDULE, weights=weights)(x_t, t).eps
    np.testing.assert_allclose(eps, -SCHEDULE.noise(t) * score, atol=1e-7)          # ADM Eq. 11


def test_it_names_the_nearest_point_when_there_is_little_noise(rng):
    data = rng.uniform(-1, 1, (50, 4, 4, 1)).astype(np.float32)
    x_t = (SCHEDULE.signal(1) * data + SCHEDULE.noise(1) * 0.5).astype(np.float32)
    np.testing.assert_allclose(ideal_predictor(data, SCHEDULE)(x_t, 1).x0, data, atol=1e-6)


def test_it_names_the_mean_when_there_is_hardly_any_signal(rng):
    data, weights = rng.uniform(-1, 1, (9, 3)), np.arange(1, 10)
    p = ideal_predictor(data, Schedule.cosine(), weights=weights)(rng.normal(size=(4, 3)), 1000)
    expected = np.tile(weights @ data / weights.sum(), (4, 1))
    np.testing.assert_allclose(p.x0, expected, atol=1e-3)


def test_points_and_noises_far_away_overflow_nothing():
    predict = ideal_predictor(np.array([[-100.0], [100.0]]), SCHEDULE)
    assert predict(np.array([[90.0], [-90.0]]), 1).x0.ravel().tolist() == [100, -100]


@pytest.mark.parametrize("shape", [(3,), (4, 5, 1)])
def test_dtype_and_shape_are_those_of_x_t(shape, rng):
    predict = ideal_predictor(rng.uniform(-1, 1, (6, *shape)), SCHEDULE)
    for dtype in (np.float32, np.float64):
        p = predict(rng.normal(size=(2, *shape)).astype(dtype), 500)
        assert p.x0.shape == p.eps.shape == (2, *shape)
        assert p.x0.dtype == p.eps.dtype == dtype


def test_bad_weights_and_time_zero_get_one_sentence():
    data = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"3 positive numbers, .* got \[1.0, 2.0\]"):
        ideal_predictor(data, SCHEDULE, weights=[1, 2])
    with pytest.raises(ValueError, match="3 positive numbers"):
        ideal_predictor(data, SCHEDULE, weights=[1, 0, 2])
    with pytest.raises(ValueError, match=r"knows data of shape \(2,\), got x_t \(4, 3\)"):
        ideal_predictor(data, SCHEDULE)(np.zeros((4, 3)), 9)
    assert ideal_predictor(data, SCHEDULE)(data[:0], 9).x0.shape == (0, 2)
    with pytest.raises(ValueError, match="needs t > 0"):
        ideal_predictor(data, SCHEDULE)(data, 0)
