"""How the network is told the time: waves of many lengths, then two layers."""

import numpy as np

from tinydiff.autograd import silu
from tinydiff.backend import array_module
from tinydiff.nn.layers import Linear
from tinydiff.nn.module import Module


def sinusoids(t, width, *, longest=10_000):
    """t (N,) -> (N, width): sines, then cosines, of t · longest^(−i / (width/2)).

    Each row depends on its own t alone. Transformer §3.5, DDPM §B.
    """
    xp = array_module(t)
    half = width // 2
    rate = np.exp(-np.log(longest) * np.arange(half) / half).astype(np.float32)
    angle = t[:, None].astype(np.float32) * xp.asarray(rate)
    return xp.concatenate([xp.sin(angle), xp.cos(angle)], axis=1)


class TimeEmbedding(Module):
    """t (N,) -> (N, c_emb): sinusoids, Linear, SiLU, Linear."""

    def __init__(self, c, c_emb, *, rng):
        if c % 2:
            raise ValueError(f"TimeEmbedding: expected an even number of waves, got {c}")
        self.linear1 = Linear(c, c_emb, rng=rng)
        self.linear2 = Linear(c_emb, c_emb, rng=rng)
        self.c = c

    def __call__(self, t):
        waves = sinusoids(t, self.c).astype(self.linear1.w.dtype)
        return self.linear2(silu(self.linear1(waves)))
