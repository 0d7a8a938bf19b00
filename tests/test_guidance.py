"""Predictors made from predictors."""

from itertools import count, islice, pairwise

import numpy as np
import pytest

from tinydiff.diffusion import Prediction, Schedule, clipped, guided, ideal_predictor, trace
from tinydiff.diffusion.guidance import classifier_guided, composed, guided_rescaled, within
from tinydiff.diffusion.noise import stream
from tinydiff.diffusion.prediction import PREDICTS, TARGETS, from_eps, from_x0
from tinydiff.diffusion.samplers.ancestral import ddpm, fixed_large, fixed_small
from tinydiff.diffusion.samplers.guided import ddpm_guided
from tinydiff.diffusion.samplers.implicit import ddim

SCHEDULE = Schedule.cosine()
FAMILIES = [Schedule.linear(), Schedule.karras(), Schedule.flow()]
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


# Rescaled, in an interval, composed.

def picture_branches(rng):
    """Two predictors with no meaning on pictures (N, 4, 4, 1), each naming an eps of its own."""
    said = rng.standard_normal((2, 3, 4, 4, 1))
    return [lambda x_t, t, eps=eps: from_eps(x_t, eps, *SCHEDULE.levels(t)) for eps in said]


@pytest.mark.parametrize("predicts", PREDICTS)
def test_rescaled_guidance_follows_the_papers_lines_on_what_the_network_names(predicts, rng):
    cond, uncond = picture_branches(rng)
    x_t, t, levels = rng.standard_normal((3, 4, 4, 1)), 400, SCHEDULE.levels(400)
    w, rescale = 5.0, 0.7
    c, u = (TARGETS[predicts](*p(x_t, t)[:2], *levels) for p in (cond, uncond))
    past = u + w * (c - u)
    for n in range(3):                                     # Lin et al. §3.4, picture by picture
        back = past[n] * (np.std(c[n], ddof=1) / np.std(past[n], ddof=1))
        past[n] = rescale * back + (1 - rescale) * past[n]
    p = guided_rescaled(cond, uncond, w, SCHEDULE, rescale=rescale, predicts=predicts)(x_t, t)
    np.testing.assert_allclose(TARGETS[predicts](p.x0, p.eps, *levels), past, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(levels[0] * p.x0 + levels[1] * p.eps, x_t, atol=1e-12)


def test_rescale_zero_is_plain_guidance_and_one_gives_the_conditional_spread(rng):
    cond, uncond = picture_branches(rng)
    x_t, t = rng.standard_normal((3, 4, 4, 1)), 400
    plain = guided(cond, uncond, 5.0)(x_t, t)
    p = guided_rescaled(cond, uncond, 5.0, SCHEDULE, predicts="eps", rescale=0)(x_t, t)
    np.testing.assert_allclose(p.eps, plain.eps, rtol=1e-12)
    np.testing.assert_allclose(p.x0, plain.x0, rtol=1e-9)
    p = guided_rescaled(cond, uncond, 5.0, SCHEDULE, predicts="eps", rescale=1)(x_t, t)
    np.testing.assert_allclose(p.eps.std((1, 2, 3)), cond(x_t, t).eps.std((1, 2, 3)), rtol=1e-12)


def test_rescaled_guidance_of_branches_that_say_nothing_says_nothing():
    def silent(x_t, t):
        return from_eps(x_t, 0 * x_t, *SCHEDULE.levels(t))

    x_t = np.ones((2, 4, 4, 1), np.float32)
    p = guided_rescaled(silent, silent, 3.0, SCHEDULE, predicts="eps")(x_t, 500)
    np.testing.assert_array_equal(p.eps, np.zeros_like(x_t))


def test_guidance_in_an_interval_is_on_above_low_up_to_high():
    cond, uncond = branches()
    p, x_t = within(guided(cond, uncond, 3.0), cond, 200, 600), np.array([[0.3]])
    for t in (1, 200, 201, 400.5, 600, 601, 1000):
        w = 3.0 if 200 < t <= 600 else 1.0
        np.testing.assert_allclose(p(x_t, t).eps, guided(cond, uncond, w)(x_t, t).eps, rtol=1e-14)
    with pytest.raises(ValueError, match="low < high, got low = 600 and high = 600"):
        within(cond, uncond, 600, 600)


def test_conditions_on_independent_coordinates_compose_exactly():
    grid = np.array([[a, b] for a in (-1.0, 0.4) for b in (-0.7, 0.2, 0.9)])
    uncond = ideal_predictor(grid, SCHEDULE)
    first = ideal_predictor(grid[grid[:, 0] == 0.4], SCHEDULE)
    second = ideal_predictor(grid[grid[:, 1] == 0.2], SCHEDULE)
    both, x_t = ideal_predictor(np.array([[0.4, 0.2]]), SCHEDULE), np.array([[0.3, -0.5], [1, 2]])
    p = composed(uncond, [first, second], [1, 1])(x_t, 600)
    np.testing.assert_allclose(p.eps, both(x_t, 600).eps, rtol=1e-12)
    np.testing.assert_allclose(p.x0, both(x_t, 600).x0, rtol=1e-12)


def test_composing_one_condition_is_classifier_free_guidance_and_weights_must_fit():
    cond, uncond = branches()
    x_t = np.array([[0.3], [-1.0]])
    np.testing.assert_array_equal(composed(uncond, [cond], [2.5])(x_t, 600).eps,
                                  guided(cond, uncond, 2.5)(x_t, 600).eps)
    with pytest.raises(ValueError, match="one weight for each condition, got 1 weights and 2"):
        composed(uncond, [cond, cond], [1.0])


def test_a_negative_prompt_is_led_away_from_by_its_own_posterior():
    negative, both = branches()
    x_t, t, w = np.array([[0.3], [-0.4]]), 600, 2.5
    signal, noise = SCHEDULE.levels(t)
    p_right = 1 / (1 + np.exp(-2 * signal * x_t / noise**2))                    # Bayes, two points
    away = (1 - p_right) * 2 * signal / noise**2                                # ∇ log p(negative)
    np.testing.assert_allclose(guided(both, negative, w)(x_t, t).eps,
                               both(x_t, t).eps + (w - 1) * noise * away, rtol=1e-12)


# Towards a class, with the exact classifier of Gaussian classes.

MEANS, SHARES, V = np.array([-1.0, 0.2, 0.9]), np.array([0.5, 0.2, 0.3]), 0.15


def posterior(x_t, t, schedule):
    """p(class | x_t), (N, 3), and each class's score, (N, 3), of x0 ~ N(MEANS[y], V)."""
    signal, noise = schedule.levels(t)
    score = -(x_t - signal * MEANS) / (signal**2 * V + noise**2)
    log_p = np.log(SHARES) - 0.5 * score**2 * (signal**2 * V + noise**2)
    with np.errstate(under="ignore"):
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True), score


def classes(schedule):
    """Exact for the three classes: the predictor, that of class y, and ∇ log p(y | x_t)."""
    def of(score, x_t, t):
        return from_eps(x_t, -schedule.noise(t) * score, *schedule.levels(t))

    def mixed(x_t, t):
        p, score = posterior(x_t, t, schedule)
        with np.errstate(under="ignore"):
            return (p * score).sum(1, keepdims=True)

    def score_of(x_t, t, y):
        return posterior(x_t, t, schedule)[1][:, [y]]

    return (lambda x_t, t: of(mixed(x_t, t), x_t, t),
            lambda y: lambda x_t, t: of(score_of(x_t, t, y), x_t, t),
            lambda x_t, t, y: score_of(x_t, t, y) - mixed(x_t, t))


@pytest.mark.parametrize("schedule", FAMILIES, ids=lambda schedule: schedule.name)
def test_with_the_exact_classifier_scale_one_is_the_conditional_predictor(schedule):
    predict, conditional, gradient = classes(schedule)
    for t in (5, 300.5, 900):
        x_t = np.linspace(-2, 2, 9)[:, None] * schedule.noise(t)
        for y in range(3):
            p = classifier_guided(predict, gradient, y, schedule)(x_t, t)
            np.testing.assert_allclose(p.eps, conditional(y)(x_t, t).eps, atol=1e-9)    # ADM Eq. 12
            np.testing.assert_allclose(p.x0, conditional(y)(x_t, t).x0, atol=1e-9)


def test_the_exact_gradient_is_the_slope_of_the_log_posterior():
    _, _, gradient = classes(SCHEDULE)
    x_t, d = np.array([[-0.7], [0.3]]), 1e-6
    for y in range(3):
        up, down = (np.log(posterior(x_t + e, 500, SCHEDULE)[0][:, [y]]) for e in (d, -d))
        np.testing.assert_allclose(gradient(x_t, 500, y), (up - down) / (2 * d), rtol=1e-6)


@pytest.mark.parametrize("w", [0, 0.5, np.float64(3)])
def test_classifier_guidance_with_scale_w_is_classifier_free_guidance(w):
    predict, conditional, gradient = classes(SCHEDULE)
    x_t = np.linspace(-2, 2, 9)[:, None]
    p = classifier_guided(predict, gradient, 2, SCHEDULE, scale=w)(x_t, 700)
    free = guided(conditional(2), predict, w)(x_t, 700)                         # CFG §3.2
    np.testing.assert_allclose(p.eps, free.eps, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(p.x0, free.x0, rtol=1e-10, atol=1e-12)


def test_a_guided_step_raises_the_probability_of_the_class():
    predict, _, gradient = classes(SCHEDULE)
    x_t = np.linspace(-2, 2, 9)[:, None]
    for scale, sign in ((1.0, 1), (-1.0, -1)):           # the plus that LDM Eq. 16 prints lowers
        p = classifier_guided(predict, gradient, 1, SCHEDULE, scale=scale)
        *_, guided_x = ddim(p, x_t, SCHEDULE, timesteps=[500, 450])
        *_, free_x = ddim(predict, x_t, SCHEDULE, timesteps=[500, 450])
        after, before = (posterior(x, 450, SCHEDULE)[0][:, 1] for x in (guided_x, free_x))
        assert (sign * (after - before) > 0).all()


def test_where_no_signal_is_left_the_prediction_stays(rng):
    flow = Schedule.flow()
    said = from_x0(np.ones((2, 1)), np.zeros((2, 1)), *flow.levels(1000))
    assert classifier_guided(lambda x_t, t: said, None, 0, flow)(np.ones((2, 1)), 1000) is said


# The ancestral form.

@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_scale_zero_is_the_plain_ancestral_sampler_with_the_same_noise(variance):
    predict, _, gradient = classes(SCHEDULE)
    x_T = np.linspace(-2, 2, 9)[:, None]
    plain = ddpm(predict, x_T, SCHEDULE, steps=20, seed=3, variance=variance)
    ours = ddpm_guided(predict, x_T, SCHEDULE, steps=20, seed=3, variance=variance,
                       grad_log_prob=gradient, y=1, scale=0)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("learned", [False, True])
def test_the_ancestral_form_is_algorithm_1(learned):
    predict, _, gradient = classes(SCHEDULE)
    log_variance = np.linspace(-9, -1, 3)[:, None]

    def say(x_t, t):
        return predict(x_t, t)._replace(log_variance=log_variance if learned else None)

    x, *noise = islice(stream(5, range(3), (1,), np.float64), 4)
    chain = ddpm_guided(say, x, SCHEDULE, timesteps=[900, 500, 40, 0], grad_log_prob=gradient, y=2,
                        scale=1.5, noise=noise, variance=fixed_large)
    for (t, s), z, ours in zip(pairwise([900, 500, 40, 0]), noise, chain, strict=True):
        mean, _ = SCHEDULE.posterior(predict(x, t).x0, x, t, s)
        variance = np.exp(log_variance) if learned else SCHEDULE.step_variance(t, s)
        x = mean + 1.5 * variance * gradient(x, t, 2) + variance**0.5 * z * (s > 0)   # ADM Alg. 1
        np.testing.assert_allclose(ours, x, rtol=1e-12)


@pytest.mark.parametrize("schedule", FAMILIES, ids=lambda schedule: schedule.name)
def test_with_the_exact_classifier_the_ancestral_form_draws_its_gaussian(schedule):
    predict, _, gradient = classes(schedule)
    n, draws = 4000, (np.random.default_rng(i).standard_normal((4000, 1)) for i in count())
    times, (signal, noise) = [*range(996, 0, -4), 0], schedule.levels(996)
    x_T = signal * MEANS[2] + (signal**2 * V + noise**2) ** 0.5 * next(draws)
    *_, x0 = ddpm_guided(predict, x_T, schedule, timesteps=times, grad_log_prob=gradient, y=2,
                         noise=draws, variance=fixed_large)
    assert x0.mean() == pytest.approx(MEANS[2], abs=0.02 + 3 * (V / n) ** 0.5)
    assert x0.var() == pytest.approx(V, rel=0.02 + 3 * (2 / n) ** 0.5)


def test_the_ancestral_form_keeps_float32():
    predict, _, gradient = classes(SCHEDULE)
    x_T = np.ones((2, 1), np.float32)
    for x_t in ddpm_guided(predict, x_T, SCHEDULE, steps=3, grad_log_prob=gradient, y=0,
                           scale=np.float64(2)):
        assert x_t.dtype == np.float32


@pytest.mark.parametrize(("own", "sentence"), [
    ({"predicts": "noise"}, "predicts must be one of eps, x0, v, velocity, edm, got 'noise'"),
    ({"predicts": "v", "rescale": 2.0}, "rescale is a share from 0 to 1, got 2.0")])
def test_rescaling_that_means_nothing_is_refused_at_once(own, sentence):
    with pytest.raises(ValueError, match=sentence):
        guided_rescaled(*branches(), 3.0, SCHEDULE, **own)
