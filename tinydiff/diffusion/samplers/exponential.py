"""DPM-Solver++: what is linear in the ODE is solved exactly, only x0 is approximated.  DPM++

With λ = ln(signal/noise) as time, x_s = noise_s/noise_t x_t + signal_s ∫ e^(λ−λ_s) x0(λ) dλ from
λ_t to λ_s. A constant x0 gives x_s = keep x_t + pull x0, which is DDIM; the solvers below put in
its place a polynomial through the estimates already made, at one call a step. None divides by
signal, so all may start where it is 0; a step that ends at noise 0 returns x0.
"""

from itertools import pairwise
from math import expm1, inf

from tinydiff.diffusion.samplers.contract import ask, noise_source, sampler
from tinydiff.diffusion.spacing import nodes


@sampler
def dpmpp_1s(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None):
    """Yield x_t (N, …) as t falls, x0 constant along each step: DDIM once more."""
    x_t = x_T
    for t, s in pairwise(nodes(schedule, steps, timesteps)):
        keep, pull, _ = exact_step(schedule, t, s)
        x_t = keep * x_t + pull * ask(predict, x_t, t).x0
        yield x_t


@sampler
def dpmpp_2m(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None):
    """Yield x_t (N, …) as t falls, x0 on the line through its last two estimates.  DPM++ Alg. 2

    The first step, and one that ends at t = 0, are of first order.
    """
    x_t, m1, h1 = x_T, None, inf                         # the estimate before, and the step to it
    for t, s in pairwise(nodes(schedule, steps, timesteps)):
        keep, pull, h = exact_step(schedule, t, s)
        m0 = ask(predict, x_t, t).x0
        x0 = m0 if m1 is None or s == 0 else m0 + h / (2 * h1) * (m0 - m1)
        x_t = keep * x_t + pull * x0
        m1, h1 = m0, h
        yield x_t


@sampler
def dpmpp_2m_sde(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None,
                 eta=1.0):
    """Yield x_t (N, …) as t falls: 2M on the reverse SDE. eta = 0: `dpmpp_2m`; 1: the SDE.

    Its steps of first order are, with eta = 1, those of `ddpm`. ValueError if eta < 0.
    """
    if not 0 <= eta < inf:
        raise ValueError(f"eta must not be negative: 0 is dpmpp_2m, 1 the SDE; got {eta}")
    eta = float(eta)                                     # a float64 scalar would widen x
    x_t, z, m1, h1 = x_T, noise_source(noise, seed, x_T), None, inf
    for step, (t, s) in enumerate(pairwise(nodes(schedule, steps, timesteps))):
        (a_s, b_s), (keep, _, h) = schedule.levels(s), exact_step(schedule, t, s)
        rest = keep * schedule.signal(t) / a_s                             # e^−h
        m0 = ask(predict, x_t, t).x0
        x0 = m0 if m1 is None or s == 0 else m0 + h / (2 * h1) * (m0 - m1)
        x_t = keep * rest**eta * x_t + a_s * (1 - rest ** (1 + eta)) * x0
        if s > 0 and eta > 0:
            x_t = x_t + b_s * (1 - rest ** (2 * eta)) ** 0.5 * z(step)
        m1, h1 = m0, h
        yield x_t


@sampler
def dpmpp_3m(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None):
    """Yield x_t (N, …) as t falls, x0 on the parabola through its last three estimates.

    The first two steps, and one that ends at t = 0, are of lower order, which shows where the first
    starts amid the signal. Published code gives the term in u² half its weight, and is of order 2.
    """
    x_t, past = x_T, []                                  # (h, m) of the steps before, newest first
    for t, s in pairwise(nodes(schedule, steps, timesteps)):
        keep, pull, h = exact_step(schedule, t, s)
        m0 = ask(predict, x_t, t).x0
        x_t = keep * x_t + pull * m0
        if past and s > 0:              # x0(λ_t + u) = m0 + f1 u + f2 u (u + h1), by differences
            i1 = schedule.signal(s) * (h + expm1(-h))                      # ∫ e^(λ−λ_s) u du
            i2 = schedule.signal(s) * h**2 - 2 * i1                        # ∫ e^(λ−λ_s) u² du
            (h1, m1), *older = past
            f1 = (m0 - m1) / h1
            x_t = x_t + i1 * f1
            for h2, m2 in older:
                f2 = (f1 - (m1 - m2) / h2) / (h1 + h2)
                x_t = x_t + (i2 + h1 * i1) * f2
        past = [(h, m0), *past[:1]]
        yield x_t


def exact_step(schedule, t, s):
    """(keep, pull, h): x_s = keep x_t + pull x0 solves the ODE if x0 is constant; h = λ_s − λ_t."""
    (a_t, b_t), (a_s, b_s) = schedule.levels(t), schedule.levels(s)
    keep = b_s / b_t
    return keep, a_s - keep * a_t, (schedule.log_snr(s) - schedule.log_snr(t)) / 2
