"""Pictures from pictures: changed, filled in, turned back into noise, mixed.

All of it is sampling begun elsewhere or bent on the way; no network is trained for it.
"""

from itertools import count, pairwise
from numbers import Integral

import numpy as np

from tinydiff.backend import alongside, array_module
from tinydiff.diffusion.noise import X_T, alike
from tinydiff.diffusion.prediction import from_eps, from_x0
from tinydiff.diffusion.process import across
from tinydiff.diffusion.samplers.ancestral import ddpm, fixed_small
from tinydiff.diffusion.samplers.contract import ask, noise_source, sampler as as_sampler
from tinydiff.diffusion.spacing import nodes, whole


def image_to_image(sampler, predict, x0, schedule, *, strength, steps, seed=0, **own):
    """Noise x0 (N, …) to t = strength · T and sample from there, `steps` steps.  SDEdit §3

    strength in (0, 1]: little keeps the picture, 1 forgets what the schedule forgets. A picture's
    noise is the one `sample` would start from. Yields and takes what the sampler does.
    ValueError for another strength, one too small for so many steps, and pictures not of floats.
    """
    x0 = floats(x0, x0, "x0")
    times = strength_nodes(schedule, strength, steps)
    x_t = schedule.q_sample(x0, times[0], alike(x0, seed, 0, purpose=X_T))
    return sampler(predict, x_t, schedule, timesteps=times, seed=seed, **own)


def strength_nodes(schedule, strength, steps):
    """The whole times of `steps` steps from strength · T to 0, evenly: what a sampler walks."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], where 1 is all noise, got {strength}")
    start = max(1, round(strength * schedule.T))
    if not isinstance(steps, Integral) or not 1 <= steps <= start:
        raise ValueError(f"strength {strength} of T = {schedule.T} leaves {start} whole times for "
                         f"{steps} steps; take 1 to {start} steps, or more strength")
    return whole(np.linspace(start, 0, steps + 1))


def inpainted(predict, schedule, *, known, mask):
    """A predictor that knows x0 where mask is 0 and paints where it is 1: any sampler inpaints.

    known and mask broadcast against x_t; a mask between 0 and 1 blends. eps follows x0.
    ValueError where they do not fit, and for a known picture that is not of floats.
    """

    def predict_painted(x_t, t):
        p, paint = predict(x_t, t), fitting(mask, x_t, "mask")
        sure = from_x0(x_t, floats(known, x_t, "known"), *schedule.levels(t))
        return p._replace(x0=paint * p.x0 + (1 - paint) * sure.x0,
                          eps=paint * p.eps + (1 - paint) * sure.eps)

    return predict_painted


@as_sampler
def repaint(predict, x_T, schedule, *, known, mask, steps=None, timesteps=None, seed=0, noise=None,
            variance=fixed_small, resample=10, jump=1):
    """Inpaint where mask is 1, again and again until it fits what is known.  RePaint Alg. 1

    Yields x_t (N, …) as t falls. Every `jump` steps down are walked `resample` times, with a leap
    back up by the forward process between; those that end at t = 0 once. known and mask broadcast
    against x_T. ValueError unless the mask holds only 0 and 1, and both counts are at least 1.
    """
    known, paint = floats(known, x_T, "known"), fitting(mask, x_T, "mask")
    if not ((paint == 0) | (paint == 1)).all() or min(resample, jump) < 1:
        raise ValueError(f"repaint: expected a mask of 0 (known) and 1 (to paint), resample and "
                         f"jump of at least 1, got a mask from {paint.min()} to {paint.max()}, "
                         f"resample {resample}, jump {jump}")
    xp = array_module(x_T)
    x_t, z, draws = x_T, noise_source(noise, seed, x_T), count()
    times = nodes(schedule, steps, timesteps)
    for i in range(0, len(times) - 1, jump):
        block = times[i:i + jump + 1]
        for again in reversed(range(resample if block[-1] > 0 else 1)):
            for t, s in pairwise(block):
                fresh = z(next(draws)) if s > 0 else xp.zeros_like(x_t)   # no pixel needs two
                [x_s] = ddpm(predict, x_t, schedule, timesteps=[t, s], noise=[fresh],
                             variance=variance)
                x_t = paint * x_s + (1 - paint) * schedule.q_sample(known, s, fresh)
                if not again:
                    yield x_t
            if again:
                x_t = forward(x_t, schedule, block[0], block[-1], z(next(draws)))


def fitting(a, x, name):
    """`a` stretched to x (N, …) in its dtype; ValueError if it does not fit."""
    try:
        return np.broadcast_to(alongside(a, x), x.shape).astype(x.dtype)
    except ValueError:
        raise ValueError(f"{name} must broadcast against x_t, {x.shape}, got shape "
                         f"{np.shape(a)}") from None


def floats(a, x, name):
    """The same for pictures, which are floats in [-1, 1]; ValueError for bytes, whole numbers."""
    kind = array_module(a).asarray(a).dtype
    if kind.kind != "f":
        raise ValueError(f"{name} must hold floats in [-1, 1], got {kind}")
    return fitting(a, x, name)


def forward(x_s, schedule, t, s, z):
    """Noise x_s on to x_t, t > s: a draw of q(x_t | x_s) from standard normal z.  LDM Eq. 5–7"""
    # DDPM Eq. 2, iDDPM Eq. 1, 2, ADM Eq. 15
    return schedule.signal(t) / schedule.signal(s) * x_s + schedule.step_variance(t, s) ** 0.5 * z


@as_sampler
def invert(predict, x0, schedule, *, steps=None, timesteps=None):
    """Yield x_t (N, …) as t rises from x0, DDIM run backwards; `ddim` leads back.  ADM App. F

    The times are those of the sampler, the last first. No predictor can be asked at t = 0: there
    the first time above stands in.
    """
    x_s = x0
    for s, t in pairwise(nodes(schedule, steps, timesteps)[::-1]):
        eps = ask(predict, x_s, s or t).eps
        x0_hat = from_eps(x_s, eps, *schedule.levels(s)).x0
        signal, noise = schedule.levels(t)
        x_s = signal * x0_hat + noise * eps                      # DDIM Eq. 12 with σ = 0, upwards
        yield x_s


def slerp(a, b, share):
    """From a (share 0) to b (1) along the arc between: noise that stays as long as noise is.

    a and b (N, …), each image turned by itself; share is a number, or (N,). Shoemake 1985, DDIM
    §5.3. ValueError where an image of b points exactly away from that of a, so that no arc is
    shortest, and for an image of zeros.
    """
    xp, axes = array_module(a), tuple(range(1, a.ndim))
    ab, aa, bb = ((u * v).sum(axis=axes, keepdims=True) for u, v in ((a, b), (a, a), (b, b)))
    if not (aa * bb).all():
        raise ValueError("slerp: an image of zeros points nowhere; draw another")
    angle = xp.arccos((ab / (aa * bb) ** 0.5).clip(-1, 1)) / np.pi         # in half turns
    if (angle > 0.999).any():
        raise ValueError("slerp: an image of b points away from its image of a, so no arc between "
                         "them is the shortest; draw another")
    to_b = across(np.asarray(share), a)

    def turned(part):                                            # sin(part θ)/sin θ, also at θ = 0
        return part * xp.sinc(part * angle) / xp.sinc(angle)

    return turned(1 - to_b) * a + turned(to_b) * b
