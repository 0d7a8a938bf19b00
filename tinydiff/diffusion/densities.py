"""Gaussians as losses: how far p = N(mean, σ²) is from what it should have said, in nats.

Each function is of single numbers, over arrays, and returns its value with the two derivatives, by
the mean and by the log-variance: what evaluation sums up and training follows.
"""

from math import log, pi

import numpy as np

from tinydiff.backend import array_module, normal_cdf


def kl(mean_q, log_variance_q, mean, log_variance):
    """KL(q ‖ p) of two Gaussians in nats, and its derivatives by mean and log_variance of p.

    Every number is a dimension of its own.  DDPM Eq. 8, iDDPM Eq. 6, ADM Eq. 24
    """
    xp = array_module(mean)
    away, precision, ratio = mean - mean_q, xp.exp(-log_variance), log_variance_q - log_variance
    square = away * away * precision                             # DDPM Eq. 8
    value = 0.5 * (xp.expm1(ratio) - ratio + square)
    return value, away * precision, -0.5 * (xp.expm1(ratio) + square)


def gaussian(x0, mean, log_variance):
    """−log N(x0; mean, σ²) in nats, and its derivatives by mean and log_variance."""
    away, precision = mean - x0, array_module(mean).exp(-log_variance)
    square = away * away * precision
    return 0.5 * (log(2 * pi) + log_variance + square), away * precision, 0.5 * (1 - square)


def discretised(x0, mean, log_variance):
    """−log of N(mean, σ²) inside x0's bin in nats, and its derivatives.  DDPM Eq. 13

    x0 is a pixel k/127.5 − 1 of 256 values; its bin reaches 1/255 to both sides, to ±∞ at ±1.
    Exact however far the bin lies in a tail; computed in float64, returned as `mean`.
    """
    xp = array_module(mean)
    x0, m, half = (xp.asarray(a, dtype=np.float64) for a in (x0, mean, 0.5 * log_variance))
    with np.errstate(under="ignore"):                            # the far side of a bin is 0
        sharp = xp.exp(-half)                                    # 1/σ
        below = xp.where(x0 < -0.999, -np.inf, (x0 - m - 1 / 255) * sharp)
        above = xp.where(x0 > 0.999, np.inf, (x0 - m + 1 / 255) * sharp)
        # iDDPM Eq. 5, ADM Eq. 23
        log_p = _log_between(below, above)                       # DDPM Eq. 13
        left, right = (xp.exp(-0.5 * z * z - 0.5 * log(2 * pi) - log_p) for z in (below, above))
        inner = [xp.where(abs(z) < np.inf, z, 0) for z in (below, above)]
        by_variance = 0.5 * (inner[1] * right - inner[0] * left)
        return tuple(a.astype(mean.dtype) for a in (-log_p, (right - left) * sharp, by_variance))


def _log_between(below, above):
    """log(Φ(above) − Φ(below)), from the side where both are small."""
    xp = array_module(below)
    flip = below + above < 0
    a, b = xp.where(flip, -above, below), xp.where(flip, -below, above)          # a + b ≥ 0
    far = a > 4
    q = xp.where(far, 1.0, normal_cdf(-a) - normal_cdf(-b))
    tail, rest = _mills(xp.where(far, a, 4.0)), _mills(xp.where(far, b, np.inf))
    ratio = xp.exp(xp.where(far, 0.5 * (a - b) * (a + b), -np.inf)) * rest / tail
    return xp.where(far, xp.log1p(-ratio) + xp.log(tail) - 0.5 * a * a - 0.5 * log(2 * pi),
                    xp.log(q))


def _mills(z):
    """(1 − Φ(z))/φ(z) for z ≥ 4, by its continued fraction 1/(z + 1/(z + 2/(z + 3/…)))."""
    value = z
    for k in range(60, 0, -1):
        value = z + k / value
    return 1 / value
