"""The U-Net: down to coarse pictures, up again, each level told what the way down had seen."""

from dataclasses import dataclass
from functools import partial
from itertools import repeat

import numpy as np

from tinydiff.autograd import Tensor, dropout, no_grad, recomputed
from tinydiff.backend import array_module
from tinydiff.models.blocks import Block, Downsample, ResDownsample, ResUpsample, Upsample
from tinydiff.nn import Conv2d, Embedding, GroupNorm, Linear, Module, TimeEmbedding


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net. Level 0 is the finest; each further level halves height and width."""

    channels:         int = 1           # of the picture: 1 grey, 3 RGB
    base:             int = 32          # channels at level 0
    mults:            tuple = (1, 2)    # channels at each level, as multiples of base
    blocks:           int = 1           # residual blocks a level going down, one more going up
    attend:           tuple = (1,)      # levels with attention; the middle always has it
    emb:              int = 4           # width of the time and text embedding, times base
    adaptive:         bool = False      # the time scales and shifts (ADM), not only shifts (DDPM)
    heads:            int = 1           # heads of each attention
    head_width:       int | None = None # channels of a head, in place of heads; None: heads says
    groups:           int = 8           # of each GroupNorm; divides every width
    patch:            int = 1           # patch × patch pixels become channels before all else
    context_width:    int | None = None # width of the text tokens; None: no text
    classes:          int | None = None # number of class labels; None: none
    predicts:         str = "eps"       # what the output means: "eps", "x0", "v", "velocity", "edm"
    t_first:          int = 1           # the network's name for our t = 1
    learned_variance: bool = False      # C more outputs: where the log-variance lies (iDDPM)
    resample_blocks:  bool = False      # sizes change inside residual blocks, not between (ADM)
    dropout:          float = 0.0       # share of activations zeroed where a call is given rng
    checkpoint:       bool = False      # blocks are computed again in backward, to save memory

    @classmethod
    def ddpm_cifar10(cls):
        """DDPM's CIFAR-10 network, 35,746,307 parameters.  DDPM §B"""
        return cls(channels=3, base=128, mults=(1, 2, 2, 2), blocks=2, attend=(1,), groups=32,
                   dropout=0.1)

    @classmethod
    def iddpm_cifar10(cls):
        """Improved DDPM's CIFAR-10 network, 52,546,438 parameters.  iDDPM, its code"""
        return cls(channels=3, base=128, mults=(1, 2, 2, 2), blocks=3, attend=(1, 2), heads=4,
                   groups=32, adaptive=True, learned_variance=True, dropout=0.3)

    @classmethod
    def adm_imagenet64(cls):
        """ADM's network of ImageNet at 64 × 64 pixels, 295,904,454 parameters.  ADM, its code"""
        return cls(channels=3, base=192, mults=(1, 2, 3, 4), blocks=3, attend=(1, 2, 3), groups=32,
                   head_width=64, adaptive=True, classes=1000, learned_variance=True,
                   resample_blocks=True, dropout=0.1)

    @classmethod
    def mnist(cls, context_width=None):
        """Digits on a laptop: 28 × 28 pixels worked on as 14 × 14 patches."""
        return cls(base=32, mults=(1, 2), blocks=1, attend=(1,), patch=2, emb=12, adaptive=True,
                   predicts="v", context_width=context_width)

    @classmethod
    def tiny(cls, context_width=None):
        """About 60,000 parameters with text 64 wide: small enough to check the gradient of each."""
        return cls(base=8, mults=(1, 2), blocks=1, heads=2, groups=4, context_width=context_width)

    def __post_init__(self):
        if self.predicts not in ("eps", "x0", "v", "velocity", "edm"):
            raise ValueError('UNetConfig: predicts is "eps", "x0", "v", "velocity" or "edm", '
                             f"not {self.predicts!r}")
        for name in "channels base blocks emb heads groups patch context_width classes".split():
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"UNetConfig: {name} must be at least 1, got {value}")
        if not self.mults or min(self.mults) < 1:
            raise ValueError("UNetConfig: mults needs a number of at least 1 for each level, "
                             f"got {self.mults}")
        for level in self.attend:
            if not 0 <= level < len(self.mults):
                raise ValueError(f"UNetConfig: attend names level {level}, but {len(self.mults)} "
                                 f"mults make levels 0 to {len(self.mults) - 1}")
        if not 0 <= self.dropout < 1:
            raise ValueError("UNetConfig: dropout is a share from 0 to below 1, "
                             f"got {self.dropout}")
        width = self.head_width
        if width is not None and (width < 1 or self.heads > 1):
            raise ValueError("UNetConfig: give heads or a head_width of at least 1, "
                             f"got heads={self.heads} and head_width={width}")
        for mult in self.mults:
            c = self.base * mult
            if c % self.groups or c % (width or self.heads):
                heads = f"heads {width} wide" if width else f"{self.heads} heads"
                raise ValueError(f"UNetConfig: {c} channels cannot be shared out "
                                 f"among {self.groups} groups and {heads}")


class Level(Module):
    """The blocks of one resolution, and the change of size behind them."""

    def __init__(self, blocks, resize):
        self.blocks, self.resize = blocks, resize


class UNet(Module):
    """x_t (N, H, W, C) and t (N,) -> what the configuration predicts, of x_t's shape.

    context (N, L, D) are the text's tokens, of which the first also joins the time embedding;
    class_labels (N,) are integers. Each is required exactly when the configuration has it.
    With a learned variance the result is (N, H, W, 2C), and the last C say where between β̃ and β
    it lies (iDDPM Eq. 15). A generator `rng` is for training: it draws what dropout leaves out.
    """

    def __init__(self, config, *, rng):
        c = self.config = config
        widths = [c.base * mult for mult in c.mults]
        c_emb = c.emb * c.base

        def block(c_in, c_out, attend):
            heads = c_out // c.head_width if c.head_width else c.heads
            attention = dict(heads=heads, context_width=c.context_width) if attend else None
            return Block(c_in, c_out, c_emb, attention=attention, **kind)

        kind = dict(adaptive=c.adaptive, groups=c.groups, rng=rng)
        shrink, grow = partial(Downsample, rng=rng), partial(Upsample, rng=rng)
        if c.resample_blocks:
            shrink, grow = (partial(r, c_emb=c_emb, **kind) for r in (ResDownsample, ResUpsample))
        self.time = TimeEmbedding(c.base, c_emb, rng=rng)
        self.pooled = Linear(c.context_width, c_emb, rng=rng) if c.context_width else None
        self.label = Embedding(c.classes, c_emb, rng=rng) if c.classes else None
        self.conv_in = Conv2d(c.channels * c.patch**2, c.base, 3, rng=rng)

        self.down, h, skips = [], c.base, [c.base]        # h: channels so far
        for level, width in enumerate(widths):
            blocks = []
            for _ in range(c.blocks):
                blocks.append(block(h, width, level in c.attend))
                skips.append(h := width)
            coarsest = level == len(widths) - 1
            self.down.append(Level(blocks, None if coarsest else shrink(h)))
            if not coarsest:
                skips.append(h)

        self.middle1 = block(h, h, True)
        self.middle2 = block(h, h, False)

        self.up = []
        for level, width in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(c.blocks + 1):
                blocks.append(block(h + skips.pop(), width, level in c.attend))
                h = width
            self.up.append(Level(blocks, grow(h) if level else None))

        self.norm_out = GroupNorm(h, c.groups)
        outputs = c.channels * (2 if c.learned_variance else 1)
        self.conv_out = Conv2d(h, outputs * c.patch**2, 3, rng=rng, scale=0.0)

    def __call__(self, x_t, t, context=None, class_labels=None, *, rng=None):
        self.check(x_t, t, context, class_labels)
        run = recomputed if self.config.checkpoint else lambda f, *args: f(*args)
        drops = dropouts(self.config.dropout, rng)
        emb = self.embed(t, context, class_labels)                    # (N, c_emb)
        h = self.conv_in(space_to_depth(x_t, self.config.patch))      # (N, H/p, W/p, base)
        skips = [h]
        for level in self.down:
            for block in level.blocks:
                h = run(block, h, emb, context, None, next(drops))
                skips.append(h)
            if level.resize:
                h = run(level.resize, h, emb, next(drops))
                skips.append(h)
        h = run(self.middle1, h, emb, context, None, next(drops))
        h = run(self.middle2, h, emb, context, None, next(drops))
        for level in self.up:
            for block in level.blocks:
                h = run(block, h, emb, context, skips.pop(), next(drops))
            if level.resize:
                h = run(partial(level.resize, like=skips[-1]), h, emb, next(drops))
        h = self.conv_out.behind(self.norm_out, h)
        return depth_to_space(h, self.config.patch)                   # (N, H, W, C or 2C)

    def embed(self, t, context, class_labels):
        """One vector an image: the time, and what the picture should be of."""
        emb = self.time(t)
        if self.pooled is not None:
            emb = emb + self.pooled(context[:, 0])
        if self.label is not None:
            emb = emb + self.label(class_labels)
        return emb

    def predict(self, x, t, context=None, class_labels=None):
        """The same on arrays, remembering nothing; t, a number or (N,), as the network counts."""
        xp = array_module(x)
        t = xp.broadcast_to(xp.asarray(t, np.float32), x.shape[:1])
        with no_grad():
            return self(x, t, context, class_labels).data

    def check(self, x_t, t, context, class_labels):
        c, shape = self.config, tuple(x_t.shape)
        if len(shape) != 4 or shape[3] != c.channels:
            raise ValueError(f"UNet: expected x (N, H, W, {c.channels}), got {shape}")
        if shape[1] % c.patch or shape[2] % c.patch:
            raise ValueError(f"UNet: expected height and width in multiples of {c.patch}, "
                             f"got {shape[1:3]}")
        if tuple(t.shape) != shape[:1]:
            raise ValueError(f"UNet: expected t of shape {shape[:1]}, one an image, "
                             f"got {tuple(t.shape)}")
        for name, given, wanted in (("context", context, c.context_width),
                                    ("class_labels", class_labels, c.classes)):
            if (given is None) == bool(wanted):
                raise ValueError(f"UNet: {name} {'is missing' if wanted else 'was given'}, "
                                 f"the configuration has {'it' if wanted else 'none'}")
        if context is not None and tuple(context.shape[::2]) != (shape[0], c.context_width):
            raise ValueError(f"UNet: expected context ({shape[0]}, L, {c.context_width}), "
                             f"got {tuple(context.shape)}")
        if class_labels is not None and tuple(class_labels.shape) != shape[:1]:
            raise ValueError(f"UNet: expected class_labels of shape {shape[:1]}, one an image, "
                             f"got {tuple(class_labels.shape)}")


def dropouts(p, rng):
    """Yield one function a block, which zeroes the same numbers each time it is called; or None."""
    if rng is None or p == 0:
        yield from repeat(None)
    while True:
        seed = rng.integers(2**63)
        yield lambda h, seed=seed: dropout(h, p=p, rng=np.random.default_rng(seed))


def space_to_depth(x, p):
    """Squares of p × p pixels become channels: (N, H, W, C) -> (N, H/p, W/p, p·p·C)."""
    if p == 1:
        return x
    N, H, W, C = x.shape
    x = as_tensor(x).reshape(N, H // p, p, W // p, p, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(N, H // p, W // p, p * p * C)


def depth_to_space(x, p):
    """And back: (N, H, W, p·p·C) -> (N, H·p, W·p, C)."""
    if p == 1:
        return x
    N, H, W, C = x.shape
    x = x.reshape(N, H, W, p, p, C // p**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(N, H * p, W * p, C // p**2)


def as_tensor(x):
    return x if isinstance(x, Tensor) else Tensor(x)
