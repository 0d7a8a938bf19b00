"""How good pictures are, in numbers: arrays in, numbers out. No network in here.

What features mean is the business of whoever made them: a Fréchet distance is comparable only with
one of the same features at the same number of pictures. It is not "FID", which names one network
(Inception), one preprocessing and usually 50,000 pictures.
"""

import numpy as np


def accuracy(probabilities, labels):
    """The share of pictures whose most probable class is the one asked for, from 0 to 1.

    probabilities (N, classes), or logits; labels (N,) of integers.
    Raises ValueError where their lengths differ or there are none.
    """
    if len(probabilities) != len(labels) or len(labels) == 0:
        raise ValueError("accuracy: expected as many labels as pictures and at least one, "
                         f"got {len(labels)} and {len(probabilities)}")
    return float((probabilities.argmax(axis=1) == labels).mean())


def wilson(share, n, *, z=1.96):
    """The interval (low, high) that a true share may lie in, `share` of n trials having succeeded.

    z = 1.96 makes it a 95 % interval. Unlike share ± z √(share (1 − share) / n) it never leaves
    [0, 1], and is not empty when all succeed. Wilson, JASA 22 (1927).
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"wilson: expected 0 ≤ share ≤ 1 of n ≥ 1 trials, got {share} of {n}")
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (share * (1 - share) / n + (z / (2 * n)) ** 2) ** 0.5 / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


@np.errstate(under="ignore")                              # of what is squared
def frechet(a, b):
    """The squared Fréchet distance between the Gaussians that fit two sets of features.

    |mean_a − mean_b|² + Tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), for features a (N, D) and b (M, D); the
    covariances divide by N − 1. Dowson & Landau, J. Multivariate Analysis 12 (1982). For the same
    source it falls as N grows, steeply until N is far above D: compare at equal N only.
    Raises ValueError where the widths differ or a set has fewer than two rows.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError("frechet: expected features (N, D) and (M, D) with N, M ≥ 2, "
                         f"got {a.shape} and {b.shape}")
    (mean_a, root_a), (mean_b, root_b) = gaussian(a), gaussian(b)
    means = ((mean_a - mean_b) ** 2).sum()
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()     # Tr (Σ_a Σ_b)^½
    return float(max(0.0, means + (root_a**2).sum() + (root_b**2).sum() - 2 * overlap))


def gaussian(x):
    """The mean (D,) and a root R of the covariance, Rᵀ R = Σ, of x (N, D), in float64.

    The eigenvalues of Σ_a Σ_b = R_aᵀ R_a R_bᵀ R_b are the squared singular values of R_a R_bᵀ; so
    nothing is squared before its root is taken, and rounding is not magnified where Σ is singular.
    """
    x = x.astype(np.float64)
    mean = x.mean(axis=0)
    return mean, np.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r")


def pixel_distances(images):
    """The Euclidean distance of every two pictures: float (N, H, W, C) in [-1, 1] -> (N(N−1)/2,).

    √Σ (difference)² over all H·W·C numbers, in float64; black and white are 2 apart, so it is at
    most 2 √(H·W·C). The order is (0, 1), (0, 2), …, (1, 2), ….
    Raises ValueError for uint8 pictures, whose differences would wrap, and for fewer than two.
    """
    if images.dtype.kind != "f" or len(images) < 2:
        raise ValueError("pixel_distances: expected at least two float pictures in [-1, 1], "
                         f"got {len(images)} of {images.dtype}")
    flat = images.reshape(len(images), -1).astype(np.float64)
    return np.concatenate([np.sqrt(((flat[i + 1:] - one) ** 2).sum(axis=1))
                           for i, one in enumerate(flat[:-1])])


def frechet_extrapolated(a, b, *, rng, draws=20):
    """The Fréchet distance for N → ∞, where two sets of the same source are 0 apart.

    The distance is about d + c/N, so it is measured between `draws` random parts of both sets, from
    half of each on, and a line through 1/N says d. It may fall below 0, and errs where N is not
    some times D. Chong & Forsyth (1911.07023) §4. Raises ValueError as `frechet`.
    """
    shares = np.linspace(0.5, 1, draws)
    found = [frechet(*(x[rng.permutation(len(x))[:round(share * len(x))]] for x in (a, b)))
             for share in shares]
    return float(np.polyfit(1 / shares, found, 1)[1])


def bootstrap(statistic, *samples, rng, draws=1000):
    """Between which ends (low, high) statistic(*samples) would fall in 95 of 100 repetitions.

    Each sample (N, …) is drawn again `draws` times, N rows with replacement. Drawing again may
    bias a statistic, as it does a Fréchet distance; what it adds on average is taken off.
    Efron & Tibshirani (1993) §10, §13. Raises ValueError for an empty sample or no draws.
    """
    if draws < 1 or not all(map(len, samples)):
        raise ValueError("bootstrap: expected samples with rows and draws ≥ 1, got "
                         f"{[len(x) for x in samples]} rows and draws = {draws}")
    value = statistic(*samples)
    again = np.array([statistic(*(x[rng.integers(len(x), size=len(x))] for x in samples))
                      for _ in range(draws)])
    low, high = value - again.mean() + np.quantile(again, (0.025, 0.975))
    return float(low), float(high)


def precision(real, drawn, *, k=3):
    """The share of drawn points that lie among the real ones: as good as they.

    Among them means no further from some real point than its k-th nearest real neighbour; real
    (N, D), drawn (M, D). Kynkäänniemi et al. (1904.06991) Eq. 1, 2. Raises ValueError for N ≤ k.
    """
    among = [near.any(axis=1) for near in in_balls(drawn, real, k)]
    return float(np.logical_or.reduce(among).mean())


def recall(real, drawn, *, k=3):
    """The share of real points that lie among the drawn ones: as varied as they.  Ibid. Eq. 2"""
    return precision(drawn, real, k=k)


def coverage(real, drawn, *, k=5):
    """The share of real points with a drawn one no further than their k-th real neighbour.

    No drawn point far away raises it. Naeem et al. (2002.09797) Eq. 6. ValueError for N ≤ k.
    """
    return float(np.concatenate([near.any(axis=0) for near in in_balls(drawn, real, k)]).mean())


def in_balls(points, centres, k):
    """Yield for some of the centres (N, D) at a time which points (M, D) are as near to each as
    its k-th nearest other centre: bool (M, n)."""
    if not 1 <= k < len(centres) or points.shape[1:] != centres.shape[1:]:
        raise ValueError(f"expected points of one width and more than k = {k} ≥ 1 of them, got "
                         f"{centres.shape} and {points.shape}")
    for others, near in zip(distances(centres, centres), distances(points, centres), strict=True):
        yield near <= np.partition(others, k, axis=0)[k]              # 0: the centre itself


def nearest(a, b):
    """How far each picture of a (N, …) is from the nearest of b (M, …): (N,); 0 for equal bytes."""
    return np.minimum.reduce([apart.min(axis=1) for apart in distances(a, b)])


def distances(a, b, rows=1024):
    """Yield the Euclidean distances of each of a (N, …) from the next `rows` of b: (N, rows)."""
    a = a.reshape(len(a), -1).astype(np.float64)
    for start in range(0, len(b), rows):
        part = b[start:start + rows].reshape(-1, a.shape[1]).astype(np.float64)
        square = (a**2).sum(axis=1)[:, None] + (part**2).sum(axis=1) - 2 * a @ part.T
        yield np.maximum(square, 0) ** 0.5


def iou(a, b):
    """Overlap over union of two bool masks of one shape, else ValueError; 0 if both are empty."""
    if a.shape != b.shape or a.dtype != bool or b.dtype != bool:
        raise ValueError("iou: expected two bool masks of one shape, got "
                         f"{a.dtype} {a.shape} and {b.dtype} {b.shape}")
    return float((a & b).sum() / max(1, (a | b).sum()))
