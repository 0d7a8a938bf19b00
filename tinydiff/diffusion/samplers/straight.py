"""Flow matching: where x_t lies on the line from x0 to eps, its velocity is eps − x0.

Lipman et al. 2210.02747, Liu et al. 2209.03003. The nearer the learned paths come to straight
lines, the fewer steps they need. Both samplers start where no signal is left.
"""

from itertools import pairwise

from tinydiff.diffusion.samplers.contract import ask, sampler, straight_nodes


@sampler
def flow_euler(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None):
    """Yield x_t (N, …) as t falls, each step along the velocity at its start.

    ValueError unless signal + noise = 1, as in `Schedule.flow`.
    """
    x_t = x_T
    for t, s in pairwise(straight_nodes(schedule, steps, timesteps)):
        x_t = x_t + (schedule.noise(s) - schedule.noise(t)) * _velocity(predict, x_t, t)
        yield x_t


@sampler
def flow_heun(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0, noise=None):
    """Yield x_t (N, …) as t falls, each step along the mean of the velocities at its ends.

    A step to t = 0 is Euler's: n steps ask 2n − 1 times. ValueError unless signal + noise = 1.
    """
    x_t = x_T
    for t, s in pairwise(straight_nodes(schedule, steps, timesteps)):
        h, velocity = schedule.noise(s) - schedule.noise(t), _velocity(predict, x_t, t)
        if s > 0:
            velocity = (velocity + _velocity(predict, x_t + h * velocity, s)) / 2
        x_t = x_t + h * velocity
        yield x_t


def _velocity(predict, x_t, t):
    """dx_t/dnoise, the way from x0 to eps."""
    p = ask(predict, x_t, t)
    return p.eps - p.x0
