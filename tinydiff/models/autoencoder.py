"""The autoencoder of latent diffusion: pictures become small latents, latents pictures.  LDM §3.1

A U-Net without time, text and skips, cut in two where it is narrowest.
"""

from dataclasses import dataclass
from functools import partial

from tinydiff.autograd import clip, exp, mean, no_grad, sum
from tinydiff.backend import array_module
from tinydiff.models.blocks import Block, Downsample, Upsample, identity
from tinydiff.models.unet import Level, depth_to_space, space_to_depth
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
    patch:         int = 1               # so many pixels square are one to all of it
    attend:        tuple = ()            # levels with attention, one head as wide as all channels
    attend_middle: bool = True           # attention between down and up
    groups:        int = 32              # of each GroupNorm; divides every width
    quant:         bool = True           # a matrix behind the encoder
    post_quant:    bool = True           # a matrix before the decoder
    scale:         float = 0.18215       # diffusion works on (z − shift) · scale, of deviation 1;
    shift:         float = 0.0           # `latents` and `pictures` apply them.  LDM App. G
    codes:         int = 0               # of a codebook; 0: none, a latent is normal

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
    def encoded(self):
        """Channels behind the encoder: means and log-variances, or, with codes, values alone."""
        return self.latent if self.codes else 2 * self.latent

    @property
    def factor(self):
        """How many pixels wide and high a latent is."""
        return self.patch * 2 ** (len(self.mults) - 1)

    def __post_init__(self):
        for name in "channels latent base blocks patch groups codes".split():
            if (value := getattr(self, name)) < (least := int(name != "codes")):
                raise ValueError(f"AutoencoderConfig: {name} must be at least {least}, got {value}")
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
    """x (N, H, W, channels) -> (N, H/f, W/f, encoded): the means, then the log-variances"""

    def __call__(self, x):
        h = self.middle2(self.middle1(self.across(self.conv_in(x))))
        return self.conv_out.behind(self.norm_out, h)


class Decoder(Half):
    """z (N, h, w, latent) -> (N, h·f, w·f, channels)"""

    def __call__(self, z):
        return self.last(self.features(z))

    def features(self, z):                                # (N, h·f, w·f, base·mults[0])
        return self.across(self.middle2(self.middle1(self.conv_in(z))))

    def last(self, h):
        return self.conv_out.behind(self.norm_out, h)


class Autoencoder(Module):
    """Pictures (N, H, W, channels) in [-1, 1] to latents (N, H/f, W/f, latent), and back.

    A picture x has a distribution of latents, q(z | x), normal number by number; f = config.factor.
    Raises ValueError for other channels, and for heights and widths that f does not divide.
    """

    def __init__(self, config, *, rng):
        c = self.config = config
        levels, grow, shrink = range(len(c.mults)), Upsample, partial(Downsample, corner=True)
        pixels = c.channels * c.patch**2                  # of a patch, as channels
        self.encoder = Encoder(c, levels, pixels, c.encoded, c.blocks, shrink, rng=rng)
        self.decoder = Decoder(c, levels[::-1], c.latent, pixels, c.blocks + 1, grow, rng=rng)
        self.quant = Conv2d(c.encoded, c.encoded, 1, rng=rng) if c.quant else identity
        self.post_quant = Conv2d(c.latent, c.latent, 1, rng=rng) if c.post_quant else identity

    def moments(self, x):
        """Mean and log-variance, Tensors, of q(z | x)."""
        c, shape = self.config, tuple(x.shape)
        if len(shape) != 4 or shape[3] != c.channels or any(n % c.factor for n in shape[1:3]):
            raise ValueError(f"Autoencoder: expected x (N, H, W, {c.channels}), H and W multiples "
                             f"of {c.factor}, got {shape}")
        h = self.quant(self.encoder(space_to_depth(x, c.patch)))
        return h[..., :c.latent], clip(h[..., c.latent:], low=-30, high=20)

    def decoded(self, z):
        """The picture of a latent, a Tensor: z (N, h, w, latent) -> (N, h·f, w·f, channels)."""
        self.check_latents(z)
        return self.painted(self.features(z))

    def check_latents(self, z):
        if len(z.shape) != 4 or z.shape[3] != self.config.latent:
            raise ValueError(f"Autoencoder: expected z (N, h, w, {self.config.latent}), "
                             f"got {tuple(z.shape)}")

    def features(self, z):
        """What is known before the last layer, decoder.conv_out."""
        return self.decoder.features(self.post_quant(z))

    def painted(self, h):
        """The picture of such features."""
        return depth_to_space(self.decoder.last(h), self.config.patch)

    def encode(self, x):
        """`moments` on arrays, remembering nothing."""
        with no_grad():
            return tuple(moment.data for moment in self.moments(x))

    def decode(self, z):
        """`decoded` on arrays, remembering nothing."""
        with no_grad():
            return self.decoded(z).data

    def latents(self, x):
        """What is diffused: arrays x (N, H, W, channels) -> z0 (N, H/f, W/f, latent), the means

        They are rescaled to mean 0 and deviation 1.  LDM App. G
        """
        c = self.config
        return in_parts(lambda part: (self.encode(part)[0] - c.shift) * c.scale, x)

    def pictures(self, z0):
        """Undo `latents`: arrays z0 (N, h, w, latent) -> (N, h·f, w·f, channels)."""
        c = self.config
        return in_parts(lambda part: self.decode(part / c.scale + c.shift), z0)

    def bottleneck(self, mean_z, logvar, eps):
        """What the decoder is told of the moments in training, and L_reg.  LDM Eq. 25"""
        return sampled(mean_z, logvar, eps), mean(kl(mean_z, logvar))


def sampled(mean, logvar, eps):
    """z = E_μ(x) + E_σ(x) · ε of q(z | x).  LDM App. G"""
    return mean + exp(0.5 * logvar) * eps


def kl(mean, logvar):
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ (μ² + σ² − 1 − log σ²) of each picture: (N, h, w, c) -> (N,)"""
    return 0.5 * sum(mean * mean + exp(logvar) - 1 - logvar, axis=(1, 2, 3))


def in_parts(function, x, size=64):
    """`function` of x (N, …), so many at a time."""
    return array_module(x).concatenate([function(x[i:i + size]) for i in range(0, len(x), size)])
