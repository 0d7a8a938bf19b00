"""What every sampler does alike: refuse bad options, ask the predictor, draw noise, run to the end.

A sampler is a generator `sampler(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0,
noise=None, **own)`. It walks the nodes of `spacing.nodes` from the first to the last and yields
x_t at each but the first. Noise comes from the address (seed, row in the batch, step), or from
`noise`, an iterable of arrays, one for each draw. float32 in, float32 out.
"""

from collections import deque
from functools import wraps
from inspect import signature

import numpy as np

from tinydiff.backend import alongside
from tinydiff.diffusion.noise import SAMPLER, X_T, alike, batch
from tinydiff.diffusion.prediction import Prediction
from tinydiff.diffusion.spacing import nodes

FRESH_NOISE = {"eta": "ddim and dpmpp_2m_sde take it", "variance": "ddpm takes it",
               "churn": "edm takes it"}


def sampler(generator):
    """Let a sampler refuse bad options when it is called, not when it takes its first step.

    ValueError for an option it does not take, for nodes that cannot be walked, and unless x_T
    holds floats.
    """
    takes, uses = list(signature(generator).parameters)[3:], generator.__code__.co_names
    is_ode = "noise_source" not in uses                   # it never draws
    times = next((f for f in (nodes_with_signal, straight_nodes) if f.__name__ in uses), nodes)

    @wraps(generator)
    def call(predict, x_T, schedule, **options):
        for option in sorted(options.keys() - takes):
            why = "it solves an ODE and draws no noise" if is_ode and option in FRESH_NOISE else \
                f"its options are {', '.join(takes)}"
            who = f"; {FRESH_NOISE[option]}" if option in FRESH_NOISE else ""
            raise ValueError(f"{generator.__name__} takes no {option}: {why}{who}")
        times(schedule, options.get("steps"), options.get("timesteps"))
        if x_T.dtype.kind != "f":
            raise ValueError(f"x_T must hold floats, got {x_T.dtype}; draw it standard normal")
        return generator(predict, x_T, schedule, **options)

    return call


def sample(sampler, predict, shape, schedule, *, seed=0, like=None, **options):
    """Draw x_T (N, …) of `shape` from `seed`, run the sampler, return its last x: the pictures.

    The options are the sampler's: steps or timesteps, noise, its own; all lives where `like` does.
    """
    start, *_ = nodes(schedule, options.get("steps"), options.get("timesteps"))
    z = batch(seed, range(shape[0]), 0, shape[1:], purpose=X_T, like=like)
    walk = sampler(predict, schedule.start_std(start) * z, schedule, seed=seed, **options)
    return deque(walk, maxlen=1).pop()                    # of all x_t only the last is kept


def ask(predict, x_t, t, s=None, above=None):
    """The Prediction at (x_t, t) in x_t's dtype; ValueError unless x0 and eps have its shape.

    A log-variance that is a function is asked for the step to s, behind one from `above` to t.
    """
    p = predict(x_t, t)
    if callable(p.log_variance):
        p = p._replace(log_variance=None if s is None else p.log_variance(s, above))
    if p.x0.shape != x_t.shape or p.eps.shape != x_t.shape:
        raise ValueError(f"the predictor must return x0 and eps in the shape of x_t, {x_t.shape}, "
                         f"got {p.x0.shape} and {p.eps.shape}")
    if p.log_variance is not None and \
            np.broadcast_shapes(np.shape(p.log_variance), x_t.shape) != x_t.shape:
        raise ValueError(f"the predictor's log_variance must fit x_t, {x_t.shape}, got "
                         f"{np.shape(p.log_variance)}")
    return Prediction(*(a if a is None else a.astype(x_t.dtype, copy=False) for a in p))


def noise_source(noise, seed, x_T):
    """A function step -> z, standard normal like x_T (N, …): from `noise` if given, else `seed`.

    ValueError when `noise` ends too early or holds an array of another shape.
    """
    if noise is None:
        return lambda step: alike(x_T, seed, step, purpose=SAMPLER)
    replay = iter(noise)

    def draw(step):
        z = next(replay, None)
        if z is None:
            raise ValueError(f"the noise to replay ran dry at step {step}; a sampler needs one "
                             f"array of shape {x_T.shape} for each draw")
        if z.shape != x_T.shape:
            raise ValueError(f"the noise to replay at step {step} must have the shape of x_T, "
                             f"{x_T.shape}, got {z.shape}")
        return alongside(z, x_T).astype(x_T.dtype, copy=False)

    return draw


def nodes_with_signal(schedule, steps, timesteps):
    """`nodes`, for samplers that divide by signal; ValueError where they start without any."""
    times = nodes(schedule, steps, timesteps)
    if schedule.signal(times[0]) == 0:
        raise ValueError(f"this sampler divides by signal, and schedule {schedule.name} has none "
                         f"at t = {times[0]}; take ddim or dpmpp_2m, or timesteps that start lower")
    return times


def straight_nodes(schedule, steps, timesteps):
    """`nodes`, for samplers of a flow; ValueError unless signal + noise = 1 at each."""
    times = nodes(schedule, steps, timesteps)
    for t, signal, noise in zip(times, *schedule.levels(np.array(times))):
        if abs(signal + noise - 1) > 1e-6:
            raise ValueError(f"flow samplers need signal + noise = 1, as in Schedule.flow, got "
                             f"{signal:.4g} and {noise:.4g} at t = {t} of schedule "
                             f"{schedule.name}; take ddim or dpmpp_2m")
    return times
