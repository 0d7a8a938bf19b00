"""Ops that treat every number by itself. Arguments broadcast; `backward` undoes it."""

from math import erf, exp as exp_, pi, sqrt as sqrt_

import numpy as np

from tinydiff.autograd.tensor import op
from tinydiff.backend import array_module, normal_cdf
from tinydiff.kernels import elementwise, noise


@op
def add(x, y):
    """x + y"""
    return elementwise.add(x, y), lambda dy: (dy, dy)


@op
def add_to_pixels(x, late):
    """x (N, H, W, C) + late (N, C), the same for all pixels of an image, in x's type"""
    late = elementwise.cast(late, x.dtype)[:, None, None]
    return x + late, lambda dy: (dy, lambda: elementwise.sum_pixels(dy))


@op
def sub(x, y):
    """x − y"""
    return x - y, lambda dy: (dy, -dy)


@op
def mul(x, y):
    """x · y"""
    return elementwise.mul(x, y), lambda dy: (elementwise.mul(dy, y), elementwise.mul(dy, x))


@op
def div(x, y):
    """x / y"""
    z = x / y
    return z, lambda dy: (dy / y, -dy * z / y)


@op
def neg(x):
    """−x"""
    return -x, lambda dy: (-dy,)


@op
def pow(x, *, n):
    """xⁿ for a number n"""
    return x**n, lambda dy: (dy * n * x ** (n - 1) if n else dy * 0,)


@op
def cast(x, *, dtype, known=None):
    """The same numbers in another type; `known` are they, where somebody has them already

    The gradient comes back in x's own type: what had not been rounded on its way never is.
    """
    y = elementwise.cast(x, dtype) if known is None else known
    return y, lambda dy: (elementwise.cast(dy, x.dtype),)


@op
def exp(x):
    """eˣ"""
    y = array_module(x).exp(x)
    return y, lambda dy: (dy * y,)


@op
def log(x):
    """The natural logarithm"""
    return array_module(x).log(x), lambda dy: (dy / x,)


@op
def sqrt(x):
    """√x"""
    y = array_module(x).sqrt(x)
    return y, lambda dy: (dy * 0.5 / y,)


@op
def sin(x):
    xp = array_module(x)
    return xp.sin(x), lambda dy: (dy * xp.cos(x),)


@op
def cos(x):
    xp = array_module(x)
    return xp.cos(x), lambda dy: (-dy * xp.sin(x),)


@op
def tanh(x):
    y = array_module(x).tanh(x)
    return y, lambda dy: (dy * (1 - y * y),)


def logistic(x):
    """σ(x) = 1 / (1 + e⁻ˣ) on arrays, by tanh so that nothing overflows"""
    y = array_module(x).tanh(0.5 * x)
    return 0.5 * y + 0.5


@op
def sigmoid(x):
    """σ(x)"""
    y = logistic(x)
    return y, lambda dy: (dy * y * (1 - y),)


@op
def silu(x):
    """x · σ(x)"""
    return elementwise.silu(x), lambda dy: (elementwise.silu_backward(dy, x),)


@op
def relu(x):
    """max(x, 0)"""
    return array_module(x).maximum(x, 0), lambda dy: (dy * (x > 0),)


@op
def gelu(x):
    """x · Φ(x), Φ the normal distribution function"""
    if elementwise.large(x):
        return elementwise.gelu(x), lambda dy: (
            elementwise.gelu_backward(array_module(x).ascontiguousarray(dy), x),)
    xp = array_module(x)
    phi = 0.5 + 0.5 * error_function(x * sqrt_(0.5)) if xp is np else normal_cdf(x)

    def vjp(dy):
        dx = dy * (phi + x * xp.exp(-0.5 * x * x) * (1 / sqrt_(2 * pi)))
        return (dx.astype(dy.dtype, copy=False),)

    return (x * phi).astype(x.dtype, copy=False), vjp


@op
def gelu_tanh(x):
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), the form GPT-2 and T5 use"""
    k = sqrt_(2 / pi)
    th = array_module(x).tanh(k * x * (1 + 0.044715 * x * x))

    def vjp(dy):
        inner = k * (1 + 3 * 0.044715 * x * x)
        return (dy * 0.5 * (1 + th + x * (1 - th * th) * inner),)

    return 0.5 * x * (1 + th), vjp


@op
def gelu_quick(x):
    """x · σ(1.702 x), the form CLIP uses"""
    s = logistic(1.702 * x)
    return x * s, lambda dy: (dy * s * (1 + 1.702 * x * (1 - s)),)


@op
def maximum(x, y):
    """The larger of the two; equal ones share the gradient"""
    first = 0.5 * (x >= y) + 0.5 * (x > y)                # 1, ½ or 0

    def vjp(dy):
        return (dy * first.astype(dy.dtype), dy * (1 - first).astype(dy.dtype))

    return array_module(x).maximum(x, y), vjp


@op
def clip(x, *, low, high):
    """x held within [low, high]; no gradient outside"""
    return array_module(x).clip(x, low, high), lambda dy: (dy * ((x >= low) & (x <= high)),)


@op
def dropout(x, *, p, rng):
    """Zero each number with probability p, divide the rest by 1 − p; `rng` says which, by a seed"""
    if not 0 <= p < 1:
        raise ValueError(f"dropout: expected 0 ≤ p < 1, got {p}")
    keep = noise.keep(p, rng.integers(2**63), like=x)
    return elementwise.mul(x, keep), lambda dy: (elementwise.mul(dy, keep),)


def error_function(x):
    """erf(x) to float64 accuracy: the Taylor series around the nearest node of a table.

    With a the node and d = x − a:  erf(a + d) = erf(a) + 2/√π e⁻ᵃ² (d − a d² + …); the next factors
    follow Hermite's recurrence.  Nodes stand 1/64 apart, so six terms leave less than 1e-15.
    """
    size = np.fmin(abs(x), 6).astype(float)               # erf(6) = 1 − 2e-17; NaN stays NaN
    node = np.rint(size * 64)
    a, d = node / 64, size - node / 64
    value, slope = (table[node.astype(int)] for table in ERF)
    series, before, term = 0.0, 0.0, 1.0
    power = d
    for k in range(1, 7):                                 # term = dᵏ-coefficient · k! / slope
        series = series + term * power
        before, term = term, -2 * (a * term + (k - 1) * before)
        power = power * d / (k + 1)
    return (np.sign(x) * (value + slope * series)).astype(x.dtype)


ERF = (np.array([erf(k / 64) for k in range(6 * 64 + 1)]),
       np.array([2 / sqrt_(pi) * exp_(-(k / 64) ** 2) for k in range(6 * 64 + 1)]))
