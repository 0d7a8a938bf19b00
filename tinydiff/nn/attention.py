"""Attention with several heads: of an image to itself, or of an image to words."""

from tinydiff.autograd import attention
from tinydiff.nn.layers import Linear
from tinydiff.nn.module import Module


class Attention(Module):
    """Each token of x asks, the tokens of `context` (x itself if None) answer.  LDM §3.3

    x (N, L, width), context (N, M, context_width) -> (N, L, width). mask, broadcastable to
    (N, heads, L, M), is True where a token may look; bias, likewise, is added to the scores, which
    are q · k times `scale`, 1/√d unless given. Of the layers inside, q, k and v may do without
    bias, and `out` too; with scale = 0 `out` starts silent; all heads together are `inner` wide.
    Raises ValueError where heads do not divide that.
    """

    def __init__(self, width, *, heads, rng, context_width=None, inner=None, bias=True,
                 bias_out=True, scale=1.0):
        inner = inner or width
        if inner % heads:
            raise ValueError(f"Attention: width {inner} cannot be shared out among {heads} heads")
        self.heads = heads
        self.q   = Linear(width, inner, rng=rng, bias=bias)
        self.k   = Linear(context_width or width, inner, rng=rng, bias=bias)
        self.v   = Linear(context_width or width, inner, rng=rng, bias=bias)
        self.out = Linear(inner, width, rng=rng, bias=bias_out, scale=scale)

    def __call__(self, x, context=None, bias=None, *, mask=None, scale=None):
        context = x if context is None else context
        q, k, v = self.split(self.q(x)), self.split(self.k(context)), self.split(self.v(context))
        y = attention(q, k, v, bias, mask=mask, scale=scale).transpose(0, 2, 1, 3)
        return self.out(y.reshape(*x.shape[:2], self.out.w.shape[0])) # (N, L, h·d)

    def split(self, x):
        """(N, L, h·d) -> (N, h, L, d): each head sees its own slice of the width."""
        N, L, D = x.shape
        return x.reshape(N, L, self.heads, D // self.heads).transpose(0, 2, 1, 3)
