"""The autoencoder of latent diffusion: pictures become small latents, latents pictures.  LDM §3.1

A U-Net without time, text and skips, cut in two where it is narrowest.
"""

from dataclasses import dataclass
from functools import partial

from tinydiff.autograd import clip, no_grad
from tinydiff.models.blocks import Block, Downsample, Upsample, identity
from tinydiff.models.unet import Level
from tinydiff.nn import Conv2d, GroupNorm, Module

EPS = 1e-6                                                # of every GroupNorm


@dataclass(frozen=True)
class AutoencoderConfig:
    """The shape of an Autoencoder. Level 0 is the finest; each further level halves each side."""

    channels:      int = 3               # of the picture: 1 grey, 3 RGB
    latent:        int = 4               # channels of a latent
    base:          int = 128             # channels at level 0
    mults:         tuple = (1, 2, 4, 4)  # channels at each level, as multiples of base
    blocks:        int = 2               # residual blocks a level going down, one more going up
    attend:        tuple = ()            # levels with attention, one head as wide as all channels
    attend_middle: bool = True           # attention between down and up
    groups:        int = 32              # of each GroupNorm; divides every width
    quant:         bool = True           # a matrix behind the encoder
    post_quant:    bool = True           # a matrix before the decoder
    scale:         float = 0.18215       # diffusion works on (z − shift) · scale, of deviation 1;
    shift:         float = 0.0           # whoever runs it applies them.  LDM App. G

    @classmethod
    def stable_diffusion(cls):
        """Stable Diffusion's, 83,653,863 parameters: 512 × 512 pixels become 64 × 64 latents."""
        return cls()

    @classmethod
    def laptop(cls):
        """About a million parameters: 32 × 32 pixels become 8 × 8 latents."""
        return cls(base=32, mults=(1, 2, 2), blocks=1, groups=8, scale=1.0)

    @property
    def widths(self):
        """Channels at each level."""
        return tuple(round(self.base * mult) for mult in self.mults)

    @property
    def factor(self):
        """How many pixels wide and high a latent is."""
        return 2 ** (len(self.mults) - 1)

    def __post_init__(self):
        for name in "channels latent base blocks groups".split():
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"AutoencoderConfig: {name} must be at least 1, got {value}")
        if not self.mults or min(self.mults) <= 0 or {*self.attend} - {*range(len(self.mults))}:
            raise ValueError("AutoencoderConfig: mults needs a number above 0 for each level, and "
                             f"attend names some levels, got {self.mults} and {self.attend}")


class Half(Module):
    """`count` blocks a level, from the first of `levels` to the last, and two at the coarsest.

    No block is told a time; attention has one head, as wide as all channels.
    """

    def __init__(self, c, levels, c_in, c_out, count, resize, *, rng):
        def block(c_in, c_out, attend):
            return Block(c_in, c_out, None, adaptive=False, groups=c.groups, eps=EPS, rng=rng,
                         attention=dict(heads=1, context_width=None) if attend else None)

        h, coarse = c.widths[levels[0]], c.widths[-1]     # h: channels so far
        self.conv_in = Conv2d(c_in, h, 3, rng=rng)
        self.levels = []
        for level in levels:
            blocks = []
            for _ in range(count):
                blocks.append(block(h, c.widths[level], level in c.attend))
                h = c.widths[level]
            self.levels.append(Level(blocks, resize(h, rng=rng) if level != levels[-1] else None))
        self.middle1 = block(coarse, coarse, c.attend_middle)
        self.middle2 = block(coarse, coarse, False)
        self.norm_out = GroupNorm(h, c.groups, EPS)
        self.conv_out = Conv2d(h, c_out, 3, rng=rng)

    def across(self, h):
        for level in self.levels:
            for step in filter(None, (*level.blocks, level.resize)):
                h = step(h)
        return h


class Encoder(Half):
    """x (N, H, W, channels) -> (N, H/f, W/f, 2·latent): the means, then the log-variances"""

    def __call__(self, x):
        h = self.middle2(self.middle1(self.across(self.conv_in(x))))
        return self.conv_out.behind(self.norm_out, h)


class Decoder(Half):
    """z (N, h, w, latent) -> (N, h·f, w·f, channels)"""

    def __call__(self, z):
        h = self.across(self.middle2(self.middle1(self.conv_in(z))))
        return self.conv_out.behind(self.norm_out, h)


class Autoencoder(Module):
    """Pictures (N, H, W, channels) in [-1, 1] to latents (N, H/f, W/f, latent), and back.

    A picture x has a distribution of latents, q(z | x), normal number by number; f = config.factor.
    Raises ValueError for other channels, and for heights and widths that f does not divide.
    """

    def __init__(self, config, *, rng):
        c = self.config = config
        levels, grow, shrink = range(len(c.mults)), Upsample, partial(Downsample, corner=True)
        self.encoder = Encoder(c, levels, c.channels, 2 * c.latent, c.blocks, shrink, rng=rng)
        self.decoder = Decoder(c, levels[::-1], c.latent, c.channels, c.blocks + 1, grow, rng=rng)
        self.quant = Conv2d(2 * c.latent, 2 * c.latent, 1, rng=rng) if c.quant else identity
        self.post_quant = Conv2d(c.latent, c.latent, 1, rng=rng) if c.post_quant else identity

    def moments(self, x):
        """Mean and log-variance, Tensors, of z = mean + exp(logvar / 2) · eps.  LDM App. G"""
        c, shape = self.config, tuple(x.shape)
        if len(shape) != 4 or shape[3] != c.channels or any(n % c.factor for n in shape[1:3]):
            raise ValueError(f"Autoencoder: expected x (N, H, W, {c.channels}), H and W multiples "
                             f"of {c.factor}, got {shape}")
        h = self.quant(self.encoder(x))
        return h[..., :c.latent], clip(h[..., c.latent:], low=-30, high=20)

    def decoded(self, z):
        """The picture of a latent, a Tensor: z (N, h, w, latent) -> (N, h·f, w·f, channels)."""
        if len(z.shape) != 4 or z.shape[3] != self.config.latent:
            raise ValueError(f"Autoencoder: expected z (N, h, w, {self.config.latent}), "
                             f"got {tuple(z.shape)}")
        return self.decoder(self.post_quant(z))

    def encode(self, x):
        """`moments` on arrays, remembering nothing."""
        with no_grad():
            return tuple(moment.data for moment in self.moments(x))

    def decode(self, z):
        """`decoded` on arrays, remembering nothing."""
        with no_grad():
            return self.decoded(z).data
