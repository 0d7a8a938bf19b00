"""What training makes small: three losses of one batch, each (loss, bits of each image or None).

They take what the network said, a Tensor (N, H, W, C), or (N, H, W, 2C) where it learns its
variance; the batch x0 and its `objective.draw`; the schedule and the network's dialect.
"""

import numpy as np

from tinydiff.autograd import mean, mse, op
from tinydiff.diffusion import likelihood
from tinydiff.diffusion.objective import learned_log_variance
from tinydiff.diffusion.prediction import PREDICTS
from tinydiff.diffusion.process import across

bits_per_dim = op(likelihood.vlb_term)                    # the array function, now on Tensors


def simple(said, draw, x0, schedule, predicts):
    """L_simple: the weighted squared error of what was to be said.  DDPM Eq. 14"""
    # iDDPM Eq. 14, ADM Eq. 26, LDM Eq. 1, CFG Eq. 5
    return mse(said, draw.target, weight=draw.weight), None


def hybrid(said, draw, x0, schedule, predicts, weight=0.001):
    """L_simple + λ L_vlb in bits/dim, the latter teaching the variance alone.  iDDPM Eq. 16

    λ = `weight`. The mean inside the bound is detached: it is L_simple that teaches it.
    """
    named, v = halves(said)
    bits = bound(named.detach(), v, draw, x0, schedule, predicts)
    error = mse(named, draw.target, weight=draw.weight)
    return likelihood.hybrid(error, mean(bits), schedule.T, weight), bits.data


def vlb(said, draw, x0, schedule, predicts):
    """L_vlb in bits/dim, from one term an image, each weighted by how rarely it is drawn.

    iDDPM Eq. 18
    """
    bits = bound(*halves(said), draw, x0, schedule, predicts)
    return mean(bits * draw.weight) * schedule.T, bits.data


def halves(said):
    """What it named, and where the variance lies."""
    C = said.shape[-1] // 2
    return said[..., :C], said[..., C:]


def bound(named, v, draw, x0, schedule, predicts):
    """The term of L_vlb at each image's t, in bits/dim (N,), of a network that learns both."""
    levels = (across(level, x0) for level in schedule.levels(draw.t))
    p = PREDICTS[predicts](draw.x_t, named, *levels)
    x_mean, _ = schedule.posterior(p.x0, draw.x_t, draw.t)                 # DDPM Eq. 11
    log_variance = learned_log_variance(schedule, v, draw.t, draw.t - 1)   # iDDPM Eq. 15
    with np.errstate(under="ignore"):                     # e^−(far away) is 0
        return bits_per_dim(x_mean, log_variance, schedule=schedule, x0=x0, x_t=draw.x_t, t=draw.t)
