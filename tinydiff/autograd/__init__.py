"""Reverse-mode differentiation of NumPy code. Start with tensor.py; then any op.

Every name below works on Tensors and plain arrays; operators (x + y, x @ w, x[i]) are the same ops.
"""

from tinydiff.autograd.check import gradcheck
from tinydiff.autograd.elementwise import (
    add,
    add_to_pixels,
    cast,
    clip,
    cos,
    div,
    dropout,
    exp,
    gelu,
    gelu_quick,
    gelu_tanh,
    log,
    maximum,
    mul,
    neg,
    pow,
    relu,
    sigmoid,
    silu,
    sin,
    sqrt,
    sub,
    tanh,
)
from tinydiff.autograd.fused import conv2d_onto, norm_silu_conv2d, upsample_conv2d
from tinydiff.autograd.losses import cross_entropy, mse
from tinydiff.autograd.norm import group_norm, layer_norm, norm_silu
from tinydiff.autograd.product import attention, conv2d, linear, matmul
from tinydiff.autograd.recompute import recomputed
from tinydiff.autograd.reduce import logsumexp, max, mean, softmax, sum, var
from tinydiff.autograd.shape import (
    broadcast,
    concat,
    embedding,
    getitem,
    pad,
    reshape,
    stack,
    transpose,
    upsample,
)
from tinydiff.autograd.tensor import Tensor, no_grad, op

__all__ = [
    "Tensor", "add", "add_to_pixels", "attention", "broadcast", "cast", "clip", "concat", "conv2d",
    "conv2d_onto", "cos", "cross_entropy", "div", "dropout", "embedding", "exp", "gelu",
    "gelu_quick", "gelu_tanh", "getitem", "gradcheck", "group_norm", "layer_norm", "linear", "log",
    "logsumexp", "matmul", "max", "maximum", "mean", "mse", "mul", "neg", "no_grad", "norm_silu",
    "norm_silu_conv2d", "op", "pad", "pow", "recomputed", "relu", "reshape", "sigmoid", "silu",
    "sin", "softmax", "sqrt", "stack", "sub", "sum", "tanh", "transpose", "upsample",
    "upsample_conv2d", "var",
]

Tensor.__add__      = Tensor.__radd__ = add
Tensor.__mul__      = Tensor.__rmul__ = mul
Tensor.__sub__      = sub
Tensor.__rsub__     = lambda x, y: sub(y, x)
Tensor.__truediv__  = div
Tensor.__rtruediv__ = lambda x, y: div(y, x)
Tensor.__neg__      = neg
Tensor.__pow__      = lambda x, n: pow(x, n=n)
Tensor.__matmul__   = matmul
Tensor.__rmatmul__  = lambda x, y: matmul(y, x)
Tensor.__getitem__  = lambda x, index: getitem(x, index=index)
Tensor.sum       = sum
Tensor.mean      = mean
Tensor.reshape   = lambda x, *shape: reshape(x, shape=one_tuple(shape))
Tensor.transpose = lambda x, *axes: transpose(x, axes=one_tuple(axes))


def one_tuple(args):
    """x.reshape(2, 3) and x.reshape((2, 3)) mean the same."""
    return args[0] if type(args[0]) is tuple else args
