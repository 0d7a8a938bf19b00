"""The judge has right gradients, learns digits in seconds, and is the same every time."""

import numpy as np
import pytest
from story_helpers import assert_gradients

from tinydiff import data, images, metrics
from tinydiff.autograd import Tensor, cross_entropy, gradcheck
from tinydiff.models.classifier import Classifier, ClassifierConfig, fit, in_batches, moved

TINY = ClassifierConfig(size=7, channels=2, classes=3, widths=(3, 4), features=5)


def tiny(seed=0):
    """A Classifier of another shape than the default, in float64 and with no zero weights."""
    classifier = Classifier(TINY, rng=np.random.default_rng(seed)).astype(np.float64)
    rng = np.random.default_rng(seed + 1)
    for p in classifier.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape)
    return classifier


def test_gradients_of_the_pictures_agree_with_central_differences(rng):
    assert gradcheck(tiny(), rng.uniform(-1, 1, (2, 7, 7, 2))) < 1e-7


def test_gradients_of_every_parameter_agree_with_central_differences(rng):
    classifier, x, labels = tiny(), rng.uniform(-1, 1, (4, 7, 7, 2)), np.array([0, 2, 1, 2])

    def loss():
        return cross_entropy(classifier(x), labels=labels)

    loss().backward()
    assert_gradients(loss, classifier.parameters(), rng)


def test_a_fresh_classifier_holds_every_class_equally_likely(rng):
    classifier = Classifier(ClassifierConfig(), rng=rng)
    x = rng.uniform(-1, 1, (3, 28, 28, 1)).astype(np.float32)
    p = classifier.predict(x)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p, np.full((3, 10), 0.1), rtol=1e-6)


def test_logits_are_a_linear_function_of_the_features(rng):
    classifier, x = tiny(), rng.uniform(-1, 1, (3, 7, 7, 2))
    features = classifier.features(Tensor(x)).data
    assert features.shape == (3, 5)
    expected = features @ classifier.decide.w.data + classifier.decide.b.data
    np.testing.assert_allclose(classifier(x).data, expected, rtol=1e-12)


def test_predict_is_softmax_of_the_logits_whatever_the_batch(rng):
    classifier, x = tiny(), rng.uniform(-1, 1, (7, 7, 7, 2))
    e = np.exp(classifier(x).data)
    np.testing.assert_allclose(classifier.predict(x), e / e.sum(axis=1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(in_batches(classifier, x, batch=3), classifier(x).data, rtol=1e-12)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"expected x \(N, 7, 7, 2\), got \(1, 28, 28, 1\)"):
        tiny().predict(np.zeros((1, 28, 28, 1)))


def test_moved_pictures_are_rolled_ones_with_zeros_behind(rng):
    pictures = rng.integers(1, 256, (60, 5, 6, 2)).astype(np.uint8)
    seen = set()
    for before, after in zip(pictures, moved(pictures, 1, rng=rng), strict=True):
        wide = np.pad(before, ((1, 1), (1, 1), (0, 0)))
        fits = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)
                if np.array_equal(after, np.roll(wide, (i, j), axis=(0, 1))[1:-1, 1:-1])]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) == 9                                 # every direction occurs


def test_no_shift_moves_nothing(rng):
    pictures = rng.integers(256, size=(3, 4, 4, 1)).astype(np.uint8)
    np.testing.assert_array_equal(moved(pictures, 0, rng=rng), pictures)


def judge_of(digits, seed, steps):
    rng = np.random.default_rng(seed)
    classifier = Classifier(ClassifierConfig(widths=(8, 16, 32)), rng=rng)
    with np.errstate(under="ignore"):                     # probabilities fall below 1e-38
        fit(classifier, digits.images[:4000], digits.labels[:4000],
            steps=steps, batch=50, shift=1, rng=rng)
    return classifier


def test_four_thousand_digits_teach_it_to_read_nine_of_ten_others():
    digits = data.load("digits")
    classifier = judge_of(digits, seed=0, steps=200)
    with np.errstate(under="ignore"):
        probabilities = classifier.predict(images.to_float(digits.images[8000:9000]))
    assert metrics.accuracy(probabilities, digits.labels[8000:9000]) > 0.9


def test_the_same_seed_trains_the_same_weights_and_another_seed_others():
    digits = data.load("digits")
    first, again, other = (judge_of(digits, seed, steps=3).parameters() for seed in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name].data, again[name].data)
    assert any((first[name].data != other[name].data).any() for name in first)
