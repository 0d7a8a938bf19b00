"""Where the towers meet: whatever a network predicts becomes the x0 and eps that are true."""

from types import SimpleNamespace

import numpy as np
import pytest

from tinydiff.diffusion.prediction import TARGETS
from tinydiff.diffusion.schedule import Schedule
from tinydiff.models import UNet, UNetConfig
from tinydiff.predictor import denoiser

SCHEDULE = Schedule.cosine()


class Oracle:
    """A network that knows the truth and says it in its own terms, in its own counting of time."""

    def __init__(self, x0, eps, predicts, t_first):
        self.x0, self.eps = x0, eps
        self.config = SimpleNamespace(predicts=predicts, t_first=t_first)
        self.heard = []

    def predict(self, x, t, context=None, class_labels=None):
        self.heard.append((t, context, class_labels))
        ours = t + 1 - self.config.t_first
        return TARGETS[self.config.predicts](
            self.x0, self.eps, SCHEDULE.signal(ours), SCHEDULE.noise(ours))


@pytest.mark.parametrize("t_first", [0, 1])
@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("t", [1, 500, 987, 123.25])
def test_the_truth_in_any_terms_is_the_same_prediction(predicts, t_first, t, rng):
    x0, eps = rng.standard_normal((2, 3, 4, 4, 1))
    oracle = Oracle(x0, eps, predicts, t_first)
    predict = denoiser(oracle, SCHEDULE, context="words", class_labels="labels")
    p = predict(SCHEDULE.signal(t) * x0 + SCHEDULE.noise(t) * eps, t)
    np.testing.assert_allclose(p.x0, x0, atol=1e-10)
    np.testing.assert_allclose(p.eps, eps, atol=1e-10)
    assert oracle.heard == [(t - 1 + t_first, "words", "labels")]


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_a_fresh_network_says_zero_and_float32_stays_float32(predicts, rng):
    unet = UNet(UNetConfig(base=8, heads=2, groups=4, predicts=predicts, t_first=0), rng=rng)
    x_t = rng.standard_normal((2, 5, 5, 1), dtype=np.float32)
    p = denoiser(unet, SCHEDULE)(x_t, 500)
    signal, noise = SCHEDULE.signal(500), SCHEDULE.noise(500)
    said = {"eps": p.eps, "x0": p.x0, "v": signal * p.eps - noise * p.x0}[predicts]
    np.testing.assert_allclose(said, 0, atol=1e-6)
    np.testing.assert_allclose(signal * p.x0 + noise * p.eps, x_t, rtol=1e-5, atol=1e-6)
    assert p.x0.dtype == p.eps.dtype == np.float32


def test_the_denoiser_asks_the_network_at_its_own_time(rng):
    config = dict(base=8, heads=2, groups=4)
    from_one = UNet(UNetConfig(**config), rng=rng)
    for p in from_one.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape, dtype=np.float32)
    from_zero = UNet(UNetConfig(**config, t_first=0), rng=rng)
    from_zero.load({name: p.data for name, p in from_one.parameters().items()})
    x_t = rng.standard_normal((1, 5, 5, 1), dtype=np.float32)
    for unet, heard in ((from_one, 7), (from_zero, 6)):
        eps = denoiser(unet, SCHEDULE)(x_t, 7).eps
        np.testing.assert_array_equal(eps, from_one.predict(x_t, heard))
