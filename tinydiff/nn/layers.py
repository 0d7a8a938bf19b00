"""The layers with weights of their own: Linear, Conv2d, Embedding and the norms."""

import numpy as np

from tinydiff.autograd import (
    cast,
    concat,
    conv2d,
    conv2d_onto,
    embedding,
    group_norm,
    layer_norm,
    linear,
    norm_silu,
    norm_silu_conv2d,
    upsample_conv2d,
)
from tinydiff.kernels import is_half
from tinydiff.nn import init
from tinydiff.nn.module import Module, parameter


def suited(w, x):
    """A weight in the type of what it meets: float32 itself, or its copy where x is bf16.

    Biases and what norms learn are small, and stay as they are.
    """
    return cast(w, dtype=x.dtype, known=w.half) if is_half(x) and not is_half(w) else w


class Linear(Module):
    """y = x w + b on the last axis: x (…, c_in) -> y (…, c_out).  scale = 0 starts at zero."""

    def __init__(self, c_in, c_out, *, rng, bias=True, scale=1.0):
        self.w = parameter(init.uniform((c_in, c_out), c_in, rng=rng, scale=scale))
        self.b = parameter(np.zeros(c_out)) if bias else None

    def __call__(self, x):
        return linear(x, suited(self.w, x), self.b)


class Conv2d(Module):
    """A K × K convolution: x (N, H, W, c_in) -> y (N, ⌈H/stride⌉, ⌈W/stride⌉, c_out).

    padding is as autograd.conv2d takes it, or half a window all around.
    behind(norm, x, …) is the convolution of silu(norm(x)) in one pass, and enlarged(x) that of x
    with each pixel four times, both for K = 3.
    """

    def __init__(self, c_in, c_out, K, *, rng, stride=1, padding=None, scale=1.0):
        self.w = parameter(init.uniform((K, K, c_in, c_out), K * K * c_in, rng=rng, scale=scale))
        self.b = parameter(np.zeros(c_out))
        self.stride, self.padding = stride, K // 2 if padding is None else padding

    def __call__(self, x):
        return conv2d(x, suited(self.w, x), self.b, stride=self.stride, padding=self.padding)

    def enlarged(self, x):
        return upsample_conv2d(x, suited(self.w, x), self.b)

    def behind(self, norm, x, *, skip=None, late=None, add=None, adapt=None, between=None):
        """conv(silu(norm(x ‖ skip))) + late + add, for a GroupNorm in front

        skip joins x's channels; late (N, c_out) is added to every pixel, add to each its own;
        adapt is (scale, shift) in place of the norm's, (N, c_in) each. A function `between` takes
        silu's result and gives the convolution another, at the price of several passes.
        """
        scale, shift = adapt or (norm.scale, norm.shift)
        options = dict(groups=norm.groups, eps=norm.eps)
        if between is None:
            return norm_silu_conv2d(x, scale, shift, suited(self.w, x), self.b, skip, late, add,
                                    **options)
        h = x if skip is None else concat(x, skip)
        h = between(norm_silu(h, scale, shift, **options))
        return conv2d_onto(h, suited(self.w, h), self.b, late, add)


class GroupNorm(Module):
    """Mean 0, variance 1 over each image's pixels and groups of channels; then scale and shift."""

    def __init__(self, c, groups, eps=1e-5):
        if c % groups:
            raise ValueError(f"GroupNorm: {c} channels cannot be shared out among {groups} groups")
        self.scale = parameter(np.ones(c))
        self.shift = parameter(np.zeros(c))
        self.groups, self.eps = groups, eps

    def __call__(self, x):                                # (N, …, c)
        return group_norm(x, self.scale, self.shift, groups=self.groups, eps=self.eps)


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last axis of each token, then scale and shift."""

    def __init__(self, width, eps=1e-5):
        self.scale = parameter(np.ones(width))
        self.shift = parameter(np.zeros(width))
        self.eps = eps

    def __call__(self, x):                                # (…, width)
        return layer_norm(x, self.scale, self.shift, eps=self.eps)


class RMSNorm(Module):
    """Mean square 1 over the last axis of each token, then scale.  RMSNorm (1910.07467) Eq. 4"""

    def __init__(self, width, eps=1e-6):
        self.scale = parameter(np.ones(width))
        self.eps = eps

    def __call__(self, x):                                # (…, width)
        return x * ((x * x).mean(axis=-1, keepdims=True) + self.eps) ** -0.5 * self.scale


class Embedding(Module):
    """A table with one learned row for each id: ids (…) -> (…, width)."""

    def __init__(self, size, width, *, rng, std=0.02):
        self.table = parameter(init.normal((size, width), rng=rng, std=std))

    def __call__(self, ids):
        return embedding(self.table, ids=ids)
