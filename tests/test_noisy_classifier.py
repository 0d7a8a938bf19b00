"""The noisy classifier: right gradients, told the time, and taught to read through noise."""

import numpy as np
import pytest
from story_helpers import assert_gradients

from tinydiff import data, images, metrics
from tinydiff.autograd import Tensor, cross_entropy, gradcheck
from tinydiff.diffusion.schedule import Schedule
from tinydiff.models.noisy_classifier import (
    Noised,
    NoisyClassifier,
    NoisyClassifierConfig,
    fit_noisy,
)

COSINE = Schedule.cosine()
T = np.array([3, 700])


def tiny():
    """A NoisyClassifier of another shape than the default, in float64 and with no zero weights."""
    rng = np.random.default_rng(0)
    config = NoisyClassifierConfig(channels=2, classes=3, widths=(4, 6), groups=2)
    classifier = NoisyClassifier(config, rng=rng).astype(np.float64)
    for p in classifier.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape)
    return classifier


def test_gradients_of_the_pictures_agree_with_central_differences(rng):
    classifier = tiny()
    assert gradcheck(lambda x: classifier(x, T), rng.uniform(-1, 1, (2, 5, 6, 2))) < 1e-7


def test_gradients_of_every_parameter_agree_with_central_differences(rng):
    classifier, x, labels = tiny(), rng.uniform(-1, 1, (2, 5, 6, 2)), np.array([0, 2])

    def loss():
        return cross_entropy(classifier(x, T), labels=labels)

    loss().backward()
    assert_gradients(loss, classifier.parameters(), rng)


def test_a_fresh_classifier_holds_every_class_equally_likely(rng):
    classifier = NoisyClassifier(NoisyClassifierConfig(), rng=rng)
    p = classifier.predict(rng.uniform(-1, 1, (3, 28, 28, 1)).astype(np.float32), 500)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p, np.full((3, 10), 0.1), rtol=1e-6)


def test_a_row_depends_on_its_own_picture_and_its_own_time(rng):
    classifier, x = tiny(), rng.uniform(-1, 1, (2, 5, 6, 2))
    both = classifier(x, T).data
    for n in range(2):
        np.testing.assert_allclose(both[n], classifier(x[[n]], T[[n]]).data[0], rtol=1e-10)
    assert np.abs(both - classifier(x, T[::-1]).data).max(axis=1).min() > 1e-3


def test_predict_is_softmax_of_the_logits_at_one_time(rng):
    classifier, x = tiny(), rng.uniform(-1, 1, (2, 5, 6, 2))
    e = np.exp(classifier(x, np.array([40, 40])).data)
    np.testing.assert_allclose(classifier.predict(x, 40), e / e.sum(axis=1, keepdims=True),
                               rtol=1e-12)


def test_it_is_taught_on_pictures_noised_to_every_time_alike(rng):
    seen = []

    def network(x_t, t):
        seen.append((x_t, t))
        return Tensor(x_t)

    x0 = np.full((20_000, 4), 0.5)
    Noised(network, COSINE, rng)(x0)
    [(x_t, t)] = seen
    assert (t.min(), t.max()) == (1, 1000)
    assert np.histogram(t, 4, (0.5, 1000.5))[0] == pytest.approx(5000, abs=250)
    signal, noise = (level[:, None] for level in COSINE.levels(t))
    eps = (x_t - signal * x0) / noise
    assert eps.mean() == pytest.approx(0, abs=0.02)
    assert eps.std() == pytest.approx(1, abs=0.02)


def test_four_thousand_digits_teach_it_to_read_through_noise_but_not_through_too_much():
    digits, rng = data.load("digits"), np.random.default_rng(0)
    classifier = NoisyClassifier(NoisyClassifierConfig(widths=(16, 32)), rng=rng)
    with np.errstate(under="ignore"):                     # probabilities fall below 1e-38
        fit_noisy(classifier, COSINE, digits.images[:4000], digits.labels[:4000], steps=400,
                  batch=50, lr=1e-2, shift=1, rng=rng)
        x0, labels = images.to_float(digits.images[9000:]), digits.labels[9000:]
        eps = rng.standard_normal(x0.shape, np.float32)
        read = {t: metrics.accuracy(classifier.predict(COSINE.q_sample(x0, t, eps), t), labels)
                for t in (1, 400, 1000)}
    assert read[1] > 0.75
    assert read[400] > 0.7
    assert read[1000] < 0.2                               # nothing is left to read
