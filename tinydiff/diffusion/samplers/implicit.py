"""DDIM: the same marginals with less noise, and with none a fixed map from x_T to x0.  DDIM §4

Every x_t is a mix of x0 and eps. A step takes both estimates and mixes them anew for the next
time; eta says which share of eps is replaced by fresh noise. Trained networks serve as they are.
"""

from itertools import pairwise

from tinydiff.diffusion.samplers.contract import ask, noise_source, sampler
from tinydiff.diffusion.spacing import nodes


@sampler
def ddim(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None, eta=0.0):
    """Yield x_t (N, …) as t falls. eta = 0: DDIM, which draws no noise; eta = 1: DDPM (DDIM §4.1).

    The paper's α is our ᾱ. ValueError unless 0 <= eta <= 1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie between 0 (DDIM) and 1 (DDPM), got {eta}")
    # DDIM Eq. 1, 7, 10; on a part of the times DDIM App. C.1
    x_t, z = x_T, noise_source(noise, seed, x_T)
    for step, (t, s) in enumerate(pairwise(nodes(schedule, steps, timesteps))):
        a_s, b_s = schedule.levels(s)
        variance = float(eta) ** 2 * schedule.posterior_variance(t, s)     # DDIM Eq. 16, squared
        p = ask(predict, x_t, t)
        x_t = a_s * p.x0 + (b_s**2 - variance) ** 0.5 * p.eps              # DDIM Eq. 12
        if variance > 0:
            x_t = x_t + variance**0.5 * z(step)
        yield x_t
