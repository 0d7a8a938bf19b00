"""The random half of a training step: what the network sees, and what it should say.

The other half, the network and its gradient, knows Tensors and lives in `train.py`.
"""

from typing import Any, NamedTuple

import numpy as np

from tinydiff.backend import alongside, to_host
from tinydiff.diffusion.noise import TRAIN_EPS, TRAIN_T, alike, rows, unit
from tinydiff.diffusion.prediction import dialect
from tinydiff.diffusion.process import across, noised


class Numbers(NamedTuple):
    """What the host draws for a step: one number of each for each picture."""

    t: Any                                                       # (N,) int64
    signal: Any                                                  # (N,) float64, at t
    noise: Any                                                   # (N,) float64, at t
    weight: Any                                                  # (N,) float64


class Draw(NamedTuple):
    """One batch of the simple loss: mean of weight · ‖network(x_t, t) − target‖²."""

    t: Any                                                       # (N,) int64
    eps: Any                                                     # (N, …) as x0
    x_t: Any                                                     # (N, …) as x0
    target: Any                                                  # (N, …) as x0
    weight: Any                                                  # (N,) as x0


def error_ratio(predicts, signal, noise):
    """How many times larger ‖error‖² is in the network's dialect than in x0.  LDM Eq. 15

    Given x_t, an error e in x0 is one of −e·signal/noise in eps; every target is linear in the two.
    """
    return dialect(predicts)[1](1.0, -signal / noise, signal, noise) ** 2


def unweighted(snr, predicts):
    """Every t counts the same: L_simple of whatever the network predicts.  EDM Table 1"""
    return np.ones_like(snr)


def min_snr(snr, predicts, gamma=5.0):
    """Min-SNR-γ: the x0 loss weighted by min(snr, γ), said in the network's dialect.

    Hang et al. 2303.09556 §3
    """
    return np.minimum(snr, gamma) / _ratio(snr, predicts)


def p2(snr, predicts, k=1.0, gamma=1.0):
    """P2: the eps loss weighted by 1/(k + snr)^γ, said in the network's dialect.

    Choi et al. 2204.00227 §3
    """
    return snr / (k + snr) ** gamma / _ratio(snr, predicts)


def vlb_weight(schedule, t, s, predicts, variance):
    """What ‖error‖² counts in the bound, in nats, at the step from t to s.  DDPM Eq. 12, LDM Eq. 13

    variance: σ_t² of the model's step, above 0; at β̃ the x0 loss weighs ½(SNR(s) − SNR(t)).
    """
    signal, noise = schedule.levels(t)
    c_0 = schedule.signal(s) * schedule.step_variance(t, s) / noise**2   # of x0 in μ̃, LDM Eq. 12
    return c_0**2 / (2 * variance) / error_ratio(predicts, signal, noise)        # DDPM Eq. 8, 12


def _ratio(snr, predicts):
    """`error_ratio` where the variance is kept; only v's would differ elsewhere."""
    return error_ratio(predicts, (snr / (1 + snr)) ** 0.5, (1 + snr) ** -0.5)


def log_variance_range(schedule, t, s, above=None):
    """log β̃ and log β of the step from t to s, between which a network learns -> (low, high)

    β̃ is 0 where s = 0; there it is that of the step from `above` to t, as in the code of iDDPM:
    from min(2t, T) if left out, and of the step's own lower half where t = T.
    """
    above = np.minimum(2 * np.asarray(t), schedule.T) if above is None else above
    last = np.equal(s, 0)
    start = np.where(last, above, t)
    end = np.where(last, np.where(above > t, t, above / 2), s)
    return np.log(schedule.posterior_variance(start, end)), np.log(schedule.step_variance(t, s))


def learned_log_variance(schedule, v, t, s, above=None):
    """log σ² = f log β + (1 − f) log β̃, f = (v + 1)/2.  iDDPM Eq. 15, ADM Eq. 1, CFG Eq. 4

    v (N, …), the network's own output, in [-1, 1] if it stays between the two; t and s one number
    each or (N,). It is linear in v, which may be a Tensor of the host.
    """
    low, high = (across(end, v) for end in log_variance_range(schedule, t, s, above))
    return low + (v + 1) * ((high - low) * 0.5)                  # iDDPM Eq. 15


def middle(schedule, sigma=2.0, spread=1.2):
    """Draw t where it is decided what appears: ln σ(t) is logistic around ln sigma.  As EDM §5

    -> times(u (N,) in [0, 1)) -> t (N,) and weight 1, so that those t count more in the loss.
    """
    t = np.arange(1, schedule.T + 1)
    signal, noise = schedule.levels(t)
    log_sigma = np.log(noise / np.maximum(signal, 1e-9))         # rising; finite at zero SNR

    def times(u):
        u = u.clip(1e-4, 1 - 1e-4)
        wanted = np.log(sigma * (u / (1 - u)) ** spread)
        return np.interp(wanted, log_sigma, t).round().astype(np.int64), 1

    return times


class SecondMoments:
    """Draw t where the loss is large: p_t ∝ √E[L_t²] over the last `keep` losses.  iDDPM Eq. 18

    Uniform until every t = 1 … T has `keep` of them, and mixed with 0.001 of uniform ever after.
    `state` holds the arrays that an exact resume puts back.
    """

    def __init__(self, T, keep=10):
        self.state = {"losses": np.zeros((T, keep)), "counts": np.zeros(T, np.int64)}

    def probabilities(self):
        """p_t for t = 1 … T -> (T,), summing to 1."""
        losses, T = self.state["losses"], len(self.state["losses"])
        root = (losses**2).mean(1) ** 0.5
        if self.state["counts"].min() < losses.shape[1] or not root.any():
            return np.full(T, 1 / T)
        return (1 - 0.001) * root / root.sum() + 0.001 / T       # iDDPM Eq. 18

    def draw(self, u):
        """u (N,) in [0, 1) -> t (N,), and the weight 1/(p_t T) that keeps the loss unbiased (N,)"""
        p = self.probabilities()
        row = np.searchsorted(np.cumsum(p)[:-1], u, side="right")
        return 1 + row, 1 / (p[row] * len(p))

    def update(self, t, loss):
        """Remember the unweighted losses (N,) of the times t (N,)."""
        losses, counts = self.state["losses"], self.state["counts"]
        for row, value in zip(np.asarray(t) - 1, to_host(loss), strict=True):
            losses[row, counts[row] % losses.shape[1]] = value
            counts[row] += 1


def draw(schedule, x0, predicts, *, seed, step, weigh=unweighted, times=None):
    """t, eps, x_t and target of training step `step`, lines 3 to 5 of DDPM Alg. 1 -> Draw

    x0 (N, …) in [-1, 1]; predicts a dialect of `prediction`; weigh(snr (N,), predicts) -> (N,);
    times(u (N,)) -> t and weight (N,), uniform on 1 … T if left out.
    Row n draws from the address (seed, n, step), so a resumed run goes on as if never stopped.
    ValueError for another `predicts`.
    """
    told = numbers(schedule, len(x0), predicts, seed=seed, step=step, weigh=weigh, times=times)
    eps = alike(x0, seed, step, purpose=TRAIN_EPS)
    return drawn(x0, eps, told, predicts)                        # DDIM Eq. 5


def numbers(schedule, N, predicts, *, seed, step, weigh=unweighted, times=None):
    """The half of `draw` that is the host's, of N pictures -> Numbers"""
    u = unit(rows(seed, TRAIN_T, range(N), step, 1))[:, 0]
    t, share = times(u) if times else (1 + (schedule.T * u).astype(np.int64), 1)
    return Numbers(t, *schedule.levels(t), share * weigh(schedule.snr(t), predicts))


def drawn(x0, eps, told, predicts):
    """The other half, wherever x0, its noise eps and its Numbers lie -> Draw"""
    _, target_of = dialect(predicts)
    x_t = noised(x0, eps, told.signal, told.noise)               # DDPM Eq. 4
    signal, noise = (across(level, x0) for level in (told.signal, told.noise))
    target = target_of(x0, eps, signal, noise)
    weight = alongside(told.weight.astype(x0.dtype, copy=False), x0)
    return Draw(told.t, eps, x_t, target, weight)
