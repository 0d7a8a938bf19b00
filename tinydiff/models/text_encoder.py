"""The text encoder, ours, CLIP's, BERT's or T5's: ids become a context.  LDM §3.3

A stack of transformer blocks. All that the four do differently stands in a Form (text_forms.py).
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from tinydiff.autograd import gelu, gelu_quick, gelu_tanh, no_grad, relu, silu
from tinydiff.autograd.shape import rows_of
from tinydiff.backend import alongside, array_module
from tinydiff.models.text_forms import FORMS
from tinydiff.models.transformer import GatedMLP
from tinydiff.nn import Attention, Embedding, Linear, Module

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
        ids, mask = self.checked(ids, mask)
        return self.form.finish(self, self.states(ids, mask)[-1], ids)

    def encode(self, ids, mask=None, *, skip=0):
        """Arrays, remembering nothing: the context, and the text in one token (N, width) or None.

        The context leaves out the last `skip` blocks.
        """
        if not 0 <= skip <= self.config.depth:
            raise ValueError(f"encode: expected a skip of 0 to {self.config.depth}, got {skip}")
        with no_grad():
            ids, mask = self.checked(array_module(ids).asarray(ids), mask)
            states = self.states(ids, mask)
            last = self.form.finish(self, states[-1], ids)
            asked = self.form.finish(self, states[-1 - skip], ids) if skip else last
            return asked.data, self.form.summary(self, last, ids)

    def states(self, ids, mask=None):
        """depth + 1 Tensors (N, L, width): the embeddings, and what each block makes of them."""
        x, bias = self.form.place(self, self.token(ids))
        states, seen = [x], self.form.seen(ids, mask)
        for block in self.blocks:
            states.append(block(states[-1], seen, bias))
        return states

    def checked(self, ids, mask):
        """Both where the weights are.  ValueError for what does not fit."""
        length, table = self.config.length, self.token.table.data
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not 0 < ids.shape[1] <= (length or 1e9):
            raise ValueError(f"TextEncoder: expected ids (N, 1 to {length or 'any length'}), "
                             f"got {ids.shape} of {ids.dtype}")
        if mask is not None and (np.shape(mask) != ids.shape or not np.any(mask, axis=1).all()):
            raise ValueError(f"TextEncoder: expected a mask {ids.shape} with something to see in "
                             f"each row, got {np.shape(mask)} with {np.count_nonzero(mask, -1)}")
        return rows_of(ids, table), None if mask is None else alongside(mask, table)
