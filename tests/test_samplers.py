"""The samplers: where they end, how they step, and what they draw."""

from collections import Counter
from itertools import count, islice, pairwise

import numpy as np
import pytest
from sampler_helpers import (
    COSINE,
    EVERY_SAMPLER,
    EVERYWHERE,
    FLOW,
    KARRAS,
    LINEAR,
    NEEDS_SIGNAL,
    ODE,
    SDE,
    STRAIGHT,
    Gaussian,
    last,
    named,
)

from tinydiff.diffusion import (
    Prediction,
    Schedule,
    ddim,
    ddpm,
    fixed_large,
    fixed_small,
    guided,
    ideal_predictor,
    karras,
    nodes,
    sample,
    trace,
)
from tinydiff.diffusion.noise import SAMPLER, batch, normal, stream
from tinydiff.diffusion.prediction import from_eps
from tinydiff.diffusion.samplers import (
    ddpm_eps_form,
    dpmpp_1s,
    dpmpp_2m_sde,
    edm,
    euler,
    euler_ancestral,
    flow_euler,
    flow_heun,
    heun,
    lcm,
    pndm,
    unipc,
)

POINTS = np.array([[-0.8, 0.5], [0.9, 0.1], [0.2, -0.9]])
SHARES = np.array([0.5, 0.3, 0.2])
TWO_CALLS = {heun, edm, flow_heun}
ONE_STEP = [case for case in EVERY_SAMPLER if case[0] in
            {ddpm, ddpm_eps_form, ddim, euler, euler_ancestral, heun, dpmpp_1s, lcm, *TWO_CALLS,
             flow_euler} and "churn" not in case[1]]


def curving(schedule):
    """A predictor with no meaning but smooth, to follow arithmetic; x0 and eps are consistent."""
    def predict(x_t, t):
        signal, noise = schedule.levels(t)
        eps = np.tanh(x_t + t / 1000)
        if signal == 0:                                   # x_t is eps and tells nothing of x0
            return Prediction(np.sin(x_t), x_t / noise)
        return from_eps(x_t, eps, signal, noise)
    return predict


curved = curving(COSINE)


def draws(shape):
    """Noise for every step, quicker to have than from addresses."""
    return (np.random.default_rng(step).standard_normal(shape) for step in count(1))


# Where they end.

@pytest.mark.parametrize(("sampler", "own"), **named(EVERYWHERE))
@pytest.mark.parametrize("schedule", [LINEAR, COSINE, KARRAS], ids=lambda schedule: schedule.name)
def test_with_the_ideal_predictor_every_sample_is_a_data_point(sampler, own, schedule):
    predict = ideal_predictor(POINTS, schedule, weights=SHARES)
    x0 = sample(sampler, predict, (500, 2), schedule, steps=100, noise=draws((500, 2)), **own)
    distance = np.linalg.norm(x0[:, None] - POINTS, axis=-1)                     # (N, M)
    assert distance.min(axis=1).max() < (0.05 if sampler is pndm else 0.01)   # old slopes mix in
    counts = np.bincount(distance.argmin(axis=1), minlength=3)
    # too wide for few steps (DDIM Table 1), and made for the ends of curves, not for means
    if own.get("variance") is not fixed_large and sampler is not lcm:
        np.testing.assert_allclose(counts, 500 * SHARES, atol=60)


@pytest.mark.parametrize(("sampler", "own"), **named(
    [case for case in EVERYWHERE if case[0] not in NEEDS_SIGNAL] + STRAIGHT))
@pytest.mark.parametrize("schedule", [FLOW, LINEAR.zero_terminal_snr()],
                         ids=["flow", "zero-snr"])
def test_samplers_start_without_signal_where_that_is_possible(sampler, own, schedule):
    if sampler in (flow_euler, flow_heun) and schedule is not FLOW:
        with pytest.raises(ValueError, match=r"need signal \+ noise = 1, .* take ddim or dpmpp_2m"):
            sample(sampler, curving(schedule), (2, 2), schedule, steps=5)
        return
    predict = ideal_predictor(POINTS, schedule, weights=SHARES)
    x0 = sample(sampler, predict, (500, 2), schedule, steps=100, noise=draws((500, 2)), **own)
    distance = np.linalg.norm(x0[:, None] - POINTS, axis=-1)
    assert distance.min(axis=1).max() < 0.01
    counts = np.bincount(distance.argmin(axis=1), minlength=3)
    if own.get("variance") is not fixed_large and sampler is not lcm:
        np.testing.assert_allclose(counts, 500 * SHARES, atol=60)


@pytest.mark.parametrize(("sampler", "own"), **named(SDE))
def test_the_whole_chain_reaches_the_points_as_often_as_they_occur(sampler, own):
    data, n = np.array([[-1.0], [0.2], [0.9]]), 1500
    predict = ideal_predictor(data, LINEAR, weights=[0.6, 0.1, 0.3])
    x_T = np.random.default_rng(0).standard_normal((n, 1))
    x0 = last(sampler(predict, x_T, LINEAR, steps=1000, noise=draws((n, 1)), **own))
    distance = np.abs(x0 - data.T)
    assert distance.min(axis=1).max() < 0.01
    shares = np.bincount(distance.argmin(axis=1), minlength=3) / n
    np.testing.assert_allclose(shares, [0.6, 0.1, 0.3], atol=4 * (0.25 / n) ** 0.5)


@pytest.mark.parametrize(("sampler", "own", "schedule"), **named(EVERY_SAMPLER))
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 10, 37, 999, 1000])
def test_n_steps_yield_n_times_ask_as_often_as_they_say_and_end_at_the_data(
        sampler, own, schedule, n):
    point, asked = Gaussian(schedule, m=0.7, v=0.0), []

    def predict(x_t, t):
        asked.append(t)
        return point.predict(x_t, t)

    chain = list(sampler(predict, normal(0, 0, 0, (3, 2), np.float64), schedule, steps=n, **own))
    assert len(chain) == n
    assert np.isfinite(chain).all()
    np.testing.assert_allclose(chain[-1], 0.7, atol=0.01 if sampler is lcm else 1e-9)
    extra = n - 1 if sampler in TWO_CALLS else int(sampler is pndm and n > 1)
    assert len(asked) == n + extra
    if "churn" not in own:
        assert set(asked) == set(nodes(schedule, steps=n)[:-1])


@pytest.mark.parametrize("sampler", [heun, edm, pndm])
def test_karras_spacing_keeps_cosines_first_step_from_going_astray(sampler):
    law = Gaussian(COSINE, m=0.5, v=0.25)
    for n in (5, 10, 37):
        x0 = sample(sampler, law.predict, (4000, 1), COSINE, timesteps=karras(COSINE, n))
        assert x0.mean() == pytest.approx(0.5, abs=0.03)
        assert x0.std() == pytest.approx(0.5, rel={5: 1.6, 10: 0.25, 37: 0.03}[n])


@pytest.mark.parametrize(("schedule", "start"), [
    (LINEAR, 600), (KARRAS, KARRAS.time(10)), (FLOW, 800), (Schedule.karras(sigma_max=0.5), 1000)],
    ids=["linear", "karras", "flow", "low"])
def test_sampling_from_below_T_starts_with_the_spread_that_noise_has_there(schedule, start):
    times = [start, *np.linspace(start, 0, 400)[1:-1].tolist(), 0]
    law = Gaussian(schedule, m=0.0, v=0.01)
    x0 = sample(ddim, law.predict, (4000, 1), schedule, timesteps=times)
    a, b = schedule.levels(start)
    began = 1.0 if schedule is LINEAR else b
    assert x0.std() == pytest.approx(0.1 * began / (a**2 * 0.01 + b**2) ** 0.5, rel=0.05)


def test_guidance_draws_only_what_the_condition_allows():
    cond, uncond = ideal_predictor(POINTS[:1], COSINE), ideal_predictor(POINTS, COSINE)
    x0 = sample(ddim, guided(cond, uncond, 2.0), (50, 2), COSINE, steps=50)
    np.testing.assert_allclose(x0, np.tile(POINTS[:1], (50, 1)), atol=0.01)


# How they step.

@pytest.mark.parametrize("eta", [0, 0.3, np.float64(1)])
def test_ddim_follows_the_papers_equations(eta):
    x, *noise = islice(stream(5, range(3), (2,), np.float64), 8)
    chain = ddim(curved, x, COSINE, steps=7, eta=eta, noise=noise)
    for (t, s), z, ours in zip(pairwise(nodes(COSINE, steps=7)), noise, chain):
        eps, a_t, a_s = np.tanh(x + t / 1000), COSINE.alpha_bar[t], COSINE.alpha_bar[s]
        sigma = eta * ((1 - a_s) / (1 - a_t)) ** 0.5 * (1 - a_t / a_s) ** 0.5      # DDIM Eq. 16
        x = (a_s**0.5 * (x - (1 - a_t) ** 0.5 * eps) / a_t**0.5
             + (1 - a_s - sigma**2) ** 0.5 * eps + sigma * z)                     # DDIM Eq. 12
        np.testing.assert_allclose(ours, x, rtol=1e-9)


def test_ddim_is_an_euler_step_in_sigma():
    x_T = normal(0, 0, 0, (3, 2), np.float64)
    times = [900, 400.5, 30.25]
    x_bar, chain = x_T / COSINE.signal(900), ddim(curved, x_T, COSINE, timesteps=times)
    for (t, s), ours in zip(pairwise(times), chain):
        eps = curved(COSINE.signal(t) * x_bar, t).eps
        x_bar = x_bar + (COSINE.sigma(s) - COSINE.sigma(t)) * eps                 # DDIM Eq. 13
        np.testing.assert_allclose(ours, COSINE.signal(s) * x_bar, rtol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_ddim_with_eta_one_is_ddpm(steps):
    x_T = normal(0, 0, 0, (3, 2), np.float64)
    z = list(islice(stream(5, range(3), (2,), np.float64), steps))
    implicit = ddim(curved, x_T, COSINE, steps=steps, eta=1.0, noise=z)
    ancestral = ddpm(curved, x_T, COSINE, steps=steps, noise=z)
    for a, b in zip(implicit, ancestral, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_ddpm_is_algorithm_2_in_its_eps_form(variance):
    schedule = Schedule.linear(60)
    x_T = normal(0, 0, 0, (3, 2), np.float64)

    def predict(x_t, t):
        return from_eps(x_t, np.tanh(x_t + t / 60), schedule.signal(t), schedule.noise(t))

    def algorithm_2(x, z):                                                       # DDPM Alg. 2
        for t, z_t in zip(range(60, 0, -1), z):
            alpha, beta, a_t = schedule.alpha[t], schedule.beta[t], schedule.alpha_bar[t]
            a_s = schedule.alpha_bar[t - 1]
            sigma2 = beta if variance is fixed_large else (1 - a_s) / (1 - a_t) * beta
            x = (x - (1 - alpha) / (1 - a_t) ** 0.5 * np.tanh(x + t / 60)) / alpha**0.5
            x = x + sigma2**0.5 * z_t if t > 1 else x
            yield x

    z = list(islice(stream(5, range(3), (2,), np.float64), 60))
    ours = ddpm(predict, x_T, schedule, steps=60, noise=z, variance=variance)
    for a, b in zip(ours, algorithm_2(x_T, z), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_fewer_steps_are_a_chain_of_their_own(variance):
    times = nodes(LINEAR, steps=250)[::-1]                                       # 0 … 1000
    respaced = Schedule.from_alpha_bar(LINEAR.alpha_bar[times])                  # iDDPM Eq. 19
    assert respaced.beta[1] == pytest.approx(5.1941932e-4)
    assert respaced.beta[250] == pytest.approx(0.0775193450)
    x_T = normal(0, 0, 0, (3, 2), np.float64)

    def predict(x_t, t):
        return from_eps(x_t, np.tanh(x_t + t / 1000), LINEAR.signal(t), LINEAR.noise(t))

    few = ddpm(predict, x_T, LINEAR, steps=250, variance=variance)
    own = ddpm(lambda x_t, t: predict(x_t, times[t]), x_T, respaced, steps=250, variance=variance)
    for a, b in zip(few, own, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_fixed_variances_are_the_papers():
    for t in (2, 500, 1000):
        a_t, a_s, beta = LINEAR.alpha_bar[t], LINEAR.alpha_bar[t - 1], LINEAR.beta[t]
        assert fixed_large(LINEAR, t, t - 1) == pytest.approx(beta)
        assert fixed_small(LINEAR, t, t - 1) == pytest.approx((1 - a_s) / (1 - a_t) * beta)


def test_unit_variance_data_keep_unit_variance_with_the_large_variance():
    def predict(x_t, t):                             # E[x0 | x_t] of x0 ~ N(0, 1)
        signal, noise = LINEAR.signal(t), LINEAR.noise(t)
        return Prediction(signal * x_t, noise * x_t)

    gain, added = 1.0, 0.0                           # x_s = gain · x_T + noise of variance `added`
    one, none = np.ones((1, 1)), np.zeros((1, 1))
    for t in range(1000, 1, -1):
        step = last(ddpm(predict, one, LINEAR, timesteps=[t, t - 1], noise=[none])).item()
        gain, added = step * gain, step**2 * added + fixed_large(LINEAR, t, t - 1)
    assert gain**2 + added == pytest.approx(1, abs=1e-9)                          # DDPM §3.2


def test_a_learned_log_variance_overrules_the_fixed_one():
    x_T, z = normal(0, 0, 0, (3, 2), np.float64), normal(0, 0, 1, (3, 2), np.float64)
    log_variance = np.linspace(-9, -1, 6).reshape(3, 2)

    def learned(x_t, t):
        return curved(x_t, t)._replace(log_variance=log_variance)

    x = last(ddpm(learned, x_T, COSINE, timesteps=[600, 500], noise=[z]))
    mean, _ = COSINE.posterior(curved(x_T, 600).x0, x_T, 600, 500)
    np.testing.assert_allclose(x, mean + np.exp(log_variance) ** 0.5 * z, rtol=1e-12)


# What they yield and draw.

@pytest.mark.parametrize(("sampler", "own", "schedule"), **named(EVERY_SAMPLER))
def test_nodes_between_whole_times_do_and_the_last_x_is_the_last_estimate(sampler, own, schedule):
    traced, asked = trace(curving(schedule)), []

    def predict(x_t, t):
        asked.append(t)
        return traced(x_t, t)

    x_T = normal(0, 0, 0, (2, 3), np.float64)
    chain = list(sampler(predict, x_T, schedule, timesteps=[800, 400.5, 0], **own))
    assert len(chain) == 2
    assert Counter(asked)[400.5] in (1, 2)
    if sampler not in (lcm, pndm):                        # who mixes in x_t, and older slopes
        np.testing.assert_allclose(chain[-1], traced.predictions[-1].x0, rtol=1e-9)


@pytest.mark.parametrize(("sampler", "own", "schedule"), **named(ONE_STEP))
def test_a_chain_can_be_cut_and_carried_on(sampler, own, schedule):
    x_T, times = normal(0, 0, 0, (3, 2), np.float64), [1000, 700, 350.5, 20, 0]
    z, predict = list(islice(stream(1, range(3), (2,), np.float64), 4)), curving(schedule)
    whole = list(sampler(predict, x_T, schedule, timesteps=times, noise=z, **own))
    middle = last(sampler(predict, x_T, schedule, timesteps=times[:3], noise=z[:2], **own))
    np.testing.assert_array_equal(middle, whole[1])
    end = last(sampler(predict, middle, schedule, timesteps=times[2:], noise=z[2:], **own))
    np.testing.assert_array_equal(end, whole[-1])


@pytest.mark.parametrize(("sampler", "own", "schedule"), **named(EVERY_SAMPLER))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_pictures_have_the_dtype_of_x_T(sampler, own, schedule, dtype):
    def wide(x_t, t):                                # a careless predictor: float64 whatever comes
        p = curving(schedule)(x_t.astype(np.float64), t)
        return p._replace(log_variance=np.full(x_t.shape, -3.0))

    own = {k: np.float64(v) if isinstance(v, float) else v for k, v in own.items()}
    x_T = normal(0, 0, 0, (2, 3), dtype)
    for predict in (curving(schedule), wide):
        chain = list(sampler(predict, x_T, schedule, steps=5, **own))
        assert {x.dtype for x in chain} == {np.dtype(dtype)}


@pytest.mark.parametrize(("sampler", "own", "schedule"), **named(EVERY_SAMPLER))
def test_a_picture_depends_on_its_seed_but_not_on_its_batch(sampler, own, schedule):
    many, one, again, other = (
        sample(sampler, curving(schedule), (n, 4, 4, 1), schedule, steps=20, seed=seed, **own)
        for n, seed in [(5, 7), (1, 7), (5, 7), (5, 8)])
    np.testing.assert_allclose(one[0], many[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(again, many)
    assert np.abs(other - many).max(axis=(1, 2, 3)).min() > 0.1
    assert np.abs(many[1:] - many[0]).max(axis=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize(("sampler", "own"), **named([*SDE, (lcm, {})]))
def test_replaying_the_streams_noise_gives_the_seeds_picture(sampler, own):
    x_T = batch(3, range(2), 0, (4,))
    by_seed = last(sampler(curved, x_T, COSINE, steps=6, seed=11, **own))
    # a stream yields the noise of every step in turn; edm draws none in the first, at sigma(T)
    replay = islice(stream(11, range(2), (4,)), int(sampler is edm), None)
    replayed = last(sampler(curved, x_T, COSINE, steps=6, noise=replay, **own))
    np.testing.assert_array_equal(replayed, by_seed)


def test_the_noise_of_a_step_stands_at_its_row_and_step():
    x_T, times = normal(0, 0, 0, (2, 3), np.float64), [900, 600, 300]
    after_one, after_two = ddpm(curved, x_T, COSINE, timesteps=times, seed=4)
    mean, variance = COSINE.posterior(curved(after_one, 600).x0, after_one, 600, 300)
    z = np.stack([normal(4, row, 1, (3,), np.float64, purpose=SAMPLER) for row in range(2)])
    np.testing.assert_allclose(after_two, mean + variance**0.5 * z, rtol=1e-12)


@pytest.mark.parametrize(("sampler", "own", "schedule"), **named(
    [*((*s, COSINE) for s in ODE), *((*s, FLOW) for s in STRAIGHT)]))
def test_what_solves_an_ode_draws_nothing(sampler, own, schedule):
    x_T = normal(0, 0, 0, (2, 3))
    chain = sampler(curving(schedule), x_T, schedule, steps=4, noise=[], **own)
    a, b = last(chain), last(sampler(curving(schedule), x_T, schedule, steps=4, seed=1, **own))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("sampler", "own"), **named([*SDE, (lcm, {})]))
def test_a_chain_of_n_steps_to_clean_data_draws_at_most_n_minus_one_times(sampler, own):
    x_T = normal(0, 0, 0, (2, 3))
    z = [np.ones((2, 3), np.float32)] * 3
    assert len(list(sampler(curved, x_T, COSINE, steps=4, noise=z, **own))) == 4
    with pytest.raises(ValueError, match=r"ran dry at step \d; .* shape \(2, 3\)"):
        list(sampler(curved, x_T, COSINE, steps=4, noise=z[:2], **own))


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({}, "exactly one of steps and timesteps"),
    ({"steps": 3, "timesteps": [3, 0]}, "exactly one of steps and timesteps"),
    ({"steps": 0}, "from 1 to the schedule's T = 1000, got 0"),
    ({"steps": 1001}, "T = 1000, got 1001"),
    ({"timesteps": [1001, 0]}, r"\[0, 1000\]"),
    ({"steps": 3, "churn": 1.0}, "ddim takes no churn: its options are steps, timesteps, seed, "
                                 "noise, eta; edm takes it"),
])
@pytest.mark.parametrize("x_T", [normal(0, 0, 0, (2, 3))])
def test_bad_options_are_refused_at_the_call(arguments, sentence, x_T):
    with pytest.raises(ValueError, match=sentence):
        ddim(curved, x_T, COSINE, **arguments)


@pytest.mark.parametrize(("sampler", "arguments", "sentence"), [
    (ddim, {"eta": 1.5}, "eta must lie between 0"),
    (ddim, {"eta": 1, "noise": [np.ones((3, 2))]}, r"\(2, 3\), got \(3, 2\)"),
    (ddim, {"eta": 1, "seed": -1}, "seed must be"),
    (dpmpp_2m_sde, {"eta": -0.1}, "eta must not be negative"),
    (edm, {"churn": -1}, "must not be negative, got -1"),
    (unipc, {"order": 4}, "order must be 1, 2 or 3, got 4"),
    (flow_euler, {}, r"signal \+ noise = 1, as in Schedule.flow, got .* schedule cosine; take"),
    (flow_heun, {}, r"signal \+ noise = 1"),
])
def test_bad_values_get_one_sentence(sampler, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(sampler(curved, normal(0, 0, 0, (2, 3)), COSINE, steps=3, **arguments))


@pytest.mark.parametrize(("sampler", "own", "schedule"), **named(EVERY_SAMPLER))
def test_an_unknown_option_is_refused_with_the_reason(sampler, own, schedule):
    x_T, name = normal(0, 0, 0, (2, 3)), sampler.__name__
    with pytest.raises(ValueError, match=f"{name} takes no step: its options are steps, timesteps"):
        sampler(curved, x_T, schedule, step=3)
    if sampler in (ddim, dpmpp_2m_sde):
        return
    why = "solves an ODE and draws no noise" if (sampler, {}) in [*ODE, *STRAIGHT] \
        and sampler is not edm else "options are steps, .*"
    with pytest.raises(ValueError, match=f"{name} takes no eta: it.? {why}; ddim and dpmpp_2m_sde"):
        sampler(curved, x_T, schedule, steps=3, eta=0.5)


@pytest.mark.parametrize("sampler", sorted(NEEDS_SIGNAL, key=lambda sampler: sampler.__name__))
@pytest.mark.parametrize("schedule", [FLOW, COSINE.zero_terminal_snr()], ids=["flow", "zero-snr"])
def test_who_divides_by_signal_says_what_to_take_where_there_is_none(sampler, schedule):
    x_T, predict = normal(0, 0, 0, (2, 3)), curving(schedule)
    with pytest.raises(ValueError, match="has none at t = 1000; take ddim or dpmpp_2m, or time"):
        sampler(predict, x_T, schedule, steps=3)          # when called, not when first asked
    assert len(list(sampler(predict, x_T, schedule, timesteps=[990, 500, 0]))) == 2


def test_x_T_of_integers_and_a_predictor_of_another_shape_are_refused():
    x_T = normal(0, 0, 0, (2, 3))
    with pytest.raises(ValueError, match=r"shape of x_t, \(2, 3\), got \(2, 1\) and \(2, 3\)"):
        next(ddim(lambda x_t, t: Prediction(x_t[:, :1], x_t), x_T, COSINE, steps=3))
    with pytest.raises(ValueError, match="must hold floats, got uint8"):
        ddpm(curved, np.zeros((2, 3), np.uint8), COSINE, steps=3)


def test_a_log_variance_of_another_shape_is_refused():
    def predict(x_t, t):
        return Prediction(x_t, x_t, np.zeros(5))
    with pytest.raises(ValueError, match=r"log_variance must fit x_t, \(2, 1\), got \(5,\)"):
        sample(ddpm, predict, (2, 1), LINEAR, steps=3)


def test_sampling_starts_as_wide_as_the_schedule_ends():
    def start(schedule):
        traced = trace(lambda x_t, t: Prediction(x_t, x_t))
        sample(ddim, traced, (4, 2), schedule, steps=2, seed=3)
        return traced.predictions[0].x0

    np.testing.assert_array_equal(start(LINEAR), batch(3, range(4), 0, (2,)))
    np.testing.assert_array_equal(start(FLOW), start(LINEAR))
    np.testing.assert_allclose(start(KARRAS), 80 * start(LINEAR), rtol=1e-6)
    assert start(KARRAS).dtype == np.float32
