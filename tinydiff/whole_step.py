"""The training step of a GPU in one piece, from the noise to the moved weights: one CUDA graph.

What changes from step to step lies in arrays: the batch, the seeds that noise and dropout are made
of, and what AdamW needs to know. The host reads the loss and the gradient's norm, and nothing else.
"""

from contextlib import suppress
from functools import partial
from math import isfinite
from weakref import proxy

import numpy as np

from tinydiff.backend import array_module
from tinydiff.diffusion import noise, objective
from tinydiff.kernels import noise as of_gpu, pick
from tinydiff.optim import AdamW
from tinydiff.replay import Replayed


class WholeStep:
    """Takes a step, given its number and learning rate -> (loss, norm); or None, and took none.

    It takes none on the CPU, nor where the host has a part in the work. Nor where a number was
    lost: then all weights are as before, and `Training.by_parts` finds out where.
    """

    def __init__(self, training):
        self.training = proxy(training)                   # which holds this one, and can end so
        self.replayed = Replayed(partial(work, self.training), like=training.flat.data)
        self.ahead = {}                                   # {step: what it is told}, of the next one

    def __call__(self, step, lr):
        if not self.fits():
            return None
        training, address = self.training, (self.training.plan.seed, step)
        x0, ids, given, numbers = self.ahead.pop(step, None) or training.told(step)
        rng = noise.generator(*address, purpose=noise.DROPOUT)
        seeds = rng.integers(2**63, size=training.model.unet.drops)
        state, seeds = np.array(address, np.uint64), seeds.astype(np.uint64)
        how = pick("optimizer", training.flat.data).numbers_of(**training.optimizer.how(lr, step))
        training.torn = bool(self.replayed.recordings)    # else `work` says when
        loss, norm = self.replayed(state, seeds, how, x0, ids, given, *numbers)
        self.look_ahead(step + 1)
        loss, norm = loss.item(), norm.item()             # the GPU has worked meanwhile
        training.torn = False
        return (loss, norm) if isfinite(norm) else None

    def look_ahead(self, step):
        """Be told what the next step is made of; if that fails, it will say so itself."""
        self.ahead = {}
        with suppress(Exception):
            if step <= self.training.plan.steps:
                self.ahead[step] = self.training.told(step)

    def fits(self):
        """Whether all steps are the same work, and all of it can be the GPU's."""
        training, data = self.training, self.training.flat.data
        return (array_module(data) is not np and hasattr(pick("optimizer", data), "step_with")
                and type(training.optimizer) is AdamW
                and training.recipe.diffusion.loss == "simple")


class Seeds:
    """What a network takes for a generator: the numbers drawn lie in an array of the GPU."""

    def __init__(self, seeds):
        self.left = iter([seeds[i:i + 1] for i in range(len(seeds))])

    def integers(self, high):
        return next(self.left)


def work(training, state, seeds, how, x0, ids, given, *numbers):
    """`Training.gradient`, the clipping and the step of AdamW, with nothing asked of the host."""
    eps = array_module(x0).empty_like(x0)
    of_gpu.normal_into(eps, range(len(x0)), state, purpose=noise.TRAIN_EPS)
    loss, _ = training.loss(x0, ids, given, objective.Numbers(*numbers), eps, Seeds(seeds))
    training.flat.grad[...] = 0
    loss.backward()
    training.torn = True
    return [loss.data, training.optimizer.step_unheard(how, loss.data, training.plan.clip)]
