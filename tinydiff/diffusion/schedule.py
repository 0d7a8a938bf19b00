"""How fast a picture drowns in noise: the named curves, from t = 0 (clean) to T.

A schedule is three tables of T + 1 entries, indexed by t itself: beta, alpha = 1 − beta and
alpha_bar, the cumulative product of alpha. Entry 0 is clean data (ᾱ_0 = 1), so there is neither
a "previous" table nor a special last step. What follows from them is in `process`.
"""

from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import signature
from math import inf, log
from numbers import Integral

import numpy as np

from tinydiff.diffusion.process import Process, tables
from tinydiff.diffusion.spacing import karras_sigmas


@dataclass(frozen=True)
class Schedule(Process):
    """The tables of one noise schedule, made by a constructor below or at a file's door by `named`.

    x_t = √ᾱ_t x0 + √(1−ᾱ_t) eps, which keeps the variance of data of variance 1; a schedule
    `from_levels` (so `karras` and `flow`) has other levels, and the ᾱ of x_t scaled to that form.
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
        return cls._from_beta("linear", np.linspace(0.1, 20, T) / T)

    @classmethod
    def scaled_linear(cls, T=1000, start=0.00085, end=0.012):
        """√beta evenly spaced from √start to √end: latent diffusion's schedule (LDM, its code).

        ValueError unless 0 < start, end < 1.
        """
        _inside("scaled_linear", start=start, end=end)
        beta = np.linspace(start**0.5, end**0.5, _whole(T)) ** 2
        return cls._from_beta("scaled_linear", beta, start=start, end=end)

    @classmethod
    def sigmoid_beta(cls, T=1000, start=1e-4, end=0.02):
        """beta rises from start to end along a logistic curve from −6 to 6 (GeoDiff, its code).

        ValueError unless 0 < start, end < 1.
        """
        _inside("sigmoid_beta", start=start, end=end)
        beta = start + (end - start) * _logistic(np.linspace(-6, 6, _whole(T)))
        return cls._from_beta("sigmoid_beta", beta, start=start, end=end)

    @classmethod
    def cosine(cls, T=1000, s=0.008):
        """ᾱ_t falls like a squared cosine, with beta capped at 0.999.  iDDPM Eq. 17

        The offset s keeps beta_1 from vanishing. ValueError if s is negative.
        """
        if not 0 <= s < inf:
            raise ValueError(f"schedule cosine: the offset s must not be negative, got {s}")
        t = np.arange(_whole(T) + 1)
        f = np.cos((t / T + s) / (1 + s) * np.pi / 2) ** 2                 # iDDPM Eq. 17
        return cls._from_beta("cosine", np.minimum(1 - f[1:] / f[:-1], 0.999), s=s)

    @classmethod
    def sigmoid_alpha_bar(cls, T=1000, start=-3, end=3, tau=1):
        """ᾱ_t falls like a logistic curve from start to end, sharper for smaller tau; beta ≤ 0.999.

        Jabri, Fleet & Chen 2212.11972, with ᾱ scaled to fall from 1 to 0.
        ValueError unless start < end and tau > 0.
        """
        if not (start < end and tau > 0):
            raise ValueError(f"schedule sigmoid_alpha_bar: expected start < end and tau > 0, "
                             f"got {start}, {end} and {tau}")
        f = _logistic((start + (end - start) * np.arange(_whole(T) + 1) / T) / tau)
        falls = f[-1] - f                                                  # ∝ ᾱ
        beta = np.minimum(1 - falls[1:] / falls[:-1], 0.999)
        return cls._from_beta("sigmoid_alpha_bar", beta, start=start, end=end, tau=tau)

    @classmethod
    def karras(cls, T=1000, sigma_min=0.002, sigma_max=80.0, rho=7.0):
        """signal = 1, and sigma at t = T … 1 are the T nodes of EDM Eq. 5; at t = 0 it is 0.

        ValueError unless T > 1, 0 < sigma_min < sigma_max and rho > 0.
        """
        if not (_whole(T) > 1 and 0 < sigma_min < sigma_max and rho > 0):
            raise ValueError(f"schedule karras: expected T > 1, 0 < sigma_min < sigma_max and "
                             f"rho > 0, got {T}, {sigma_min}, {sigma_max} and {rho}")
        sigma = karras_sigmas(T, sigma_min, sigma_max, rho)[::-1]          # EDM Table 1
        return cls.from_levels(np.ones(T + 1), sigma, "karras", T=T, sigma_min=sigma_min,
                               sigma_max=sigma_max, rho=rho)

    @classmethod
    def flow(cls, T=1000, shift=1.0):
        """A straight line from x0 to eps: signal = 1 − τ, noise = τ = t/T (rectified flow).

        Lipman et al. 2210.02747, Liu et al. 2209.03003. shift > 1 spends more of the way in noise:
        τ becomes shift τ/(1 + (shift − 1) τ), Esser et al. 2403.03206 Eq. 23. ValueError if <= 0.
        """
        if not shift > 0:
            raise ValueError(f"schedule flow: shift must be above 0, got {shift}")
        tau = np.arange(_whole(T) + 1) / T
        tau = shift * tau / (1 + (shift - 1) * tau)
        return cls.from_levels(1 - tau, tau, "flow", T=T, shift=shift)

    @classmethod
    def from_alpha_bar(cls, alpha_bar, name="from_alpha_bar", T=1000):
        """The schedule with a given ᾱ: a table (of its own T), or a function of t/T from 0 to 1.

        It falls strictly from 1, perhaps to 0 (no signal). ValueError for any other.
        """
        if callable(alpha_bar):
            alpha_bar = [alpha_bar(t / T) for t in range(_whole(T) + 1)]
        alpha_bar = np.array(alpha_bar, dtype=np.float64)
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2 or alpha_bar[0] != 1 or alpha_bar[-1] < 0 \
                or not (np.diff(alpha_bar) < 0).all():
            raise ValueError(f"schedule {name}: alpha_bar must be a table of T + 1 numbers that "
                             f"fall strictly from 1 (clean data, t = 0), never below 0, got "
                             f"{np.array2string(alpha_bar, threshold=6, edgeitems=2)}")
        parameters = {"alpha_bar": alpha_bar.tolist()}
        return cls(name, len(alpha_bar) - 1, parameters, *tables(alpha_bar))

    @classmethod
    def _from_beta(cls, name, beta, **parameters):
        beta = np.concatenate([[0.0], beta])                               # beta_0: nothing yet
        return cls(name, len(beta) - 1, parameters, beta, 1 - beta, np.cumprod(1 - beta))

    @staticmethod
    def from_levels(signal, noise, name="from_levels", **parameters):
        """The schedule with given tables signal and noise (T + 1,), straight between their rows.

        signal starts at 1 and noise at 0; noise/signal rises strictly, up to infinity where the
        signal ends at 0. ValueError for any other tables.
        """
        from tinydiff.diffusion.levels import Levels  # a Schedule itself
        return Levels.of(signal, noise, name, parameters)

    @classmethod
    def named(cls, name, T=1000, **parameters):
        """The schedule that a recipe or checkpoint names.  ValueError with the nearest for none."""
        if "alpha_bar" in parameters:
            return cls.from_alpha_bar(parameters["alpha_bar"], name)
        if "signal" in parameters:
            return cls.from_levels(parameters["signal"], parameters["noise"], name)
        known = {make.__name__: make for make in (
            cls.linear, cls.scaled_linear, cls.cosine, cls.sigmoid_beta, cls.sigmoid_alpha_bar,
            cls.karras, cls.flow)}
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

        The table's own value at whole t; between two rows log ᾱ is linear, or ᾱ itself if it ends
        at 0. A scalar gives a Python float. ValueError outside [0, T].
        """
        row, part = self._row(t)
        below, above = self.alpha_bar[row], self.alpha_bar[np.minimum(row + 1, self.T)]
        between = np.where(above > 0, below ** (1 - part) * above**part, below * (1 - part))
        value = np.where(part == 0, below, between)
        return value if value.ndim else float(value)

    def levels(self, t):
        """(√ᾱ_t, √(1 − ᾱ_t)): the weights of x0 and of eps in x_t."""
        alpha_bar = self.alpha_bar_at(t)
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5

    def time(self, sigma):
        """The t in [0, T] with sigma(t) = sigma, a float.  ValueError if there is none."""
        alpha_bar = 1 / (1 + sigma**2)
        if not 0 <= sigma <= self.sigma(self.T) * (1 + 1e-9):
            raise ValueError(f"sigma must lie in [0, {self.sigma(self.T):.6g}], got {sigma}")
        row = min(int(np.searchsorted(-self.alpha_bar, -alpha_bar, side="right")) - 1, self.T - 1)
        below, above = self.alpha_bar[row:row + 2].tolist()
        part = log(alpha_bar / below) / log(above / below) if above > 0 else 1 - alpha_bar / below
        return min(row + part, float(self.T))

    def _row(self, t):
        """The last row at or below t, and how far t is on the way to the next."""
        t = np.asarray(t, dtype=np.float64)
        if not ((t >= 0) & (t <= self.T)).all():
            raise ValueError(f"t must lie in [0, {self.T}], got {t}")
        row = t.astype(np.int64)
        return row, t - row                                                # 0 at whole t

    def zero_terminal_snr(self):
        """The same schedule bent to end without any signal: ᾱ_T = 0.  Lin et al. 2305.08891, Alg. 1

        √ᾱ is shifted so that its last entry is 0 and stretched so that its first stays.
        """
        if self.T == 1:
            raise ValueError("zero_terminal_snr: T must be above 1, one step would keep nothing")
        root = self.alpha_bar**0.5                                         # entry 0 stays 1
        root[1:] = (root[1:] - root[-1]) * root[1] / (root[1] - root[-1])
        return Schedule.from_alpha_bar(root**2, f"{self.name}_zero_snr")

    def respaced(self, times):
        """The chain that visits only `times`, whole or not, rising from 0: iDDPM Eq. 19.

        Its t = k is this one's t = times[k].
        """
        return Schedule.from_alpha_bar(self.alpha_bar_at(times), f"{self.name}_respaced")


def _logistic(x):
    return 1 / (1 + np.exp(-x))


def _inside(name, **ends):
    if not all(0 < end < 1 for end in ends.values()):
        raise ValueError(f"schedule {name}: start and end must lie in (0, 1), "
                         f"got {ends['start']} and {ends['end']}")


def _whole(T):
    if not isinstance(T, Integral) or T < 1:
        raise ValueError(f"T, the number of steps of the chain, must be a whole number of at "
                         f"least 1, got {T!r}")
    return T
