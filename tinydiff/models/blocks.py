"""The blocks a U-Net is built of. All are called as block(h, …) on h (N, H, W, C)."""

from functools import partial

import numpy as np

from tinydiff.autograd import cast, concat, linear, mean, silu, upsample
from tinydiff.models.transformer import ContextBlock
from tinydiff.nn import Attention, Conv2d, GroupNorm, Linear, Module, suited


class ResBlock(Module):
    """x + conv(silu(norm(·))) twice, told the time between the two convolutions.  DDPM §B

    Where c_emb is None there is no time to be told.
    Functions may stand before the convolutions: `resize` before the first, and on the way around,
    `drop` before the second.
    """

    def __init__(self, c_in, c_out, c_emb, *, groups, rng, eps=1e-5):
        self.norm1 = GroupNorm(c_in, groups, eps)
        self.conv1 = Conv2d(c_in, c_out, 3, rng=rng)
        self.shift = Linear(c_emb, c_out, rng=rng) if c_emb else None
        self.norm2 = GroupNorm(c_out, groups, eps)
        self.conv2 = Conv2d(c_out, c_out, 3, rng=rng, scale=0.0)     # starts as the identity
        self.skip  = Conv2d(c_in, c_out, 1, rng=rng) if c_in != c_out else None

    def __call__(self, x, emb=None, skip=None, drop=None, resize=None):
        """x ‖ skip (N, H, W, c_in), emb (N, c_emb) -> (N, H', W', c_out)"""
        late = self.shift and heard(self.shift, emb)      # (N, c_out): one number per channel
        h = self.conv1.behind(self.norm1, x, skip=skip, late=late, between=resize)
        return self.conv2.behind(self.norm2, h, add=self.around(x, skip, resize), between=drop)

    def around(self, x, skip, resize):
        """The way past both convolutions: x ‖ skip itself, or a matrix to the right width."""
        if resize is not None:
            return resize(x)
        if self.skip is None:
            return x if skip is None else concat(x, skip)
        w = suited(self.skip.w, x)
        return linear(x, w.reshape(*w.shape[2:]), self.skip.b, skip)


class AdaptiveResBlock(ResBlock):
    """The same, told the time behind the second norm, by a scale and a shift.  ADM §3.1 (AdaGN)"""

    def __init__(self, c_in, c_out, c_emb, *, groups, rng, eps=1e-5):
        super().__init__(c_in, c_out, c_emb, groups=groups, rng=rng, eps=eps)
        self.scale = Linear(c_emb, c_out, rng=rng)

    def __call__(self, x, emb, skip=None, drop=None, resize=None):
        h = self.conv1.behind(self.norm1, x, skip=skip, between=resize)       # (N, H', W', c_out)
        scale, shift = 1 + heard(self.scale, emb), heard(self.shift, emb)     # (N, c_out)
        # AdaGN: y_s norm(h) + y_b
        adapt = (self.norm2.scale * scale, self.norm2.shift * scale + shift)
        return self.conv2.behind(self.norm2, h, adapt=adapt, add=self.around(x, skip, resize),
                                 between=drop)


def heard(layer, emb):
    """What a layer makes of the time, in the type of its bias."""
    return cast(layer(silu(emb)), dtype=layer.b.dtype)


class AttentionBlock(Module):
    """Pixels look at each other, then, if there is a context, at the words.  LDM §3.3

    Without groups there is no norm in front.
    """

    def __init__(self, c, *, heads, groups, context_width, rng, eps=1e-5):
        self.norm1 = GroupNorm(c, groups, eps) if groups else identity
        self.self_attention = Attention(c, heads=heads, rng=rng, scale=0.0)
        if context_width:
            self.norm2 = GroupNorm(c, groups, eps) if groups else identity
            self.cross_attention = Attention(c, heads=heads, rng=rng, scale=0.0,
                                             context_width=context_width)

    def __call__(self, x, context):                       # x (N, H, W, c), context (N, L, D)
        N, H, W, C = x.shape
        h = x.reshape(N, H * W, C)                        # (N, pixels, c)
        h = h + self.self_attention(self.norm1(h))
        if context is not None:
            h = h + self.cross_attention(self.norm2(h), context)
        return h.reshape(N, H, W, C)


class SpatialTransformer(Module):
    """x + the same by a transformer of `depth` blocks, whose tokens are pixels.  LDM §E.2.1"""

    def __init__(self, c, *, depth, heads, groups, context_width, rng):
        self.norm = GroupNorm(c, groups, eps=1e-6) if groups else identity
        self.proj_in = Linear(c, c, rng=rng)
        self.blocks = [ContextBlock(c, heads=heads, context_width=context_width, rng=rng)
                       for _ in range(depth)]
        self.proj_out = Linear(c, c, rng=rng, scale=0.0)  # starts as the identity

    def __call__(self, x, context):                       # x (N, H, W, c), context (N, L, D)
        N, H, W, C = x.shape
        h = self.proj_in(self.norm(x).reshape(N, H * W, C))           # (N, pixels, c)
        for block in self.blocks:
            h = block(h, context)
        return x + self.proj_out(h).reshape(N, H, W, C)


class Block(Module):
    """A ResBlock, and attention behind it where the level has it."""

    def __init__(self, c_in, c_out, c_emb, *, adaptive, attention, **kind):
        self.res = res_block(adaptive)(c_in, c_out, c_emb, **kind)
        self.attention = attention and attention_block(c_out, **{**kind, **attention})

    def __call__(self, h, emb=None, context=None, skip=None, drop=None):
        h = self.res(h, emb, skip, drop)
        return h if self.attention is None else self.attention(h, context)


def res_block(adaptive):
    """Which ResBlock."""
    return AdaptiveResBlock if adaptive else ResBlock


def attention_block(c, *, depth=0, eps=1e-5, **kind):
    """Which attention. A transformer's norms have an eps of their own."""
    if depth:
        return SpatialTransformer(c, depth=depth, **kind)
    return AttentionBlock(c, eps=eps, **kind)


def identity(h):
    return h


class Downsample(Module):
    """Half the height and width, rounded up: (N, H, W, c) -> (N, ⌈H/2⌉, ⌈W/2⌉, c).

    With `corner` only the right and lower edge are padded, and sizes are rounded down.
    """

    def __init__(self, c, *, rng, corner=False):
        padding = ((0, 1), (0, 1)) if corner else 1
        self.conv = Conv2d(c, c, 3, stride=2, padding=padding, rng=rng)

    def __call__(self, h, emb=None, drop=None):
        return self.conv(h)


class Upsample(Module):
    """Twice the height and width, or the size of `like`, which is about that."""

    def __init__(self, c, *, rng):
        self.conv = Conv2d(c, c, 3, rng=rng)

    def __call__(self, h, emb=None, drop=None, *, like=None):
        if like is None or like.shape[1:3] == (2 * h.shape[1], 2 * h.shape[2]):
            return self.conv.enlarged(h)
        return self.conv(doubled(h, like))


class ResDownsample(Module):
    """Downsample by a ResBlock that takes the mean of 2 × 2 pixels on its way.  ADM §3"""

    def __init__(self, c, c_emb, *, adaptive, **kind):
        self.res = res_block(adaptive)(c, c, c_emb, **kind)

    def __call__(self, h, emb, drop=None):
        return self.res(h, emb, drop=drop, resize=halved)


class ResUpsample(ResDownsample):
    """Upsample by a ResBlock that repeats each pixel on its way.  ADM §3"""

    def __call__(self, h, emb, drop=None, *, like):
        return self.res(h, emb, drop=drop, resize=partial(doubled, like=like))


def halved(h):
    """The mean of each 2 × 2 pixels; the last row or column of an odd number counts twice."""
    N, H, W, C = h.shape
    h = concat(h, h[:, -1:], axis=1) if H % 2 else h
    h = concat(h, h[:, :, -1:], axis=2) if W % 2 else h
    return mean(h.reshape(N, -(-H // 2), 2, -(-W // 2), 2, C), axis=(2, 4))


def doubled(h, like):
    """Each pixel four times, or as often as fits the height and width of `like`: the nearest."""
    _, H, W, _ = like.shape
    _, m, n, _ = h.shape
    if H > 2 * m or W > 2 * n:                            # an odd size had been rounded down
        down, across = (np.arange(size, like=h.data) for size in (H, W))
        return h[:, down * m // H][:, :, across * n // W]
    h = upsample(h)
    return h if h.shape[1:3] == (H, W) else h[:, :H, :W]
