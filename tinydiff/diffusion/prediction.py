"""What a network says about x_t, in three dialects and one common tongue.

A network may be trained to name the noise eps, the clean data x0, or v = √ᾱ eps − √(1−ᾱ) x0.
Since x_t = signal · x0 + noise · eps, each of them gives both x0 and eps, and a Prediction holds
the two, so samplers and guidance never ask which it was. `signal` and `noise` are √ᾱ_t and
√(1−ᾱ_t) of the schedule: Python floats, or arrays that broadcast against x_t.
"""

from typing import Any, NamedTuple


class Prediction(NamedTuple):
    """x0 and eps as estimated from x_t, both of its shape, with signal·x0 + noise·eps = x_t."""

    x0: Any
    eps: Any
    log_variance: Any = None                     # of the step down, if the network learned it


def from_eps(x_t, eps, signal, noise):
    """Prediction of a network that names the noise."""
    return Prediction((x_t - noise * eps) / signal, eps)                   # DDPM Eq. 15


def from_x0(x_t, x0, signal, noise):
    """Prediction of a network that names the clean data."""
    return Prediction(x0, (x_t - signal * x0) / noise)                     # LDM Eq. 14


def from_v(x_t, v, signal, noise):
    """Prediction of a network that names v; x_t and v are x0 and eps, turned by an angle."""
    return Prediction(signal * x_t - noise * v, noise * x_t + signal * v)


def to_eps(x0, eps, signal, noise):
    """The training target of a network that names the noise."""
    return eps


def to_x0(x0, eps, signal, noise):
    """The training target of a network that names the clean data."""
    return x0


def to_v(x0, eps, signal, noise):
    """The training target of a network that names v."""
    return signal * eps - noise * x0


PREDICTS = {"eps": from_eps, "x0": from_x0, "v": from_v}     # by the name in recipe or checkpoint
TARGETS = {"eps": to_eps, "x0": to_x0, "v": to_v}
