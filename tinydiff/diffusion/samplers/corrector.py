"""UniPC: each estimate serves twice, to correct the step that led to it and to make the next.

UniPC with B(h) = e^−h − 1 and x0 predicted. Predictor and corrector are one formula,
x_s = keep x_t + pull (m0 + Σ ρ_k (m_k − m0)/r_k), where m0 is the estimate at t, the m_k are taken
r_k steps of λ away (r = 1 is s itself), and ρ makes the sum exact for polynomials in λ.
"""

from itertools import pairwise
from math import expm1, factorial, inf

import numpy as np

from tinydiff.diffusion.samplers.contract import ask, sampler
from tinydiff.diffusion.samplers.exponential import exact_step
from tinydiff.diffusion.spacing import nodes


@sampler
def unipc(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None, order=2):
    """Yield x_t (N, …) as t falls, as predicted; the next step starts from it corrected.

    Each correction adds one to the order. The first steps, and the last, which nobody corrects, are
    of order 1: where the last is as long as the others, the whole is of order 2.
    ValueError unless order is 1, 2 or 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"unipc: order must be 1, 2 or 3, got {order}")
    times = nodes(schedule, steps, timesteps)
    x_t, past, last = x_T, [], None                      # past: (λ, m) of earlier nodes
    for left, (t, s) in zip(range(len(times) - 1, 0, -1), pairwise(times)):
        m0, now = ask(predict, x_t, t).x0, schedule.log_snr(t) / 2
        if last is not None:
            *start, others = last
            x_t = _step(schedule, *start, [*others, (1.0, m0)])            # the corrector
        h = schedule.log_snr(s) / 2 - now
        others = [((then - now) / h, m) for then, m in past[:min(order, left) - 1]]
        last = x_t, t, s, m0, others
        x_t = _step(schedule, *last)                                       # the predictor
        past = [(now, m0), *past[:1]] if now > -inf else past
        yield x_t


def _step(schedule, x_t, t, s, m0, others):
    """x_s from x_t and the estimate m0 there, bent by others, a list of (r, m)."""
    keep, pull, h = exact_step(schedule, t, s)
    x0 = m0
    for rho, (r, m) in zip(weights(-h, [r for r, _ in others]), others):
        x0 = x0 + rho / r * (m - m0)
    return keep * x_t + pull * x0


def weights(k, ratios):
    """ρ with Σ_i ρ_i r_i^(j−1) = j! φ_j/(e^k − 1), j = 1 …; ½ where there is but one; k = −h."""
    if len(ratios) < 2:
        return [0.5]
    b, phi = [], expm1(k) / k - 1
    for j in range(1, len(ratios) + 1):
        b.append(factorial(j) * phi / expm1(k))
        phi = phi / k - 1 / factorial(j + 1)
    return np.linalg.solve(np.vander(ratios, increasing=True).T, b).tolist()
