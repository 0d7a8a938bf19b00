"""The training step of a GPU in one piece, from the noise to the moved weights: one CUDA graph.

What changes from step to step lies in arrays: the batch, the seeds that noise and dropout are made
of, and what AdamW needs to know. The host reads the loss and the gradient's norm, and nothing else.
"""

from functools import partial
from math import isfinite
from weakref import proxy

import numpy as np

from tinydiff.backend import array_module
from tinydiff.diffusion import noise, objective
from tinydiff.kernels import noise as of_gpu, pick
from tinydiff.optim import AdamW
from tinydiff.replay import Replayed

SEEDS = 256                                               # for dropout: more than there are blocks

class WholeStep:
    """Called with a step's number and learning rate -> (loss, norm), or None if it is not taken.

    It is not on the CPU, nor where the host has to draw or hear more than that; and where a number
    was lost all weights are as they were before.
    """

    def __init__(self, training):
        self.training = proxy(training)                   # which holds this one, and can end so
        self.replayed = Replayed(partial(work, self.training), like=training.flat.data)

    def __call__(self, step, lr):
        if not self.fits():
            return None
        training, o = self.training, self.training.optimizer
        x0, ids, given, numbers = training.told(step)
        address = training.plan.seed, step
        rng = noise.generator(*address, purpose=noise.DROPOUT)
        seeds = rng.integers(2**63, size=SEEDS if training.model.unet.config.dropout else 0)
        state, seeds = np.array(address, np.uint64), seeds.astype(np.uint64)
        how = pick("optimizer", training.flat.data).numbers_of(
            lr=lr, beta1=o.beta1, beta2=o.beta2, eps=o.eps, decay=o.decay, step=step,
            ema_decay=training.ema.decay_at(step))
        training.torn = True
        loss, norm = self.replayed(state, seeds, how, x0, ids, given, *numbers)
        loss, norm = loss.item(), norm.item()
        training.torn = False
        return (loss, norm) if isfinite(norm) else None

    def fits(self):
        """Whether all steps are the same work, and all of it can be the GPU's."""
        training, data = self.training, self.training.flat.data
        return (array_module(data) is not np and hasattr(pick("optimizer", data), "step_with")
                and type(training.optimizer) is AdamW
                and training.recipe.diffusion.loss == "simple")


class Seeds:
    """A generator, to a network: what a real one would have said lies in an array of the GPU."""

    def __init__(self, seeds):
        self.left = iter([seeds[i:i + 1] for i in range(len(seeds))])

    def integers(self, high):
        return next(self.left)


def work(training, state, seeds, how, x0, ids, given, *numbers):
    """`Training.gradient`, the clipping and the step of AdamW, with nothing asked of the host."""
    flat, o, xp = training.flat, training.optimizer, array_module(x0)
    rung = pick("optimizer", flat.data)
    eps = xp.empty_like(x0)
    of_gpu.normal_into(eps, range(len(x0)), state, purpose=noise.TRAIN_EPS)
    loss, _ = training.loss(x0, ids, given, objective.Numbers(*numbers), eps, Seeds(seeds))
    flat.grad[...] = 0
    loss.backward()
    norm = xp.empty(1, np.float64)
    rung.norm_into(norm, flat.grad)
    norm += 0 * loss.data                                 # with the loss the norm is lost as well
    rung.clip_into(how, norm, training.plan.clip)
    rung.step_with(how, flat.data, flat.grad, o.m, o.v, training.ema.data, flat.half, flat.weights)
    return [loss.data, norm]
