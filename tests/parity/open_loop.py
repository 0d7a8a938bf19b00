"""A scheduler of diffusers walked in an open loop: the model's answers are fixed, noise replayed.

So nothing but the steps is compared, and random generators never need to agree.
"""

import sys

import numpy as np
import torch

from tinydiff.diffusion.prediction import from_eps, from_v, from_velocity, from_x0

READS = {"epsilon": from_eps, "sample": from_x0, "v_prediction": from_v,
         "flow_prediction": from_velocity}
X_T, *DRAWN = np.random.default_rng(0).normal(size=(221, 2, 4, 4, 3))
OUTPUTS, Z = DRAWN[:110], DRAWN[110:]


def numbers(tensor):
    return np.asarray(tensor.numpy(), np.float64)


def walked(scheduler, monkeypatch, *, start=X_T, outputs=OUTPUTS, begin=0, **step):
    """Their x after every call of the model, for timesteps that are set; `step` goes to `step`.

    The first `begin` of the timesteps are left out, as their pipelines from picture to picture do.
    """
    replay, x, chain = iter(Z), torch.tensor(start), []
    monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", raising=False,
                        value=lambda *args, **kwargs: torch.tensor(next(replay)))
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    for t, output in zip(scheduler.timesteps[begin:], outputs):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.tensor(output), t, x, **step).prev_sample
        chain.append(numbers(x))
    return chain
