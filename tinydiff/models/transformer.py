"""What latent diffusion's transformer is built of; its feed-forward is T5's as well."""

from tinydiff.autograd import gelu
from tinydiff.nn import Attention, LayerNorm, Linear, Module


class GatedMLP(Module):
    """out(value(x) · activation(gate(x))), GEGLU where that is GELU: x (…, width) -> the same

    Shazeer 2020 (arXiv 2002.05202) §2
    """

    def __init__(self, width, inner, *, rng, bias=True, activation=gelu):
        self.value = Linear(width, inner, rng=rng, bias=bias)
        self.gate  = Linear(width, inner, rng=rng, bias=bias)
        self.out   = Linear(inner, width, rng=rng, bias=bias)
        self.activation = activation

    def __call__(self, x):
        return self.out(self.activation(self.gate(x)) * self.value(x))


class ContextBlock(Module):
    """Tokens look at each other, then, if there is a context, at the words, then each thinks.

    x (N, L, width), context (N, M, context_width) -> (N, L, width).  LDM §E.2.1
    """

    def __init__(self, width, *, heads, context_width, rng):
        self.norm1 = LayerNorm(width)
        self.self_attention = Attention(width, heads=heads, bias=False, rng=rng)
        if context_width:
            self.norm2 = LayerNorm(width)
            self.cross_attention = Attention(width, heads=heads, bias=False, rng=rng,
                                             context_width=context_width)
        self.norm3 = LayerNorm(width)
        self.mlp = GatedMLP(width, 4 * width, rng=rng)

    def __call__(self, x, context):
        x = x + self.self_attention(self.norm1(x))
        if context is not None:
            x = x + self.cross_attention(self.norm2(x), context)
        return x + self.mlp(self.norm3(x))
