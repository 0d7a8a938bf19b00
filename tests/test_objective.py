"""The random half of a training step."""

import numpy as np
import pytest

from tinydiff.autograd import Tensor
from tinydiff.diffusion import Schedule, min_snr
from tinydiff.diffusion.noise import TRAIN_EPS, batch
from tinydiff.diffusion.objective import (
    SecondMoments,
    draw,
    error_ratio,
    learned_log_variance,
    log_variance_range,
    middle,
    p2,
    vlb_weight,
)
from tinydiff.diffusion.prediction import PREDICTS

SCHEDULE = Schedule.cosine()


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_x_t_and_target_come_from_x0_eps_and_t(predicts, rng):
    x0 = rng.standard_normal((6, 4, 4, 1))
    d = draw(SCHEDULE, x0, predicts, seed=3, step=8)
    assert (d.eps == batch(3, range(6), 8, (4, 4, 1), np.float64, purpose=TRAIN_EPS)).all()
    for n in range(6):
        signal, noise = SCHEDULE.signal(int(d.t[n])), SCHEDULE.noise(int(d.t[n]))
        target = {"eps": d.eps[n], "x0": x0[n], "v": signal * d.eps[n] - noise * x0[n]}[predicts]
        np.testing.assert_allclose(d.x_t[n], signal * x0[n] + noise * d.eps[n], rtol=1e-14)
        np.testing.assert_allclose(d.target[n], target, rtol=1e-14)
    assert (d.weight == 1).all()


def test_t_is_uniform_from_one_to_T():
    schedule, n = Schedule.cosine(5), 4000
    t = draw(schedule, np.zeros((n, 1), np.float32), "v", seed=0, step=0).t
    assert t.dtype == np.int64
    counts = np.bincount(t, minlength=6)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:], n / 5, atol=4 * (n * 0.2 * 0.8) ** 0.5)


def test_a_row_depends_on_its_seed_step_and_place_only(rng):
    x0 = rng.standard_normal((5, 3))
    whole, part = (draw(SCHEDULE, x, "eps", seed=1, step=2) for x in (x0, x0[:2]))
    assert all((a[:2] == b).all() for a, b in zip(whole, part))
    for other in ({"seed": 2, "step": 2}, {"seed": 1, "step": 3}):
        d = draw(SCHEDULE, x0, "eps", **other)
        assert (d.eps != whole.eps).all()
        assert (d.t != whole.t).any()


def test_everything_but_t_has_the_datas_dtype():
    x0 = np.zeros((3, 2, 2, 1), np.float32)
    for predicts in ("eps", "x0", "v"):
        d = draw(SCHEDULE, x0, predicts, seed=0, step=0, weigh=min_snr)
        assert {a.dtype for a in (d.eps, d.x_t, d.target, d.weight)} == {np.dtype(np.float32)}
        assert d.weight.shape == (3,)


def test_a_predictor_of_zero_has_loss_one_per_pixel_in_eps():
    d = draw(SCHEDULE, np.zeros((400, 100), np.float32), "eps", seed=0, step=0)
    assert (d.weight[:, None] * d.target**2).mean() == pytest.approx(1, abs=4 * (2 / 40_000) ** 0.5)


def test_min_snr_weighs_the_same_x0_error_alike_in_every_dialect(rng):
    t = np.array([3, 200, 495, 990])
    snr, signal, noise = SCHEDULE.snr(t), SCHEDULE.signal(t), SCHEDULE.noise(t)
    x0_error = rng.standard_normal(4)
    error = {"x0": x0_error, "eps": -signal / noise * x0_error, "v": -x0_error / noise}
    losses = [min_snr(snr, predicts) * error[predicts] ** 2 for predicts in error]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-10)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-10)
    np.testing.assert_allclose(min_snr(snr, "x0"), np.minimum(snr, 5))


def test_the_weight_is_what_the_weigh_function_says():
    d = draw(SCHEDULE, np.zeros((4, 2)), "x0", seed=0, step=0, weigh=lambda snr, predicts: 2 * snr)
    np.testing.assert_allclose(d.weight, 2 * SCHEDULE.snr(d.t))


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="one of eps, x0, v, velocity, edm, got 'noise'"):
        draw(SCHEDULE, np.zeros((1, 2)), "noise", seed=0, step=0)


def test_p2_weighs_the_eps_error_by_one_over_k_plus_snr():
    snr = SCHEDULE.snr(np.array([3, 200, 495, 990]))
    np.testing.assert_allclose(p2(snr, "eps", k=2.0, gamma=0.5), (2 + snr) ** -0.5, rtol=1e-12)
    np.testing.assert_allclose(p2(snr, "x0"), snr / (1 + snr), rtol=1e-12)
    np.testing.assert_allclose(p2(snr, "v"), snr / (1 + snr) ** 2, rtol=1e-10)


@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule.karras(), Schedule.flow()],
                         ids=lambda s: s.name)
@pytest.mark.parametrize("predicts", PREDICTS)
def test_an_error_in_a_dialect_becomes_an_error_in_x0_by_the_ratio(schedule, predicts, rng):
    x_t, said, error = rng.standard_normal((3, 5))
    levels = schedule.levels(321)
    right, wrong = (PREDICTS[predicts](x_t, a, *levels).x0 for a in (said, said + error))
    np.testing.assert_allclose(error_ratio(predicts, *levels) * (wrong - right) ** 2, error**2,
                               rtol=1e-8)


@pytest.mark.parametrize(("t", "large", "small"), [
    (2, 0.27269208, 0.59967151), (10, 0.073717016, 0.08643656), (100, 0.010081264, 0.010266953),
    (500, 0.0055034319, 0.0055081965), (1000, 0.010204493, 0.010204502)])
def test_the_bound_weights_have_their_golden_values(t, large, small):
    schedule = Schedule.linear()
    for variance, golden in ((schedule.step_variance, large), (schedule.posterior_variance, small)):
        weight = vlb_weight(schedule, t, t - 1, "eps", variance(t, t - 1))
        assert weight == pytest.approx(golden, rel=1e-7)         # DDPM Eq. 12


def test_the_bound_weight_of_a_batch_is_that_of_its_rows():
    schedule, t = Schedule.linear(), np.array([2, 500])
    weight = vlb_weight(schedule, t, t - 1, "eps", schedule.step_variance(t, t - 1))
    np.testing.assert_allclose(weight, [0.27269208, 0.0055034319], rtol=1e-7)


def test_a_learned_variance_lies_between_beta_tilde_and_beta():
    schedule = Schedule.linear()
    beta, beta_tilde = schedule.step_variance(300, 280), schedule.posterior_variance(300, 280)
    at = [np.exp(learned_log_variance(schedule, np.full(1, v), 300, 280))[0] for v in (-1, 1, 0)]
    np.testing.assert_allclose(at, [beta_tilde, beta, (beta * beta_tilde) ** 0.5], rtol=1e-12)


def test_the_last_step_borrows_the_posterior_variance_of_the_step_above():
    schedule = Schedule.linear()
    low, high = log_variance_range(schedule, np.array([1, 2, 600]), np.array([0, 1, 0]))
    np.testing.assert_allclose(np.exp(low), [5.453187661e-5, 5.453187661e-5,
                                             schedule.posterior_variance(1000, 600)], rtol=1e-9)
    np.testing.assert_allclose(np.exp(high[0]), 1e-4, rtol=1e-9)
    assert log_variance_range(schedule, 1, 0) == (low[0], high[0])
    assert log_variance_range(schedule, 1000, 0)[0] < log_variance_range(schedule, 1000, 0)[1]


def test_the_learned_variance_is_linear_in_v_for_arrays_and_tensors_alike(rng):
    v, t = rng.uniform(-1, 1, (3, 2, 2)).astype(np.float32), np.array([1, 70, 300])
    plain = learned_log_variance(SCHEDULE, v, t, t - 1)
    assert plain.dtype == np.float32
    tensor = Tensor(v, requires_grad=True)
    lifted = learned_log_variance(SCHEDULE, tensor, t, t - 1)
    assert (lifted.data == plain).all()
    lifted.backward(np.ones_like(v))
    low, high = log_variance_range(SCHEDULE, t, t - 1)
    np.testing.assert_allclose(tensor.grad[:, 0, 0], (high - low) / 2, rtol=1e-3)


@pytest.mark.parametrize("schedule", [Schedule.cosine(), Schedule.linear(400),
                                      Schedule.linear().zero_terminal_snr()])
def test_middle_times_have_a_logistic_log_sigma(schedule):
    u = (np.arange(20_000) + 0.5) / 20_000
    t, weight = middle(schedule, sigma=2.0, spread=0.5)(u)
    assert weight == 1
    assert t.dtype == np.int64
    assert 1 <= t.min()
    assert t.max() <= schedule.T
    signal, noise = schedule.levels(t)
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):             # the quantiles of the logistic law
        expected = np.log(2.0) + 0.5 * np.log(share / (1 - share))
        row = int(share * 20_000)
        near = np.log(schedule.sigma(t[row] + 1.0) / schedule.sigma(t[row] - 1.0))
        assert abs(np.log(noise[row] / signal[row]) - expected) <= near


def test_middle_times_can_be_drawn_for_every_u():
    t, _ = middle(Schedule.cosine(50))(np.array([0.0, 1 - 2.0**-53]))
    assert (t >= 1).all()
    assert (t <= 50).all()


def full(losses, keep=10):
    """A SecondMoments whose t = 1, 2 … have always had these losses."""
    moments = SecondMoments(len(losses), keep)
    for _ in range(keep):
        moments.update(np.arange(len(losses)) + 1, losses)
    return moments


def test_importance_sampling_makes_every_term_weigh_the_same():
    losses = np.array([4, 1, 0.5, 0.25])
    p = full(losses).probabilities()
    pure = (p - 0.001 / 4) / 0.999
    np.testing.assert_allclose(losses / pure, 5.75, rtol=1e-12)  # iDDPM Eq. 18


def test_importance_sampling_is_uniform_until_every_t_has_been_seen_often_enough():
    moments = SecondMoments(3, keep=2)
    moments.update([1, 2, 3, 1, 2], [9.0, 1, 1, 9, 1])
    assert (moments.probabilities() == 1 / 3).all()
    moments.update([3], [1.0])
    np.testing.assert_allclose(moments.probabilities(),
                               0.999 * np.array([9, 1, 1]) / 11 + 0.001 / 3)


def test_importance_sampling_forgets_all_but_the_last_losses():
    moments = full([5.0, 5.0], keep=3)
    moments.update([1, 1, 1, 2], [1.0, 2.0, 2.0, 5.0])
    root = np.array([3**0.5, 5])                                 # √((1 + 4 + 4)/3), √25
    np.testing.assert_allclose(moments.probabilities(), 0.999 * root / root.sum() + 0.0005)


def test_importance_weights_keep_the_loss_unbiased():
    losses = np.array([4, 1, 0.5, 0.25])
    moments, u = full(losses), (np.arange(200_000) + 0.5) / 200_000
    t, weight = moments.draw(u)
    np.testing.assert_allclose(np.bincount(t, minlength=5)[1:] / len(u), moments.probabilities(),
                               atol=1e-5)
    assert (weight * losses[t - 1]).mean() == pytest.approx(losses.mean(), rel=1e-4)
    assert moments.draw(np.array([0.0, 1 - 2.0**-53]))[0].tolist() == [1, 4]


def test_importance_sampling_goes_on_exactly_from_its_state(rng):
    moments, u = full(rng.uniform(0, 1, 6), keep=4), rng.uniform(size=9)
    resumed = SecondMoments(6, keep=4)
    resumed.state = {name: array.copy() for name, array in moments.state.items()}
    for each in (moments, resumed):
        each.update([2, 2, 5], [3.0, 4.0, 5.0])
    assert all((a == b).all() for a, b in zip(moments.draw(u), resumed.draw(u)))


def test_a_drawn_batch_takes_its_times_and_their_weights_from_times():
    seen = []

    def times(u):
        seen.append(u)
        return np.where(u < 0.5, 7, 9), np.where(u < 0.5, 2.0, 3.0)

    d = draw(SCHEDULE, np.zeros((20, 2)), "x0", seed=0, step=0, times=times,
             weigh=lambda snr, predicts: 10 * snr)
    u, plain = seen[0], draw(SCHEDULE, np.zeros((20, 2)), "x0", seed=0, step=0)
    assert (1 + (SCHEDULE.T * u).astype(int) == plain.t).all()
    assert (d.t == np.where(u < 0.5, 7, 9)).all()
    np.testing.assert_allclose(d.weight, np.where(u < 0.5, 20.0, 30.0) * SCHEDULE.snr(d.t))
