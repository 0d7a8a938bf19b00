"""The three losses of training: what each teaches, and to which part of the network."""

import numpy as np
import pytest

from tinydiff.autograd import Tensor, gradcheck, mean, mse
from tinydiff.criterion import bound, hybrid, simple, vlb
from tinydiff.diffusion import PREDICTS, Prediction, Schedule, objective, vlb as measured

SCHEDULE = Schedule.cosine(20)
FAMILIES = [SCHEDULE, Schedule.karras(20), Schedule.flow(20)]


def a_draw(rng, predicts="eps", schedule=SCHEDULE, N=7):
    """x0 (N, 3, 3, 1) with pixels of 256 values, a draw of it, and what a network might say."""
    x0 = rng.integers(0, 256, (N, 3, 3, 1)) / 127.5 - 1
    draw = objective.draw(schedule, x0, predicts, seed=0, step=0)
    said = np.concatenate([draw.target + 0.3 * rng.standard_normal(x0.shape),
                           rng.uniform(-1, 1, x0.shape)], -1)
    return x0, draw, said


@pytest.mark.parametrize("predicts", ["x0", "v", "velocity", "edm"])
@pytest.mark.parametrize("schedule", FAMILIES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("loss", [hybrid, vlb])
def test_losses_have_the_gradients_of_central_differences(loss, schedule, predicts, rng):
    x0, draw, said = a_draw(rng, predicts, schedule, N=3)
    draw = draw._replace(t=np.array([1, 2, 15]))          # the decoder, and two steps above it
    if loss is hybrid:                                    # whose mean is held still: only v moves
        named = said[..., :1].copy()
        gap = gradcheck(lambda v: mean(bound(named, v, draw, x0, schedule, predicts)),
                        said[..., 1:])
    else:
        gap = gradcheck(lambda s: loss(s, draw, x0, schedule, predicts)[0], said)
    assert gap < 1e-6


def test_hybrid_teaches_the_mean_by_the_simple_loss_alone(rng):
    x0, draw, said = a_draw(rng)
    both, alone = Tensor(said, requires_grad=True), Tensor(said[..., :1], requires_grad=True)
    hybrid(both, draw, x0, SCHEDULE, "eps")[0].backward()
    simple(alone, draw, x0, SCHEDULE, "eps")[0].backward()
    np.testing.assert_allclose(both.grad[..., :1], alone.grad, rtol=1e-13)        # iDDPM Eq. 16
    assert np.abs(both.grad[..., 1:]).min() > 0


def test_hybrid_is_the_simple_loss_and_a_thousandth_of_the_bound(rng):
    x0, draw, said = a_draw(rng)
    loss, bits = hybrid(Tensor(said), draw, x0, SCHEDULE, "eps")
    error = ((said[..., :1] - draw.target) ** 2).mean()
    assert loss.item() == pytest.approx(error + 0.001 * SCHEDULE.T * bits.mean())


def test_the_terms_are_those_of_the_measured_bound(rng):
    """Each t once, with the same noise: T · mean of the terms is the sum that `vlb` measures."""
    x0 = np.repeat(rng.integers(0, 256, (1, 3, 3, 1)) / 127.5 - 1, SCHEDULE.T, 0)
    t, eps = np.arange(1, SCHEDULE.T + 1), rng.standard_normal(x0.shape)
    v = rng.uniform(-1, 1, x0.shape)
    draw = objective.Draw(t, eps, SCHEDULE.q_sample(x0, t, eps), eps, np.ones(len(x0)))
    said = 0.9 * eps
    terms = bound(said, v, draw, x0, SCHEDULE, "eps").data
    for k in (0, 5, SCHEDULE.T - 1):
        def predict(x_t, time, k=k):
            p = PREDICTS["eps"](draw.x_t[k:k + 1], said[k:k + 1], *SCHEDULE.levels(time))
            wide = objective.learned_log_variance(SCHEDULE, v[k:k + 1], time, time - 1)
            return Prediction(*p[:2], wide)

        process = Fixed(SCHEDULE, draw.x_t[k:k + 1])
        times = range(SCHEDULE.T, -1, -1)
        found = measured(predict, x0[:1], process, timesteps=times).terms[0]
        assert terms[k] == pytest.approx(found[SCHEDULE.T - 1 - k], rel=1e-9)


class Fixed:
    """A schedule whose noising always gives the same x_t."""

    def __init__(self, schedule, x_t):
        self.schedule, self.x_t = schedule, x_t

    def __getattr__(self, name):
        return getattr(self.schedule, name)

    def q_sample(self, x0, t, eps):
        return self.x_t


def test_importance_weights_leave_the_bound_what_it_is(rng):
    x0, draw, said = a_draw(rng, N=4)
    bits = bound(said[..., :1], said[..., 1:], draw, x0, SCHEDULE, "eps").data
    share = np.array([0.4, 0.3, 0.2, 0.1])                # p_t, were these four all there is
    weighted = draw._replace(weight=1 / (4 * share))
    losses = [vlb(Tensor(said[k:k + 1]), objective.Draw(*(a[k:k + 1] for a in weighted)),
                  x0[k:k + 1], SCHEDULE, "eps")[0].item() for k in range(4)]
    assert share @ losses == pytest.approx(SCHEDULE.T * bits.mean())              # iDDPM Eq. 18


def test_simple_is_the_weighted_squared_error(rng):
    x0, draw, said = a_draw(rng)
    draw = draw._replace(weight=np.arange(7.0))
    loss, none = simple(Tensor(said[..., :1]), draw, x0, SCHEDULE, "eps")
    assert loss.item() == pytest.approx(mse(said[..., :1], draw.target, weight=draw.weight).item())
    assert none is None


def test_float32_stays_float32(rng):
    x0, draw, said = a_draw(rng)
    narrow = objective.Draw(draw.t, *(a.astype(np.float32) for a in draw[1:]))
    for loss in (hybrid, vlb):
        found, _ = loss(Tensor(said.astype(np.float32), requires_grad=True), narrow,
                        x0.astype(np.float32), SCHEDULE, "eps")
        assert found.dtype == np.float32
