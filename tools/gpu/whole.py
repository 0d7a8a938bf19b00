"""Whole steps of DDPM's U-Net for CIFAR-10, training and sampling, in bf16: ours beside PyTorch's.

Both start from the same weights and learn from the same pictures, noise and times. What is raced:
ours one kernel after the other and as a graph, PyTorch's eager and compiled (torch_steps.py).
"""

from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np

from gpu.clock import one_by_one, spread
from tinydiff.autograd import mse, no_grad
from tinydiff.backend import to_device
from tinydiff.kernels import pick
from tinydiff.models import UNet, UNetConfig
from tinydiff.optim import EMA, AdamW, Flat
from tinydiff.replay import Replayed

CONFIG  = replace(UNetConfig.ddpm_cifar10(), dropout=0.0)  # whose masks PyTorch draws otherwise
BATCHES = 128, 16, 1
HOW     = {"lr": 2e-4, "decay": 0.0, "ema_decay": 0.9999, "largest": 1.0}
LOSSES, BATCH, APART = 20, 16, 2e-2                       # steps; pictures; share losses may differ


def items(options):
    """[(name, a function that gives a part of a row)]; what has to be compiled comes last."""
    batches = BATCHES[1:2] if options["quick"] else BATCHES
    races = [(who, batch) for who in ("graph", "eager", "torch") for batch in batches]
    races += [("compiled", batch) for batch in batches]
    return [("first losses", partial(first_losses, options["seed"])),
            *((f"{who}, batch {batch}", partial(race, who, batch, options["seed"]))
              for who, batch in races)]


class Steps:
    """Ours: a training step and a sampling step on one device."""

    def __init__(self, config, weights, *, device, precision="bf16", graph=False,
                 lr, decay, ema_decay, largest):
        self.unet = UNet(config, rng=np.random.default_rng(0))
        self.unet.load(weights)
        self.unet.to(device).compute_in(precision)
        self.flat = Flat(self.unet.parameters(), halved=precision == "bf16")
        self.optimizer = AdamW(self.flat, decay=decay, ema=EMA(self.flat, decay=ema_decay))
        self.device, self.lr, self.largest, self.steps_done = device, lr, largest, 0
        wrap = partial(Replayed, like=self.flat.data) if graph else lambda function: function
        self.train_of, self.sample_of = wrap(self.descend), wrap(self.predict)

    def put(self, x):
        return to_device(np.asarray(x, np.float32), self.device)

    def train(self, x_t, t, eps):
        """The loss before the step, on the device: nobody waits for it."""
        self.steps_done += 1
        how = self.optimizer.how(self.lr, self.steps_done)
        numbers = pick("optimizer", self.flat.data).numbers_of(**how)
        return self.train_of(self.put(numbers), x_t, t, eps)[0]

    def sample(self, x_t, t):
        """eps, a prediction without a graph of gradients."""
        return self.sample_of(x_t, t)[0]

    def descend(self, numbers, x_t, t, eps):
        loss = mse(self.unet(x_t, t), eps)
        self.flat.grad[...] = 0
        loss.backward()
        self.optimizer.step_unheard(numbers, loss.data, self.largest)
        return [loss.data]

    def predict(self, x_t, t):
        with no_grad():
            return [self.unet(x_t, t).data]

    def why_not(self):
        """Why there is no graph, if there should be one."""
        return [reason for work in (self.train_of, self.sample_of)
                if (reason := getattr(work, "why_not", ""))]


def main():
    """Compile what will be raced: PyTorch keeps it on disk, and an item then takes seconds."""
    for batch in BATCHES:
        race("compiled", batch, seed=0)


def first_losses(seed, config=CONFIG, device="cuda", steps=LOSSES, batch=BATCH, side=32,
                 precision="bf16"):
    """Ours beside PyTorch's: of the same weights, pictures, noise and times."""
    from gpu import torch_steps
    weights, batches = started(config, seed), drawn(config, batch, steps, seed, side)
    ours = Steps(config, weights, device=device, precision=precision, graph=device == "cuda", **HOW)
    theirs = torch_steps.Steps(config, weights, device=device, half=precision == "bf16", **HOW)
    found = [ours.train(*map(ours.put, one)).item() for one in batches]
    right = torch_steps.losses(theirs, batches)
    apart = max(abs(a - b) / b for a, b in zip(found, right))
    wrong = [*ours.why_not(), *(
        [] if apart <= APART else [f"they are up to {apart:.2g} apart, and {APART} is allowed"])]
    return {"losses": {"ours": found, "torch": right, "apart": apart},
            "ok": not wrong, "wrong": wrong}


def race(who, batch, seed):
    """Milliseconds and bytes of one batch, again and again."""
    weights, (one,) = started(CONFIG, seed), drawn(CONFIG, batch, 1, seed)
    if who in ("torch", "compiled"):
        from gpu import torch_steps
        steps = torch_steps.Steps(CONFIG, weights, device="cuda", compiled=who == "compiled",
                                  **HOW)
        found = torch_steps.raced(steps, *one)
    else:
        steps = Steps(CONFIG, weights, device="cuda", graph=who == "graph", **HOW)
        found = raced(steps, *map(steps.put, one))
        if reasons := steps.why_not():
            return {"ok": False, "wrong": reasons}
    return {kind: {"batch": batch} | {f"{who}_{key}": found[f"{name}_{key}"]
                                      for key in ("ms", "spread", "bytes")}
            for kind, name in (("step", "step"), ("sampler", "sample"))}


def raced(steps, x_t, t, eps):
    """{step_ms, step_spread, step_bytes, sample_…} of one batch, again and again.

    Bytes: all that was taken from the device, also what lies idle and what a graph keeps.
    """
    import cupy
    found = {}
    for name, work, step in (("step", steps.train_of, lambda: steps.train(x_t, t, eps)),
                             ("sample", steps.sample_of, lambda: steps.sample(x_t, t))):
        cupy.get_default_memory_pool().free_all_blocks()
        times = one_by_one(step)
        pools = [cupy.get_default_memory_pool(), *(
            recording.pool for recording in getattr(work, "recordings", {}).values())]
        found |= {f"{name}_ms": median(times), f"{name}_spread": spread(times),
                  f"{name}_bytes": sum(pool.total_bytes() for pool in pools)}
    return found


def started(config, seed):
    """{path: array}: weights of which none is zero, so that all of the network speaks."""
    rng = np.random.default_rng(seed)
    weights = {name: p.data for name, p in UNet(config, rng=rng).parameters().items()}
    return {name: a if a.any() else (0.02 * rng.standard_normal(a.shape)).astype(np.float32)
            for name, a in weights.items()}


def drawn(config, batch, steps, seed, side=32):
    """[(x_t, t, eps)]: x_t halfway between smooth pictures and noise, whatever t is."""
    rng = np.random.default_rng(seed + 1)
    found = []
    for _ in range(steps):
        waves = np.cos(np.linspace(0, rng.uniform(1, 9), side))
        x0 = rng.uniform(-1, 1, (batch, 1, 1, config.channels))
        x0 = x0 * waves[:, None, None] * waves[:, None]   # (N, H, W, C)
        eps = rng.standard_normal(x0.shape)
        found.append([a.astype(np.float32) for a in (
            0.5**0.5 * (x0 + eps), rng.uniform(0, 1000, batch), eps)])
    return found
