"""What every sampler does alike: ask the predictor, draw noise, and be run to its end.

A sampler is a generator `sampler(predict, x_T, schedule, *, steps=None, timesteps=None, seed=0,
noise=None, **own)`. It walks the nodes of `spacing.nodes` from the first to the last and yields
x_t at each but the first. Noise comes from the address (seed, row in the batch, step), or from
`noise`, an iterable of arrays, one for each draw. float32 in, float32 out.
"""

import numpy as np

from tinydiff.backend import array_module
from tinydiff.diffusion.noise import SAMPLER, X_T, batch
from tinydiff.diffusion.prediction import Prediction


def sample(sampler, predict, shape, schedule, *, seed=0, **options):
    """Draw x_T (N, …) of `shape` from `seed`, run the sampler, return its last x: the pictures.

    The options are the sampler's: steps or timesteps, noise, and its own.
    """
    x_T = batch(seed, range(shape[0]), 0, shape[1:], np.float32, purpose=X_T)
    *_, x0 = sampler(predict, x_T, schedule, seed=seed, **options)
    return x0


def ask(predict, x_t, t):
    """The Prediction at (x_t, t) in x_t's dtype; ValueError unless x0 and eps have its shape."""
    if x_t.dtype.kind != "f":
        raise ValueError(f"x_T must hold floats, got {x_t.dtype}; draw it from a standard normal")
    p = predict(x_t, t)
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
    xp = array_module(x_T)
    if noise is None:
        return lambda step: xp.asarray(
            batch(seed, range(len(x_T)), step, x_T.shape[1:], x_T.dtype, purpose=SAMPLER))
    replay = iter(noise)

    def draw(step):
        z = next(replay, None)
        if z is None:
            raise ValueError(f"the noise to replay ran dry at step {step}; a sampler needs one "
                             f"array of shape {x_T.shape} for each draw")
        if z.shape != x_T.shape:
            raise ValueError(f"the noise to replay at step {step} must have the shape of x_T, "
                             f"{x_T.shape}, got {z.shape}")
        return xp.asarray(z, dtype=x_T.dtype)

    return draw
