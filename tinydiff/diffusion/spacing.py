"""Which times a sampler visits.

A spacing is a function (schedule, n) -> the n + 1 nodes of n steps, both ends included, for every
1 <= n <= T unless it says which n it refuses. Give the list to a sampler as `timesteps`.
"""

from numbers import Integral

import numpy as np


def nodes(schedule, steps=None, timesteps=None):
    """The times from start to end, both included: m nodes for m − 1 steps of a sampler.

    steps=n: `trailing`. timesteps: the nodes themselves, whole or not, falling strictly inside
    [0, T]. ValueError for both, neither, or any that cannot be walked.
    """
    T = schedule.T
    if (steps is None) == (timesteps is None):
        raise ValueError(f"give exactly one of steps and timesteps, got steps={steps} and "
                         f"timesteps={timesteps}")
    if timesteps is None:
        return trailing(schedule, steps)
    times = np.asarray(timesteps)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"timesteps must list at least two times, start and end included, "
                         f"got {timesteps}")
    if not (np.diff(times) < 0).all() or not 0 <= times[-1] < times[0] <= T:
        raise ValueError(f"timesteps must fall strictly inside [0, {T}], got {times.tolist()}")
    return times.tolist()


def trailing(schedule, n):
    """n steps from T to 0 as evenly as whole numbers allow, never one twice.

    They start in pure noise, as training ends there.  Lin et al. 2305.08891, Table 2
    """
    return whole(np.linspace(schedule.T, 0, _steps(schedule, n) + 1))


def linspace(schedule, n):
    """The first step at T, the last at 1, the others evenly between; then 0.  One step: T, 0."""
    if _steps(schedule, n) == 1:
        return [schedule.T, 0]
    return [*whole(np.linspace(schedule.T, 1, n)), 0]


def leading(schedule, n):
    """Steps of ⌊T/n⌋ counted up from 1; then 0. The spacing of DDIM's code and of early samplers.

    It may start far below T, where x_t is no longer noise: ValueError if that skips over a quarter
    of the chain.
    """
    T, stride = schedule.T, schedule.T // _steps(schedule, n)
    start = 1 + (n - 1) * stride
    if T - start > T / 4:
        raise ValueError(f"leading: {n} strides of {stride} start at t = {start} of {T}, where x_t "
                         f"is not yet noise; take trailing, or another number of steps")
    return [*range(start, 0, -stride), 0]


def quadratic(schedule, n):
    """t ∝ (share of the way)²: small steps near clean data.  DDIM §D.2

    ValueError for an n so large that whole times near 0 would be visited twice.
    """
    times = whole(np.linspace(schedule.T**0.5, 0, _steps(schedule, n) + 1) ** 2)
    if len(set(times)) <= n:
        most = int((2 * schedule.T) ** 0.5)
        raise ValueError(f"quadratic: {n} steps visit a whole time near 0 twice; with T = "
                         f"{schedule.T} take at most about {most}, or another spacing")
    return times


def karras(schedule, n, rho=7.0, sigma_max=80.0):
    """n noise levels evenly spaced in σ^(1/ρ), from sigma_max or sigma(T) to sigma(1); then 0.

    Higher levels, as `Schedule.cosine` has, hold nothing but noise. The times are floats, T
    where it starts there.  EDM Eq. 5
    """
    top = min(sigma_max, schedule.sigma(schedule.T))
    sigmas = karras_sigmas(_steps(schedule, n), schedule.sigma(1), top, rho)
    start, *inner = (schedule.time(sigma) for sigma in sigmas[:max(1, n - 1)].tolist())
    return [start if top == sigma_max else schedule.T, *inner, *([1] if n > 1 else []), 0]


def karras_sigmas(n, sigma_min, sigma_max, rho=7.0):
    """n noise levels from sigma_max to sigma_min, evenly spaced in σ^(1/ρ), then 0.  EDM Eq. 5"""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.append(np.linspace(high, low, n) ** rho, 0.0)                # EDM Eq. 5


def whole(times):
    """An array of times, each rounded, as a list."""
    return times.round().astype(int).tolist()


def _steps(schedule, n):
    if not isinstance(n, Integral) or not 1 <= n <= schedule.T:
        raise ValueError(f"steps must be a whole number from 1 to the schedule's T = {schedule.T}, "
                         f"got {n}")
    return n
