"""Schedules that do not keep the variance: two tables, signal and noise, straight between rows.

EDM adds noise to an untouched picture, flow walks from the picture to the noise; both are made by
`Schedule.karras`, `Schedule.flow` or, from any tables, `Schedule.from_levels`.
"""

from dataclasses import dataclass, field

import numpy as np

from tinydiff.diffusion.process import tables
from tinydiff.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Levels(Schedule):
    """A Schedule given by its two levels; x_t/√(signal² + noise²) has the tables beta … alpha_bar.

    So every formula of a chain in beta and alpha_bar holds for x_t scaled to keep its variance.
    """

    table: np.ndarray = field(compare=False, repr=False)     # (2, T + 1): signal, noise

    @classmethod
    def of(cls, signal, noise, name, parameters):
        """As `Schedule.from_levels`."""
        table = np.array([signal, noise], dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            sigma = table[1] / table[0]
        if table.ndim != 2 or table.shape[1] < 2 or tuple(table[:, 0]) != (1, 0) \
                or table.min() < 0 or not (np.diff(sigma) > 0).all():
            raise ValueError(f"schedule {name}: signal and noise must be tables of T + 1 numbers "
                             f"that start at 1 and 0, with noise/signal rising strictly, got "
                             f"shape {table.shape}; index 0 is clean data")
        alpha_bar = table[0] ** 2 / (table**2).sum(0)
        table.flags.writeable = False
        T = parameters.pop("T", table.shape[1] - 1)
        parameters = parameters or {"signal": table[0].tolist(), "noise": table[1].tolist()}
        return cls(name, T, parameters, *tables(alpha_bar), table)

    def levels(self, t):
        """(signal, noise): the weights of x0 and of eps in x_t."""
        row, part = self._row(t)
        below, above = self.table[:, row], self.table[:, np.minimum(row + 1, self.T)]
        signal, noise = np.where(part == 0, below, below * (1 - part) + above * part)
        return (signal, noise) if signal.ndim else (float(signal), float(noise))

    def start_std(self, t):
        """noise(t): x_t is noise alone, nothing keeps its variance."""
        return self.noise(t)

    def alpha_bar_at(self, t):
        """ᾱ of x_t scaled to keep its variance: signal²/(signal² + noise²)."""
        signal, noise = self.levels(t)
        return signal**2 / (signal**2 + noise**2)

    def time(self, sigma):
        """The t in [0, T] with sigma(t) = sigma, a float.  ValueError if there is none."""
        sigmas = self.sigma(np.arange(self.T + 1))
        if not 0 <= sigma <= sigmas[-1] * (1 + 1e-9):
            raise ValueError(f"sigma must lie in [0, {sigmas[-1]:.6g}], got {sigma}")
        if sigma >= sigmas[-1]:
            return float(self.T)
        row = int(np.searchsorted(sigmas, sigma, side="right")) - 1
        (a, a_next), (b, b_next) = self.table[:, row:row + 2].tolist()
        return row + (sigma * a - b) / (b_next - b - sigma * (a_next - a))

    def zero_terminal_snr(self):
        """ValueError: only a schedule that keeps the variance can be bent so."""
        raise ValueError(f"zero_terminal_snr: schedule {self.name} does not keep the variance; "
                         "take flow, which ends without signal, or one made of betas")

    def respaced(self, times):
        """The chain that visits only `times`, whole or not, rising from 0.  iDDPM Eq. 19"""
        return Schedule.from_levels(*self.levels(np.asarray(times)), f"{self.name}_respaced")
