"""Samplers in σ = noise/signal: with x̄ = x_t/signal every schedule is one ODE, dx̄/dσ = eps.

It is DDIM Eq. 14, and EDM Eq. 4 with the scale divided out. What is left to choose is how to step
along a curve whose slope is known where one asks for it. All divide by signal, so none can start
where it is 0; Heun's first step is far too long where sigma(T) is huge (cosine: 20,291), unless
timesteps start lower, where sigma is about 80.
"""

from itertools import pairwise
from math import inf

from tinydiff.diffusion.samplers.contract import ask, nodes_with_signal, noise_source, sampler


@sampler
def euler(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None):
    """Yield x_t (N, …) as t falls, each step along the slope at its start: DDIM in other words.

    ValueError if it starts where no signal is left.
    """
    x_t = x_T
    for t, s in pairwise(nodes_with_signal(schedule, steps, timesteps)):
        # EDM Eq. 1, 4, Table 1
        x_bar, slope = x_t / schedule.signal(t), ask(predict, x_t, t).eps  # DDIM Eq. 14
        x_bar = x_bar + (schedule.sigma(s) - schedule.sigma(t)) * slope    # DDIM Eq. 13
        x_t = schedule.signal(s) * x_bar
        yield x_t


@sampler
def euler_ancestral(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None):
    """Yield x_t (N, …) as t falls, each step past s to less noise and back up to it: DDPM in σ.

    ValueError if it starts where no signal is left.
    """
    x_t, z = x_T, noise_source(noise, seed, x_T)
    for step, (t, s) in enumerate(pairwise(nodes_with_signal(schedule, steps, timesteps))):
        sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
        down = sigma_s**2 / sigma_t                                        # down² + up² = σ_s²
        up = (sigma_s**2 - down**2) ** 0.5
        x_bar = x_t / schedule.signal(t) + (down - sigma_t) * ask(predict, x_t, t).eps
        x_t = schedule.signal(s) * (x_bar + up * z(step) if up > 0 else x_bar)
        yield x_t


@sampler
def heun(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None):
    """Yield x_t (N, …) as t falls, each step along the mean of the slopes at its ends.  EDM Alg. 1

    n steps to t = 0 ask 2n − 1 times. A long step out of pure noise, such as the first of a few
    from `Schedule.cosine`'s σ = 20,291, goes astray: there give `timesteps=karras(schedule, n)`.
    ValueError if it starts where no signal is left.
    """
    x_t = x_T
    for t, s in pairwise(nodes_with_signal(schedule, steps, timesteps)):
        x_t = _heun_step(predict, x_t, schedule, t, s)                     # EDM Eq. 1, Table 1
        yield x_t


@sampler
def edm(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None,
        churn=0.0, s_min=0.0, s_max=inf, s_noise=1.0):
    """Yield x_t (N, …) as t falls: Heun's steps, each after a little more noise.  EDM Alg. 2

    Where s_min <= σ <= s_max, σ is first raised by the share churn/n, at most √2 − 1 and never past
    sigma(T), with noise of deviation s_noise; without churn, the default, this is `heun`.
    ValueError if one of these is negative, or if it starts where no signal is left.
    """
    if not all(option >= 0 for option in (churn, s_min, s_max, s_noise)):
        raise ValueError(f"churn, s_min, s_max and s_noise must not be negative, got {churn}, "
                         f"{s_min}, {s_max} and {s_noise}")
    x_t, z, top = x_T, noise_source(noise, seed, x_T), schedule.sigma(schedule.T)
    times = nodes_with_signal(schedule, steps, timesteps)
    gamma = min(float(churn) / (len(times) - 1), 2**0.5 - 1)
    for step, (t, s) in enumerate(pairwise(times)):
        sigma = schedule.sigma(t)
        sigma_hat = min((1 + gamma) * sigma, top) if s_min <= sigma <= s_max else sigma
        if sigma_hat > sigma:
            added = float(s_noise) * (sigma_hat**2 - sigma**2) ** 0.5
            x_hat = x_t / schedule.signal(t) + added * z(step)             # EDM Alg. 2, line 6
            t = schedule.time(sigma_hat)
            x_t = schedule.signal(t) * x_hat
        x_t = _heun_step(predict, x_t, schedule, t, s)
        yield x_t


def _heun_step(predict, x_t, schedule, t, s):
    """x_s by the mean of the slopes at t and s; by the first alone where s is clean."""
    a_t, a_s, h = schedule.signal(t), schedule.signal(s), schedule.sigma(s) - schedule.sigma(t)
    x_bar, slope = x_t / a_t, ask(predict, x_t, t).eps                     # EDM Alg. 1, line 4
    x_s = a_s * (x_bar + h * slope)                                        # line 5
    if s == 0:
        return x_s
    return a_s * (x_bar + h / 2 * (slope + ask(predict, x_s, s).eps))      # line 8
