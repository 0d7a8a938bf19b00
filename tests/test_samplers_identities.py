"""Samplers that are one another in other words, and steps that are exact, in float64."""

from itertools import islice, pairwise
from math import exp, inf, sqrt

import numpy as np
import pytest
from sampler_helpers import COSINE, FLOW, KARRAS, LINEAR, ODE, Gaussian, Mixture, last, named

from tinydiff.diffusion import Prediction, Schedule
from tinydiff.diffusion.noise import normal, stream
from tinydiff.diffusion.samplers import (
    ddim,
    ddpm,
    ddpm_eps_form,
    dpmpp_1s,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    edm,
    euler,
    euler_ancestral,
    fixed_large,
    fixed_small,
    flow_euler,
    heun,
    lcm,
    unipc,
)

ZERO_SNR = Schedule.scaled_linear().zero_terminal_snr()
X_T = normal(0, 0, 0, (7,), np.float64)
Z = list(islice(stream(5, range(7), (), np.float64), 40))
SIGNALLED = {"linear": (LINEAR, 1000), "cosine": (COSINE, 1000), "karras": (KARRAS, 1000),
             "flow": (FLOW, 990), "zero-snr": (ZERO_SNR, 990)}
everywhere = pytest.mark.parametrize(("schedule", "start"), SIGNALLED.values(), ids=SIGNALLED)


def times_from(start, n=20):
    """n steps of uneven length, at times between whole ones, to clean data."""
    return (start * np.linspace(1, 0, n + 1) ** 1.3).tolist()


def assert_same(schedule, times, first, *others, predict=None):
    """All (sampler, own) yield the same x_t, from the same x_T and noise, to 1e-10."""
    predict = predict or Mixture(schedule).predict
    x_T = schedule.noise(times[0]) * X_T
    chains = [list(sampler(predict, x_T, schedule, timesteps=times, **{"noise": Z, **own}))
              for sampler, own in (first, *others)]
    for chain in chains[1:]:
        np.testing.assert_allclose(chain, chains[0], rtol=1e-10, atol=1e-10)


@everywhere
def test_ddim_with_eta_one_is_ddpm_in_both_forms_and_euler_ancestral(schedule, start):
    assert_same(schedule, times_from(start), (ddpm, {}), (ddim, {"eta": 1.0}), (ddpm_eps_form, {}),
                (euler_ancestral, {}))


@everywhere
def test_ddim_is_euler_and_the_first_order_dpm_solver(schedule, start):
    assert_same(schedule, times_from(start), (ddim, {}), (euler, {}), (dpmpp_1s, {}))


@everywhere
def test_ddpm_is_the_sde_of_dpm_solver_in_its_first_and_last_step(schedule, start):
    for times in [start, start / 2], [start, 0]:
        assert_same(schedule, times, (ddpm, {}), (dpmpp_2m_sde, {}))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_is_ddim_on_a_straight_schedule(shift):
    assert_same(Schedule.flow(shift=shift), times_from(1000), (flow_euler, {}), (ddim, {}),
                (dpmpp_1s, {}))


@everywhere
def test_edm_without_churn_is_heun(schedule, start):
    x_T, predict, times = schedule.noise(start) * X_T, Mixture(schedule).predict, times_from(start)
    whole = list(heun(predict, x_T, schedule, timesteps=times))
    for own in {}, {"churn": 30.0, "s_min": inf}, {"churn": 30.0, "s_max": 0.0}:
        chain = edm(predict, x_T, schedule, timesteps=times, **own)
        np.testing.assert_allclose(list(chain), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", [LINEAR, KARRAS, FLOW, ZERO_SNR],
                         ids=["linear", "karras", "flow", "zero-snr"])
def test_the_sde_of_dpm_solver_with_eta_zero_is_its_ode(schedule):
    assert_same(schedule, times_from(1000), (dpmpp_2m, {}), (dpmpp_2m_sde, {"eta": 0.0}))


@everywhere
def test_orders_two_and_three_and_the_predictor_start_as_order_one(schedule, start):
    assert_same(schedule, [start, start / 2], (ddim, {}), (dpmpp_2m, {}), (dpmpp_3m, {}),
                (unipc, {}))


def test_the_predictor_of_unipc_is_dpm_solver_2m_where_x_is_no_news():
    """An estimate that depends on t alone leaves nothing to correct but the step before."""
    def predict(x_t, t):
        x0 = np.sin(t / 300) + 0 * x_t
        return Prediction(x0, (x_t - LINEAR.signal(t) * x0) / LINEAR.noise(t))

    times = [900, 700, 400, 100]
    one, two, _ = unipc(predict, X_T, LINEAR, timesteps=times)
    keep = LINEAR.noise(400) / LINEAR.noise(700)
    _, ours, _ = dpmpp_2m(predict, X_T, LINEAR, timesteps=times)
    m0, m1 = np.sin(900 / 300), np.sin(700 / 300)
    pull = LINEAR.signal(700) - LINEAR.noise(700) / LINEAR.noise(900) * LINEAR.signal(900)
    corrected = one + pull * 0.5 * (m1 - m0)             # a corrector of order 1
    np.testing.assert_allclose(two, ours + keep * (corrected - one), rtol=1e-10)


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
@everywhere
def test_the_eps_form_of_algorithm_2_is_its_posterior_form(schedule, start, variance):
    own = {"variance": variance}
    assert_same(schedule, times_from(start), (ddpm, own), (ddpm_eps_form, own))


def test_a_learned_variance_serves_both_forms_of_algorithm_2():
    law = Mixture(COSINE)

    def learned(x_t, t):
        return law.predict(x_t, t)._replace(log_variance=np.sin(x_t) - 3)

    assert_same(COSINE, times_from(1000), (ddpm, {}), (ddpm_eps_form, {}), predict=learned)


@pytest.mark.parametrize(("sampler", "own"), **named([*ODE, (euler_ancestral, {}), (ddpm, {}),
                                                      (dpmpp_2m_sde, {}), (edm, {"churn": 9.0})]))
@pytest.mark.parametrize("other", [KARRAS, FLOW], ids=["karras", "flow"])
def test_the_scale_of_x_t_only_renames_the_curves(sampler, own, other):
    """EDM Eq. 4: at the same σ, x_t/signal is the same whatever the signal."""
    if sampler is edm and own:                            # raised to the same σ, but from its own T
        own = own | {"s_max": 5.0}
    sigmas = 60 * np.linspace(1, 0, 13) ** 3
    x_bar = []
    for schedule in (LINEAR, other):
        times = list(map(schedule.time, sigmas))
        x_T = schedule.noise(times[0]) * X_T
        chain = sampler(Gaussian(schedule).predict, x_T, schedule, timesteps=times, noise=Z, **own)
        x_bar.append([x / schedule.signal(s) for x, s in zip(chain, times[1:])])
    np.testing.assert_allclose(*x_bar, rtol=1e-8, atol=1e-8)


def test_edm_is_algorithm_2_of_its_paper():
    (churn, s_min, s_max, s_noise), law, asked = (8.0, 0.05, 50.0, 1.003), Mixture(KARRAS), []

    def predict(x_t, t):
        asked.append(t)
        return law.predict(x_t, t)

    def D(x, sigma):
        return law.predict(x, KARRAS.time(sigma)).x0

    sigmas = 80 * np.linspace(1, 0, 21) ** 4
    times = list(map(KARRAS.time, sigmas))
    own = {"churn": churn, "s_min": s_min, "s_max": s_max, "s_noise": s_noise}
    chain = edm(predict, 80 * X_T, KARRAS, timesteps=times, noise=Z, **own)
    x, noise = 80 * X_T, iter(Z)
    for (t, t_next), ours in zip(pairwise(sigmas), chain):                       # EDM Alg. 2
        gamma = min(churn / 20, sqrt(2) - 1) if s_min <= t <= s_max else 0
        t_hat = t + gamma * t
        x_hat = x + sqrt(t_hat**2 - t**2) * s_noise * next(noise) if gamma else x
        d = (x_hat - D(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next > 0:
            x = x_hat + (t_next - t_hat) * (d / 2 + (x - D(x, t_next)) / t_next / 2)
        np.testing.assert_allclose(ours, x, rtol=1e-9, atol=1e-10)
    assert max(asked) == 1000


def test_churn_never_raises_sigma_above_that_of_T():
    asked = []

    def predict(x_t, t):
        asked.append(LINEAR.sigma(t))
        return Gaussian(LINEAR).predict(x_t, t)

    list(edm(predict, X_T, LINEAR, timesteps=[1000, 990, 900, 0], churn=inf))
    assert asked == pytest.approx([LINEAR.sigma(1000), LINEAR.sigma(990), LINEAR.sigma(1000),
                                   LINEAR.sigma(900), sqrt(2) * LINEAR.sigma(900)])


@pytest.mark.parametrize("schedule", [LINEAR, KARRAS, FLOW], ids=["linear", "karras", "flow"])
def test_the_third_order_solver_integrates_parabolas_exactly(schedule):
    """From its third step on: there it knows three points of x0 over λ."""
    def parabola(lam):
        return 0.3 - 0.2 * lam + 0.05 * lam**2

    def predict(x_t, t):
        x0 = parabola(schedule.log_snr(t) / 2) + 0 * x_t
        return Prediction(x0, x0)

    times = [900, 820, 700, 500, 350, 100, 7]
    chain = [None, *dpmpp_3m(predict, X_T, schedule, timesteps=times)]
    points, weights = np.polynomial.legendre.leggauss(20)
    for i in range(3, 7):
        (_, b_t), (a_s, b_s) = schedule.levels(times[i - 1]), schedule.levels(times[i])
        low, high = schedule.log_snr(times[i - 1]) / 2, schedule.log_snr(times[i]) / 2
        lam = (low + high) / 2 + (high - low) / 2 * points
        integral = (high - low) / 2 * sum(weights * np.exp(lam - high) * parabola(lam))
        exact = b_s / b_t * chain[i - 1] + a_s * integral
        np.testing.assert_allclose(chain[i], exact, rtol=1e-11)


def test_ddim_two_ways_round_is_the_closed_form_of_one_point():
    """If x0 is known there is nothing to approximate: any steps land where one does."""
    law = Gaussian(COSINE, m=0.4, v=0.0)
    one = last(ddim(law.predict, X_T, COSINE, timesteps=[900, 100]))
    for sampler in (ddim, euler, heun, dpmpp_2m, dpmpp_3m, unipc):
        many = last(sampler(law.predict, X_T, COSINE, timesteps=[900, 700, 600, 250, 100]))
        np.testing.assert_allclose(many, one, rtol=1e-10)


def test_lcm_noises_the_end_of_the_curve_anew():
    law, x = Mixture(LINEAR), X_T
    chain = lcm(law.predict, X_T, LINEAR, timesteps=[1000, 400, 0.05, 0], noise=Z)
    for (t, s), z, ours in zip(pairwise([1000, 400, 0.05, 0]), Z, chain):
        scaled = 10 * t
        end = (0.25 * x / (scaled**2 + 0.25)
               + scaled / sqrt(scaled**2 + 0.25) * law.predict(x, t).x0)
        x = LINEAR.signal(s) * end + LINEAR.noise(s) * z
        np.testing.assert_allclose(ours, x, rtol=1e-12)


def test_the_sde_keeps_the_share_of_noise_that_eta_says():
    """One step of first order from x_t: e^−ηh of it stays, and fresh noise fills the rest."""
    for eta in (0.3, 1.0, 2.0):
        law = Gaussian(LINEAR, m=0.0, v=0.0)             # x0 = 0: x_s is what is left of x_t, and z
        h = (LINEAR.log_snr(300) - LINEAR.log_snr(600)) / 2
        x = last(dpmpp_2m_sde(law.predict, X_T, LINEAR, timesteps=[600, 300], noise=Z, eta=eta))
        left, fresh = exp(-eta * h) * LINEAR.noise(300) / LINEAR.noise(600), 1 - exp(-2 * eta * h)
        np.testing.assert_allclose(x, left * X_T + LINEAR.noise(300) * sqrt(fresh) * Z[0],
                                   rtol=1e-10)
