"""How the network is told the time: waves of many lengths, then two layers."""

from math import log

from tinydiff.autograd import silu
from tinydiff.backend import alongside, array_module
from tinydiff.nn.layers import Linear
from tinydiff.nn.module import Module


def sinusoids(t, width, *, longest=10_000, shift=0, cosines_first=False):
    """t (N,) -> (N, width): sines, then cosines, of t · longest^(−i / (width/2 − shift)).

    Each row depends on its own t alone; an odd width ends in a zero. Transformer §3.5, DDPM §B.
    """
    xp = array_module(t)
    half = width // 2
    rate = xp.exp(-log(longest) * xp.arange(half) / (half - shift)).astype("float32")
    angle = t[:, None].astype("float32") * rate           # (N, half)
    waves = [xp.sin(angle), xp.cos(angle)]
    if cosines_first:
        waves.reverse()
    return xp.concatenate([*waves, xp.zeros((len(t), width % 2), "float32")], axis=1)


class TimeEmbedding(Module):
    """t (N,) -> (N, c_emb): sinusoids, in the form that `waves` says, Linear, SiLU, Linear."""

    def __init__(self, c, c_emb, *, rng, **waves):
        self.linear1 = Linear(c, c_emb, rng=rng)
        self.linear2 = Linear(c_emb, c_emb, rng=rng)
        self.c, self.waves = c, waves

    def __call__(self, t):
        t = alongside(t, self.linear1.w)
        waves = sinusoids(t, self.c, **self.waves).astype(self.linear1.w.dtype)
        return self.linear2(silu(self.linear1(waves)))
