"""What every network tries to become: exact answers for a Gaussian, a mixture, a finite data set.

If x0 comes from a mixture of Gaussians, so does every x_t, and Bayes' rule says from which of them:
denoiser, score, density, posterior and the ODE's path are closed forms. A Gaussian is a mixture of
one, a data set a mixture of points. With it samplers can be watched, and tested, before there is
any network; and a trained network can be told how far it is from the best possible.
"""

import numpy as np

from tinydiff.backend import alongside, array_module, normal_cdf
from tinydiff.diffusion.noise import DATA, TRAIN_EPS, alike, generator
from tinydiff.diffusion.objective import error_ratio
from tinydiff.diffusion.prediction import dialect, from_x0


class Mixture:
    """Data with the density Σ weight_i N(mean_i, std_i² I), and what follows from it at every t.

    means (M, …); std one number or (M,), 0 for the points themselves; weights (M,) positive, all
    equal if left out. It computes in float64, as the oracle it is, from x_t (N, …).
    ValueError for weights that are not M positive numbers, and at t = 0 for what needs noise.
    """

    def __init__(self, means, std=0.0, weights=None):
        xp, M = array_module(means), len(means)
        weights = np.ones(M) if weights is None else weights
        weights, std = (alongside(a, means).astype(np.float64) for a in (weights, std))
        if weights.shape != (M,) or not (weights > 0).all():
            raise ValueError(f"weights must be {M} positive numbers, one for each data point, "
                             f"got {weights.tolist()}")
        self.shape = np.shape(means)[1:]
        self.means = xp.asarray(means, dtype=np.float64).reshape(M, -1)                 # (M, D)
        self.variance = xp.broadcast_to(std**2, (M,))
        self.weights = weights / weights.sum()
        self.square = (self.means**2).sum(1)                                            # (M,)

    @property
    def second_moment(self):
        """E[x0²], the mean over dimensions."""
        return float(self.weights @ (self.variance + self.square / self.means.shape[1]))

    def draw(self, n, seed=0):
        """n pictures x0 (n, …)."""
        rng = generator(seed, 0, purpose=DATA)
        i = rng.choice(len(self.weights), n, p=self.weights)
        z = rng.standard_normal((n, self.means.shape[1]))
        return (self.means[i] + self.variance[i, None] ** 0.5 * z).reshape(n, *self.shape)

    def predictor(self, schedule):
        """The predictor of E[x0 | x_t], for t in (0, T]; it answers in x_t's dtype.  EDM Eq. 2"""

        def predict(x_t, t):
            signal, noise = schedule.levels(t)
            if noise == 0:
                raise _clean(t)
            with np.errstate(under="ignore"):                    # far points weigh nothing
                x, variance, p, _ = self._bayes(x_t, t, schedule)
                # E[x0 | x_t, i] = mean_i + signal·std_i²/variance_i · (x_t − signal·mean_i)
                x0 = (p * (noise**2 / variance)) @ self.means                           # (N, D)
                x0 += (p @ (signal * self.variance / variance))[:, None] * x
                exact = from_x0(x, x0, signal, noise)
                return exact._replace(x0=exact.x0.reshape(x_t.shape).astype(x_t.dtype),
                                      eps=exact.eps.reshape(x_t.shape).astype(x_t.dtype))

        return predict

    def log_density(self, x_t, t, schedule):
        """log p(x_t) in nats (N,); at t = 0, where every std is above 0, minus the exact NLL."""
        with np.errstate(under="ignore"):
            return self._bayes(x_t, t, schedule)[3]

    def score(self, x_t, t, schedule):
        """∇ log p(x_t) (N, …), which is −eps/noise of the predictor.  ADM Eq. 11, EDM Eq. 3"""
        with np.errstate(under="ignore"):
            x, variance, p, _ = self._bayes(x_t, t, schedule)
            p = p / variance
            score = schedule.signal(t) * (p @ self.means) - p.sum(1)[:, None] * x
            return score.reshape(x_t.shape)

    def posterior(self, x_t, t, s, schedule):
        """q(x_s | x_t), a mixture again -> weights (N, M), means (N, M, …), variances (M,)."""
        with np.errstate(under="ignore"):
            x, variance, p, _ = self._bayes(x_t, t, schedule)
        a_t, (a_s, before) = schedule.signal(t), self._noised(s, schedule)
        gain = before * (a_t / a_s) / variance
        means = a_s * self.means + gain[:, None] * (x[:, None] - a_t * self.means)      # (N, M, D)
        return (p, means.reshape(*p.shape, *self.shape),
                schedule.step_variance(t, s) * before / variance)

    def flow(self, x_t, t, s, schedule):
        """x_s on the probability-flow ODE's path through x_t (N, …), for s below t or above.

        A Gaussian's in any dimension; a mixture's in one, where paths never cross, so that x_s is
        the same quantile at s as x_t at t. ValueError for a mixture in more.  DDIM Eq. 14
        """
        M, D = self.means.shape
        if M > 1 and D > 1:
            raise ValueError(f"flow: the path is known for one Gaussian, or in one dimension, but "
                             f"there are {M} in {D}")
        (a_t, here), (a_s, there) = self._noised(t, schedule), self._noised(s, schedule)
        if not here.all():
            raise _clean(t)
        x, means = x_t.reshape(len(x_t), -1), self.means if M == 1 else self.means.T
        each = a_s * means + (there / here) ** 0.5 * (x - a_t * means)      # of each Gaussian alone
        if M > 1:
            goal = self._ranks(x, a_t, here)
            low, high = each.min(1, keepdims=True), each.max(1, keepdims=True)
            for _ in range(100):                                            # bisection
                each = 0.5 * (low + high)
                below, above = self._ranks(each, a_s, there)
                left = np.where(goal[0] < goal[1], below < goal[0], above > goal[1])
                low, high = np.where(left, each, low), np.where(left, high, each)
        return each.reshape(x_t.shape)

    def optimal_loss(self, schedule, t, predicts="eps", *, draws=1024, seed=0):
        """The least possible mean squared error per dimension at t -> (loss, its standard error).

        In closed form for one Gaussian, by quadrature for up to 20 in one or two dimensions, else
        by `draws` draws; only these have an error.
        """
        M, D = self.means.shape
        (signal, variance), noise = self._noised(t, schedule), schedule.noise(t)
        predict, ratio = self.predictor(schedule), error_ratio(predicts, signal, noise)
        if M == 1:
            return float(ratio * self.variance[0] * noise**2 / variance[0]), 0.0
        if M > 20 or D > 2:
            loss = _losses([predict], self.draw(draws, seed), schedule, t, 0, predicts, seed)[0]
            return float(loss.mean()), float(loss.std() / draws**0.5)
        z = np.linspace(-10, 10, {1: 2001, 2: 201}[D])           # trapezoids of a Gaussian: exact
        z = np.stack(np.meshgrid(*[z] * D), -1).reshape(-1, D)
        with np.errstate(under="ignore"):
            share = np.exp(-0.5 * (z**2).sum(1))
            known = [share @ (predict(signal * m + v**0.5 * z, t).x0 ** 2).mean(1)
                     for m, v in zip(self.means, variance, strict=True)]
        known = self.weights @ known / share.sum()               # E[x0_hat²]
        return float(ratio * max(0.0, self.second_moment - known)), 0.0     # but for rounding: ≥ 0

    def _noised(self, t, schedule):
        """The signal at t, and the variances (M,) of x_t's Gaussians."""
        signal, noise = schedule.levels(t)
        return signal, signal**2 * self.variance + noise**2

    def _bayes(self, x_t, t, schedule):
        """x_t (N, D), the variances (M,), p(i | x_t) (N, M) and log p(x_t) (N,)."""
        xp, (signal, variance) = array_module(x_t), self._noised(t, schedule)
        if not variance.all():
            raise _clean(t)
        if x_t.shape[1:] != self.shape:
            raise ValueError(f"the ideal predictor knows data of shape {self.shape}, got x_t "
                             f"{x_t.shape}")
        x = x_t.reshape(len(x_t), self.means.shape[1]).astype(np.float64)
        square = (x**2).sum(1)[:, None] + signal**2 * self.square                       # (N, M)
        log_joint = xp.log(self.weights) - 0.5 * x.shape[1] * xp.log(2 * np.pi * variance) \
            + (signal * (x @ self.means.T) - 0.5 * square) / variance
        top = log_joint.max(1, keepdims=True)
        p = xp.exp(log_joint - top)
        total = p.sum(1, keepdims=True)
        return x, variance, p / total, (top + xp.log(total))[:, 0]

    def _ranks(self, x, signal, variance):
        """The shares of a mixture in one dimension that lie below and above x (N, 1)."""
        with np.errstate(under="ignore"):
            z = (x - signal * self.means.T) / np.maximum(variance, 1e-300) ** 0.5       # (N, M)
            return [(normal_cdf(side) @ self.weights)[:, None] for side in (z, -z)]


def ideal_predictor(data, schedule, *, weights=None):
    """The predictor E[x0 | x_t] of the points `data`, drawn with probability ∝ `weights`.

    data (M, …), weights (M,) positive, all equal if left out; the predictor takes x_t (N, …) and t
    in (0, T]. It computes in float64, as the oracle it is, and answers in x_t's dtype; memory
    grows with N·M and M·D. ValueError for weights that are not M positive numbers.
    """
    return Mixture(data, 0.0, weights).predictor(schedule)


def loss_gap(predict, ideal, x0, schedule, times, *, predicts="eps", seed=0):
    """The loss of `predict` and of `ideal` at each of `times`, on the same noise -> (K,), (K,)

    x0 (N, …). With x0 from the ideal predictor's own data the second is, up to the draw, the least
    there can be, and the difference what a network could still learn.
    """
    losses = [_losses([predict, ideal], x0, schedule, t, k, predicts, seed).mean(1)
              for k, t in enumerate(times)]
    return tuple(np.stack(losses, 1))


def _losses(predictors, x0, schedule, t, step, predicts, seed):
    """Each predictor's squared error per dimension on each image -> (predictors, N)."""
    xp, levels = array_module(x0), schedule.levels(t)
    eps = alike(x0, seed, step, purpose=TRAIN_EPS)
    x_t, (_, target_of) = schedule.q_sample(x0, t, eps), dialect(predicts)
    target = target_of(x0, eps, *levels)
    found = [target_of(p.x0, p.eps, *levels) for p in (f(x_t, t) for f in predictors)]
    return xp.stack([((said - target) ** 2).reshape(len(x0), -1).mean(1) for said in found])


def _clean(t):
    return ValueError(f"the ideal predictor needs t > 0, where x_t is noisy, got t = {t}")
