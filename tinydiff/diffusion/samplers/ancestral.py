"""DDPM: walk the chain back, each step a sample of the posterior.  DDPM Alg. 2

The forward chain is undone as if the estimate of x0 were the truth: q(x_s | x_t, x0) is a Gaussian
whose mean the prediction fixes. Its variance is a choice, made by a function of (schedule, t, s).
"""

from itertools import pairwise

from tinydiff.backend import array_module
from tinydiff.diffusion.samplers.contract import ask, nodes_with_signal, noise_source, sampler
from tinydiff.diffusion.spacing import nodes


def fixed_small(schedule, t, s):
    """β̃, the posterior's own variance: right if all data were one point.  DDPM §3.2"""
    return schedule.posterior_variance(t, s)


def fixed_large(schedule, t, s):
    """β, the forward step's variance: right if the data were standard normal.  DDPM §3.2"""
    return schedule.step_variance(t, s)                                    # DDIM §5


@sampler
def ddpm(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None,
         variance=fixed_small):
    """Yield x_t (N, …) as t falls, with fresh noise at every step but one that ends at t = 0.

    With fewer steps than T the chain is respaced (iDDPM Eq. 19). A predictor that learned its
    log-variance overrules `variance`.
    """
    # DDPM Eq. 1, Alg. 2, iDDPM Eq. 3, ADM Eq. 21, LDM Eq. 8, 10
    x_t, z = x_T, noise_source(noise, seed, x_T)
    for step, (t, s) in enumerate(pairwise(nodes(schedule, steps, timesteps))):
        p = ask(predict, x_t, t, s)
        x_t, _ = schedule.posterior(p.x0, x_t, t, s)                       # DDPM Eq. 7
        if s > 0:                                                          # Alg. 2: else z = 0
            x_t = x_t + deviation(p, variance, schedule, t, s) * z(step)
        yield x_t


@sampler
def ddpm_eps_form(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None,
                  variance=fixed_small):
    """Yield what `ddpm` does, its mean said in eps, as Algorithm 2 is printed: the same numbers.

    ValueError if it starts where no signal is left, which only the posterior's form can do.
    """
    x_t, z = x_T, noise_source(noise, seed, x_T)
    for step, (t, s) in enumerate(pairwise(nodes_with_signal(schedule, steps, timesteps))):
        p = ask(predict, x_t, t, s)
        root_alpha = schedule.signal(t) / schedule.signal(s)               # √α_t if s = t − 1
        share = schedule.step_variance(t, s) / schedule.noise(t)           # (1 − α_t)/√(1 − ᾱ_t)
        # iDDPM Eq. 13, ADM Eq. 27
        x_t = (x_t - share * p.eps) / root_alpha                           # DDPM Eq. 11
        if s > 0:
            x_t = x_t + deviation(p, variance, schedule, t, s) * z(step)   # DDPM Alg. 2, line 4
        yield x_t


def deviation(p, variance, schedule, t, s):
    """σ_t of Algorithm 2: what the network learned of it, else what `variance` says."""
    if p.log_variance is None:
        return variance(schedule, t, s) ** 0.5
    return array_module(p.x0).exp(0.5 * p.log_variance)                    # iDDPM Eq. 15
