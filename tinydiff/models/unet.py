"""The U-Net: down to coarse pictures, up again, each level told what the way down had seen."""

from functools import partial
from itertools import repeat
from types import SimpleNamespace

import numpy as np

from tinydiff.autograd import (
    Tensor,
    cast,
    concat,
    dropout,
    linear,
    mean,
    no_grad,
    recomputed,
    silu,
)
from tinydiff.backend import alongside, array_module
from tinydiff.kernels import bfloat16
from tinydiff.models.blocks import Block, Downsample, ResDownsample, ResUpsample, Upsample
from tinydiff.models.unet_config import UNetConfig
from tinydiff.nn import Conv2d, Embedding, GroupNorm, Linear, Module, TimeEmbedding, suited


class Level(Module):
    """The blocks of one resolution, and the change of size behind them."""

    def __init__(self, blocks, resize):
        self.blocks, self.resize = blocks, resize


class UNet(Module):
    """x_t (N, H, W, C) and t (N,) -> what the configuration predicts, of x_t's shape.

    context (N, L, D) are the text's tokens, of which the first may also join the time embedding;
    class_labels (N,) are integers. Each is required exactly when the configuration has it.
    With a learned variance the result is (N, H, W, 2C), and the last C say where between β̃ and β
    it lies (iDDPM Eq. 15). A generator `rng` is for training: it draws what dropout leaves out.
    """

    activations = None                                    # their type, where it is not x_t's

    def __init__(self, config: UNetConfig, *, rng):
        c, widths, c_emb = config, config.widths, round(config.emb * config.base)
        self.config = c
        block, shrink, grow = makers(c, c_emb, rng)
        self.time = TimeEmbedding(c.base, c_emb, rng=rng, shift=c.frequency_shift,
                                  cosines_first=c.cosines_first)
        pooled = c.pooled and c.context_width
        self.pooled = Linear(c.context_width, c_emb, rng=rng) if pooled else None
        self.label = Embedding(c.classes, c_emb, rng=rng) if c.classes else None
        self.conv_in = Conv2d(c.channels * c.patch**2 + 2 * bool(c.layout), c.base, 3, rng=rng)
        waves = c.layout**2 * c.base
        self.layout = Linear(c_emb, waves, rng=rng, scale=0.0) if waves else None
        self.words = Linear(c.context_width, c_emb, rng=rng) if waves and c.context_width else None

        self.down, h, skips = [], c.base, [c.base]        # h: channels so far
        for level, width in enumerate(widths):
            blocks = []
            for _ in range(c.at("blocks", level)):
                blocks.append(block(h, level, level in c.attend))
                skips.append(h := width)
            coarsest = level == len(widths) - 1
            self.down.append(Level(blocks, None if coarsest else
                                   shrink[c.at("resample_blocks", level)](h)))
            if not coarsest:
                skips.append(h)

        groups = c.groups if c.middle_groups is None else c.middle_groups
        self.middle1 = block(h, level, c.attend_middle, groups) if c.middle > 0 else None
        self.middle2 = block(h, level, False) if c.middle > 1 else None

        self.up, attend = [], c.attend if c.attend_up is None else c.attend_up
        for level, width in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(c.at("blocks", level) + 1):
                blocks.append(block(h + skips.pop(), level, level in attend))
                h = width
            inside = c.at("resample_blocks" if c.resample_up is None else "resample_up", level)
            self.up.append(Level(blocks, grow[inside](h) if level else None))

        self.norm_out = GroupNorm(h, c.groups, c.eps)
        outputs = c.outputs or c.channels * (2 if c.learned_variance else 1)
        self.conv_out = Conv2d(h, outputs * c.patch**2, 3, rng=rng, scale=0.0)

    @property
    def drops(self):
        """How often a call may ask its generator about dropout."""
        changes = sum(len(level.blocks) + 1 for level in [*self.down, *self.up])
        return changes + 2 if self.config.dropout else 0

    @property
    def home(self):
        """One of its arrays: what it works on has to live alongside."""
        return self.time.linear1.w.data

    def compute_in(self, precision):
        """Compute in "float32", or in "bf16": activations, and copies of the weights they meet.

        Sums, statistics, the weights themselves and t's way to emb stay float32.
        """
        self.activations = bfloat16() if precision == "bf16" else None

    def __call__(self, x_t, t, context=None, class_labels=None, *, rng=None):
        self.check(x_t, t, context, class_labels)
        run = recomputed if self.config.checkpoint else lambda f, *args: f(*args)
        drops = dropouts(self.config.dropout, rng)
        emb = self.narrowed(self.embed(t, context, class_labels))     # (N, c_emb)
        x_t = 2 * x_t - 1 if self.config.centre_input else x_t
        h = self.narrowed(space_to_depth(x_t, self.config.patch))     # (N, H/p, W/p, p·p·C)
        context = self.narrowed(context)
        h = self.conv_in(h) if self.layout is None else self.laid_out(h, emb, context)
        skips = [h]                                                   # (N, H/p, W/p, base)
        for level in self.down:
            for block in level.blocks:
                h = run(block, h, emb, context, None, next(drops))
                skips.append(h)
            if level.resize:
                h = run(level.resize, h, emb, next(drops))
                skips.append(h)
        for block in filter(None, (self.middle1, self.middle2)):
            h = run(block, h, emb, context, None, next(drops))
        for level in self.up:
            for block in level.blocks:
                h = run(block, h, emb, context, skips.pop(), next(drops))
            if level.resize:
                h = run(partial(level.resize, like=skips[-1]), h, emb, next(drops))
        h = self.conv_out.behind(self.norm_out, h)
        h = h if self.activations is None else cast(h, dtype=x_t.dtype)
        return depth_to_space(h, self.config.patch)                   # (N, H, W, C or 2C)

    def narrowed(self, x):
        """x in the type of activations."""
        if x is None or self.activations is None:
            return x
        return cast(x, dtype=self.activations)

    def embed(self, t, context, class_labels):
        """One vector an image: the time, and what the picture should be of."""
        emb = self.time(t)
        if self.pooled is not None:
            emb = emb + self.pooled(context[:, 0])
        if self.label is not None:
            emb = emb + self.label(class_labels)
        return emb

    def laid_out(self, h, emb, context=None):
        """conv_in, told where each pixel lies, and a shift that varies slowly over the picture.

        To a convolution all places are alike, so "in the top left" could move nothing. Here each
        pixel brings its coordinates (CoordConv, 1807.03247), and each word moves waves: cosines
        down times cosines across.
        """
        N, H, W, _ = h.shape
        xp, k = array_module(h), self.config.layout
        down, across = ((xp.arange(n) + 0.5) / n for n in (H, W))     # in [0, 1]
        where = xp.stack(xp.meshgrid(2 * down - 1, 2 * across - 1, indexing="ij"), axis=-1)
        where = xp.broadcast_to(where.astype(h.dtype), (N, H, W, 2))
        waves = (xp.cos(np.pi * down[:, None] * xp.arange(k))[:, None, :, None]
                 * xp.cos(np.pi * across[:, None] * xp.arange(k))[:, None])
        waves = waves.reshape(H * W, k * k).astype(h.dtype)
        told = emb.reshape(N, 1, -1)                      # to each word, or once
        told = told if context is None else told + self.words(context)      # (N, L or 1, c_emb)
        heights = cast(self.layout(mean(silu(told), axis=1)), dtype=self.layout.w.dtype)
        heights = heights.reshape(N, k * k, -1).transpose(1, 0, 2).reshape(k * k, -1)
        moved = linear(waves, suited(heights, waves)).reshape(H * W, N, -1)   # summed as weights
        moved = moved.transpose(1, 0, 2).reshape(N, H, W, -1)
        return self.conv_in(concat(h, where)) + moved

    def predict(self, x, t, context=None, class_labels=None):
        """The same on arrays, remembering nothing; t, a number or (N,), as the network counts."""
        told = [x, *(a for a in (context, class_labels) if a is not None)]
        if not all(hasattr(a, "shape") for a in told) or (
                np.shape(t) not in ((), x.shape[:1])
                or array_module(t).asarray(t).dtype.kind not in "biuf"):
            raise ValueError("UNet: expected x, context and class_labels as arrays and t as one "
                             f"number or one an image, got x {np.shape(x)} and t {np.shape(t)}")
        with no_grad():
            return self(x, each(t, x), context, class_labels).data

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


def each(t, x):
    """One time for each image of x, (N,), where x lives; t is a number or (N,)."""
    if np.ndim(t) == 0:
        return array_module(x).full(x.shape[:1], t, np.float32)
    return alongside(t, x).astype(np.float32)


def makers(c, c_emb, rng):
    """What makes a Block, and what makes smaller and larger, each between blocks or inside them."""
    kind = dict(adaptive=c.adaptive, groups=c.groups, eps=c.eps, rng=rng)

    def block(c_in, level, attend, groups=c.groups):
        attention = dict(heads=c.at("heads", level), depth=c.at("transformer", level),
                         context_width=c.context_width, groups=groups) if attend else None
        return Block(c_in, c.widths[level], c_emb, attention=attention, **kind)

    shrink = (partial(Downsample, corner=c.corner, rng=rng),
              partial(ResDownsample, c_emb=c_emb, **kind))
    grow = partial(Upsample, rng=rng), partial(ResUpsample, c_emb=c_emb, **kind)
    return block, shrink, grow


def dropouts(p, rng):
    """Yield one function a block, which zeroes the same numbers each time it is called; or None."""
    if rng is None or p == 0:
        yield from repeat(None)
    while True:
        again = partial(lambda seed, _: seed, rng.integers(2**63))
        yield partial(dropout, p=p, rng=SimpleNamespace(integers=again))


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
