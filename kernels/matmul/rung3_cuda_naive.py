"""Rung 3, cuda_naive: a GPU's thread for each result, written as the formula stands.

Since rung 2: a hundred thousand threads instead of a few, and nothing else; neither registers nor
caches are thought of. Each multiply-add loads two numbers. The 32 threads of a warp, which move in
step, stand below each other in a column of y: their 32 numbers of x lie in 32 rows, so a warp that
needs 128 bytes asks for 32 sectors of 32. Prediction: a line of the L1 cache is looked up a cycle;
33 for the 64 FLOPs of a warp's multiply-add make half a TFLOP/s on an H100, whose multipliers,
without tensor cores, could do 67.
"""

import numpy as np

from ..gpu.python import cuda, device, kernel
from .on_device import FORWARD, GRADIENT, forward_by, grad_input_by, grad_weight_by

BLOCK = 32, 8                                             # threads along rows, along columns


@kernel(FORWARD)
def product(x, skip, w, b, add, y):
    p, o = cuda.grid(2)
    if p < y.shape[0] and o < y.shape[1]:
        y[p, o] = y_at(x, skip, w, b, add, p, o)


@kernel(GRADIENT)
def product_wt(dy, w, dx):
    p, c = cuda.grid(2)
    if p < dx.shape[0] and c < dx.shape[1]:
        dx[p, c] = dx_at(dy, w, p, c)


@kernel(GRADIENT)
def product_xt(x, dy, dw):
    c, o = cuda.grid(2)
    if c < dw.shape[0] and o < dw.shape[1]:
        dw[c, o] = dw_at(x, dy, c, o)


@device
def y_at(x, skip, w, b, add, p, o):
    """Σ_c x[p, c] w[c, o] + b[o] + add[p, o]; the channels of skip follow those of x."""
    C1, C2 = x.shape[1], skip.shape[1]
    y = np.float32(0)                                     # a plain 0.0 would be float64 on a GPU
    for c in range(C1):
        y += x[p, c] * w[c, o]
    for c in range(C2):
        y += skip[p, c] * w[C1 + c, o]
    if b.size:
        y += b[o]
    if add.size:
        y += add[p, o]
    return y


@device
def dx_at(dy, w, p, c):
    """Σ_o dy[p, o] w[c, o]"""
    dx = np.float32(0)
    for o in range(dy.shape[1]):
        dx += dy[p, o] * w[c, o]
    return dx


@device
def dw_at(x, dy, c, o):
    """Σ_p x[p, c] dy[p, o]"""
    dw = np.float32(0)
    for p in range(x.shape[0]):
        dw += x[p, c] * dy[p, o]
    return dw


forward     = forward_by(product, tile=BLOCK, block=BLOCK)
grad_input  = grad_input_by(product_wt, tile=BLOCK, block=BLOCK)
grad_weight = grad_weight_by(product_xt, tile=BLOCK, block=BLOCK)
