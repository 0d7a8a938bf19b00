"""The functions of a Winograd rung, for tiles of m × m; what it cannot do rung 2 does."""

from ..door import contiguous, single
from . import rung2_numba, tiles
from .rung1_im2col import dilate

FEW = 8                                                   # tiles; for so few U does not pay


def functions(m):
    """forward, grad_input, grad_weight, fused, fused_grad_input, fused_grad_weight"""

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
        around = dict(scale=scale, shift=shift, base=base, add=add)
        if tiles.passes(m, xs[0], w):
            return tiles.passed_by(m, xs, w, **around)[0]
        if tiles.number(m, xs[0]) <= FEW:
            return rung2_numba.fused(xs, w, **around)
        keep = keep and w.shape[2] * w.shape[3] <= tiles.KEPT
        U = tiles.kept(m, w) if keep else tiles.transformed(m, w)
        return tiles.convolve(m, xs, U, w.shape[3], **around)[0]

    def fused_grad_input(dy, w, *, split=None):
        if tiles.passes(m, dy, w):
            return tiles.passed_by(m, [dy], w, turned=True, split=split)
        if tiles.number(m, dy) <= FEW:
            return rung2_numba.fused_grad_input(dy, w, split=split)
        U = tiles.transformed(m, w, turned=True)
        return tiles.convolve(m, [dy], U, w.shape[2], split=split)

    def fused_grad_weight(dy, xs, *, scale=None, shift=None):
        return tiles.weight_gradient(m, xs, dy, scale=scale, shift=shift)

    return forward, grad_input, grad_weight, fused, fused_grad_input, fused_grad_weight


def fits(w_shape, stride, padding, *arrays):
    """Whether Winograd can: 3 × 3, stride 1, the size kept, float32."""
    return (w_shape[:2] == (3, 3) and stride == 1 and padding == rung2_numba.SAME
            and single(*arrays))
