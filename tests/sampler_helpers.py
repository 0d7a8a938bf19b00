"""What the samplers are tested with: two laws of data whose every answer is known exactly."""

from math import erf, sqrt

import numpy as np

from tinydiff.diffusion import Prediction, Schedule
from tinydiff.diffusion.samplers import (
    ddim,
    ddpm,
    ddpm_eps_form,
    dpmpp_1s,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    edm,
    euler,
    euler_ancestral,
    fixed_large,
    flow_euler,
    flow_heun,
    heun,
    lcm,
    pndm,
    unipc,
)

LINEAR, COSINE = Schedule.linear(), Schedule.cosine()
KARRAS, FLOW = Schedule.karras(), Schedule.flow()

ODE = [(euler, {}), (ddim, {}), (dpmpp_1s, {}), (heun, {}), (edm, {}), (dpmpp_2m, {}),
       (dpmpp_2m_sde, {"eta": 0.0}), (dpmpp_3m, {}), (pndm, {}), (unipc, {}),
       (unipc, {"order": 1}), (unipc, {"order": 3})]
SDE = [(ddpm, {}), (ddpm, {"variance": fixed_large}), (ddpm_eps_form, {}), (ddim, {"eta": 0.5}),
       (ddim, {"eta": 1.0}), (euler_ancestral, {}), (edm, {"churn": 30.0}), (dpmpp_2m_sde, {}),
       (dpmpp_2m_sde, {"eta": 0.5})]
STRAIGHT = [(flow_euler, {}), (flow_heun, {})]
EVERYWHERE = [*ODE, *SDE, (lcm, {})]                      # on any schedule, from where signal is
EVERY_SAMPLER = [*((*s, COSINE) for s in EVERYWHERE), *((*s, FLOW) for s in STRAIGHT)]
NEEDS_SIGNAL = {euler, euler_ancestral, heun, edm, pndm, ddpm_eps_form}


def named(cases):
    """Readable ids for lists of (sampler, own, …)."""
    def name(sampler, own, *schedule):
        own = (getattr(v, "__name__", f"{k}-{v}") for k, v in own.items())
        return "-".join([sampler.__name__, *own, *(s.name for s in schedule)])
    return {"argvalues": cases, "ids": [name(*case) for case in cases]}


def last(chain):
    *_, x = chain
    return x


class Gaussian:
    """x0 ~ N(m, v): the denoiser is affine, and curves keep their standard score u."""

    def __init__(self, schedule, m=0.3, v=0.25):
        self.schedule, self.m, self.v = schedule, m, v

    def predict(self, x_t, t):
        a, b = self.schedule.levels(t)
        score = (x_t - a * self.m) / (a**2 * self.v + b**2)
        return Prediction(self.m + a * self.v * score, b * score)

    def curve(self, u, t):
        a, b = self.schedule.levels(t)
        return a * self.m + sqrt(a**2 * self.v + b**2) * u


class Mixture:
    """x0 from two Gaussians on a line: curves do not cross, so each keeps its rank F_t(x_t)."""

    weights, means, variances = np.array([[0.3, 0.7], [-0.8, 0.5], [0.04, 0.09]])

    def __init__(self, schedule):
        self.schedule = schedule

    def predict(self, x_t, t):
        a, b = self.schedule.levels(t)
        away, var = x_t[:, None] - a * self.means, a**2 * self.variances + b**2      # (N, 2)
        with np.errstate(under="ignore"):
            p = self.weights * np.exp(-(away**2) / (2 * var)) / np.sqrt(var)
        p = p / p.sum(1, keepdims=True)
        return Prediction((p * (self.means + a * self.variances / var * away)).sum(1),
                          (p * b * away / var).sum(1))

    def curve(self, u, t):
        return np.array([self._quantile((1 + erf(each / sqrt(2))) / 2, t) for each in u])

    def _quantile(self, rank, t):
        a, b = self.schedule.levels(t)
        spread = np.sqrt(a**2 * self.variances + b**2)
        low, high = (a * self.means - 9 * spread).min(), (a * self.means + 9 * spread).max()
        for _ in range(100):                              # bisection
            x = (low + high) / 2
            below = sum(w * (1 + erf(z / sqrt(2))) / 2
                        for w, z in zip(self.weights, (x - a * self.means) / spread))
            low, high = (x, high) if below < rank else (low, x)
        return low


def moments(sampler, schedule, predict, *, steps, **own):
    """Mean and deviation of the samples, exact where the predictor is affine.

    Then x0 = c + A x_T + Σ B_i z_i. Row 0 is drawn from noise that is all 0, row 1 with x_T = 1,
    row i + 2 with z_i = 1: one batch holds every coefficient.
    """
    rows = np.eye(steps + 3)                              # edm draws in every step, others less
    x0 = last(sampler(predict, schedule.prior_std * rows[1], schedule, steps=steps,
                      noise=iter(rows[2:]), **own))
    return x0[0], sqrt(((x0[1:] - x0[0]) ** 2).sum())
