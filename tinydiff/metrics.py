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
