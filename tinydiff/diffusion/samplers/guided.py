"""DDPM steered by a classifier: each step's mean moves towards what it takes for y.  ADM Alg. 1

p(x_s | x_t) p(y | x_s) is, for a step so small that log p(y | ·) is straight, again a Gaussian:
its mean moves by Σ ∇ log p(y | x), its variance stays (ADM Eq. 2–10).
"""

from itertools import pairwise

from tinydiff.backend import array_module
from tinydiff.diffusion.samplers.ancestral import fixed_small
from tinydiff.diffusion.samplers.contract import ask, noise_source, sampler
from tinydiff.diffusion.spacing import nodes


@sampler
def ddpm_guided(predict, x_T, schedule, *, grad_log_prob, y, scale=1.0, steps=None, timesteps=None,
                seed=0, noise=None, variance=fixed_small):
    """Yield x_t (N, …) as `ddpm` does, drawn towards the class y by `scale`.

    grad_log_prob(x_t, t, y) -> ∇ log p(y | x_t) as x_t. It is taken at x_t, as Algorithm 1 is
    printed; the derivation (ADM Eq. 5, 6) takes it at the mean.
    """
    x_t, z, xp = x_T, noise_source(noise, seed, x_T), array_module(x_T)
    for step, (t, s) in enumerate(pairwise(nodes(schedule, steps, timesteps))):
        p = ask(predict, x_t, t, s)
        mean, _ = schedule.posterior(p.x0, x_t, t, s)                      # DDPM Eq. 7
        sigma2 = variance(schedule, t, s) if p.log_variance is None else xp.exp(p.log_variance)
        gradient = grad_log_prob(x_t, t, y).astype(x_t.dtype, copy=False)
        # ADM Eq. 2, 3, 10, §4.3
        x_t = mean + float(scale) * sigma2 * gradient                      # ADM Alg. 1: μ + sΣg
        if s > 0:
            x_t = x_t + sigma2**0.5 * z(step)
        yield x_t
