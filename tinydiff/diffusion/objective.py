"""The random half of a training step: what the network sees, and what it should say.

The other half, the network and its gradient, knows Tensors and lives in `train.py`.
"""

from typing import Any, NamedTuple

import numpy as np

from tinydiff.backend import array_module
from tinydiff.diffusion.noise import TRAIN_EPS, TRAIN_T, batch, uniform
from tinydiff.diffusion.prediction import TARGETS
from tinydiff.diffusion.process import across


class Draw(NamedTuple):
    """One batch of the simple loss: mean of weight · ‖network(x_t, t) − target‖²."""

    t: Any                                                       # (N,) int64, on the host
    eps: Any                                                     # (N, …) as x0
    x_t: Any                                                     # (N, …) as x0
    target: Any                                                  # (N, …) as x0
    weight: Any                                                  # (N,) as x0


def unweighted(snr, predicts):
    """Every t counts the same: L_simple of whatever the network predicts."""
    return np.ones_like(snr)


def min_snr(snr, predicts, gamma=5.0):
    """Min-SNR-γ: the x0 loss weighted by min(snr, γ), said in the network's dialect."""
    x0_weight = np.minimum(snr, gamma)
    return x0_weight / {"eps": snr, "x0": 1, "v": snr + 1}[predicts]


def draw(schedule, x0, predicts, *, seed, step, weigh=unweighted):
    """t, eps, x_t and target of training step `step`, lines 3 to 5 of DDPM Alg. 1 -> Draw

    x0 (N, …) in [-1, 1]; predicts "eps", "x0" or "v"; weigh(snr (N,), predicts) -> (N,).
    Row n draws from the address (seed, n, step), so a resumed run goes on as if never stopped.
    ValueError for another `predicts`.
    """
    if predicts not in TARGETS:
        raise ValueError(f"predicts must be one of {', '.join(TARGETS)}, got {predicts!r}")
    rows = range(len(x0))
    u = np.array([uniform(seed, n, step, (), purpose=TRAIN_T) for n in rows])
    t = 1 + (schedule.T * u).astype(np.int64)                    # uniform on 1 … T
    xp = array_module(x0)
    eps = xp.asarray(batch(seed, rows, step, x0.shape[1:], x0.dtype, purpose=TRAIN_EPS))
    x_t = schedule.q_sample(x0, t, eps)                          # DDPM Eq. 4
    signal, noise = across(schedule.signal(t), x0), across(schedule.noise(t), x0)
    target = TARGETS[predicts](x0, eps, signal, noise)
    weight = xp.asarray(weigh(schedule.snr(t), predicts), dtype=x0.dtype)
    return Draw(t, eps, x_t, target, weight)
