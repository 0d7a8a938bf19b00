"""Faults found in other implementations of diffusion, each with the test that would catch it."""

import numpy as np
import pytest
from sampler_helpers import Gaussian

from tinydiff.diffusion import (
    Prediction,
    Schedule,
    clipped,
    ddim,
    ddpm,
    guided,
    ideal_predictor,
    nodes,
    sample,
)
from tinydiff.diffusion.prediction import from_x0

LINEAR = Schedule.linear()


def gaussian_predictor(mean, std, schedule):
    """The exact predictor of data N(mean, std²)."""
    return Gaussian(schedule, m=mean, v=std**2).predict


@pytest.mark.parametrize("steps", [999, 1000])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_keeps_the_spread_of_the_data(steps, eta):
    """One DDIM subtracts the direction to x_t and starts at the lowest times: the spread dies."""
    predict = gaussian_predictor(0.5, 0.2, LINEAR)
    x0 = sample(ddim, predict, (1, 4000), LINEAR, steps=steps, eta=eta)
    assert x0.mean() == pytest.approx(0.5, abs=4 * 0.2 / 4000**0.5)
    assert x0.std() == pytest.approx(0.2, rel=4 / 8000**0.5)


def test_ddim_scales_a_gaussian_by_the_closed_form():
    """The same without sampling error: DDIM on a Gaussian is linear in x_T."""
    predict = gaussian_predictor(0.0, 0.2, LINEAR)
    *_, x0 = ddim(predict, np.ones((1, 1)), LINEAR, steps=999)
    signal, noise = LINEAR.signal(1000), LINEAR.noise(1000)
    assert x0.item() == pytest.approx(0.2 / (signal**2 * 0.04 + noise**2) ** 0.5, abs=0.002)


@pytest.mark.parametrize("steps", [3, 9, 27, 36, 101, 251, 300, 999, 1000])
def test_step_counts_that_do_not_divide_T_run_and_give_that_many_steps(steps):
    """Integer strides: 599 of 1000 step counts crash, 984 give another number of steps."""
    chain = list(ddim(gaussian_predictor(0.5, 0.2, LINEAR), np.ones((1, 1)), LINEAR, steps=steps))
    assert len(chain) == steps


def test_sampling_starts_at_T_and_ends_at_clean_data():
    """Some loops start from noise at a low time, others stop before t = 1."""
    for steps in range(1, 1001):
        assert nodes(LINEAR, steps=steps)[::steps] == [1000, 0]


@pytest.mark.parametrize("sampler", [ddpm, ddim])
def test_few_steps_call_the_network_few_times_and_tell_it_the_time(sampler):
    """A DDIM that visits every timestep is not faster; a network without t is another model."""
    times = []

    def predict(x_t, t):
        times.append(t)
        return Prediction(x_t, x_t)

    list(sampler(predict, np.ones((1, 1)), LINEAR, steps=10))
    assert times == list(range(1000, 0, -100))


@pytest.mark.parametrize("own", [{"steps": 1000}, {"steps": 50}, {"timesteps": [1000, 500.5, 0]}])
def test_the_last_ancestral_step_adds_no_noise(own):
    """With noise in the last step a point mass keeps a residual spread of 0.00998."""
    predict = ideal_predictor(np.array([[0.25]]), LINEAR)
    assert sample(ddpm, predict, (50, 1), LINEAR, **own).std() == 0


def test_clipping_x0_changes_the_mean_of_the_step():
    """Clamping x0 for display, while the mean uses the unclamped one, changes nothing."""
    def wild(x_t, t):
        return from_x0(x_t, np.full_like(x_t, 3.0), LINEAR.signal(t), LINEAR.noise(t))

    x_t, still = np.full((1, 1), 0.3), np.zeros((1, 1))
    x_s = next(ddpm(clipped(wild, LINEAR), x_t, LINEAR, timesteps=[400, 300], noise=[still]))
    np.testing.assert_allclose(x_s, LINEAR.posterior(np.ones((1, 1)), x_t, 400, 300)[0])
    *_, x0 = ddim(clipped(wild, LINEAR), x_t, LINEAR, steps=20)
    np.testing.assert_allclose(x0, 1)


def test_linear_is_linear_in_beta_and_scaled_linear_in_its_root():
    """The two schedules exchange their names from one repository to the next."""
    linear, scaled = Schedule.linear(), Schedule.scaled_linear()
    np.testing.assert_allclose(np.diff(linear.beta[1:], 2), 0, atol=1e-15)
    np.testing.assert_allclose(np.diff(scaled.beta[1:] ** 0.5, 2), 0, atol=1e-15)
    assert np.abs(np.diff(scaled.beta[1:], 2)).min() > 1e-9


def test_guidance_weight_one_is_no_guidance_and_zero_is_unconditional():
    """The same word starts at 0 in one repository and at 1 in another."""
    def saying(number):
        return lambda x_t, t: Prediction(np.full_like(x_t, number), np.full_like(x_t, number))

    cond, uncond, x = saying(5.0), saying(2.0), np.ones((1, 1))
    said = {w: guided(cond, uncond, w)(x, 9).eps.item() for w in (0, 1, 2, 7.5)}
    assert said == {0: 2.0, 1: 5.0, 2: 8.0, 7.5: 24.5}
