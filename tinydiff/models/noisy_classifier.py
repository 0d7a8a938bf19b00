"""A small classifier that is told the time: p(y | x_t, t) at every level of noise.  ADM §4

Half a U-Net, the way down, read out at the bottom. Its gradient guides a sampler.
"""

from dataclasses import dataclass

import numpy as np

from tinydiff.autograd import mean, silu, softmax
from tinydiff.backend import alongside
from tinydiff.models.blocks import Downsample, ResBlock
from tinydiff.models.classifier import fit, in_batches
from tinydiff.nn import Conv2d, GroupNorm, Linear, Module, TimeEmbedding


@dataclass(frozen=True)
class NoisyClassifierConfig:
    """The shape of a NoisyClassifier."""

    channels: int = 1                     # of a picture: 1 grey, 3 RGB
    classes:  int = 10                    # what can be told apart
    widths:   tuple = (32, 64)            # channels of each level; each halves height and width
    groups:   int = 8                     # of each GroupNorm; divides every width


class NoisyClassifier(Module):
    """x_t (N, H, W, C), t (N,) as the schedule counts -> logits (N, classes)."""

    def __init__(self, config, *, rng):
        c = self.config = config
        c_emb, h = 4 * c.widths[0], c.widths[0]
        self.time = TimeEmbedding(h, c_emb, rng=rng)
        self.conv_in = Conv2d(c.channels, h, 3, stride=2, rng=rng)
        self.blocks = []
        for width in c.widths:
            self.blocks.append(ResBlock(h, width, c_emb, groups=c.groups, rng=rng))
            h = width
        self.halve = [Downsample(width, rng=rng) for width in c.widths[:-1]]
        self.norm_out = GroupNorm(h, c.groups)
        self.decide = Linear(h, c.classes, rng=rng, scale=0.0)

    def __call__(self, x_t, t):
        emb, h = self.time(t), self.conv_in(x_t)                      # (N, H/2, W/2, widths[0])
        for block, halve in zip(self.blocks, [*self.halve, None]):
            h = block(h, emb)
            h = h if halve is None else halve(h)
        return self.decide(mean(silu(self.norm_out(h)), axis=(1, 2)))

    def predict(self, x_t, t):
        """The probability of each class, on arrays: x_t (N, …), one t -> (N, classes)."""
        return in_batches(lambda part: softmax(self(part, np.full(len(part), t))), x_t)


class Noised(Module):
    """A classifier that noises what it is shown, each picture to its own t, uniform on 1 … T."""

    def __init__(self, classifier, schedule, rng):
        self.classifier, self.schedule, self.rng = classifier, schedule, rng

    def __call__(self, x0):
        t = self.rng.integers(1, self.schedule.T + 1, size=len(x0))
        eps = alongside(self.rng.standard_normal(x0.shape).astype(x0.dtype), x0)
        return self.classifier(self.schedule.q_sample(x0, t, eps), t)


def fit_noisy(classifier, schedule, pictures, labels, *, rng, **options):
    """As `fit`, on pictures noised by `schedule` to every t alike; return the last loss.  ADM §4"""
    return fit(Noised(classifier, schedule, rng), pictures, labels, rng=rng, **options)
