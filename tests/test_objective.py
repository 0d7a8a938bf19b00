"""The random half of a training step."""

import numpy as np
import pytest

from tinydiff.diffusion import Schedule, min_snr
from tinydiff.diffusion.noise import TRAIN_EPS, batch
from tinydiff.diffusion.objective import draw

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
    with pytest.raises(ValueError, match="one of eps, x0, v, got 'noise'"):
        draw(SCHEDULE, np.zeros((1, 2)), "noise", seed=0, step=0)
