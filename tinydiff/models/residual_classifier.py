"""A classifier of residual blocks: it tells apart what three convolutions cannot."""

from dataclasses import dataclass

from tinydiff.autograd import mean, silu
from tinydiff.models.blocks import ResBlock
from tinydiff.nn import Conv2d, GroupNorm, Linear, Module


@dataclass(frozen=True)
class ResidualClassifierConfig:
    """The shape of a ResidualClassifier."""

    channels: int = 3                     # of a picture: 1 grey, 3 RGB
    classes:  int = 10                    # what can be told apart
    widths:   tuple = (32, 64, 128)       # channels; each but the first halves height and width
    groups:   int = 8                     # of each GroupNorm; divides every width


class ResidualClassifier(Module):
    """x (N, H, W, C) in [-1, 1] -> logits (N, classes).  He et al. (1603.05027)"""

    def __init__(self, config, *, rng):
        c = self.config = config
        self.conv_in = Conv2d(c.channels, c.widths[0], 3, rng=rng)
        self.halve, self.blocks = [], []
        for narrow, wide in zip(c.widths, c.widths[1:]):
            self.halve.append(Conv2d(narrow, wide, 3, stride=2, rng=rng))
            self.blocks.append(ResBlock(wide, wide, None, groups=c.groups, rng=rng))
        self.norm_out = GroupNorm(c.widths[-1], c.groups)
        self.decide = Linear(c.widths[-1], c.classes, rng=rng, scale=0.0)

    def __call__(self, x):
        return self.decide(self.features(x))

    def features(self, x):
        """What logits are a linear function of, a mean over all pixels -> (N, widths[-1])."""
        h = silu(self.conv_in(x))                         # (N, H, W, widths[0])
        for halve, block in zip(self.halve, self.blocks):
            h = block(halve(h))                           # half the height and width
        return mean(silu(self.norm_out(h)), axis=(1, 2))
