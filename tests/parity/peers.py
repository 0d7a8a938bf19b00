"""The models of diffusers and transformers with random weights: what ours are compared with.

Torch's own initialisation hides mistakes: biases are zero, norms do nothing, attention looks
everywhere alike. `randomise` draws weights that hide nothing, and with `quiet` below 1 such small
activations that the eps of every norm shows.
"""

import copy

import numpy as np
import torch

QUERIES = ("to_q.", "to_k.", "q_proj.", "k_proj.", ".query.", ".key.", ".q.", ".k.")


def randomise(module, seed, quiet=1.0):
    """Fill a torch module and return it: norms' scales near 1, biases off zero, peaked attention.

    quiet scales all but the norms' scales.
    """
    draw = torch.Generator().manual_seed(seed)
    tables = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for name, p in module.named_parameters():
            z = torch.randn(p.shape, generator=draw)
            if id(p) in tables:
                p.copy_(0.7 * quiet * z)
            elif p.ndim == 1 and name.endswith("weight"):        # the scale of a norm
                p.copy_(1 + 0.3 * z.clamp(-2.5, 2.5))
            elif p.ndim == 1:
                p.copy_(0.2 * quiet * z)
            else:
                gain = 2.0 if any(part in f".{name}" for part in QUERIES) else 1.0
                p.copy_(gain * quiet / p[0].numel() ** 0.5 * z)
    return module.eval()


def in_float64(module):
    """A copy that computes in float64: the expected outputs."""
    return copy.deepcopy(module).double().eval()


def saved(module, folder, **options):
    """Write config and safetensors as the peer does; the folder."""
    module.save_pretrained(folder, safe_serialization=True, **options)
    return folder


def lopsided(shape, seed):
    """float32 with another mean along each axis, so that swapped axes show."""
    x = np.random.default_rng(seed).standard_normal(shape)
    for axis, size in enumerate(shape):
        ramp = 0.3 * (axis + 1) * np.linspace(-1, 1, size) if size > 1 else np.zeros(1)
        x = x + ramp.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return x.astype(np.float32)


def channels_first(x):
    """(N, H, W, C) -> a torch tensor (N, C, H, W)"""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def channels_last(x):
    """A torch tensor (N, C, H, W) -> float64 (N, H, W, C)"""
    return np.moveaxis(x.detach().double().numpy(), 1, -1)


def worst(ours, theirs):
    """max |ours − theirs| / max |theirs|; infinite where a shape differs or a number is NaN."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return np.inf
    return np.abs(ours.astype(np.float64) - theirs).max() / np.abs(theirs).max()


def tolerance(single, double):
    """What ours may differ by: 30 times the error of torch's own float32, at least 1e-5."""
    return max(1e-5, 30 * worst(single, double))
