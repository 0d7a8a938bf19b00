"""Metrics agree with their closed forms."""

import numpy as np
import pytest

from tinydiff import metrics
from tinydiff.metrics import (
    accuracy,
    bootstrap,
    coverage,
    frechet,
    frechet_extrapolated,
    iou,
    nearest,
    pixel_distances,
    precision,
    recall,
    wilson,
)


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


def test_extrapolated_frechet_of_one_gaussian_from_itself_is_zero_where_the_plain_one_is_not(rng):
    plain, endless = [], []
    for _ in range(6):
        a, b = rng.standard_normal((2, 400, 16)) * np.linspace(0.2, 1.5, 16)
        plain.append(frechet(a, b))
        endless.append(frechet_extrapolated(a, b, rng=rng))
    assert np.mean(plain) > 0.2
    assert abs(np.mean(endless)) < 0.15 * np.mean(plain)


def test_extrapolated_frechet_of_two_gaussians_is_their_closed_form(rng):
    s, r = np.linspace(0.5, 2, 12), np.linspace(1.5, 0.5, 12)
    a, b = rng.standard_normal((2, 1500, 12))
    exact = 3 + ((s - r) ** 2).sum()
    found = frechet_extrapolated(a * s, b * r + 0.5, rng=rng)
    assert found == pytest.approx(exact, rel=0.05)


def test_extrapolated_frechet_refuses_two_rows_and_features_of_two_widths(rng):
    with pytest.raises(ValueError, match="N, M ≥ 2"):
        frechet_extrapolated(np.ones((2, 2)), np.ones((9, 2)), rng=rng)
    with pytest.raises(ValueError, match=r"\(N, D\) and \(M, D\)"):
        frechet_extrapolated(np.ones((9, 3)), np.ones((9, 2)), rng=rng)


def test_the_bootstraps_interval_holds_the_true_mean_of_a_gaussian_95_times_in_100(rng):
    held, n = 0, 400
    for _ in range(n):
        low, high = bootstrap(np.mean, rng.normal(3, 2, 50), rng=rng, draws=300)
        held += low < 3 < high
    low, high = wilson(held / n, n, z=3)
    assert low < 0.95 < high


def test_the_bootstraps_interval_is_as_wide_as_a_means_standard_error_says(rng):
    x = rng.normal(0, 2, 2000)
    low, high = bootstrap(np.mean, x, rng=rng, draws=4000)
    assert high - low == pytest.approx(2 * 1.96 * x.std() / 2000**0.5, rel=0.05)


def test_the_bootstrap_takes_off_the_bias_of_drawing_again(rng):
    a, b = rng.standard_normal((2, 200, 10))
    value = frechet(a, b)
    again = [frechet(a[rng.integers(200, size=200)], b[rng.integers(200, size=200)])
             for _ in range(50)]
    assert min(again) > value                           # all that were drawn again are too far
    low, high = bootstrap(frechet, a, b, rng=rng, draws=100)
    assert low < value < high


def test_the_bootstrap_refuses_an_empty_sample_and_no_draws(rng):
    with pytest.raises(ValueError, match=r"got \[3, 0\] rows and draws = 10"):
        bootstrap(frechet, np.ones((3, 2)), np.ones((0, 2)), rng=rng, draws=10)
    with pytest.raises(ValueError, match="draws = 0"):
        bootstrap(np.mean, np.ones(3), rng=rng, draws=0)


def brute_balls(points, centres, k):
    """bool (M, N): is the point as near to the centre as the k-th nearest of the other centres?"""
    inside = np.empty((len(points), len(centres)), bool)
    for j, centre in enumerate(centres):
        others = sorted(np.linalg.norm(other - centre) for i, other in enumerate(centres) if i != j)
        inside[:, j] = [np.linalg.norm(p - centre) <= others[k - 1] for p in points]
    return inside


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_and_coverage_are_those_of_balls_drawn_one_by_one(rng, k):
    real, drawn = rng.standard_normal((23, 3)), 0.7 * rng.standard_normal((17, 3)) + 1.5
    theirs, ours = brute_balls(drawn, real, k), brute_balls(real, drawn, k)
    assert 0 < theirs.any(axis=1).mean() < 1
    assert precision(real, drawn, k=k) == theirs.any(axis=1).mean()
    assert recall(real, drawn, k=k) == ours.any(axis=1).mean()
    assert coverage(real, drawn, k=k) == theirs.any(axis=0).mean()


def test_precision_and_its_kin_are_the_same_in_blocks_of_any_size(rng, monkeypatch):
    real, drawn = rng.standard_normal((31, 2)), rng.standard_normal((29, 2))
    whole = precision(real, drawn), recall(real, drawn), coverage(real, drawn), nearest(drawn, real)
    monkeypatch.setattr(metrics.distances, "__defaults__", (7,))
    parts = precision(real, drawn), recall(real, drawn), coverage(real, drawn), nearest(drawn, real)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_points_on_a_line_have_the_precision_recall_and_coverage_counted_by_hand():
    real = np.array([[0.0], [1.0], [2.0], [3.0]])               # k = 1: balls of radius 1
    drawn = np.array([[0.5], [0.6], [0.7], [9.0]])              # of radius 0.1, 0.1, 0.1, 8.3
    assert precision(real, drawn, k=1) == 0.75                  # 9 lies among no real ones
    assert recall(real, drawn, k=1) == 0.75                     # 1, 2 and 3 are within 8.3 of 9
    assert coverage(real, drawn, k=1) == 0.5                    # nothing is within 1 of 2 and 3


def test_a_set_has_full_precision_recall_and_coverage_of_itself(rng):
    x = rng.standard_normal((40, 5))
    assert precision(x, x) == recall(x, x) == coverage(x, x) == 1


def test_one_repeated_good_point_is_precise_but_neither_varied_nor_covering(rng):
    real = rng.integers(-1000, 1000, (200, 4))
    drawn = np.repeat(real[:1], 50, axis=0)
    assert precision(real, drawn) == 1
    assert recall(real, drawn) == 1 / 200
    assert coverage(real, drawn) < 0.15


def test_too_few_points_for_k_neighbours_are_refused():
    with pytest.raises(ValueError, match="more than k = 3"):
        precision(np.ones((3, 2)), np.ones((9, 2)))
    with pytest.raises(ValueError, match="one width"):
        coverage(np.ones((9, 2)), np.ones((9, 3)))


def test_the_nearest_picture_is_found_by_brute_force_also_among_bytes(rng):
    a, b = (rng.integers(256, size=(n, 4, 3, 3), dtype=np.uint8) for n in (9, 40))
    expected = [min(np.linalg.norm(x.astype(float) - y) for y in b) for x in a]
    np.testing.assert_allclose(nearest(a, b), expected, rtol=1e-12)
    assert (nearest(b[5:8], b) == 0).all()


def test_iou_is_the_shared_area_over_the_whole():
    a, b = np.zeros((2, 10, 10), bool)
    a[2:6, 2:6], b[4:8, 4:8] = True, True
    assert iou(a, b) == 4 / 28
    assert iou(a, a) == 1
    assert iou(a, ~a) == iou(a & ~a, a & ~a) == 0


def test_iou_refuses_numbers_and_masks_of_two_shapes():
    with pytest.raises(ValueError, match="got float64"):
        iou(np.ones((3, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"bool \(3, 4\)"):
        iou(np.ones((3, 3), bool), np.ones((3, 4), bool))
