"""What noising is: x_t = signal · x0 + noise · eps, and all that follows from the two curves.

Three families share these formulas: signal² + noise² = 1 keeps the variance of data of variance 1
(DDPM), signal = 1 only adds noise (EDM), signal = 1 − noise walks a straight line (flow).
How fast a picture drowns is told by `schedule`.
"""

import numpy as np

from tinydiff.backend import alongside


class Process:
    """A Gaussian noising process: T and `levels(t) -> (signal, noise)`, t from 0 (clean) to T.

    Every t is an int or float in [0, T], or an array (N,) of them on the host; one number gives
    Python floats. ValueError outside [0, T].
    """

    def signal(self, t):
        """The weight of x0 in x_t: √ᾱ_t where the variance is kept."""
        return self.levels(t)[0]

    def noise(self, t):
        """The weight of eps in x_t: √(1 − ᾱ_t) where the variance is kept."""
        return self.levels(t)[1]

    def sigma(self, t):
        """noise/signal, the noise per unit of signal; infinite where no signal is left."""
        signal, noise = self.levels(t)
        return _divide(noise, signal)

    def snr(self, t):
        """(signal/noise)², the signal-to-noise ratio; infinite at t = 0.  LDM Eq. 13"""
        signal, noise = self.levels(t)
        return _divide(signal, noise) ** 2

    def log_snr(self, t):
        """ln snr, the λ of CFG Eq. 1 and twice that of DPM-Solver; ±∞ at the ends."""
        with np.errstate(divide="ignore"):                                 # ln 0 = −∞ is meant
            value = np.log(self.snr(t))
        return value if np.ndim(value) else float(value)

    @property
    def prior_std(self):
        """The standard deviation of x_T: 1 where the variance is kept, else noise(T)."""
        return self.start_std(self.T)

    def start_std(self, t):
        """The deviation that noise is given where sampling starts at t, that of data without x0."""
        return 1.0

    def q_sample(self, x0, t, eps):
        """Noise clean data to time t in one step.  DDPM Eq. 4

        x0 (N, …), eps as x0, t one number or (N,) -> x_t as x0, in its dtype.
        ValueError if eps has another shape, or t another length.
        """
        if eps.shape != x0.shape:
            raise ValueError(f"q_sample: eps must have x0's shape {x0.shape}, got {eps.shape}")
        # DDIM Eq. 4, §2, iDDPM Eq. 8, 9, ADM Eq. 16, 17, LDM Eq. 4, CFG Eq. 1
        return noised(x0, eps, *self.levels(t))                            # DDPM Eq. 4

    def posterior(self, x0, x_t, t, s=None):
        """Mean and variance of q(x_s | x_t, x0), where s < t is t − 1 unless given.  DDPM Eq. 6, 7

        x0 and x_t (N, …), t and s one number each or (N,) -> mean as x_t; the variance is
        a Python float, or (N, 1, …) if t is an array. ValueError unless 0 <= s < t <= T.
        """
        s = t - 1 if s is None else s
        (_, b_t), (a_s, b_s), rest = self._step(t, s)
        fresh = 1 - rest**2
        # iDDPM Eq. 11, 12, ADM Eq. 18, 20, LDM Eq. 12, CFG Eq. 3
        mean = across(a_s * fresh, x_t) * x0 + across(rest * b_s / b_t, x_t) * x_t    # DDPM Eq. 7
        return mean, across(b_s**2 * fresh, x_t)

    def posterior_variance(self, t, s):
        """β̃ of the step from t to s < t: noise_s² (1 − snr_t/snr_s).  DDPM Eq. 7, CFG Eq. 3"""
        _, (_, b_s), rest = self._step(t, s)
        # iDDPM Eq. 10, ADM Eq. 19, LDM Eq. 11
        return b_s**2 * (1 - rest**2)

    def step_variance(self, t, s):
        """β of the step from s < t to t, the variance of q(x_t | x_s).  LDM Eq. 5, 7, CFG Eq. 2

        It is noise_t² (1 − snr_t/snr_s): beta[t] if s = t − 1 and the variance is kept.
        """
        (_, b_t), _, rest = self._step(t, s)
        # DDPM Eq. 2, DDIM Eq. 3, iDDPM Eq. 2, ADM Eq. 15
        return b_t**2 * (1 - rest**2)

    def _step(self, t, s):
        """The levels at t and at s < t, and √(snr_t/snr_s), which is 0 for s = 0."""
        if not np.all(np.asarray(s) < t):
            raise ValueError(f"a step must go from t down to s < t, got t = {t} and s = {s}")
        (a_t, b_t), (a_s, b_s) = self.levels(t), self.levels(s)
        return (a_t, b_t), (a_s, b_s), a_t * b_s / (a_s * b_t)


def noised(x0, eps, signal, noise):
    """signal · x0 + noise · eps: `q_sample` at levels that are known, one number each or (N,)."""
    return across(signal, x0) * x0 + across(noise, x0) * eps


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
    return alongside(values.astype(x.dtype, copy=False), x).reshape(-1, *[1] * (x.ndim - 1))


def tables(alpha_bar):
    """beta, alpha and alpha_bar (T + 1,), from the last."""
    alpha = np.concatenate([[1.0], alpha_bar[1:] / alpha_bar[:-1]])
    return 1 - alpha, alpha, alpha_bar


def _divide(a, b):
    with np.errstate(divide="ignore"):                                     # a/0 = inf is meant
        ratio = np.divide(a, b)
    return ratio if np.ndim(ratio) else float(ratio)
