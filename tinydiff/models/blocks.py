"""The blocks a U-Net is built of. All are called as block(h, …) on h (N, H, W, C)."""

from functools import partial

from tinydiff.autograd import concat, linear, mean, silu, upsample
from tinydiff.nn import Attention, Conv2d, GroupNorm, Linear, Module


class ResBlock(Module):
    """x + conv(silu(norm(·))) twice, told the time between the two convolutions.  DDPM §B

    Functions may stand before the convolutions: `resize` before the first, and on the way around,
    `drop` before the second.
    """

    def __init__(self, c_in, c_out, c_emb, *, groups, rng):
        self.norm1 = GroupNorm(c_in, groups)
        self.conv1 = Conv2d(c_in, c_out, 3, rng=rng)
        self.shift = Linear(c_emb, c_out, rng=rng)
        self.norm2 = GroupNorm(c_out, groups)
        self.conv2 = Conv2d(c_out, c_out, 3, rng=rng, scale=0.0)     # starts as the identity
        self.skip  = Conv2d(c_in, c_out, 1, rng=rng) if c_in != c_out else None

    def __call__(self, x, emb, skip=None, drop=None, resize=None):
        """x ‖ skip (N, H, W, c_in), emb (N, c_emb) -> (N, H', W', c_out)"""
        late = self.shift(silu(emb))                      # (N, c_out): one number per channel
        h = self.conv1.behind(self.norm1, x, skip=skip, late=late, between=resize)
        return self.conv2.behind(self.norm2, h, add=self.around(x, skip, resize), between=drop)

    def around(self, x, skip, resize):
        """The way past both convolutions: x ‖ skip itself, or a matrix to the right width."""
        if resize is not None:
            return resize(x)
        if self.skip is None:
            return x if skip is None else concat(x, skip)
        w = self.skip.w
        return linear(x, w.reshape(*w.shape[2:]), self.skip.b, skip)


class AdaptiveResBlock(ResBlock):
    """The same, told the time behind the second norm, by a scale and a shift.  ADM §3.1 (AdaGN)"""

    def __init__(self, c_in, c_out, c_emb, *, groups, rng):
        super().__init__(c_in, c_out, c_emb, groups=groups, rng=rng)
        self.scale = Linear(c_emb, c_out, rng=rng)

    def __call__(self, x, emb, skip=None, drop=None, resize=None):
        h = self.conv1.behind(self.norm1, x, skip=skip, between=resize)       # (N, H', W', c_out)
        scale, shift = 1 + self.scale(silu(emb)), self.shift(silu(emb))       # (N, c_out)
        # AdaGN: y_s norm(h) + y_b
        adapt = (self.norm2.scale * scale, self.norm2.shift * scale + shift)
        return self.conv2.behind(self.norm2, h, adapt=adapt, add=self.around(x, skip, resize),
                                 between=drop)


class AttentionBlock(Module):
    """Pixels look at each other, then, if there is a context, at the words.  LDM §3.3"""

    def __init__(self, c, *, heads, groups, context_width, rng):
        self.norm1 = GroupNorm(c, groups)
        self.self_attention = Attention(c, heads=heads, rng=rng, scale=0.0)
        if context_width:
            self.norm2 = GroupNorm(c, groups)
            self.cross_attention = Attention(c, heads=heads, rng=rng, scale=0.0,
                                             context_width=context_width)

    def __call__(self, x, context):                       # x (N, H, W, c), context (N, L, D)
        N, H, W, C = x.shape
        h = x.reshape(N, H * W, C)                        # (N, pixels, c)
        h = h + self.self_attention(self.norm1(h))
        if context is not None:
            h = h + self.cross_attention(self.norm2(h), context)
        return h.reshape(N, H, W, C)


class Block(Module):
    """A ResBlock, and attention behind it where the level has it."""

    def __init__(self, c_in, c_out, c_emb, *, adaptive, attention, groups, rng):
        self.res = res_block(adaptive)(c_in, c_out, c_emb, groups=groups, rng=rng)
        self.attention = attention and AttentionBlock(c_out, groups=groups, rng=rng, **attention)

    def __call__(self, h, emb, context, skip=None, drop=None):
        h = self.res(h, emb, skip, drop)
        return h if self.attention is None else self.attention(h, context)


def res_block(adaptive):
    """Which ResBlock."""
    return AdaptiveResBlock if adaptive else ResBlock


class Downsample(Module):
    """Half the height and width, rounded up: (N, H, W, c) -> (N, ⌈H/2⌉, ⌈W/2⌉, c)."""

    def __init__(self, c, *, rng):
        self.conv = Conv2d(c, c, 3, stride=2, rng=rng)

    def __call__(self, h, emb=None, drop=None):
        return self.conv(h)


class Upsample(Module):
    """Twice the height and width, cropped to the size of `like`."""

    def __init__(self, c, *, rng):
        self.conv = Conv2d(c, c, 3, rng=rng)

    def __call__(self, h, emb=None, drop=None, *, like):
        return self.conv(doubled(h, like))


class ResDownsample(Module):
    """Downsample by a ResBlock that takes the mean of 2 × 2 pixels on its way.  ADM §3"""

    def __init__(self, c, c_emb, *, adaptive, groups, rng):
        self.res = res_block(adaptive)(c, c, c_emb, groups=groups, rng=rng)

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
    """Each pixel four times, cropped to the height and width of `like`."""
    _, H, W, _ = like.shape
    h = upsample(h)
    return h if h.shape[1:3] == (H, W) else h[:, :H, :W]
