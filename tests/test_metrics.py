"""Metrics agree with their closed forms."""

import numpy as np
import pytest

from tinydiff.metrics import accuracy, frechet, pixel_distances, wilson


def sample(rng, mean, covariance, n=50):
    """Points (n, D) whose own mean and covariance are exactly the given ones."""
    x = rng.standard_normal((n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T      # covariance 1
    return x @ np.linalg.cholesky(covariance).T + mean


def test_accuracy_is_the_share_of_largest_entries_at_the_label():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0], [0.1, 0.2, 0.7], [0.4, 0.3, 0.3]])
    assert accuracy(probabilities, np.array([1, 0, 2, 0])) == 1
    assert accuracy(probabilities, np.array([1, 1, 1, 0])) == 0.5


def test_accuracy_refuses_labels_that_do_not_match_the_pictures():
    with pytest.raises(ValueError, match="got 3 and 4"):
        accuracy(np.ones((4, 2)), np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="at least one"):
        accuracy(np.ones((0, 2)), np.array([], int))


@pytest.mark.parametrize(("share", "n"), [(0.0, 10), (0.5, 7), (0.98, 100), (1.0, 100)])
def test_wilsons_ends_are_the_shares_from_which_the_observed_one_is_z_deviations_away(share, n):
    for end in wilson(share, n, z=1.96):
        assert (end - share) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / n, abs=1e-12)


def test_wilsons_interval_holds_the_share_and_stays_within_0_and_1():
    assert wilson(0.0, 5)[0] == 0
    assert wilson(1.0, 5)[1] == 1
    low, high = wilson(0.98, 100)
    assert 0.92 < low < 0.98 < high < 1
    with pytest.raises(ValueError, match="n ≥ 1"):
        wilson(0.5, 0)


def test_frechet_of_equal_covariances_is_the_squared_distance_of_the_means(rng):
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    a = sample(rng, np.array([0.0, 1.0]), covariance)
    b = sample(rng, np.array([3.0, -3.0]), covariance)
    assert frechet(a, b) == pytest.approx(25, rel=1e-12)


def test_frechet_of_independent_features_adds_the_squared_differences_of_their_deviations(rng):
    s, r = np.array([1.0, 2.0, 5.0]), np.array([3.0, 2.0, 0.5])
    a, b = sample(rng, np.zeros(3), np.diag(s**2)), sample(rng, np.ones(3), np.diag(r**2), n=80)
    assert frechet(a, b) == pytest.approx(3 + ((s - r) ** 2).sum(), rel=1e-12)


def test_frechet_of_two_slanted_gaussians_is_the_closed_form_for_2_by_2(rng):
    p, q = np.array([[2.0, 1.2], [1.2, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    assert not np.allclose(p @ q, q @ p)
    root = (np.trace(p @ q) + 2 * np.linalg.det(p @ q) ** 0.5) ** 0.5     # Tr (PQ)^½ if 2 × 2
    a, b = sample(rng, np.zeros(2), p), sample(rng, np.array([1.0, 2.0]), q)
    assert frechet(a, b) == pytest.approx(5 + np.trace(p + q) - 2 * root, rel=1e-12)


def test_frechet_of_fewer_points_than_features_is_exact(rng):
    u, v = rng.standard_normal((2, 9))                            # Σ = 2 u uᵀ: rank one
    expected = 2 * (u @ u + v @ v - 2 * abs(u @ v))
    assert frechet(np.stack([u, -u]), np.stack([v, -v])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [5, 200], ids=["fewer points than features", "many points"])
def test_frechet_is_zero_from_itself_and_the_same_both_ways(rng, n):
    a = rng.standard_normal((n, 20)).astype(np.float32)
    b = 2 * rng.standard_normal((n + 3, 20)).astype(np.float32) + 1
    assert frechet(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet(a, a[::-1]) == pytest.approx(0, abs=1e-12)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)
    assert frechet(a, b) > 20


def test_frechet_refuses_features_of_two_widths_and_single_points():
    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(5, 4\)"):
        frechet(np.ones((5, 3)), np.ones((5, 4)))
    with pytest.raises(ValueError, match="N, M ≥ 2"):
        frechet(np.ones((1, 3)), np.ones((5, 3)))


def test_black_and_white_pictures_are_two_for_each_root_pixel_apart():
    black, white = -np.ones((1, 7, 5, 3), np.float32), np.ones((1, 7, 5, 3), np.float32)
    apart = pixel_distances(np.concatenate([black, white, white]))
    np.testing.assert_allclose(apart, [2 * 105**0.5, 2 * 105**0.5, 0], rtol=1e-14)


def test_pixel_distances_come_in_the_order_of_the_pairs(rng):
    x = rng.uniform(-1, 1, (5, 3, 4, 1)).astype(np.float32)
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    expected = [np.linalg.norm(x[i].astype(float) - x[j]) for i, j in pairs]
    np.testing.assert_allclose(pixel_distances(x), expected, rtol=1e-12)


def test_pixel_distances_refuse_bytes_and_a_single_picture():
    with pytest.raises(ValueError, match="got 4 of uint8"):
        pixel_distances(np.zeros((4, 2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match="got 1 of float32"):
        pixel_distances(np.zeros((1, 2, 2, 1), np.float32))
