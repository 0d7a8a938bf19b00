"""DDPM: walk the chain back, each step a sample of the posterior.  DDPM Alg. 2

The forward chain is undone as if the estimate of x0 were the truth: q(x_s | x_t, x0) is a Gaussian
whose mean the prediction fixes. Its variance is a choice, made by a function of (schedule, t, s).
"""

from itertools import pairwise

from tinydiff.backend import array_module
from tinydiff.diffusion.samplers.contract import ask, noise_source
from tinydiff.diffusion.spacing import nodes


def fixed_small(schedule, t, s):
    """β̃, the posterior's own variance: right if all data were one point.  DDPM §3.2"""
    return schedule.posterior_variance(t, s)


def fixed_large(schedule, t, s):
    """β, the forward step's variance: right if the data were standard normal.  DDPM §3.2"""
    return schedule.step_variance(t, s)


def ddpm(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None,
         variance=fixed_small):
    """Yield x_t (N, …) as t falls, with fresh noise at every step but one that ends at t = 0.

    With fewer steps than T the chain is respaced (iDDPM Eq. 19). A predictor that learned its
    log-variance overrules `variance`.
    """
    x_t, z = x_T, noise_source(noise, seed, x_T)
    for step, (t, s) in enumerate(pairwise(nodes(schedule, steps, timesteps))):
        p = ask(predict, x_t, t)
        mean, _ = schedule.posterior(p.x0, x_t, t, s)                      # DDPM Eq. 7
        if s == 0:
            x_t = mean                                                     # Alg. 2: z = 0
        elif p.log_variance is None:
            x_t = mean + variance(schedule, t, s) ** 0.5 * z(step)         # DDPM Alg. 2, line 4
        else:
            x_t = mean + array_module(x_t).exp(0.5 * p.log_variance) * z(step)     # iDDPM Eq. 15
        yield x_t
