"""Whole steps of a U-Net in PyTorch, as one writes them for speed: what ours race against.

channels_last pictures, products in bf16 by autocast, AdamW in one fused kernel, and an EMA over all
parameters at once; eager or compiled. The network is that of benchmarks/torch_unet.py, and weights,
pictures, noise and times come as our arrays, so that its losses can be laid beside ours.

    steps = Steps(UNetConfig.ddpm_cifar10(), weights, device="cuda", compiled=True)
    raced(steps, x_t, t, eps)                             # milliseconds and bytes, both kinds
    losses(steps, batches)                                # of [(x_t, t, eps), …]
"""

import sys
from contextlib import nullcontext
from statistics import median

import torch
import torch.nn.functional as F

from gpu import ROOT
from gpu.clock import one_by_one, spread

sys.path.append(str(ROOT / "benchmarks"))
import torch_unet

LAYOUT = torch.channels_last


class Steps:
    """A training step and a sampling step.

    config: our UNetConfig; weights: our {path: array}; half: whether products are of bf16 numbers;
    largest: the norm that a gradient is scaled down to, if it is longer, or None.
    """

    def __init__(self, config, weights, *, device, compiled=False, half=True, backend="inductor",
                 lr=2e-4, decay=0.0, ema_decay=0.9999, largest=None):
        unet = torch_unet.UNet(config)
        unet.load_state_dict(torch_unet.weights(weights))
        self.unet = unet.to(device, memory_format=LAYOUT)
        self.device, self.half = torch.device(device), half
        self.parameters = list(unet.parameters())
        self.ema = [p.detach().clone() for p in self.parameters]
        self.ema_decay, self.largest = ema_decay, largest
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": decay},
             {"params": [p for p in self.parameters if p.ndim == 1], "weight_decay": 0.0}],
            lr=lr, betas=(0.9, 0.99), fused=True)
        wrap = (lambda f: torch.compile(f, dynamic=False, backend=backend)) if compiled else \
            (lambda f: f)
        self.loss_of, self.predict = wrap(self.loss_of), wrap(self.predict)

    def put(self, x):
        """An array where the network is; a picture (N, H, W, C) as it takes it, (N, C, H, W)."""
        x = torch_unet.pictures(x, LAYOUT) if x.ndim == 4 else torch.as_tensor(x)
        return x.to(self.device, torch.float32)

    def precision(self):
        return torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext()

    def loss_of(self, x_t, t, eps):
        with self.precision():
            return F.mse_loss(self.unet(x_t, t).float(), eps)

    def train(self, x_t, t, eps):
        """The loss before the step, on the device: nobody waits for it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_of(x_t, t, eps)
        loss.backward()
        if self.largest is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.largest)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1 - self.ema_decay)
        return loss.detach()

    def predict(self, x_t, t):
        with self.precision():
            return self.unet(x_t, t)

    def sample(self, x_t, t):
        """eps, a prediction without a graph."""
        with torch.no_grad():
            return self.predict(x_t, t)


def losses(steps, batches):
    """[the loss of each batch (x_t, t, eps), which it then learns from]"""
    found = [steps.train(*map(steps.put, batch)) for batch in batches]
    return [float(loss) for loss in found]


def raced(steps, x_t, t, eps):
    """{step_ms, step_spread, step_bytes, sample_…} of one batch, again and again.

    Bytes: the most that was taken from the device; None on the CPU, where nobody counts it.
    """
    x_t, t, eps = map(steps.put, (x_t, t, eps))
    found, on_gpu = {}, steps.device.type == "cuda"
    for name, step in (("step", lambda: steps.train(x_t, t, eps)),
                       ("sample", lambda: steps.sample(x_t, t))):
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times = one_by_one(step, on_gpu)
        found |= {f"{name}_ms": median(times), f"{name}_spread": spread(times),
                  f"{name}_bytes": torch.cuda.max_memory_reserved() if on_gpu else None}
    return found
