"""The equations of latent diffusion that need an autoencoder, each against what it says."""

from types import SimpleNamespace

import numpy as np
import pytest
from story_helpers import few_digits, in_training, randomised, tiny

from tinydiff.autoencoding import AutoencoderTraining
from tinydiff.autograd import Tensor, mean
from tinydiff.diffusion import Mixture, Schedule, classifier_guided, objective
from tinydiff.models import Autoencoder, AutoencoderConfig
from tinydiff.train import Training

COSINE = Schedule.cosine(T=1000)
SMALL = dict(steps=5, base=8, mults=[1, 2], groups=4, latent=3)
DEVIATION = 0.5                                           # of the latents guided here


class Identity:
    """An autoencoder whose latents are the pictures."""

    config, latents = SimpleNamespace(latent=1), staticmethod(lambda x: x)


def test_with_pictures_for_latents_the_latent_loss_is_that_of_pictures():
    plain, latent = in_training(), Training(tiny(), few_digits(), Identity())
    for step in (1, 2):                                   # LDM Eq. 2 is Eq. 1
        assert latent.gradient(step) == plain.gradient(step)
        np.testing.assert_array_equal(latent.flat.grad, plain.flat.grad)


def test_the_loss_is_the_squared_error_on_noised_latents_and_leaves_the_autoencoder_alone():
    recipe = tiny(autoencoder=SMALL, model={"patch": 1}, sample={"clip": False})
    autoencoder = AutoencoderTraining(recipe, few_digits()).finished(batches=2)
    training = Training(recipe, few_digits(), autoencoder)
    randomised(training.model)
    before = {name: p.data.copy() for name, p in autoencoder.parameters().items()}
    for step in (1, 2):
        x0, ids = training.batch(step)
        z0 = (autoencoder.encode(x0)[0] - autoencoder.config.shift) * autoencoder.config.scale
        draw = objective.draw(training.schedule, z0, "v", seed=0, step=step)
        said = training.model(draw.x_t, np.float32(draw.t), ids)
        assert training.gradient(step) == pytest.approx(((said.data - draw.target) ** 2).mean(),
                                                        rel=1e-5)
        training.step()
    for name, p in autoencoder.parameters().items():
        np.testing.assert_array_equal(p.data, before[name])
        assert p.grad is None or not p.grad.any()


def guider(gain, decode, see):
    """grad_log_prob of log p(y | z_t) = −½ ‖y − T(D(z0(z_t)))‖², z0(z_t) = gain(t) · z_t"""

    def log_prob(z_t, t, y):
        error = y - see(decode(gain(t) * z_t))
        return -0.5 * (error * error).sum()                                   # LDM Eq. 17

    def gradient(z_t, t, y):
        z = Tensor(z_t, requires_grad=True)
        log_prob(z, t, y).backward()
        return z.grad

    return log_prob, gradient


def exact_gain(t):
    """Of latents that are normal with this deviation: E[z0 | z_t] = gain · z_t."""
    signal, noise = COSINE.levels(t)
    return DEVIATION**2 * signal / (DEVIATION**2 * signal**2 + noise**2)


@pytest.mark.parametrize("t", [100, 400, 900])
def test_a_straight_decoder_guides_along_the_closed_form(t, rng):
    D, T = rng.standard_normal((3, 5)), rng.standard_normal((5, 2))
    z_t, y = rng.standard_normal((4, 3)), rng.standard_normal((4, 2))
    _, gradient = guider(exact_gain, lambda z: z @ D, lambda x: x @ T)
    predict, (_, noise) = Mixture(np.zeros((1, 3)), DEVIATION).predictor(COSINE), COSINE.levels(t)
    plain, gain = predict(z_t, t), exact_gain(t)
    np.testing.assert_allclose(plain.x0, gain * z_t, atol=1e-12)
    closed = gain * (y - gain * z_t @ D @ T) @ T.T @ D.T
    guided = classifier_guided(predict, gradient, y, COSINE, scale=0.3)(z_t, t)
    # LDM Eq. 16, with minus
    np.testing.assert_allclose(guided.eps, plain.eps - 0.3 * noise * closed, atol=1e-9)


def test_a_picture_seen_through_the_decoder_guides_its_latent(rng):
    """T halves height and width; the printed sign of Eq. 16 would lead away."""
    config = AutoencoderConfig(channels=1, latent=3, base=8, mults=(1, 2), blocks=1, groups=4,
                               scale=1.0)
    decoder = randomised(Autoencoder(config, rng=rng).astype(np.float64))
    log_prob, gradient = guider(exact_gain, decoder.decoded, lambda x: mean(
        x.reshape(1, 4, 2, 4, 2, 1), axis=(2, 4)))
    z_t, y, t = rng.standard_normal((1, 4, 4, 3)), rng.standard_normal((1, 4, 4, 1)), 400
    slope, direction = gradient(z_t, t, y), rng.standard_normal(z_t.shape)
    ends = [log_prob(z_t + h * direction, t, y).item() for h in (1e-5, -1e-5)]
    assert (slope * direction).sum() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)

    def seen(scale):
        predict = Mixture(np.zeros((1, 48)), DEVIATION).predictor(COSINE)
        flat = classifier_guided(
            predict, lambda z, t, y: gradient(z.reshape(1, 4, 4, 3), t, y).reshape(1, -1), y,
            COSINE, scale=scale)(z_t.reshape(1, -1), t).x0.reshape(1, 4, 4, 3)
        return log_prob(flat / exact_gain(t), t, y).item()

    assert seen(-0.05) < seen(0) < seen(0.05)
