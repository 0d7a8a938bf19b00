"""The predictor every network tries to become: exact for a finite data set, learned from nothing.

If x0 is one of the points x_1 … x_M, Bayes' rule says which of them a noisy x_t came from, and the
best estimate of x0 is their mean under that posterior. With it samplers can be watched, and
tested, before there is any network.
"""

import numpy as np

from tinydiff.backend import array_module
from tinydiff.diffusion.prediction import from_x0


def ideal_predictor(data, schedule, *, weights=None):
    """The predictor E[x0 | x_t] of the points `data`, drawn with probability ∝ `weights`.

    data (M, …), weights (M,) positive, all equal if left out; the predictor takes x_t (N, …) and t
    in (0, T]. It computes in float64, as the oracle it is, and answers in x_t's dtype; memory
    grows with N·M and M·D. ValueError for weights that are not M positive numbers.
    """
    xp = array_module(data)
    points = xp.asarray(data, dtype=np.float64).reshape(len(data), -1)                  # (M, D)
    weights = xp.ones(len(data)) if weights is None else xp.asarray(weights, dtype=np.float64)
    if weights.shape != (len(data),) or not (weights > 0).all():
        raise ValueError(f"weights must be {len(data)} positive numbers, one for each data point, "
                         f"got shape {weights.shape}")
    log_prior, length = xp.log(weights), (points**2).sum(1)                             # (M,)

    def predict(x_t, t):
        signal, noise = schedule.signal(t), schedule.noise(t)
        if noise == 0:
            raise ValueError(f"the ideal predictor needs t > 0, where x_t is noisy, got t = {t}")
        x = x_t.reshape(len(x_t), -1).astype(np.float64)                                # (N, D)
        with np.errstate(under="ignore"):                        # far points weigh nothing
            # log p(x_i | x_t) = log p(x_i) − ‖x_t − √ᾱ x_i‖²/(2(1−ᾱ)) + what all i share
            logit = log_prior + signal * (x @ points.T - signal / 2 * length) / noise**2  # (N, M)
            p = xp.exp(logit - logit.max(1, keepdims=True))
            x0 = p @ points / p.sum(1, keepdims=True)                                   # (N, D)
            exact = from_x0(x, x0, signal, noise)
            return exact._replace(x0=exact.x0.reshape(x_t.shape).astype(x_t.dtype),
                                  eps=exact.eps.reshape(x_t.shape).astype(x_t.dtype))

    return predict
