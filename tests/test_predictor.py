"""Where the towers meet: whatever a network says becomes true x0, eps, variance and gradients."""

from types import SimpleNamespace

import numpy as np
import pytest

from tinydiff.autograd import Tensor
from tinydiff.diffusion.guidance import classifier_guided
from tinydiff.diffusion.prediction import PREDICTS, TARGETS, edm_scale, from_eps
from tinydiff.diffusion.samplers import ddpm
from tinydiff.diffusion.schedule import Schedule
from tinydiff.models import NoisyClassifier, NoisyClassifierConfig, UNet, UNetConfig
from tinydiff.predictor import denoiser, eps_vjp, grad_log_prob

SCHEDULE = Schedule.cosine()


class Oracle:
    """A network that knows the truth and says it in its own terms, in its own counting of time."""

    def __init__(self, x0, eps, predicts, t_first=1, v=None):
        self.x0, self.eps, self.v = x0, eps, v
        self.config = SimpleNamespace(predicts=predicts, t_first=t_first)
        self.heard = []

    def predict(self, x, t, context=None, class_labels=None):
        self.heard.append((t, context, class_labels))
        signal, noise = SCHEDULE.levels(t + 1 - self.config.t_first)
        scale = edm_scale(signal, noise) if self.config.predicts == "edm" else 1
        seen = scale * (signal * self.x0 + noise * self.eps)
        np.testing.assert_allclose(x, seen, rtol=1e-12)
        said = TARGETS[self.config.predicts](self.x0, self.eps, signal, noise)
        return said if self.v is None else np.concatenate([said, self.v], axis=-1)


@pytest.mark.parametrize("t_first", [0, 1])
@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("t", [1, 500, 987, 123.25])
def test_the_truth_in_any_terms_is_the_same_prediction(predicts, t_first, t, rng):
    x0, eps = rng.standard_normal((2, 3, 4, 4, 1))
    oracle = Oracle(x0, eps, predicts, t_first)
    predict = denoiser(oracle, SCHEDULE, context="words", class_labels="labels")
    p = predict(SCHEDULE.signal(t) * x0 + SCHEDULE.noise(t) * eps, t)
    np.testing.assert_allclose(p.x0, x0, atol=1e-10)
    np.testing.assert_allclose(p.eps, eps, atol=1e-10)
    assert oracle.heard == [(t - 1 + t_first, "words", "labels")]


@pytest.mark.parametrize("predicts", PREDICTS)
def test_a_fresh_network_says_zero_and_float32_stays_float32(predicts, rng):
    unet = UNet(UNetConfig(base=8, heads=2, groups=4, predicts=predicts, t_first=0), rng=rng)
    x_t = rng.standard_normal((2, 5, 5, 1), dtype=np.float32)
    p = denoiser(unet, SCHEDULE)(x_t, 500)
    signal, noise = SCHEDULE.levels(500)
    np.testing.assert_allclose(TARGETS[predicts](p.x0, p.eps, signal, noise), 0, atol=1e-6)
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


# The variance that a network learned.

def variances(t, s):
    """β̃ and β of the step from t to s, as the tables have them."""
    a_t, a_s = SCHEDULE.alpha_bar[[t, s]]
    return (1 - a_s) / (1 - a_t) * (1 - a_t / a_s), 1 - a_t / a_s


@pytest.mark.parametrize(("t", "s"), [(500, 499), (500, 20), (1000, 500), (300, 0)])
def test_a_learned_variance_lies_between_those_of_the_step_that_will_be_taken(t, s, rng):
    x0, eps, v = rng.uniform(-1, 1, (3, 2, 4, 4, 3))
    predict = denoiser(Oracle(x0, eps, "v", v=v), SCHEDULE)
    p = predict(SCHEDULE.q_sample(x0, t, eps), t)
    small, large = variances(t, s) if s else (variances(2 * t, t)[0], variances(t, 0)[1])
    share = (v + 1) / 2
    between = share * np.log(large) + (1 - share) * np.log(small)                # iDDPM Eq. 15
    np.testing.assert_allclose(p.log_variance(s), between, rtol=1e-9)
    np.testing.assert_allclose(p.x0, x0, atol=1e-10)


def test_a_network_that_learned_no_variance_says_none(rng):
    x0, eps = rng.standard_normal((2, 2, 4, 4, 3))
    p = denoiser(Oracle(x0, eps, "eps"), SCHEDULE)(SCHEDULE.q_sample(x0, 9, eps), 9)
    assert p.log_variance is None


def test_a_chain_of_few_steps_draws_with_the_variances_of_the_respaced_schedule(rng):
    unet = network(rng, learned_variance=True, t_first=0)
    chain, x_T = [1000, 600, 150, 0], rng.standard_normal((2, 4, 4, 1))
    respaced, z = SCHEDULE.respaced(chain[::-1]), rng.standard_normal((2, 2, 4, 4, 1))
    ours = ddpm(denoiser(unet, SCHEDULE), x_T, SCHEDULE, timesteps=chain, noise=z)
    x, after = x_T, iter(z)
    for i, found in zip((3, 2, 1), ours, strict=True):                           # iDDPM Eq. 19
        output = unet.predict(x, chain[3 - i] - 1)
        p = from_eps(x, output[..., :1], *respaced.levels(i))
        mean, small = respaced.posterior(p.x0, x, i)
        if i > 1:
            share = (output[..., 1:] + 1) / 2
            variance = respaced.beta[i] ** share * small ** (1 - share)
            mean = mean + variance**0.5 * next(after)
        np.testing.assert_allclose(found, mean, rtol=1e-8)
        x = mean


@pytest.mark.parametrize("schedule", [Schedule.flow(), Schedule.linear().zero_terminal_snr()],
                         ids=["flow", "zero SNR"])
@pytest.mark.parametrize("door", [denoiser, eps_vjp])
def test_eps_on_a_schedule_that_ends_without_signal_is_refused_at_once(schedule, door):
    with pytest.raises(ValueError, match=r"zero terminal SNR.*train it to predict v or x0"):
        door(Oracle(None, None, "eps"), schedule)
    for predicts in ("x0", "v", "velocity"):
        door(Oracle(None, None, predicts), schedule)


# Gradients.

def network(rng, **config):
    """A U-Net in float64 with no zero weights."""
    unet = UNet(UNetConfig(base=4, heads=2, groups=2, **config), rng=rng)
    unet.astype(np.float64)
    for p in unet.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape)
    return unet


@pytest.mark.parametrize("config", [
    *({"predicts": predicts} for predicts in PREDICTS), {"learned_variance": True},
    {"checkpoint": True}], ids=str)
def test_eps_vjp_agrees_with_central_differences_of_the_denoisers_eps(config, rng):
    unet = network(rng, **config)
    x_t, dy, direction = rng.standard_normal((3, 2, 4, 4, 1))
    predict, h = denoiser(unet, SCHEDULE), 1e-5
    up, down = ((predict(x_t + e * direction, 300).eps * dy).sum() for e in (h, -h))
    found = (eps_vjp(unet, SCHEDULE)(x_t, 300, dy) * direction).sum()
    assert found == pytest.approx((up - down) / (2 * h), rel=1e-7)


def noisy_classifier(rng):
    """A NoisyClassifier in float64 with no zero weights."""
    config = NoisyClassifierConfig(classes=3, widths=(4, 6), groups=2)
    classifier = NoisyClassifier(config, rng=rng).astype(np.float64)
    for p in classifier.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape)
    return classifier


def test_grad_log_prob_agrees_with_central_differences_of_the_log_probability(rng):
    classifier, y, h = noisy_classifier(rng), np.array([2, 0]), 1e-5
    x_t, direction = rng.standard_normal((2, 2, 5, 5, 1))
    up, down = (np.log(classifier.predict(x_t + e * direction, 40)[[0, 1], y]) for e in (h, -h))
    found = (grad_log_prob(classifier)(x_t, 40, y) * direction).sum((1, 2, 3))
    np.testing.assert_allclose(found, (up - down) / (2 * h), rtol=1e-6)


def test_one_class_stands_for_all_and_no_picture_sways_another(rng):
    gradient, x_t = grad_log_prob(noisy_classifier(rng)), rng.standard_normal((3, 5, 5, 1))
    every = gradient(x_t, 40, 1)
    np.testing.assert_array_equal(every, gradient(x_t, 40, np.array([1, 1, 1])))
    np.testing.assert_allclose(every[:1], gradient(x_t[:1], 40, 1), rtol=1e-10)


def test_gradients_for_guidance_leave_the_parameters_and_their_gradients_alone(rng):
    unet, classifier = network(rng), noisy_classifier(rng)
    x_t = rng.standard_normal((2, 4, 4, 1))
    eps_vjp(unet, SCHEDULE)(x_t, 300, x_t)
    grad_log_prob(classifier)(x_t, 300, 0)
    for p in [*unet.parameters().values(), *classifier.parameters().values()]:
        assert p.grad is None
        assert p.requires_grad


def test_through_autograd_the_exact_classifier_of_gaussian_classes_guides_exactly(rng):
    means, v, t = np.array([[-1.0, 0.2], [0.9, 0.4]]), 0.2, 400
    signal, noise = SCHEDULE.levels(t)
    spread = signal**2 * v + noise**2                                # of x_t within a class

    class Exact(UNet):
        def __init__(self):
            pass

        def __call__(self, x_t, t):
            np.testing.assert_array_equal(t, [400, 400, 400])
            off = [((x_t - signal * mean) ** 2).sum(axis=1) for mean in means]
            return Tensor(np.eye(2)[0]) * (off[0] * (-0.5 / spread)).reshape(3, 1) \
                + Tensor(np.eye(2)[1]) * (off[1] * (-0.5 / spread)).reshape(3, 1)

    x_t = rng.standard_normal((3, 2))
    score = -(x_t[:, None] - signal * means) / spread                # (N, class, 2)
    log_p = -0.5 * spread * (score**2).sum(-1, keepdims=True)
    p = np.exp(log_p) / np.exp(log_p).sum(1, keepdims=True)

    def predict(x_t, t):
        return from_eps(x_t, -noise * (p * score).sum(1), signal, noise)

    towards = classifier_guided(predict, grad_log_prob(Exact()), 1, SCHEDULE)(x_t, t)
    np.testing.assert_allclose(towards.eps, -noise * score[:, 1], rtol=1e-9)     # ADM Eq. 12
