"""What a network says about x_t, in five dialects and one common tongue.

A network may be trained to name the noise eps, the clean data x0, v = signal·eps − noise·x0, the
velocity eps − x0 of a flow, or F of EDM's preconditioning. Since x_t = signal · x0 + noise · eps,
each of them gives both x0 and eps, and a Prediction holds the two, so samplers and guidance never
ask which it was. `signal` and `noise` are the schedule's at t: Python floats, or arrays that
broadcast against x_t.
"""

from typing import Any, NamedTuple

import numpy as np


class Prediction(NamedTuple):
    """x0 and eps as estimated from x_t, both of its shape, with signal·x0 + noise·eps = x_t."""

    x0: Any
    eps: Any
    log_variance: Any = None                     # of the step to s, or a function of s; if learned


def from_eps(x_t, eps, signal, noise):
    """Prediction of a network that names the noise.  ValueError where no signal is left."""
    if np.ndim(signal) == 0 and signal == 0:
        raise ValueError("eps says nothing about x0 where no signal is left (zero terminal SNR): "
                         "use a network that predicts v or x0, or start at a smaller t")
    # DDIM Eq. 9, CFG §2
    return Prediction((x_t - noise * eps) / signal, eps)                   # DDPM Eq. 15


def from_x0(x_t, x0, signal, noise):
    """Prediction of a network that names the clean data."""
    return Prediction(x0, (x_t - signal * x0) / noise)                     # LDM Eq. 14


def from_v(x_t, v, signal, noise):
    """Prediction of a network that names v: where signal² + noise² = 1, a turn by an angle.

    Salimans & Ho 2202.00512 §4. Where it is not, v is signal·eps − noise·x0 all the same.
    """
    power = signal**2 + noise**2
    a, b = signal / power, noise / power
    return Prediction(a * x_t - b * v, b * x_t + a * v)


def from_velocity(x_t, velocity, signal, noise):
    """Prediction of a network that names eps − x0, where a straight flow is heading."""
    whole = signal + noise
    return Prediction((x_t - noise * velocity) / whole, (x_t + signal * velocity) / whole)


def from_edm(x_t, F, signal, noise, sigma_data=0.5):
    """Prediction of a network that names F of D(x; σ) = c_skip x + c_out F.  EDM Eq. 7, Table 1

    x = x_t/signal and σ = noise/signal, multiplied out; the network saw x_t times `edm_scale`.
    """
    c_skip, c_out = edm_mix(signal, noise, sigma_data)
    return from_x0(x_t, c_skip * x_t + c_out * F, signal, noise)           # EDM Eq. 7


def from_mean(x_t, mean, schedule, t, s):
    """Prediction of a network that names the posterior mean of x_s, s < t.  DDPM Eq. 8, solved"""
    c_t, _ = schedule.posterior(0.0, np.ones(1), t, s)
    c_0, _ = schedule.posterior(1.0, np.zeros(1), t, s)
    x0 = (mean - float(c_t[0]) * x_t) / float(c_0[0])                      # DDPM Eq. 7
    return from_x0(x_t, x0, *schedule.levels(t))


def to_eps(x0, eps, signal, noise):
    """The training target of a network that names the noise."""
    return eps


def to_x0(x0, eps, signal, noise):
    """The training target of a network that names the clean data."""
    return x0


def to_v(x0, eps, signal, noise):
    """The training target of a network that names v."""
    return signal * eps - noise * x0


def to_velocity(x0, eps, signal, noise):
    """The training target of a network that names the velocity of a flow."""
    return eps - x0


def to_edm(x0, eps, signal, noise, sigma_data=0.5):
    """The training target of a network that names F, of variance 1.  EDM Eq. 8"""
    c_skip, c_out = edm_mix(signal, noise, sigma_data)
    return (x0 - c_skip * (signal * x0 + noise * eps)) / c_out             # EDM Eq. 8


def edm_mix(signal, noise, sigma_data):
    """How much of x_t (c_skip/signal) and of F (c_out) there is in D.  EDM Table 1"""
    power = noise**2 + signal**2 * sigma_data**2
    return signal * sigma_data**2 / power, noise * sigma_data / power**0.5


def edm_scale(signal, noise, sigma_data=0.5):
    """What x_t is multiplied by on its way into the network: c_in/signal.  EDM Table 1"""
    return 1 / (noise**2 + signal**2 * sigma_data**2) ** 0.5


def dialect(predicts):
    """(from, to): the two functions of a dialect by name; ValueError for another name."""
    if predicts not in PREDICTS:
        raise ValueError(f"predicts must be one of {', '.join(PREDICTS)}, got {predicts!r}")
    return PREDICTS[predicts], TARGETS[predicts]


PREDICTS = {"eps": from_eps, "x0": from_x0, "v": from_v,     # by the name in recipe or checkpoint
            "velocity": from_velocity, "edm": from_edm}
TARGETS = {"eps": to_eps, "x0": to_x0, "v": to_v, "velocity": to_velocity, "edm": to_edm}
