"""PNDM: Adams–Bashforth weights on the last slopes, moved along DDIM's curve.  PNDM

It asks once a step, as DDIM does, and remembers. The weights are those of even steps in t; DDIM's
curve, whatever the nodes, makes of them a method of second order.
"""

from itertools import pairwise

from tinydiff.diffusion.samplers.contract import ask, nodes_with_signal, sampler

WEIGHTS = [(1,), (3/2, -1/2), (23/12, -16/12, 5/12), (55/24, -59/24, 37/24, -9/24)]  # newest first


@sampler
def pndm(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None):
    """Yield x_t (N, …) as t falls: PLMS, with one improved Euler step at the start.

    n steps ask n + 1 times. The first goes astray where `heun`'s does. ValueError if it starts
    where no signal is left.
    """
    x_t, slopes = x_T, []                                # of the last four nodes, newest first
    for step, (t, s) in enumerate(pairwise(nodes_with_signal(schedule, steps, timesteps))):
        slopes = [ask(predict, x_t, t).eps, *slopes[:3]]
        slope = sum(w * e for w, e in zip(WEIGHTS[len(slopes) - 1], slopes))
        if step == 0 and s > 0:
            slope = (slope + ask(predict, transfer(schedule, x_t, slope, t, s), s).eps) / 2
        x_t = transfer(schedule, x_t, slope, t, s)
        yield x_t


def transfer(schedule, x_t, eps, t, s):
    """x_s, if eps does not change on the way: DDIM's step from any slope.  DDIM Eq. 13"""
    (a_t, b_t), (a_s, b_s) = schedule.levels(t), schedule.levels(s)
    return a_s / a_t * x_t + (b_s - a_s * b_t / a_t) * eps
