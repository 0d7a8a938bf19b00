"""The text encoder: a small transformer that turns token ids into a context.  LDM §3.3"""

from dataclasses import dataclass

from tinydiff.autograd import gelu
from tinydiff.models.tokenizer import PAD
from tinydiff.nn import Attention, Embedding, LayerNorm, Linear, Module


@dataclass(frozen=True)
class TextEncoderConfig:
    """The shape of a TextEncoder."""

    vocabulary: int = 512        # rows of the token table
    length:     int = 16         # tokens a text, padded; longer texts are refused
    width:      int = 64         # numbers a token
    depth:      int = 2          # transformer blocks
    heads:      int = 4          # heads of each attention


class TransformerBlock(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).  Transformer §3.1, norms in front"""

    def __init__(self, width, *, heads, rng):
        self.norm1 = LayerNorm(width)
        self.attention = Attention(width, heads=heads, rng=rng)
        self.norm2 = LayerNorm(width)
        self.linear1 = Linear(width, 4 * width, rng=rng)
        self.linear2 = Linear(4 * width, width, rng=rng)

    def __call__(self, x, mask):                          # x (N, L, width), mask (N, 1, 1, L)
        x = x + self.attention(self.norm1(x), mask=mask)              # LDM Eq. 19, 20
        return x + self.linear2(gelu(self.linear1(self.norm2(x))))    # LDM Eq. 21, 22


class TextEncoder(Module):
    """ids (N, L) of integers -> context (N, L, width), zero where there is padding.

    All tokens see each other and none sees padding.
    """

    def __init__(self, config, *, rng):
        self.config = config
        self.token    = Embedding(config.vocabulary, config.width, rng=rng)
        self.position = Embedding(config.length, config.width, rng=rng)
        self.blocks = [TransformerBlock(config.width, heads=config.heads, rng=rng)
                       for _ in range(config.depth)]
        self.norm = LayerNorm(config.width)

    def __call__(self, ids):
        if ids.ndim != 2 or ids.shape[1] > self.config.length:
            raise ValueError(f"TextEncoder: expected ids (N, at most {self.config.length}), "
                             f"got {ids.shape}")
        real = ids != PAD                                             # (N, L)
        # LDM Eq. 18
        x = self.token(ids) + self.position.table[:ids.shape[1]]      # (N, L, width)
        for block in self.blocks:
            x = block(x, real[:, None, None, :])
        return self.norm(x) * real[:, :, None].astype(x.dtype)        # LDM Eq. 23
