"""Attention with several heads: of an image to itself, or of an image to words."""

from tinydiff.autograd import attention
from tinydiff.nn.layers import Linear
from tinydiff.nn.module import Module


class Attention(Module):
    """Each token of x asks, the tokens of `context` (x itself if None) answer.  LDM §3.3

    x (N, L, width), context (N, M, context_width) -> (N, L, width). mask, broadcastable to
    (N, heads, L, M), is True where a token may look. scale = 0 starts as silence.
    Raises ValueError where heads do not divide the width.
    """

    def __init__(self, width, *, heads, rng, context_width=None, scale=1.0):
        if width % heads:
            raise ValueError(f"Attention: width {width} cannot be shared out among {heads} heads")
        self.heads = heads
        self.q   = Linear(width, width, rng=rng)
        self.k   = Linear(context_width or width, width, rng=rng)
        self.v   = Linear(context_width or width, width, rng=rng)
        self.out = Linear(width, width, rng=rng, scale=scale)

    def __call__(self, x, context=None, *, mask=None):
        context = x if context is None else context
        q, k, v = self.split(self.q(x)), self.split(self.k(context)), self.split(self.v(context))
        y = attention(q, k, v, mask=mask).transpose(0, 2, 1, 3)       # (N, L, h, d)
        return self.out(y.reshape(x.shape))

    def split(self, x):
        """(N, L, h·d) -> (N, h, L, d): each head sees its own slice of the width."""
        N, L, D = x.shape
        return x.reshape(N, L, self.heads, D // self.heads).transpose(0, 2, 1, 3)
