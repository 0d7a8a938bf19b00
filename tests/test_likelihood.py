"""The variational bound, term by term, and the ODE's likelihood, against exact answers."""

from itertools import pairwise
from math import e, log, pi

import numpy as np
import pytest

from tinydiff.autograd import Tensor
from tinydiff.autograd.tensor import op
from tinydiff.diffusion import Schedule, fixed_large, fixed_small
from tinydiff.diffusion.densities import discretised, gaussian, kl
from tinydiff.diffusion.ideal import Mixture
from tinydiff.diffusion.likelihood import (
    LN2,
    exact_vlb,
    hybrid,
    ode_log_likelihood,
    rate_distortion,
    vlb,
    vlb_term,
)
from tinydiff.diffusion.objective import learned_log_variance, log_variance_range, vlb_weight
from tinydiff.diffusion.prediction import PREDICTS, TARGETS, Prediction

LINEAR = Schedule.linear()
FAMILIES = [Schedule.cosine(50), Schedule.karras(50), Schedule.flow(50)]
PIXELS = np.arange(256) / 127.5 - 1


def integral(f, low, high, n=200):
    """∫ f by Gauss and Legendre."""
    z, w = np.polynomial.legendre.leggauss(n)
    return 0.5 * (high - low) * (w * f(0.5 * (high - low) * z + 0.5 * (high + low))).sum()


def normal(x, mean, variance):
    """The density of N(mean, variance)."""
    return np.exp(-0.5 * (x - mean) ** 2 / variance) / (2 * pi * variance) ** 0.5


def test_kl_is_the_integral_of_its_definition():
    q, p = (0.3, 0.5), (-0.2, 0.8)
    expected = integral(lambda x: normal(x, *q) * np.log(normal(x, *q) / normal(x, *p)), -8, 8)
    value, *_ = kl(q[0], log(q[1]), np.array([p[0]]), log(p[1]))
    assert value[0] == pytest.approx(expected, rel=1e-12)


def test_the_decoder_has_the_papers_golden_values():
    x = np.array([0.0, 1.0])
    np.testing.assert_allclose(-discretised(x, x, np.full(2, log(1e-4)))[0],
                               [-1.1872543892, -0.4268999377], atol=1e-10)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.01), (0.999, 0.3), (-1.4, 0.002), (0.1, 5.0)])
def test_the_probabilities_of_all_256_values_sum_to_one(mean, std):
    loss, *_ = discretised(PIXELS, np.full(256, mean), np.full(256, 2 * log(std)))
    with np.errstate(under="ignore"):
        assert np.exp(-loss).sum() == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("away", [0.0, -3.9, 4.05, 12.0, -45.0, 300.0])
def test_the_decoder_is_exact_far_in_the_tails(away):
    std = 0.01
    low, high = sorted(abs(away + side / 255 / std) for side in (-1, 1)) if away else (-.392157, 0)
    near = max(low, 0)
    share = integral(lambda z: np.exp(-0.5 * (z - near) * (z + near)), low, high)
    expected = 0.5 * near**2 + 0.5 * log(2 * pi) - log(share if away else 2 * share)
    loss, *_ = discretised(np.zeros(1), np.full(1, -away * std), np.full(1, 2 * log(std)))
    assert loss[0] == pytest.approx(expected, rel=1e-6 if not away else 1e-12)


@pytest.mark.parametrize("density", [
    lambda m, v: kl(0.3, -2.0, m, v), lambda m, v: gaussian(0.3, m, v),
    lambda m, v: discretised(np.resize([-1, PIXELS[140], 1], m.shape), m, v)])
def test_a_density_knows_its_derivatives(density, rng):
    mean, log_variance, h = rng.normal(0, 1, 30), rng.uniform(-7, 1, 30), 1e-6
    _, by_mean, by_log_variance = density(mean, log_variance)
    for value, change in ((by_mean, (h, 0)), (by_log_variance, (0, h))):
        up, down = (density(mean + k * change[0], log_variance + k * change[1])[0] for k in (1, -1))
        np.testing.assert_allclose(value, (up - down) / (2 * h), rtol=1e-6, atol=1e-6)


def terms_of(rng, t=(1, 5, 400, 1)):
    """A model's mean and log-variance (4, 3, 2) at several t, and what vlb_term asks besides."""
    t, x0 = np.array(t), rng.choice(PIXELS, (4, 3, 2))
    x_t = LINEAR.q_sample(x0, t, rng.standard_normal(x0.shape))
    mean = LINEAR.posterior(x0, x_t, t)[0] + 0.01 * rng.standard_normal(x0.shape)
    log_variance = learned_log_variance(LINEAR, rng.uniform(-1, 1, x0.shape), t, t - 1)
    return mean, log_variance, {"schedule": LINEAR, "x0": x0, "x_t": x_t, "t": t}


def test_a_term_is_the_kl_above_and_the_decoder_at_the_last_step(rng):
    mean, log_variance, rest = terms_of(rng)
    bits, _ = vlb_term(mean, log_variance, **rest)
    for n in range(4):
        t, x0, x_t = int(rest["t"][n]), rest["x0"][n:n + 1], rest["x_t"][n:n + 1]
        if t == 1:
            nats, *_ = discretised(x0, mean[n], log_variance[n])
        else:
            mean_q, variance_q = LINEAR.posterior(x0, x_t, t)
            nats, *_ = kl(mean_q, log(variance_q), mean[n], log_variance[n])
        assert bits[n] == pytest.approx(nats.mean() / log(2), rel=1e-12)


def test_a_term_lifted_to_tensors_has_the_gradient_of_its_differences(rng):
    mean, log_variance, rest = terms_of(rng)
    dy, h = rng.standard_normal(4), 1e-7
    m, v = (Tensor(a, requires_grad=True) for a in (mean, log_variance))
    op(vlb_term)(m, v, **rest).backward(dy)
    d = h * rng.standard_normal(mean.shape)
    for grad, d_mean, d_log_variance in ((m.grad, d, 0), (v.grad, 0, d)):
        up, down = (dy @ vlb_term(mean + k * d_mean, log_variance + k * d_log_variance, **rest)[0]
                    for k in (1, -1))
        assert 2 * (grad * d).sum() == pytest.approx(up - down, rel=1e-6)


@pytest.mark.parametrize("schedule", [LINEAR, *FAMILIES], ids=lambda s: s.name)
@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "velocity", "edm"])
def test_at_the_posterior_variance_a_term_is_the_weighted_simple_loss(schedule, predicts, rng):
    x0, t, s = rng.standard_normal((1, 3)), 20, 17
    eps, wrong = rng.standard_normal((2, 1, 3))
    x_t, levels = schedule.q_sample(x0, t, eps), schedule.levels(t)
    said = TARGETS[predicts](x0, eps, *levels) + 0.1 * wrong
    variance = schedule.posterior_variance(t, s)
    mean, _ = schedule.posterior(PREDICTS[predicts](x_t, said, *levels).x0, x_t, t, s)
    bits, _ = vlb_term(mean, log(variance), schedule=schedule, x0=x0, x_t=x_t, t=t, s=s)
    weight = vlb_weight(schedule, t, s, predicts, variance)
    assert bits[0] * LN2 == pytest.approx(weight * (0.01 * wrong**2).mean(), rel=1e-9)
    assert weight * TARGETS[predicts](1, -1 / schedule.sigma(t), *levels) ** 2 == pytest.approx(
        0.5 * (schedule.snr(s) - schedule.snr(t)), rel=1e-9)                     # LDM Eq. 13


@pytest.mark.parametrize(("x", "golden"), [(0.5, 7.2786770e-6), (3**-0.5, 9.7047068e-6)])
def test_the_prior_term_has_its_golden_value(x, golden):
    data = Mixture(np.full((1, 2), x))
    bound = vlb(data.predictor(LINEAR), np.full((3, 2), x), LINEAR, timesteps=[1000, 500, 0])
    np.testing.assert_allclose(bound.prior, golden, rtol=1e-7)
    np.testing.assert_allclose(exact_vlb(data, LINEAR, steps=2).prior, golden, rtol=1e-7)


def test_the_bound_of_the_exact_gaussian_model_is_its_entropy():
    data = Mixture(np.zeros((1, 1)), std=1.0)
    nats = exact_vlb(data, LINEAR, steps=1000, variance=fixed_large).total * LN2
    assert nats[0] == pytest.approx(1.4189385332, abs=1e-10)
    for wrong in (lambda *step: 0.9 * fixed_large(*step), lambda *step: 1.1 * fixed_large(*step)):
        assert exact_vlb(data, LINEAR, steps=1000, variance=wrong).total * LN2 > nats + 0.1


@pytest.mark.parametrize("schedule", FAMILIES, ids=lambda s: s.name)
def test_the_right_variance_makes_the_bound_of_a_gaussian_tight(schedule):
    data = Mixture(np.full((1, 1), 0.3), std=0.5)

    def right(schedule, t, s):
        return data.posterior(np.zeros((1, 1)), t, s, schedule)[2].item()

    nats = exact_vlb(data, schedule, steps=50, variance=right).total * LN2
    assert nats[0] == pytest.approx(0.5 * log(2 * pi * e * 0.25), abs=1e-5)
    small = exact_vlb(data, schedule, steps=50, variance=fixed_small).total * LN2
    assert small[0] > nats[0] + 0.05


@pytest.mark.parametrize("variance", [fixed_large, fixed_small])
def test_the_bound_without_x0_is_the_same_number(variance):
    """DDPM Eq. 16 of the exact Gaussian model: only the variances may be wrong."""
    data, schedule, v = Mixture(np.zeros((1, 1)), std=0.7), Schedule.cosine(40), 0.49
    total = 0.5 * log(2 * pi * e * v)                                            # H(x0)
    signal, noise = schedule.levels(40)
    total += kl(0, log(signal**2 * v + noise**2), np.zeros(1), 0.0)[0][0]
    for t in range(1, 41):
        true = data.posterior(np.zeros((1, 1)), t, t - 1, schedule)[2].item()
        sigma2 = variance(schedule, t, t - 1) or np.exp(log_variance_range(schedule, t, t - 1)[0])
        total += kl(0, log(true), np.zeros(1), log(sigma2))[0][0]
    nats = exact_vlb(data, schedule, steps=40, variance=variance).total * LN2
    assert nats[0] == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("schedule", FAMILIES, ids=lambda s: s.name)
def test_drawn_terms_have_the_expected_bound_as_their_mean(schedule):
    data = Mixture(np.array([[-0.6], [0.5]]), std=np.array([0.2, 0.1]), weights=[1, 2])
    x0 = data.draw(3000)
    drawn = vlb(data.predictor(schedule), x0, schedule, steps=10, variance=fixed_large,
                decoder=gaussian)
    expected = exact_vlb(data, schedule, steps=10, variance=fixed_large)
    for name in ("prior", "terms", "mse"):
        a, b = getattr(drawn, name), getattr(expected, name)
        assert (abs(a.mean(0) - b) < 5 * a.std(0) / 3000**0.5 + 1e-12).all(), name
    assert drawn.total.mean() * LN2 > -data.log_density(x0, 0, schedule).mean()  # a bound


def test_for_a_single_point_the_posterior_variance_leaves_nothing_to_send():
    x = np.full((1, 4), PIXELS[77])
    bound = vlb(Mixture(x).predictor(LINEAR), x, LINEAR, steps=1000, variance=fixed_small)
    np.testing.assert_allclose(bound.terms[:, :-1], 0, atol=1e-9)
    assert bound.mse.max() < 1e-20


def test_a_respaced_chain_has_the_bound_of_its_own_schedule(rng):
    data, times = Mixture(rng.choice(PIXELS, (5, 3))), [1000, 700, 300, 40, 0]
    own = LINEAR.respaced(times[::-1])
    predict = data.predictor(LINEAR)
    x0 = data.draw(6)
    a = vlb(predict, x0, LINEAR, timesteps=times, variance=fixed_large)
    b = vlb(lambda x_t, k: predict(x_t, times[::-1][k]), x0, own, steps=4, variance=fixed_large)
    np.testing.assert_allclose(a.terms, b.terms, rtol=1e-9)
    assert a.terms.shape == a.mse.shape == (6, 4)


def test_a_learned_variance_overrules_the_fixed_one(rng):
    data = Mixture(rng.choice(PIXELS, (5, 3)))
    times, x0, predict = [1000, 400, 90, 0], data.draw(4), data.predictor(LINEAR)
    below = dict(pairwise(times))

    def learned(x_t, t):
        log_beta = np.full(x_t.shape, log(LINEAR.step_variance(t, below[t])))
        return predict(x_t, t)._replace(log_variance=log_beta)

    a, b = (vlb(f, x0, LINEAR, timesteps=times, variance=v).terms
            for f, v in ((learned, fixed_small), (predict, fixed_large)))
    np.testing.assert_allclose(a, b, rtol=1e-10)


def test_lambda_times_T_times_the_mean_term_is_lambda_times_the_whole_bound(rng):
    data, schedule = Mixture(rng.choice(PIXELS, (5, 2))), Schedule.cosine(30)
    terms = vlb(data.predictor(schedule), data.draw(8), schedule, steps=30).terms
    whole = terms.sum(1).mean()                                  # L_vlb, bits/dim
    assert hybrid(0.5, terms.mean(), 30) == pytest.approx(0.5 + 0.001 * whole, rel=1e-12)
    assert hybrid(0.5, terms.mean(), 30, weight=1 / 30) == pytest.approx(0.5 + terms.mean())
    assert hybrid(0.5, terms.mean() * LN2, 30, weight=0.001 / LN2) == pytest.approx(
        hybrid(0.5, terms.mean(), 30), rel=1e-12)                # a bound in nats


def test_the_rate_adds_up_to_the_bound_while_the_distortion_falls():
    data = Mixture(np.array([[-0.6], [0.5]]), std=0.1)
    bound = exact_vlb(data, Schedule.cosine(100), steps=100)
    rate, distortion = rate_distortion(bound)
    assert (rate[0], rate[-1]) == pytest.approx((bound.prior[0],
                                                 (bound.total - bound.terms[:, -1])[0]))
    assert (np.diff(rate) > 0).all()
    assert (np.diff(distortion) < 0).all()
    assert distortion[0] == pytest.approx(127.5 * 0.56, rel=1e-2)   # knows only the mean
    perfect = bound._replace(mse=np.zeros_like(bound.mse))
    assert not rate_distortion(perfect)[1].any()


def karras_times(schedule, n, low):
    """n + 1 nodes from T down to where sigma is `low`, evenly spaced in sigma^(1/7)."""
    high = schedule.sigma(schedule.T)
    return [schedule.time(s) for s in np.linspace(high ** (1 / 7), low ** (1 / 7), n + 1) ** 7]


@pytest.mark.parametrize("schedule", [Schedule.cosine(), Schedule.karras(sigma_max=500.0)],
                         ids=lambda s: s.name)
def test_the_ode_finds_the_density_of_a_mixture_at_second_order(schedule):
    data = Mixture(np.array([[-0.6, 0.2], [0.3, -0.1]]), np.array([0.3, 0.2]), weights=[1, 2])
    x, errors = np.array([[-0.6, 0.2], [0.4, -0.4], [0.0, 0.0]]), []
    for n in (80, 160, 320):
        times = karras_times(schedule, n, 0.05)
        found = ode_log_likelihood(data.predictor(schedule), x, schedule, timesteps=times)
        errors.append(abs(found - data.log_density(x, times[-1], schedule)).max())
    order = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(order, 2, atol=0.1)
    assert errors[-1] < 0.01


def exact_vjp(std, schedule):
    """∂(Σ eps·dy)/∂x_t of N(0, std²), whose eps is noise/(signal² std² + noise²) · x_t."""
    def vjp(x_t, t, dy):
        signal, noise = schedule.levels(t)
        return dy * (noise / (signal**2 * std**2 + noise**2))
    return vjp


def test_vjps_differences_and_random_signs_find_the_same_likelihood(rng):
    schedule, data = Schedule.cosine(200), Mixture(np.zeros((1, 2, 3)), 0.6)
    x = rng.normal(size=(4, 2, 3))
    times = [180, 150, 120, 90, 60, 30, 10]
    found = [ode_log_likelihood(data.predictor(schedule), x, schedule, timesteps=times, **how)
             for how in ({}, {"vjp": exact_vjp(0.6, schedule)}, {"probes": 2},
                         {"probes": 1, "seed": 5, "vjp": exact_vjp(0.6, schedule)})]
    for other in found[1:]:                                      # the Jacobian is a multiple of 1
        np.testing.assert_allclose(other, found[0], rtol=1e-7)


def test_random_signs_are_right_on_average():
    schedule = Schedule.karras(100, sigma_max=20.0)
    data = Mixture(np.array([[-1.0, 0.0], [1.0, 1.0]]), 0.3)
    x, times = np.tile([[0.2, 0.5]], (400, 1)), karras_times(schedule, 10, 0.3)
    predict = data.predictor(schedule)
    exact = ode_log_likelihood(predict, x[:1], schedule, timesteps=times)
    drawn = ode_log_likelihood(predict, x, schedule, timesteps=times, probes=1)
    assert drawn.std() > 0.01
    assert drawn.mean() == pytest.approx(exact[0], abs=4 * drawn.std() / 400**0.5)
    again = ode_log_likelihood(predict, x[:2], schedule, timesteps=times, probes=1)
    assert (again == drawn[:2]).all()


@pytest.mark.parametrize("schedule", [Schedule.cosine(), Schedule.karras(), Schedule.flow()])
def test_so_many_steps_of_the_ode_measure_on_any_schedule(schedule):
    data, x = Mixture(np.full((1, 1), 0.2), 0.5), np.array([[0.1], [0.9]])
    found = ode_log_likelihood(data.predictor(schedule), x, schedule, steps=100)
    np.testing.assert_allclose(found, data.log_density(x, 1, schedule), atol=5e-3)


def test_the_ode_may_start_below_T():
    schedule, data, x = Schedule.karras(), Mixture(np.zeros((1, 1)), 0.5), np.array([[0.1]])
    times = [schedule.time(sigma) for sigma in np.geomspace(10, 0.01, 200)]
    found = ode_log_likelihood(data.predictor(schedule), x, schedule, timesteps=times)
    assert found == pytest.approx(data.log_density(x, times[-1], schedule), abs=3e-3)


def test_float32_pictures_are_measured_about_as_well():
    schedule = Schedule.cosine(100)
    data = Mixture(np.array([[-0.6, 0.2], [0.4, 0.4]]), 0.1)
    x = data.draw(3)
    for measure in (lambda x: vlb(data.predictor(schedule), x, schedule, steps=20).total,
                    lambda x: ode_log_likelihood(data.predictor(schedule), x, schedule, steps=20)):
        np.testing.assert_allclose(measure(x.astype(np.float32)), measure(x), rtol=2e-3)


def test_nodes_that_cannot_bound_or_carry_a_density_get_one_sentence():
    predict = Mixture(np.zeros((1, 1)), 1.0).predictor(LINEAR)
    with pytest.raises(ValueError, match="timesteps must end at 0, got 3"):
        vlb(predict, np.zeros((1, 1)), LINEAR, timesteps=[9, 3])
    with pytest.raises(ValueError, match="timesteps must end at 0, got 3"):
        exact_vlb(Mixture(np.zeros((1, 1)), 1.0), LINEAR, timesteps=[9, 3])
    zero = np.zeros((1, 1))
    for schedule, own in ((Schedule.flow(10), {"timesteps": [10, 5]}),
                          (LINEAR, {"timesteps": [1000, 0]}), (LINEAR, {"steps": 5, "probes": 0})):
        with pytest.raises(ValueError, match="expected times above 0 where signal is left, and pr"):
            ode_log_likelihood(predict, zero, schedule, **own)


def test_a_wrong_prediction_costs_what_its_square_says():
    schedule, x0 = Schedule.cosine(10), np.zeros((1, 2))

    def off_by_a_tenth(x_t, t):
        return Prediction(x0 + 0.1, (x_t - schedule.signal(t) * 0.1) / schedule.noise(t))

    bound = vlb(off_by_a_tenth, x0, schedule, steps=10)
    snr = schedule.snr(np.arange(10, 0, -1))
    np.testing.assert_allclose(bound.terms[0, :-1] * LN2, 0.5 * np.diff(snr) * 0.01, rtol=1e-8)
    np.testing.assert_allclose(bound.mse, 0.01)


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_a_bound_on_any_nodes_is_that_of_the_respaced_chain(variance):
    times, x0 = [0, 100, 400, 1000], np.zeros((1, 2, 2, 1))
    predict = Mixture(np.zeros((1, 2, 2, 1)), 0.5).predictor(LINEAR)
    few = LINEAR.respaced(times)
    ours = vlb(predict, x0, LINEAR, timesteps=times[::-1], variance=variance)
    theirs = vlb(lambda x_t, k: predict(x_t, times[k]), x0, few, steps=3, variance=variance)
    np.testing.assert_allclose(ours.total, theirs.total, rtol=1e-10)
    exact = [exact_vlb(Mixture(np.zeros((1, 1)), 0.5), schedule, timesteps=nodes, variance=variance)
             for schedule, nodes in ((LINEAR, times[::-1]), (few, [3, 2, 1, 0]))]
    assert exact[0].total == pytest.approx(exact[1].total, rel=1e-10)
