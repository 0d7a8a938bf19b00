"""Rung 9, phase: behind an upsampling, nine taps see only four pixels.

Since rung 8: a U-Net's upsampling repeats each pixel four times and convolves the result. Of the
nine inputs of an output at most four differ, so the weights that meet the same pixel are added
first, and each phase (row and column even or odd) is a convolution with 2 × 2 taps of the small
image. Prediction: 16/36 of the multiplications, and the large image, four times the small one, is
neither written nor read. Rounding the sums of weights to bf16 costs as much as any rounding to it.

The products are rung 7's, with other tables; all but the functions for upsampling is rung 8's.
docs/derivations/convolution.md
"""

import numpy as np

from ..gpu.arrays import contiguous, empty, is_bf16, module_of
from ..gpu.source import Source
from .gather import collect, correlate, scatter, table
from .halo import SAME
from .rung7_mma import code as products
from .rung8_halo import (  # noqa: F401
    FUSES,
    SEAM,
    forward,
    fused,
    fused_grad_input,
    fused_grad_weight,
    grad_input,
    grad_weight,
)

code = Source(__file__)


def upsampled(x, w, b=None):
    """conv2d(upsample2(x), w, padding 1) + b: x (N, H, W, C), w (3, 3, C, O) -> (N, 2H, 2W, O)"""
    if not is_bf16(x, w):
        return forward(twice(x), w, 1, SAME, b)
    N, H, W, _ = x.shape
    shape = N, 2 * H, 2 * W, w.shape[3]
    return collect(products, [x], in_phases(w), table(AHEAD, x), shape, stride=1, step=2, b=b)


def upsampled_grad_input(dy, w):
    """dx (N, H, W, C)"""
    N, H, W, _ = dy.shape
    if not is_bf16(dy, w):
        dx = grad_input(dy, w, (N, H, W, w.shape[2]), 1, SAME)
        return dx.reshape(N, H // 2, 2, W // 2, 2, -1).sum(axis=(2, 4))
    shape = N, H // 2, W // 2, w.shape[2]
    return scatter(products, dy, in_phases(w), table(BACK, dy), shape, stride=2, step=1)[0]


def upsampled_grad_weight(dy, x, w_shape):
    """dw (3, 3, C, O) in float32"""
    if not is_bf16(dy, x):
        return grad_weight(dy, twice(x), w_shape, 1, SAME)
    dws = correlate(products, [x], dy, table(AHEAD, x), stride=1, step=2)
    dw, n = empty(w_shape, np.float32, like=dy), w_shape[2] * w_shape[3]
    code.give_back[(-(-n // 256), 9), 256](dws, dw, n)
    return dw


def in_phases(w):
    """(16, C, O): the four matrices of each of the four phases"""
    [w] = contiguous(w)
    C, O = w.shape[2:]
    phases = empty((16, C, O), w.dtype, like=w)
    code.sum_taps[(-(-C * O // 256), 16), 256](w, phases, C * O)
    return phases


def twice(x):
    xp = module_of(x)
    return xp.repeat(xp.repeat(x, 2, axis=1), 2, axis=2)


TWO = (0, 1)
# Where the taps of each phase (a, b) look in x; and, seen from dx, where in dy
AHEAD = [[(u + a - 1, v + b - 1, 8 * a + 4 * b + 2 * u + v) for u in TWO for v in TWO]
         for a in TWO for b in TWO]
BACK  = [[(2 - 2 * u - a, 2 - 2 * v - b, 8 * a + 4 * b + 2 * u + v)
          for a in TWO for b in TWO for u in TWO for v in TWO]]
