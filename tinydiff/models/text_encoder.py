"""The text encoder, ours, CLIP's, BERT's or T5's: ids become a context.  LDM §3.3

A stack of transformer blocks. All that the four do differently stands in a Form.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from tinydiff.autograd import (
    concat,
    gelu,
    gelu_quick,
    gelu_tanh,
    mean,
    no_grad,
    relu,
    silu,
    tanh,
)
from tinydiff.models.tokenizer import PAD
from tinydiff.models.transformer import GatedMLP
from tinydiff.nn import Attention, Embedding, LayerNorm, Linear, Module, RMSNorm

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


class Form:
    """What a kind of text encoder does in its own way; here, what most do. No object is made."""

    norm, bias, scale = LayerNorm, True, None             # of linear maps; of scores, None: 1/√d
    std = 0.02                                            # of the tables before training

    def tables(encoder, c, rng):                          # what `place` looks up
        encoder.position = Embedding(c.length, c.width, rng=rng, std=encoder.form.std)

    def place(encoder, x):                                # x of known places, a bias of scores
        return x + encoder.position.table[:x.shape[1]], None          # LDM Eq. 18

    def seen(ids, mask):                                  # (N, 1, 1 or L, L): who looks at whom
        return np.asarray(np.ones_like(ids) if mask is None else mask, bool)[:, None, None, :]

    def join(x, norm, layer):
        return x + layer(norm(x))                         # LDM Eq. 19, 20, 21, 22

    def finish(encoder, x, ids):
        return encoder.norm(x)                                        # LDM Eq. 23

    def summary(encoder, x, ids):                         # the whole text, an array (N, width)
        return None


class Masked(Form):
    """Ours: padding is not seen, and zeros are shown in its place."""

    def seen(ids, mask):
        return Form.seen(ids, ids != PAD if mask is None else mask)

    def finish(encoder, x, ids):
        return encoder.norm(x) * (ids != PAD)[:, :, None].astype(x.dtype)


class Repeated(Masked):
    """Ours, where padding shows the text again, over and over: whoever attends hears words only.

    The first token is the mean of all. Tables start so large that attention does not drown a word
    in all others; so a text is understood several times sooner.
    """

    std = 0.5

    def finish(encoder, x, ids):
        n = (ids != PAD).sum(axis=1)[:, None]             # (N, 1), never 0: each text has a BEGIN
        shown = encoder.norm(x)[np.arange(len(ids))[:, None], np.arange(ids.shape[1]) % n]
        return concat(mean(shown, axis=1, keepdims=True), shown[:, 1:], axis=1)


class Clip(Form):
    """Tokens look back only, so the one at the end knows the whole text."""

    def seen(ids, mask):
        return Form.seen(ids, mask) & np.tri(ids.shape[1], dtype=bool)

    def summary(encoder, x, ids):
        end = encoder.config.end
        sought = ids if end == 2 else ids == end
        return None if end is None else x.data[np.arange(len(ids)), sought.argmax(axis=1)]


class Bert(Form):
    """Norms stand behind what is joined; all tokens are of the first kind."""

    def tables(encoder, c, rng):
        Form.tables(encoder, c, rng)
        encoder.kind = Embedding(c.kinds, c.width, rng=rng)
        encoder.pooler = Linear(c.width, c.width, rng=rng) if c.pooler else None

    def place(encoder, x):
        return encoder.norm(Form.place(encoder, x)[0] + encoder.kind.table[0]), None

    def join(x, norm, layer):
        return norm(x + layer(x))                         # Transformer §3.1

    def finish(encoder, x, ids):
        return x

    def summary(encoder, x, ids):
        return tanh(encoder.pooler(x[:, 0])).data if encoder.pooler else None


def distances(L, rows, farthest):
    """(L, L): which of the rows of a table goes with query and key.  T5 (1910.10683) §2.1

    Half are for keys ahead. Near distances have a row each, others share one with ever more.
    """
    ahead, half = np.arange(L) - np.arange(L)[:, None], rows // 2
    near, distance = half // 2, np.abs(ahead)
    far = np.log(np.maximum(distance, near) / near) / np.log(farthest / near)
    far = np.minimum(near + (far * (half - near)).astype(int), half - 1)
    return half * (ahead > 0) + np.where(distance < near, distance, far)


class T5(Form):
    """Places are distances, which count in the scores; those are not divided."""

    norm, bias, scale = RMSNorm, False, 1.0

    def tables(encoder, c, rng):
        encoder.position = Embedding(c.buckets, c.heads, rng=rng)

    def place(encoder, x):
        rows = distances(x.shape[1], encoder.config.buckets, encoder.config.farthest)
        return x, encoder.position(rows).transpose(2, 0, 1)           # (heads, L, L)


FORMS = {"masked": Masked, "repeated": Repeated, "clip": Clip, "bert": Bert, "t5": T5}


class TransformerBlock(Module):
    """Attention, then two linear maps with an activation between, each joined to what it reads."""

    def __init__(self, config, *, rng):
        c, hidden = config, config.hidden or 4 * config.width
        self.form, self.activation = FORMS[c.form], ACTIVATIONS[c.activation]
        bias = self.form.bias
        self.norm1 = self.form.norm(c.width, c.eps)
        self.attention = Attention(c.width, heads=c.heads, inner=c.inner, bias=bias, bias_out=bias,
                                   rng=rng)
        self.norm2 = self.form.norm(c.width, c.eps)
        if c.gated:
            self.mlp = GatedMLP(c.width, hidden, bias=bias, activation=self.activation, rng=rng)
        else:
            self.linear1 = Linear(c.width, hidden, bias=bias, rng=rng)
            self.linear2 = Linear(hidden, c.width, bias=bias, rng=rng)

    def __call__(self, x, mask, bias=None):               # x (N, L, width)
        attend = partial(self.attention, bias=bias, mask=mask, scale=self.form.scale)
        return self.form.join(self.form.join(x, self.norm1, attend), self.norm2, self.mlp)

    def mlp(self, x):
        return self.linear2(self.activation(self.linear1(x)))


class TextEncoder(Module):
    """ids (N, L) of integers -> context (N, L, width)

    mask (N, L), not 0 where a token can be seen; without it all can but, in the masked form,
    padding, in whose place that form shows zeros. Raises ValueError for ids and masks that do not
    fit, and where a mask hides a whole text.
    """

    def __init__(self, config, *, rng):
        c = self.config = config
        self.form = FORMS[c.form]
        self.token = Embedding(c.vocabulary, c.width, rng=rng, std=self.form.std)
        self.form.tables(self, c, rng)
        self.blocks = [TransformerBlock(c, rng=rng) for _ in range(c.depth)]
        self.norm = self.form.norm(c.width, c.eps)

    def __call__(self, ids, mask=None):
        return self.form.finish(self, self.states(ids, mask)[-1], ids)

    def encode(self, ids, mask=None, *, skip=0):
        """Arrays, remembering nothing: the context, and the text in one token (N, width) or None.

        The context leaves out the last `skip` blocks.
        """
        if not 0 <= skip <= self.config.depth:
            raise ValueError(f"encode: expected a skip of 0 to {self.config.depth}, got {skip}")
        with no_grad():
            states = self.states(ids := np.asarray(ids), mask)
            last = self.form.finish(self, states[-1], ids)
            asked = self.form.finish(self, states[-1 - skip], ids) if skip else last
            return asked.data, self.form.summary(self, last, ids)

    def states(self, ids, mask=None):
        """depth + 1 Tensors (N, L, width): the embeddings, and what each block makes of them."""
        self.check(ids, mask)
        x, bias = self.form.place(self, self.token(ids))
        states, seen = [x], self.form.seen(ids, mask)
        for block in self.blocks:
            states.append(block(states[-1], seen, bias))
        return states

    def check(self, ids, mask):
        length = self.config.length
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not 0 < ids.shape[1] <= (length or 1e9):
            raise ValueError(f"TextEncoder: expected ids (N, 1 to {length or 'any length'}), "
                             f"got {ids.shape} of {ids.dtype}")
        if mask is not None and (np.shape(mask) != ids.shape or not np.any(mask, axis=1).all()):
            raise ValueError(f"TextEncoder: expected a mask {ids.shape} with something to see in "
                             f"each row, got {np.shape(mask)} with {np.count_nonzero(mask, -1)}")
