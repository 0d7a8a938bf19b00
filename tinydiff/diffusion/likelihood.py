"""How probable a model finds data: the variational bound, term by term, and the ODE's exact answer.

The bound counts the bits of sending a picture down the chain: what is known at T, one Gaussian a
step, and the pixels themselves at the last. Its terms come with their derivatives, so the same
lines measure a model and train it. The ODE instead carries the density along its path.
"""

from itertools import pairwise
from math import log, pi
from typing import Any, NamedTuple

import numpy as np

from tinydiff.backend import alongside, array_module
from tinydiff.diffusion.densities import discretised, gaussian, kl
from tinydiff.diffusion.noise import SAMPLER, alike
from tinydiff.diffusion.objective import log_variance_range
from tinydiff.diffusion.samplers.ancestral import fixed_large, fixed_small
from tinydiff.diffusion.samplers.contract import ask, noise_source
from tinydiff.diffusion.spacing import karras, nodes

LN2 = log(2)                                                     # nats in one bit


class Bound(NamedTuple):
    """The variational bound on −log p(x0) in bits/dim, of S steps from T to 0.  DDPM Eq. 5"""

    prior: Any                                                   # (N,) KL at T
    terms: Any                                                   # (N, S), the last is the decoder's
    mse: Any                                                     # (N, S) of x0_hat, per dimension

    @property
    def total(self):
        """Bits/dim of each image -> (N,).  iDDPM Eq. 4, ADM Eq. 22"""
        return self.prior + self.terms.sum(1)


def vlb_term(mean, log_variance, *, schedule, x0, x_t, t, s=None, decoder=discretised):
    """L_s of the step from t to s in bits/dim (N,), and its vjp: to be lifted by autograd's `op`.

    mean and log_variance (N, …) of the model's step; t and s (N,) or numbers, s = t − 1 if left
    out. Where s = 0 it is −log p(x0 | x_t) of the decoder.  DDPM Eq. 5, 8, 13, iDDPM Eq. 5, 6
    """
    xp = array_module(mean)
    t = np.broadcast_to(t, len(x0))
    s = np.broadcast_to(t - 1 if s is None else s, len(x0))
    log_variance = (xp.zeros_like(mean) + log_variance).astype(mean.dtype, copy=False)
    found = [xp.empty_like(mean) for _ in range(3)]              # value, d/d mean, d/d log_variance
    for rows in (np.flatnonzero(s > 0), np.flatnonzero(s == 0)):
        if len(rows) == 0:
            continue
        here = alongside(rows, mean)
        theirs = mean[here], log_variance[here]
        if s[rows[0]] == 0:
            part = decoder(x0[here], *theirs)                    # iDDPM Eq. 5, ADM Eq. 23
        else:
            mean_q, variance_q = schedule.posterior(x0[here], x_t[here], t[rows], s[rows])
            part = kl(mean_q, xp.log(variance_q), *theirs)       # iDDPM Eq. 6, ADM Eq. 24
        for whole, these in zip(found, part, strict=True):
            whole[here] = these
    value, by_mean, by_log_variance = found
    bits = 1 / (LN2 * mean[0].size)

    def vjp(dy):
        dy = (dy * bits).reshape(-1, *[1] * (mean.ndim - 1))
        return lambda: dy * by_mean, lambda: dy * by_log_variance

    return value.reshape(len(mean), -1).sum(1) * bits, vjp


def hybrid(simple, bits_per_dim, T, weight=0.001):
    """L_simple + λ L_vlb, λ = `weight` for a bound in bits/dim.  iDDPM Eq. 16

    simple and bits_per_dim: both losses at a random t, (N,) or their means, arrays or Tensors.
    L_vlb is a sum over T terms, so T times the term at a random one; `weight` = 1/T adds the term
    itself, and a bound in nats wants weight/ln 2.
    """
    return simple + bits_per_dim * (weight * T)


def vlb(predict, x0, schedule, *, steps=None, timesteps=None, variance=fixed_small,
        decoder=discretised, seed=0):
    """The variational bound of x0 (N, …) in bits/dim, each term by one draw of x_t -> Bound

    Nodes as a sampler's, ending at 0: fewer than T respace the chain. variance(schedule, t, s) is
    the model's; where it is 0 that of `log_variance_range` stands in, and a predictor that learned
    its own overrules it. ValueError unless the nodes end at 0.
    """
    times = _down_to_clean(schedule, steps, timesteps)
    xp, draw = array_module(x0), noise_source(None, seed, x0)
    exact = x0.astype(np.float64)
    terms, mse = [], []
    for step, (above, (t, s)) in enumerate(zip([None, *times], pairwise(times))):
        x_t = schedule.q_sample(x0, t, draw(step))               # DDPM Eq. 4
        p = ask(predict, x_t, t, s, above)
        x0_hat, wide = p.x0.astype(np.float64), x_t.astype(np.float64)
        log_variance = _log_variance(variance, schedule, t, s, above) if p.log_variance is None \
            else p.log_variance
        mean, _ = schedule.posterior(x0_hat, wide, t, s)         # DDPM Eq. 7, 11
        terms.append(vlb_term(mean, log_variance, schedule=schedule, x0=exact, x_t=wide, t=t, s=s,
                              decoder=decoder)[0])
        mse.append(((x0_hat - exact) ** 2).reshape(len(x0), -1).mean(1))
    signal, noise = schedule.levels(times[0])
    prior, *_ = kl(signal * exact, 2 * log(noise), 0 * exact, 2 * log(schedule.prior_std))
    prior = prior.reshape(len(x0), -1).mean(1) / LN2             # iDDPM Eq. 7, ADM Eq. 25
    return Bound(prior, xp.stack(terms, 1), xp.stack(mse, 1))    # DDPM Eq. 5, LDM Eq. 9


def exact_vlb(mixture, schedule, *, steps=None, timesteps=None, variance=fixed_large):
    """The bound expected of the exact denoiser of a Mixture, without a draw -> Bound with N = 1

    The decoder is `gaussian`. Closed form for one Gaussian, else as good as the mixture's
    `optimal_loss`.  DDPM Eq. 12, LDM Eq. 13
    """
    times = _down_to_clean(schedule, steps, timesteps)
    terms, errors = [], []
    for above, (t, s) in zip([None, *times], pairwise(times)):
        error, _ = mixture.optimal_loss(schedule, t, "x0")       # of x0_hat, per dimension
        c_0, _ = schedule.posterior(1.0, np.zeros(1), t, s)      # the mean errs by c_0 as much
        away, log_variance = c_0 * error**0.5, _log_variance(variance, schedule, t, s, above)
        terms.append(kl(0, log(schedule.posterior_variance(t, s)), away, log_variance)[0]
                     if s > 0 else gaussian(0, away, log_variance)[0])
        errors.append([error])
    signal, noise = schedule.levels(times[0])
    prior, *_ = kl(signal * mixture.second_moment**0.5, 2 * log(noise), np.zeros(1),
                   2 * log(schedule.prior_std))
    return Bound(prior / LN2, np.stack(terms, 1) / LN2, np.stack(errors, 1))


def rate_distortion(bound):
    """What is known of the pictures after so many bits -> rate, distortion (S,).  DDPM §4.3, Alg. 4

    rate: bits/dim received once x_t is there; distortion: root mean square error of x0_hat on the
    0 … 255 scale. After the last term, at `bound.total`, the picture is exact.
    """
    before = bound.prior[:, None] + bound.terms.cumsum(1) - bound.terms          # DDPM Alg. 3
    return before.mean(0), 127.5 * bound.mse.mean(0) ** 0.5


def ode_log_likelihood(predict, x, schedule, *, steps=None, timesteps=None, vjp=None, probes=None,
                       seed=0):
    """log p(x) in nats (N,) of x (N, …) at the last node, along the probability-flow ODE.

    steps: that many Karras-spaced nodes down to t = 1; timesteps end above 0. With
    x̄ = x_t/signal, dx̄/dσ = eps and d log p(x̄)/dσ = −div eps; Heun's method takes both up to the
    first node, where x is normal. The divergence is exact, by D products, or the mean over `probes`
    random signs (Hutchinson). vjp(x_t, t, dy) -> ∂(Σ eps·dy)/∂x_t; differences if left out.
    ValueError where sigma is infinite or 0, and for probes < 1.  DDIM Eq. 14, Song et al.
    2011.13456 App. D.2
    """
    if steps is not None and timesteps is None:
        steps, timesteps = None, karras(schedule, steps)[:-1]
    times = nodes(schedule, steps, timesteps)[::-1]                              # rising
    if times[0] == 0 or schedule.signal(times[-1]) == 0 or (probes is not None and probes < 1):
        raise ValueError(f"ode_log_likelihood: expected times above 0 where signal is left, and "
                         f"probes of at least 1, got t from {times[-1]} to {times[0]} of schedule "
                         f"{schedule.name} and probes={probes}")
    D = x[0].size
    directions = _directions(x, probes, seed)

    def slopes(x_bar, t):
        signal = schedule.signal(t)
        x_t = signal * x_bar
        divergence = sum(_product(predict, x_t, t, r, schedule.noise(t), vjp) for r in directions())
        return ask(predict, x_t, t).eps, signal * divergence / (probes or 1)

    x_bar, growth = x / schedule.signal(times[0]), -D * log(schedule.signal(times[0]))
    for s, t in pairwise(times):
        d_sigma = schedule.sigma(t) - schedule.sigma(s)
        eps, divergence = slopes(x_bar, s)
        eps_next, divergence_next = slopes(x_bar + d_sigma * eps, t)
        x_bar = x_bar + 0.5 * d_sigma * (eps + eps_next)                         # EDM Alg. 1
        growth = growth + 0.5 * d_sigma * (divergence + divergence_next)
    signal, std = schedule.signal(times[-1]), schedule.start_std(times[-1])
    square = ((x_bar * (signal / std)).astype(np.float64) ** 2).reshape(len(x), -1).sum(1)
    return growth + D * log(signal) - 0.5 * (square + D * log(2 * pi * std**2))


def _directions(x, probes, seed):
    """A function that runs through the directions (N, …) along which a divergence is measured."""
    xp, shape = array_module(x), x.shape
    if probes is None:
        unit = xp.eye(x[0].size, dtype=x.dtype).reshape(-1, *shape[1:])
        return lambda: (xp.broadcast_to(e, shape) for e in unit)
    signs = [xp.sign(alike(x, seed, k, purpose=SAMPLER)) for k in range(probes)]
    return lambda: signs


def _product(predict, x_t, t, r, noise, vjp):
    """Σ r · (∂eps/∂x_t) r -> (N,), by the vjp or by central differences."""
    if vjp:
        change = vjp(x_t, t, r)
    else:
        h = float(np.finfo(x_t.dtype).eps) ** (1 / 3) * noise    # eps bends on the scale of noise
        change = (ask(predict, x_t + h * r, t).eps - ask(predict, x_t - h * r, t).eps) / (2 * h)
    return (change.astype(np.float64) * r).reshape(len(r), -1).sum(1)


def _log_variance(variance, schedule, t, s, above):
    """The log of the model's variance, or of the step from `above` where that is 0."""
    value = float(variance(schedule, t, s))
    return log(value) if value > 0 else float(log_variance_range(schedule, t, s, above)[0])


def _down_to_clean(schedule, steps, timesteps):
    times = nodes(schedule, steps, timesteps)
    if times[-1] != 0:
        raise ValueError(f"the bound is on clean data: timesteps must end at 0, got {times[-1]}")
    return times
