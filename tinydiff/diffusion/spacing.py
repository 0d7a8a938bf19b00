"""Which times a sampler visits."""

from numbers import Integral

import numpy as np


def nodes(schedule, steps=None, timesteps=None):
    """The times from start to end, both included: m nodes for m − 1 steps of a sampler.

    steps=n: n steps from T to 0 as evenly as whole numbers allow, never one twice, for every
    1 <= n <= T. timesteps: the nodes themselves, whole or not, falling strictly inside [0, T].
    ValueError for both, neither, or any that cannot be walked.
    """
    T = schedule.T
    if (steps is None) == (timesteps is None):
        raise ValueError(f"give exactly one of steps and timesteps, got steps={steps} and "
                         f"timesteps={timesteps}")
    if timesteps is None:
        if not isinstance(steps, Integral) or not 1 <= steps <= T:
            raise ValueError(f"steps must be a whole number from 1 to the schedule's T = {T}, "
                             f"got {steps}")
        return np.linspace(T, 0, steps + 1).round().astype(int).tolist()
    times = np.asarray(timesteps)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"timesteps must list at least two times, start and end included, "
                         f"got {timesteps}")
    if not (np.diff(times) < 0).all() or not 0 <= times[-1] < times[0] <= T:
        raise ValueError(f"timesteps must fall strictly inside [0, {T}], got {times.tolist()}")
    return times.tolist()
