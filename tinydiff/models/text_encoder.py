"""The text encoder, ours, CLIP's, BERT's or T5's: ids become a context.  LDM §3.3"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from tinydiff.autograd import gelu, gelu_quick, gelu_tanh, no_grad, relu, silu, tanh
from tinydiff.models.tokenizer import PAD
from tinydiff.models.transformer import GatedMLP
from tinydiff.nn import Attention, Embedding, LayerNorm, Linear, Module, RMSNorm

FORMS = ("masked", "clip", "bert", "t5")
ACTIVATIONS = {f.__name__: f for f in (gelu, gelu_quick, gelu_tanh, relu, silu)}


@dataclass(frozen=True)
class TextEncoderConfig:
    """The shape of a TextEncoder."""

    vocabulary: int = 512            # rows of the token table
    length:     int = 16             # tokens a text, padded; longer texts are refused; 0: any (T5)
    width:      int = 64             # numbers a token
    depth:      int = 2              # transformer blocks
    heads:      int = 4              # heads of each attention
    form:       str = "masked"       # one of FORMS; in ours no token sees padding
    hidden:     int | None = None    # numbers between a block's two linear maps; None: 4 · width
    inner:      int | None = None    # numbers of all heads together; None: width
    activation: str = "gelu"         # one of ACTIVATIONS
    gated:      bool = False         # the activation is a factor (T5 1.1)
    eps:        float = 1e-5         # of the norms
    end:        int | None = None    # CLIP: the first such id sums the text up; 2: the highest id
    kinds:      int = 2              # BERT: rows of the table of token kinds; all are the first
    pooler:     bool = True          # BERT: a layer of its own sums the text up
    buckets:    int = 32             # T5: rows of the table of distances
    farthest:   int = 128            # T5: from here on all distances are one

    @classmethod
    def clip(cls):
        """Stable Diffusion 1's: CLIP ViT-L/14, 123,060,480 parameters.  arXiv 2103.00020"""
        return cls(49408, 77, 768, 12, 12, "clip", activation="gelu_quick", end=2)

    @classmethod
    def bert(cls):
        """BERT base, 109,482,240 parameters.  arXiv 1810.04805"""
        return cls(30522, 512, 768, 12, 12, "bert", eps=1e-12)

    @classmethod
    def t5(cls):
        """The encoder of T5 small, 35,330,816 parameters.  arXiv 1910.10683"""
        return cls(32128, 0, 512, 6, 8, "t5", activation="relu", eps=1e-6)

    def __post_init__(self):
        for name, known in (("form", FORMS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"TextEncoderConfig: {name} is one of {', '.join(known)}, "
                                 f"not {getattr(self, name)!r}")


def norm_in_front(x, norm, layer):
    return x + layer(norm(x))                             # LDM Eq. 19, 20, 21, 22


def norm_behind(x, norm, layer):
    return norm(x + layer(x))                             # Transformer §3.1


def norm_of(config):
    return (RMSNorm if config.form == "t5" else LayerNorm)(config.width, config.eps)


class TransformerBlock(Module):
    """Attention, then two linear maps with an activation between, each joined to what it reads."""

    def __init__(self, config, *, rng):
        c, bias, hidden = config, config.form != "t5", config.hidden or 4 * config.width
        self.add = norm_behind if c.form == "bert" else norm_in_front
        self.scale = None if bias else 1.0                # T5 does not divide its scores
        self.activation = ACTIVATIONS[c.activation]
        self.norm1 = norm_of(c)
        self.attention = Attention(c.width, heads=c.heads, inner=c.inner, bias=bias, bias_out=bias,
                                   rng=rng)
        self.norm2 = norm_of(c)
        if c.gated:
            self.mlp = GatedMLP(c.width, hidden, bias=bias, activation=self.activation, rng=rng)
        else:
            self.linear1 = Linear(c.width, hidden, bias=bias, rng=rng)
            self.linear2 = Linear(hidden, c.width, bias=bias, rng=rng)

    def __call__(self, x, mask, bias=None):               # x (N, L, width)
        attend = partial(self.attention, bias=bias, mask=mask, scale=self.scale)
        return self.add(self.add(x, self.norm1, attend), self.norm2, self.mlp)

    def mlp(self, x):
        return self.linear2(self.activation(self.linear1(x)))


def distances(L, rows, farthest):
    """(L, L): which of the rows of a table goes with query and key.  T5 (1910.10683) §2.1

    Half are for keys ahead. Near distances have a row each, others share one with ever more.
    """
    ahead, half = np.arange(L) - np.arange(L)[:, None], rows // 2
    near, distance = half // 2, np.abs(ahead)
    far = np.log(np.maximum(distance, near) / near) / np.log(farthest / near)
    far = np.minimum(near + (far * (half - near)).astype(int), half - 1)
    return half * (ahead > 0) + np.where(distance < near, distance, far)


class TextEncoder(Module):
    """ids (N, L) of integers -> context (N, L, width)

    mask (N, L), not 0 where a token can be seen; without it all can but, in the masked form,
    padding, in whose place that form shows zeros. Raises ValueError for ids and masks that do not
    fit, and where a mask hides a whole text.
    """

    def __init__(self, config, *, rng):
        c = self.config = config
        self.token = Embedding(c.vocabulary, c.width, rng=rng)
        size = (c.buckets, c.heads) if c.form == "t5" else (c.length, c.width)
        self.position = Embedding(*size, rng=rng)
        if c.form == "bert":
            self.kind = Embedding(c.kinds, c.width, rng=rng)
            self.pooler = Linear(c.width, c.width, rng=rng) if c.pooler else None
        self.blocks = [TransformerBlock(c, rng=rng) for _ in range(c.depth)]
        self.norm = norm_of(c)

    def __call__(self, ids, mask=None):
        return self.finish(self.states(ids, mask)[-1], ids)

    def encode(self, ids, mask=None, *, skip=0):
        """Arrays, remembering nothing: the context, and the text in one token (N, width) or None.

        The context leaves out the last `skip` blocks.
        """
        if not 0 <= skip <= self.config.depth:
            raise ValueError(f"encode: expected a skip of 0 to {self.config.depth}, got {skip}")
        with no_grad():
            states = self.states(ids := np.asarray(ids), mask)
            last, asked = (self.finish(states[i], ids) for i in (-1, -1 - skip))
            return asked.data, self.summary(last, ids)

    def states(self, ids, mask=None):
        """depth + 1 Tensors (N, L, width): the embeddings, and what each block makes of them."""
        form, seen, L = self.config.form, self.seen(ids, mask), ids.shape[1]
        x, bias = self.token(ids), None                               # (N, L, width)
        if form == "t5":
            rows = distances(L, self.config.buckets, self.config.farthest)
            bias = self.position(rows).transpose(2, 0, 1)             # (heads, L, L)
        else:
            x = x + self.position.table[:L]                           # LDM Eq. 18
        if form == "bert":
            x = self.norm(x + self.kind.table[0])
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1], seen, bias))
        return states

    def seen(self, ids, mask):
        """Whom a token may look at: (N, 1, 1, L), or (N, 1, L, L) for CLIP, which looks back."""
        form, length = self.config.form, self.config.length
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.shape[1] > (length or ids.shape[1]):
            raise ValueError(f"TextEncoder: expected ids (N, {'at most ' * bool(length)}"
                             f"{length or 'L'}), got {ids.shape} of {ids.dtype}")
        if mask is None:
            mask = ids != PAD if form == "masked" else np.ones_like(ids)
        elif np.shape(mask) != ids.shape or not np.any(mask, axis=1).all():
            raise ValueError(f"TextEncoder: expected a mask {ids.shape} with something to see in "
                             f"each row, got {np.shape(mask)} with {np.count_nonzero(mask, -1)}")
        seen = np.asarray(mask, bool)[:, None, None, :]
        return seen & np.tri(ids.shape[1], dtype=bool) if form == "clip" else seen

    def finish(self, x, ids):
        """Behind the last block: a norm, which BERT has had in each; ours hides padding."""
        if self.config.form == "bert":
            return x
        x = self.norm(x)                                              # LDM Eq. 23
        return x * (ids != PAD)[:, :, None].astype(x.dtype) if self.config.form == "masked" else x

    def summary(self, x, ids):
        """What stands for the whole text of x (N, L, width): an array (N, width), or None"""
        c = self.config
        if c.form == "bert" and c.pooler:
            return tanh(self.pooler(x[:, 0])).data
        if c.form == "clip" and c.end is not None:
            sought = ids if c.end == 2 else ids == c.end
            return x.data[np.arange(len(ids)), sought.argmax(axis=1)]
        return None
