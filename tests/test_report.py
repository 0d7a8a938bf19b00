"""What a report says of a training: how far from the best possible it is."""

import numpy as np
import pytest
from story_helpers import few_digits, in_training

from tinydiff import images
from tinydiff.diffusion import ideal_predictor, loss_gap
from tinydiff.report import distance_from_best


def test_a_network_that_knows_nothing_is_as_far_from_the_best_as_its_silence():
    """It names v = 0, so that eps_hat = noise · x_t; the best knows the pictures by heart."""
    training, times = in_training(), [5, 25, 45]
    ours, least = distance_from_best(training, times)
    x0 = images.to_float(few_digits().images)
    for t, loss in zip(times, ours, strict=True):
        a, b = training.schedule.levels(t)
        assert loss == pytest.approx(a**2 * b**2 * (x0**2).mean() + a**4, rel=0.05)
    ideal = ideal_predictor(x0, training.schedule)
    np.testing.assert_allclose(least, loss_gap(ideal, ideal, x0, training.schedule, times)[0])
    assert (least < ours).all()
