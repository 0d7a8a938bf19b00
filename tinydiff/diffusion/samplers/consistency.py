"""LCM: a network that maps every x_t of a curve to its end, asked a few times in between.  LCM

Such a network needs one step; each further one adds fresh noise to its answer and asks again from
a smaller t.
"""

from itertools import pairwise

from tinydiff.diffusion.samplers.contract import ask, noise_source, sampler
from tinydiff.diffusion.spacing import nodes

SIGMA_DATA, SCALE = 0.5, 10.0                            # of the data; of t, so that x_1 is noisy


@sampler
def lcm(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None):
    """Yield x_t (N, …) as t falls: the end of x_t's curve, noised anew to the next time.

    The end is c_skip x_t + c_out x0, which is x_t itself at t = 0. A predictor that was not
    distilled gives a mean instead of an end, and samples that vary too little.
    """
    x_t, z = x_T, noise_source(noise, seed, x_T)
    for step, (t, s) in enumerate(pairwise(nodes(schedule, steps, timesteps))):
        (a_s, b_s), scaled = schedule.levels(s), SCALE * t
        c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        c_out = scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5
        x_t = a_s * (c_skip * x_t + c_out * ask(predict, x_t, t).x0)
        if s > 0:
            x_t = x_t + b_s * z(step)
        yield x_t
