"""How fast a picture drowns in noise: x_t = √ᾱ_t x0 + √(1−ᾱ_t) eps for t from 0 (clean) to T.

A schedule is three tables of T + 1 entries, indexed by t itself: beta, alpha = 1 − beta and
alpha_bar, the cumulative product of alpha. Entry 0 is clean data (ᾱ_0 = 1), so there is neither
a "previous" table nor a special last step.
"""

from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import signature
from numbers import Integral

import numpy as np

from tinydiff.backend import array_module


@dataclass(frozen=True)
class Schedule:
    """The tables of one noise schedule, and every formula that needs nothing else.

    Made by `linear`, `cosine`, `scaled_linear`, `from_alpha_bar`, or at a file's door by `named`.
    Two schedules are equal when they were made alike. The tables are read-only float64.
    """

    name: str
    T: int                                                   # top of the chain, t = 1 … T
    parameters: dict = field(repr=False)                     # what the constructor took besides T
    beta: np.ndarray = field(compare=False, repr=False)      # (T + 1,) variance added by step t
    alpha: np.ndarray = field(compare=False, repr=False)     # (T + 1,) 1 − beta
    alpha_bar: np.ndarray = field(compare=False, repr=False)  # (T + 1,) alpha_1 ⋯ alpha_t

    def __post_init__(self):
        for table in (self.beta, self.alpha, self.alpha_bar):
            table.flags.writeable = False

    @classmethod
    def linear(cls, T=1000):
        """beta evenly spaced from 0.1/T to 20/T: the same process at every T.

        At T = 1000 these are 1e-4 … 0.02 of DDPM §4. ValueError unless T > 20, where beta < 1.
        """
        if _whole(T) <= 20:
            raise ValueError(f"schedule linear: beta ends at 20/T, which must be below 1, but T is "
                             f"{T}; take T > 20")
        return cls._from_beta("linear", T, np.linspace(0.1, 20, T) / T)

    @classmethod
    def scaled_linear(cls, T=1000, start=0.00085, end=0.012):
        """√beta evenly spaced from √start to √end: latent diffusion's schedule (LDM, its code).

        ValueError unless 0 < start, end < 1.
        """
        if not (0 < start < 1 and 0 < end < 1):
            raise ValueError(f"schedule scaled_linear: start and end must lie in (0, 1), "
                             f"got {start} and {end}")
        beta = np.linspace(start**0.5, end**0.5, _whole(T)) ** 2
        return cls._from_beta("scaled_linear", T, beta, start=start, end=end)

    @classmethod
    def cosine(cls, T=1000, s=0.008):
        """ᾱ_t falls like a squared cosine, with beta capped at 0.999.  iDDPM Eq. 17

        The offset s keeps beta_1 from vanishing. ValueError if s is negative.
        """
        if not s >= 0:
            raise ValueError(f"schedule cosine: the offset s must not be negative, got {s}")
        t = np.arange(_whole(T) + 1)
        f = np.cos((t / T + s) / (1 + s) * np.pi / 2) ** 2                 # iDDPM Eq. 17
        return cls._from_beta("cosine", T, np.minimum(1 - f[1:] / f[:-1], 0.999), s=s)

    @classmethod
    def from_alpha_bar(cls, alpha_bar, name="from_alpha_bar"):
        """The schedule with a given table, alpha_bar (T + 1,), which falls strictly from 1.

        The last entry may be 0 (no signal left at T). ValueError for any other table.
        """
        alpha_bar = np.array(alpha_bar, dtype=np.float64)
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2 or alpha_bar[0] != 1 or alpha_bar[-1] < 0 \
                or not (np.diff(alpha_bar) < 0).all():
            raise ValueError(f"schedule {name}: alpha_bar must be a table of T + 1 numbers that "
                             f"fall strictly from 1 and never below 0, got shape "
                             f"{alpha_bar.shape}; index 0 is clean data")
        alpha = np.concatenate([[1.0], alpha_bar[1:] / alpha_bar[:-1]])
        parameters = {"alpha_bar": alpha_bar.tolist()}
        return cls(name, len(alpha_bar) - 1, parameters, 1 - alpha, alpha, alpha_bar)

    @classmethod
    def _from_beta(cls, name, T, beta, **parameters):
        beta = np.concatenate([[0.0], beta])                               # beta_0: nothing yet
        return cls(name, int(T), parameters, beta, 1 - beta, np.cumprod(1 - beta))

    @classmethod
    def named(cls, name, T=1000, **parameters):
        """The schedule that a recipe or checkpoint names; undoes `config`.

        ValueError with the nearest name for an unknown one, and for a parameter it does not take.
        """
        if "alpha_bar" in parameters:
            return cls.from_alpha_bar(parameters["alpha_bar"], name)
        known = {"linear": cls.linear, "scaled_linear": cls.scaled_linear, "cosine": cls.cosine}
        if name not in known:
            nearest = get_close_matches(str(name), known, n=1, cutoff=0) or ["linear"]
            raise ValueError(f"no schedule is called {name!r}, did you mean {nearest[0]!r}? "
                             f"There are {', '.join(known)}")
        strange = parameters.keys() - signature(known[name]).parameters.keys()
        if strange:
            raise ValueError(f"schedule {name} has no parameter {min(strange)!r}; "
                             f"it takes {str(signature(known[name]))[1:-1]}")
        return known[name](T, **parameters)

    @property
    def config(self):
        """A dict of plain values with `Schedule.named(**schedule.config) == schedule`."""
        return {"name": self.name, "T": self.T, **self.parameters}

    def alpha_bar_at(self, t):
        """ᾱ at t in [0, T], int or float, scalar or array on the host.

        The table's own value at whole t; between two rows log ᾱ is linear. A scalar gives a
        Python float. ValueError outside [0, T].
        """
        t = np.asarray(t, dtype=np.float64)
        if not ((t >= 0) & (t <= self.T)).all():
            raise ValueError(f"t must lie in [0, {self.T}], got {t}")
        row = t.astype(np.int64)
        part = t - row                                                     # 0 at whole t
        below, above = self.alpha_bar[row], self.alpha_bar[np.minimum(row + 1, self.T)]
        value = np.where(part == 0, below, below ** (1 - part) * above**part)
        return value if t.ndim else float(value)

    def signal(self, t):
        """√ᾱ_t, the weight of x0 in x_t."""
        return self.alpha_bar_at(t) ** 0.5

    def noise(self, t):
        """√(1 − ᾱ_t), the weight of eps in x_t."""
        return (1 - self.alpha_bar_at(t)) ** 0.5

    def sigma(self, t):
        """√((1 − ᾱ_t)/ᾱ_t), the noise per unit of signal; infinite where no signal is left."""
        return _divide(1 - self.alpha_bar_at(t), self.alpha_bar_at(t)) ** 0.5

    def snr(self, t):
        """ᾱ_t/(1 − ᾱ_t), the signal-to-noise ratio; infinite at t = 0."""
        return _divide(self.alpha_bar_at(t), 1 - self.alpha_bar_at(t))

    def q_sample(self, x0, t, eps):
        """Noise clean data to time t in one step.  DDPM Eq. 4

        x0 (N, …), eps as x0, t one number or (N,) -> x_t as x0, in its dtype.
        ValueError if eps has another shape, or t another length.
        """
        if eps.shape != x0.shape:
            raise ValueError(f"q_sample: eps must have x0's shape {x0.shape}, got {eps.shape}")
        return across(self.signal(t), x0) * x0 + across(self.noise(t), x0) * eps  # DDPM Eq. 4

    def posterior(self, x0, x_t, t, s=None):
        """Mean and variance of q(x_s | x_t, x0), where s < t is t − 1 unless given.  DDPM Eq. 6, 7

        x0 and x_t (N, …), t and s one number each or (N,) -> mean as x_t; the variance is
        a Python float, or (N, 1, …) if t is an array. ValueError unless 0 <= s < t <= T.
        """
        s = t - 1 if s is None else s
        a_t, a_s = self._falling(t, s)
        alpha = a_t / a_s                                                  # α_t if s = t − 1
        c_0 = a_s**0.5 * (1 - alpha) / (1 - a_t)                           # DDPM Eq. 7
        c_t = alpha**0.5 * (1 - a_s) / (1 - a_t)
        mean = across(c_0, x_t) * x0 + across(c_t, x_t) * x_t
        return mean, across(self.posterior_variance(t, s), x_t)

    def posterior_variance(self, t, s):
        """β̃ of the step from t to s < t: (1 − ᾱ_s)/(1 − ᾱ_t) · (1 − ᾱ_t/ᾱ_s).  DDPM Eq. 7"""
        a_t, a_s = self._falling(t, s)
        return (1 - a_s) * ((1 - a_t / a_s) / (1 - a_t))

    def step_variance(self, t, s):
        """β of the step from s < t to t: 1 − ᾱ_t/ᾱ_s, which is beta[t] if s = t − 1."""
        a_t, a_s = self._falling(t, s)
        return 1 - a_t / a_s

    def _falling(self, t, s):
        if not np.all(np.asarray(s) < t):
            raise ValueError(f"a step must go from t down to s < t, got t = {t} and s = {s}")
        return self.alpha_bar_at(t), self.alpha_bar_at(s)


def across(values, x):
    """Schedule values ready to multiply x (N, …): the one place that casts and reshapes them.

    One number becomes a Python float, which leaves x's dtype alone (a float64 scalar would not);
    (N,) becomes (N, 1, …) in x's dtype, where x lives. ValueError for any other length.
    """
    if np.ndim(values) == 0:
        return float(values)
    if values.shape != x.shape[:1]:
        raise ValueError(f"t must be one number or have one entry for each of the {len(x)} "
                         f"images, got shape {values.shape}")
    return array_module(x).asarray(values, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def _divide(a, b):
    with np.errstate(divide="ignore"):                                     # a/0 = inf is meant
        ratio = np.divide(a, b)
    return ratio if np.ndim(ratio) else float(ratio)


def _whole(T):
    if not isinstance(T, Integral) or T < 1:
        raise ValueError(f"T, the number of steps of the chain, must be a whole number of at "
                         f"least 1, got {T!r}")
    return T
