"""Rung 5, cuda_naive: a GPU's thread for each result, written as the formula stands.

Since rung 4: nothing of it. A GPU has its own way to be fast: a hundred thousand threads, of which
32, a warp, move in step. The threads of a warp make neighbouring channels of one pixel: they share
each number of x and read neighbours of w. No number is kept for another thread, so each
multiply-add loads two. Prediction: a line of the L1 cache is looked up a cycle; two for the 64
FLOPs of a warp's multiply-add make 7 TFLOP/s on an H100, whose multipliers, without tensor cores,
could do 67. Not so the gradient for the input, whose warps find their 32 numbers of w in 32 lines.
"""

import numpy as np

from ..gpu.arrays import contiguous, empty
from ..gpu.python import cuda, device, kernel
from ..matmul.on_device import ROW, fit, given
from . import rung1_im2col
from .rung0_loops import out_shape

IMAGES  = "float32[:,:,:,::1]"
NUMBERS = "int64, int64, int64"                           # stride, top, left
BLOCK   = 256


@kernel(f"{IMAGES}, {IMAGES}, {ROW}, {NUMBERS}, {IMAGES}")
def convolve(x, w, b, stride, top, left, y):
    thread = cuda.grid(1)
    if thread < y.size:
        n, i, j, o = place(thread, y.shape)
        total = b[o] if b.size else np.float32(0)         # a plain 0.0 would be float64 on a GPU
        for u in range(w.shape[0]):
            for v in range(w.shape[1]):
                p, q = i * stride + u - top, j * stride + v - left
                if 0 <= p < x.shape[1] and 0 <= q < x.shape[2]:
                    for c in range(w.shape[2]):
                        total += x[n, p, q, c] * w[u, v, c, o]
        y[n, i, j, o] = total


@kernel(f"{IMAGES}, {IMAGES}, {NUMBERS}, {IMAGES}")
def convolve_back(dy, w, stride, top, left, dx):
    thread = cuda.grid(1)
    if thread < dx.size:
        n, p, q, c = place(thread, dx.shape)
        total = np.float32(0)
        for u in range(w.shape[0]):
            for v in range(w.shape[1]):
                i, j = p + top - u, q + left - v          # stride times the output that took it
                if (0 <= i < dy.shape[1] * stride and i % stride == 0
                        and 0 <= j < dy.shape[2] * stride and j % stride == 0):
                    i, j = i // stride, j // stride
                    for o in range(w.shape[3]):
                        total += dy[n, i, j, o] * w[u, v, c, o]
        dx[n, p, q, c] = total


@kernel(f"{IMAGES}, {IMAGES}, {NUMBERS}, {IMAGES}")
def correlate(dy, x, stride, top, left, dw):
    thread = cuda.grid(1)
    if thread < dw.size:
        u, v, c, o = place(thread, dw.shape)
        total = np.float32(0)
        for n in range(dy.shape[0]):
            for i in range(dy.shape[1]):
                for j in range(dy.shape[2]):
                    p, q = i * stride + u - top, j * stride + v - left
                    if 0 <= p < x.shape[1] and 0 <= q < x.shape[2]:
                        total += x[n, p, q, c] * dy[n, i, j, o]
        dw[u, v, c, o] = total


@device
def place(number, shape):
    """The four indices of an array's element, of which this many stand before it."""
    number, d = number // shape[3], number % shape[3]
    number, c = number // shape[2], number % shape[2]
    return number // shape[1], number % shape[1], c, d


def forward(x, w, stride, padding, b=None):
    shape = out_shape(x.shape, w.shape, stride, padding)
    if not fits(x, w, shape, b):
        return rung1_im2col.forward(x, w, stride, padding, b)
    y = empty(shape, np.float32, like=x)
    convolve[blocks(y), BLOCK](*contiguous(x, w), given(b, 1, x), stride, *corner(padding), y)
    return y


def grad_input(dy, w, x_shape, stride, padding):
    if not fits(dy, w.swapaxes(2, 3), x_shape):
        return rung1_im2col.grad_input(dy, w, x_shape, stride, padding)
    dx = empty(x_shape, np.float32, like=dy)
    convolve_back[blocks(dx), BLOCK](*contiguous(dy, w), stride, *corner(padding), dx)
    return dx


def grad_weight(dy, x, w_shape, stride, padding):
    if not fit((dy, (len(x), *dy.shape[1:3], w_shape[3])), (x, (*x.shape[:3], w_shape[2]))):
        return rung1_im2col.grad_weight(dy, x, w_shape, stride, padding)
    dw = empty(w_shape, np.float32, like=dy)
    correlate[blocks(dw), BLOCK](*contiguous(dy, x), stride, *corner(padding), dw)
    return dw


def fits(x, w, shape, b=None):
    """Whether all is float32, w makes a result of this shape of x, and there is one."""
    O = shape[3]
    return (fit((x, (shape[0], *x.shape[1:])), (w, (*w.shape[:2], x.shape[3], O)), (b, (O,)))
            and min(shape) > 0)


def blocks(y):
    return -(-y.size // BLOCK)


def corner(padding):
    return padding[0][0], padding[1][0]
