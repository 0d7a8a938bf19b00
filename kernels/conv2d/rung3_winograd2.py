"""Rung 3, winograd2: the same results with 2.25 times fewer multiplications.

Since rung 2: a 2 × 2 tile of results of a 3 × 3 convolution takes 16 products, not 36, once its
4 × 4 inputs and the weights are transformed (winograd.py); the transforms only add. Prediction: up
to 2.25 times faster where C and O are large, less where the transforms weigh. Rounding grows a
little: errors up to 4 times those of plain arithmetic.
"""

from ..door import contiguous, single
from . import rung2_numba, tiles
from .rung1_im2col import dilate

M, SEAM = 2, rung2_numba.SEAM


def forward(x, w, stride, padding, b=None):
    if not fits(w.shape, stride, padding, x, w, b):
        return rung2_numba.forward(x, w, stride, padding, b)
    x, w = contiguous(x, w)
    return fused([x], w, base=b)


def grad_input(dy, w, x_shape, stride, padding):
    if not fits(w.shape, 1, padding, dy, w):
        return rung2_numba.grad_input(dy, w, x_shape, stride, padding)
    dy, w = contiguous(dilate(dy, stride, *x_shape[1:3]), w)
    return fused_grad_input(dy, w)[0]


def grad_weight(dy, x, w_shape, stride, padding):
    if not fits(w_shape, stride, padding, dy, x):
        return rung2_numba.grad_weight(dy, x, w_shape, stride, padding)
    dy, x = contiguous(dy, x)
    return fused_grad_weight(dy, [x])


def fused(xs, w, *, scale=None, shift=None, base=None, add=None, keep=False):
    U = tiles.kept(M, w) if keep else tiles.transformed(M, w)
    return tiles.convolve(M, xs, U, w.shape[3], scale=scale, shift=shift, base=base, add=add)[0]


def fused_grad_input(dy, w, *, split=None):
    U = tiles.transformed(M, w, turned=True)
    return tiles.convolve(M, [dy], U, w.shape[2], split=split)


def fused_grad_weight(dy, xs, *, scale=None, shift=None):
    return tiles.weight_gradient(M, xs, dy, scale=scale, shift=shift)


def fits(w_shape, stride, padding, *arrays):
    """Whether Winograd can: 3 × 3, stride 1, the size kept, float32."""
    return (w_shape[:2] == (3, 3) and stride == 1 and padding == rung2_numba.SAME
            and single(*arrays))
