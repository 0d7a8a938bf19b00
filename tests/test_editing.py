"""Editing against exact answers: Gaussian data, whose every edit is known in closed form."""

from itertools import count, islice, pairwise

import numpy as np
import pytest

from tinydiff.diffusion.editing import (
    forward,
    image_to_image,
    inpainted,
    invert,
    repaint,
    slerp,
    strength_nodes,
)
from tinydiff.diffusion.noise import normal, stream
from tinydiff.diffusion.prediction import from_eps, from_x0
from tinydiff.diffusion.samplers.ancestral import ddpm, fixed_large
from tinydiff.diffusion.samplers.contract import sample
from tinydiff.diffusion.samplers.implicit import ddim
from tinydiff.diffusion.schedule import Schedule

COSINE = Schedule.cosine()
FAMILIES = [Schedule.linear(), Schedule.karras(), Schedule.flow()]
MEAN, COV = np.array([0.3, -0.2]), np.array([[0.5, 0.3], [0.3, 0.4]])
each_family = pytest.mark.parametrize("schedule", FAMILIES, ids=lambda schedule: schedule.name)


def gaussian(schedule, mean=MEAN, cov=COV):
    """E[x0 | x_t] of x0 ~ N(mean, cov)."""
    def predict(x_t, t):
        signal, noise = schedule.levels(t)
        gain = np.linalg.solve(signal**2 * cov + noise**2 * np.eye(len(cov)), signal * cov)
        return from_x0(x_t, mean + (x_t - signal * mean) @ gain, signal, noise)
    return predict


def curved(x_t, t):
    """A predictor with no meaning but smooth, to follow arithmetic."""
    return from_eps(x_t, np.tanh(x_t + t / 1000), *COSINE.levels(t))


def last(chain):
    *_, x = chain
    return x


# Image to image.

@each_family
@pytest.mark.parametrize("strength", [0.05, 0.4, 0.9])
def test_strength_leaves_of_a_picture_what_the_ode_of_gaussian_data_leaves(schedule, strength):
    m, v, picture, n = 0.3, 0.5, -1.2, 1000
    predict, x0 = gaussian(schedule, np.array([m]), np.array([[v]])), np.full((n, 1), picture)
    found = last(image_to_image(ddim, predict, x0, schedule, strength=strength, steps=50))
    signal, noise = schedule.levels(round(strength * 1000))
    kept = (v / (signal**2 * v + noise**2)) ** 0.5                 # the ODE's own scaling
    mean, std = m + kept * signal * (picture - m), kept * noise
    assert found.mean() == pytest.approx(mean, abs=0.02 + 4 * std / n**0.5)
    assert found.std() == pytest.approx(std, rel=0.02 + 4 / (2 * n) ** 0.5)


def test_full_strength_on_a_schedule_without_signal_at_its_end_is_sampling():
    flow = Schedule.flow()
    predict, x0 = gaussian(flow), np.full((3, 2), 5, np.float32)
    edited = last(image_to_image(ddim, predict, x0, flow, strength=1.0, steps=20, seed=7))
    drawn = sample(ddim, predict, (3, 2), flow, steps=20, seed=7)
    np.testing.assert_array_equal(edited, drawn)


def test_an_edited_picture_depends_on_its_seed_but_not_on_its_batch():
    x0 = np.linspace(-1, 1, 6).reshape(3, 2).astype(np.float32)
    many, one, other = (
        last(image_to_image(ddpm, curved, x0[:n], COSINE, strength=0.6, steps=9, seed=seed))
        for n, seed in ((3, 4), (1, 4), (3, 5)))
    np.testing.assert_array_equal(one[0], many[0])
    assert np.abs(other - many).min() > 1e-3
    assert many.dtype == np.float32


@pytest.mark.parametrize("strength", [0.001, 0.0375, 0.5, 1.0])
def test_the_walk_takes_every_number_of_steps_down_from_strength_times_T(strength):
    start = round(strength * 1000)
    for steps in range(1, start + 1):
        times = strength_nodes(COSINE, strength, steps)
        assert (times[0], times[-1], len(times)) == (start, 0, steps + 1)
        assert (np.diff(times) < 0).all()


@pytest.mark.parametrize(("strength", "steps", "sentence"), [
    (0, 5, r"\(0, 1\], where 1 is all noise, got 0"), (1.1, 5, "got 1.1"), (float("nan"), 5, "nan"),
    (0.01, 11, "leaves 10 whole times for 11 steps"), (0.5, 0, "for 0 steps")])
def test_a_strength_that_cannot_be_walked_gets_one_sentence(strength, steps, sentence):
    with pytest.raises(ValueError, match=sentence):
        image_to_image(ddim, curved, np.zeros((1, 2)), COSINE, strength=strength, steps=steps)


def test_a_picture_of_bytes_is_refused():
    with pytest.raises(ValueError, match=r"x0 must hold floats in \[-1, 1\], got uint8"):
        image_to_image(ddim, curved, np.zeros((1, 2), np.uint8), COSINE, strength=0.5, steps=5)


# Inpainting with the known picture in the predictor.

def test_the_painted_part_is_the_predictors_and_the_rest_the_known_picture(rng):
    x_t, known = rng.standard_normal((2, 3, 4, 4, 1))
    mask, free = rng.random((4, 4, 1)).round(1), curved(x_t, 600)
    p = inpainted(curved, COSINE, known=known, mask=mask)(x_t, 600)
    np.testing.assert_allclose(p.x0, mask * free.x0 + (1 - mask) * known, rtol=1e-12)
    np.testing.assert_allclose(COSINE.signal(600) * p.x0 + COSINE.noise(600) * p.eps, x_t,
                               atol=1e-12)


@each_family
@pytest.mark.parametrize(("sampler", "own"), [(ddim, {}), (ddim, {"eta": 1.0}), (ddpm, {})])
def test_inpainting_ends_at_the_known_and_draws_the_rest_as_if_alone(schedule, sampler, own, rng):
    apart = gaussian(schedule, MEAN, np.diag([0.5, 0.4]))          # coordinates that know no other
    painted = inpainted(apart, schedule, known=np.array([9.0, 0.7]), mask=np.array([True, False]))
    x_T, z = schedule.prior_std * rng.standard_normal((5, 2)), rng.standard_normal((30, 5, 2))
    ours, alone = (last(sampler(predict, x_T, schedule, steps=30, noise=z, **own))
                   for predict in (painted, apart))
    np.testing.assert_allclose(ours[:, 1], 0.7, atol=1e-12)
    np.testing.assert_allclose(ours[:, 0], alone[:, 0], rtol=1e-10)


def test_inpainting_keeps_float32_and_the_log_variance():
    def learned(x_t, t):
        return curved(x_t, t)._replace(log_variance=-3.0)

    p = inpainted(learned, COSINE, known=np.zeros(2), mask=np.array([1, 0]))
    p = p(np.ones((2, 2), np.float32), 500)
    assert p.x0.dtype == p.eps.dtype == np.float32
    assert p.log_variance == -3.0


# RePaint.

@pytest.mark.parametrize(("resample", "jump", "asked"), [
    (1, 1, [4, 3, 2, 1]), (2, 1, [4, 4, 3, 3, 2, 2, 1]), (3, 2, [4, 3, 4, 3, 4, 3, 2, 1]),
    (2, 3, [4, 3, 2, 4, 3, 2, 1]), (2, 9, [4, 3, 2, 1])])
def test_repaint_walks_each_jump_again_and_yields_every_node_once(resample, jump, asked, rng):
    times = []

    def predict(x_t, t):
        times.append(t)
        return curved(x_t, t)

    chain = repaint(predict, rng.standard_normal((2, 2)), COSINE, timesteps=[4, 3, 2, 1, 0],
                    known=np.zeros(2), mask=np.array([0, 1]), resample=resample, jump=jump)
    assert len(list(chain)) == 4
    assert times == asked


@each_family
def test_repaint_is_algorithm_1(schedule, rng):
    predict, known, mask = gaussian(schedule), np.array([0.4, 0.0]), np.array([0, 1])
    x, z = rng.standard_normal((3, 2)), list(islice(stream(2, range(3), (2,), np.float64), 10))
    ours = repaint(predict, x, schedule, timesteps=[700, 400, 100, 0], noise=z, known=known,
                   mask=mask, resample=2, variance=fixed_large)
    draws, found = iter(z), list(ours)
    for step, (t, s) in enumerate(pairwise([700, 400, 100, 0])):
        for u in (1, 2) if s > 0 else (2,):
            z_s = next(draws) if s > 0 else 0
            x_known = schedule.signal(s) * known + schedule.noise(s) * z_s            # line 5
            mean, _ = schedule.posterior(predict(x, t).x0, x, t, s)
            x_new = mean + schedule.step_variance(t, s) ** 0.5 * z_s                  # line 7
            x_s = np.where(mask, x_new, x_known)                                      # line 8
            if u < 2:
                share = schedule.signal(t) / schedule.signal(s)                       # line 10
                x = share * x_s + schedule.step_variance(t, s) ** 0.5 * next(draws)
        x = x_s
        np.testing.assert_allclose(found[step], x, rtol=1e-12)
    np.testing.assert_array_equal(x[:, 0], 0.4)


def test_resampling_leads_to_the_conditional_distribution_of_the_unknown():
    exact = MEAN[0] + COV[0, 1] / COV[1, 1] * (1 - MEAN[1])        # of x_0 where x_1 = 1 is known
    variance, n = COV[0, 0] - COV[0, 1] ** 2 / COV[1, 1], 2000
    found = {}
    for resample in (1, 5, 20):
        draws = (np.random.default_rng(i).standard_normal((n, 2)) for i in count())
        x0 = last(repaint(gaussian(COSINE), next(draws), COSINE, steps=200, noise=draws,
                          known=np.array([0, 1.0]), mask=np.array([1, 0]), resample=resample))
        found[resample] = x0[:, 0]
    off = [exact - found[resample].mean() for resample in (1, 5, 20)]
    assert off[0] > 0.35                                           # not harmonised: Fig. 3
    assert 0.08 < off[1] < 0.16
    assert abs(off[2]) < 0.06
    assert found[20].var() == pytest.approx(variance, rel=0.15)


def test_repaint_of_everything_walked_once_is_ddpm(rng):
    x_T, z = rng.standard_normal((3, 2)), rng.standard_normal((9, 3, 2))
    ours = repaint(curved, x_T, COSINE, steps=10, known=np.zeros(2), mask=np.ones(2, bool), noise=z,
                   resample=1)
    for a, b in zip(ours, ddpm(curved, x_T, COSINE, steps=10, noise=z), strict=True):
        np.testing.assert_array_equal(a, b)


def test_repaint_keeps_float32_and_uses_no_noise_twice():
    x_T, z = np.ones((2, 2), np.float32), [np.ones((2, 2))] * 5
    chain = repaint(curved, x_T, COSINE, timesteps=[900, 500, 100, 0], noise=z, resample=2,
                    known=np.zeros(2), mask=np.array([1, 0]))
    with pytest.raises(ValueError, match="ran dry at step 5"):     # 2 · 2 down, 2 · 1 up
        list(chain)
    for x_t in repaint(curved, x_T, COSINE, steps=3, known=np.zeros(2), mask=np.array([1, 0])):
        assert x_t.dtype == np.float32


@pytest.mark.parametrize("wrong", [{"mask": np.array([0, 0.5])}, {"resample": 0}, {"jump": 0}])
def test_repaint_refuses_a_soft_mask_and_counts_below_one(wrong):
    options = {"known": np.zeros(2), "mask": np.array([0, 1])} | wrong
    with pytest.raises(ValueError, match=r"a mask of 0 \(known\) and 1 \(to paint\), resample and"):
        list(repaint(curved, np.zeros((1, 2)), COSINE, steps=3, **options))


@each_family
@pytest.mark.parametrize(("t", "s"), [(2, 1), (500, 499), (900, 10.5)])
def test_a_leap_forward_arrives_where_noising_in_one_go_arrives(schedule, t, s):
    one, none = np.ones(1), np.zeros(1)
    signal = forward(schedule.signal(s) * one, schedule, t, s, none)
    variance = forward(schedule.noise(s) * one, schedule, t, s, none) ** 2 \
        + forward(none, schedule, t, s, one) ** 2
    assert signal[0] == pytest.approx(schedule.signal(t))
    assert variance[0] == pytest.approx(schedule.noise(t) ** 2)


# Inversion.

@each_family
def test_inversion_finds_the_noise_of_gaussian_data_at_order_one(schedule, rng):
    x0, (signal, noise) = rng.standard_normal((4, 2)), schedule.levels(800)
    values, vectors = np.linalg.eigh(COV)
    scale = ((signal**2 * values + noise**2) / values) ** 0.5      # the ODE along each axis of COV
    exact = signal * MEAN + (x0 - MEAN) @ vectors * scale @ vectors.T
    errors = []
    for steps in (50, 100, 200, 400):
        times = 800 * np.linspace(1, 0, steps + 1) ** 2            # smooth, with small steps at 0
        x_t = last(invert(gaussian(schedule), x0, schedule, timesteps=times))
        errors.append(np.abs(x_t - exact).max())
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert orders[-1] == pytest.approx(1, abs=0.15)


@each_family
def test_there_and_back_again_the_error_falls_with_the_steps_at_order_one(schedule, rng):
    x0, errors = rng.standard_normal((4, 2)), []
    for steps in (50, 100, 200, 400):
        times = 800 * np.linspace(1, 0, steps + 1) ** 2
        x_T = last(invert(gaussian(schedule), x0, schedule, timesteps=times))
        back = last(ddim(gaussian(schedule), x_T, schedule, timesteps=times))
        errors.append(np.abs(back - x0).max())
    assert np.log2(errors[-2] / errors[-1]) == pytest.approx(1, abs=0.15)
    assert errors[-1] < 0.02


def test_inversion_is_the_papers_step_and_asks_above_zero(rng):
    x, asked = rng.standard_normal((3, 2)), []

    def predict(x_t, t):
        asked.append(t)
        return curved(x_t, t)

    chain = invert(predict, x, COSINE, timesteps=[900, 500, 80.5, 0])
    for (s, t), ours in zip(pairwise([0, 80.5, 500, 900]), chain, strict=True):
        eps, a_s, a_t = curved(x, s or t).eps, COSINE.alpha_bar_at(s), COSINE.alpha_bar_at(t)
        x = x + a_t**0.5 * (((1 / a_s) ** 0.5 - (1 / a_t) ** 0.5) * x             # ADM App. F
                            + ((1 / a_t - 1) ** 0.5 - (1 / a_s - 1) ** 0.5) * eps)
        np.testing.assert_allclose(ours, x, rtol=1e-10)
    assert asked == [80.5, 80.5, 500]


def test_inversion_yields_one_x_t_a_step_in_the_dtype_of_x0():
    chain = list(invert(curved, np.ones((2, 2), np.float32), COSINE, steps=7))
    assert [x_t.dtype for x_t in chain] == [np.float32] * 7


# Interpolation.

def test_the_arc_has_its_ends_its_length_and_even_steps(rng):
    a, b = rng.standard_normal((2, 5, 3, 3, 1))
    b *= (np.linalg.norm(a.reshape(5, -1), axis=1)
          / np.linalg.norm(b.reshape(5, -1), axis=1)).reshape(5, 1, 1, 1)
    path = np.stack([slerp(a, b, k / 8).reshape(5, -1) for k in range(9)])
    np.testing.assert_allclose(path[0], a.reshape(5, -1), rtol=1e-12)
    np.testing.assert_allclose(path[8], b.reshape(5, -1), rtol=1e-12)
    norms = np.linalg.norm(path, axis=2)
    np.testing.assert_allclose(norms, norms[[0]] * np.ones((9, 1)), rtol=1e-12)
    steps = np.linalg.norm(np.diff(path, axis=0), axis=2)
    np.testing.assert_allclose(steps, steps[[0]] * np.ones((8, 1)), rtol=1e-10)


def test_halfway_between_two_axes_is_the_diagonal_and_each_image_may_have_its_share():
    a, b = np.array([[1.0, 0], [1, 0]]), np.array([[0.0, 1], [0, 1]])
    np.testing.assert_allclose(slerp(a, b, 0.5), np.full((2, 2), 0.5**0.5))
    third = np.array([[1, 0], [3**0.5 / 2, 0.5]])
    np.testing.assert_allclose(slerp(a, b, np.array([0, 1 / 3])), third, atol=1e-15)


def test_between_an_image_and_its_double_the_arc_is_straight():
    a = normal(0, 0, 0, (2, 3))
    np.testing.assert_allclose(slerp(a, 2 * a, 0.25), 1.25 * a, rtol=1e-6)
    assert slerp(a, 2 * a, 0.25).dtype == slerp(a, a, np.array([0.1, 1])).dtype == np.float32


def test_opposite_images_have_no_shortest_arc():
    a = normal(0, 0, 0, (2, 3))
    with pytest.raises(ValueError, match="no arc between them is the shortest"):
        slerp(a, -a, 0.5)


def test_slerp_of_what_points_nowhere_is_refused():
    with pytest.raises(ValueError, match="an image of zeros points nowhere"):
        slerp(np.zeros((1, 4)), np.ones((1, 4)), 0.5)


@pytest.mark.parametrize(("known", "mask", "sentence"), [
    (np.zeros((4, 4, 1), np.uint8), np.ones((4, 4, 1)), r"known must hold floats .* got uint8"),
    (np.zeros((4, 4, 1)), np.ones((3, 3, 1)), r"mask must broadcast .*, 4, 4, 1\), got .*\(3, 3"),
    (np.zeros((3, 3, 1)), np.ones((4, 4, 1)), r"known must broadcast .*, 4, 4, 1\), got .*\(3, 3"),
])
def test_a_known_picture_or_a_mask_that_does_not_fit_is_refused(known, mask, sentence):
    x_T, option = normal(0, 0, 0, (2, 4, 4, 1)), {"known": known, "mask": mask}
    for walk in (lambda: next(repaint(curved, x_T, COSINE, steps=3, **option)),
                 lambda: inpainted(curved, COSINE, **option)(x_T, 500)):
        with pytest.raises(ValueError, match=sentence):
            walk()


def test_a_mask_may_be_a_list():
    x_T = normal(0, 0, 0, (2, 3))
    painted = last(ddim(inpainted(curved, COSINE, known=np.full(3, 0.25), mask=[1, 0, 1]), x_T,
                        COSINE, steps=5))
    np.testing.assert_allclose(painted[:, 1], 0.25)
