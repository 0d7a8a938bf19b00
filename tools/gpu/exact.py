"""The truth, in NumPy and float64: for each folder of kernels something that has its functions.

Mostly that is a plain rung of its ladder; what only a GPU's rungs have is put together here.
"""

from math import erf, pi

import numpy as np
from tinydiff_kernels.attention import rung0_plain as attention
from tinydiff_kernels.conv2d import rung1_im2col as im2col
from tinydiff_kernels.matmul import rung1_blas as matmul
from tinydiff_kernels.noise import mask
from tinydiff_kernels.norm import rung0_numpy as norm
from tinydiff_kernels.optimizer import rung0_numpy as adamw

from gpu.ops import completed, results
from tinydiff.diffusion.noise import batch

SAME = ((1, 1), (1, 1))


class conv2d:
    forward, grad_input, grad_weight = im2col.forward, im2col.grad_input, im2col.grad_weight

    def fused(xs, w, *, scale, shift, base, add):
        y = im2col.forward(normalized(xs, scale, shift), w, 1, SAME)
        return y + base[:, None, None] + add

    def fused_grad_input(dy, w, *, split):
        dx = im2col.grad_input(dy, w, (*dy.shape[:3], w.shape[2]), 1, SAME)
        return [dx] if split is None else [dx[..., :split], dx[..., split:]]

    def fused_grad_weight(dy, xs, *, scale, shift):
        x = normalized(xs, scale, shift)
        return im2col.grad_weight(dy, x, (3, 3, x.shape[3], dy.shape[3]), 1, SAME)

    def upsampled(x, w, b):
        return im2col.forward(twice(x), w, 1, SAME, b)

    def upsampled_grad_input(dy, w):
        N, H, W, _ = dy.shape
        dx = im2col.grad_input(dy, w, (N, H, W, w.shape[2]), 1, SAME)
        return dx.reshape(N, H // 2, 2, W // 2, 2, -1).sum(axis=(2, 4))

    def upsampled_grad_weight(dy, x, w_shape):
        return im2col.grad_weight(dy, twice(x), w_shape, 1, SAME)


class optimizer:
    norm = adamw.norm

    def step(data, grad, m, v, ema, *, half, **how):
        adamw.step(data, grad, m, v, ema, **how)
        half[...] = data[:half.size]

    def clipped_step(data, grad, m, v, ema, half, *, largest, **how):
        """The gradient's norm, after a step with at most `largest` of it."""
        norm = adamw.norm(grad)
        optimizer.step(data, grad, m, v, ema, half=half, scale=min(1, largest / norm), **how)
        return np.array([norm])


class elementwise:
    def add(x, y):
        return x + y

    def mul(x, y):
        return x * y

    def gelu(x):
        return x * normal_cdf(x)

    def gelu_backward(dy, x):
        return dy * (normal_cdf(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * pi))

    def silu(x):
        return x * sigmoid(x)

    def silu_backward(dy, x):
        s = sigmoid(x)
        return dy * s * (1 + x * (1 - s))

    def upsample2(x):
        return twice(x)

    def upsample2_backward(dy):
        N, H, W, C = dy.shape
        return dy.reshape(N, H // 2, 2, W // 2, 2, C).sum(axis=(2, 4))

    def sum_pixels(y):
        return y.sum(axis=(1, 2))

    def cast(x, dtype):
        return x


class noise:
    def normal(seed, images, step, shape, dtype, *, purpose, like):
        return batch(seed, images, step, shape, np.float64, purpose=purpose)

    def normal_into(out, images, state, *, purpose):
        seed, step = map(int, state)
        out[...] = batch(seed, images, step, out.shape[1:], np.float64, purpose=purpose)

    def on_gpu(least, kept, seed, like):
        return mask.keep(least / 2**16, seed, like)


FOLDERS = {"attention": attention, "conv2d": conv2d, "elementwise": elementwise, "matmul": matmul,
           "noise": noise, "norm": norm, "optimizer": optimizer}


def normalized(xs, scale, shift):
    z = np.concatenate(xs, axis=3) * scale[:, None, None] + shift[:, None, None]
    return z * sigmoid(z)


def twice(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def sigmoid(x):
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def normal_cdf(x):
    return 0.5 + 0.5 * np.vectorize(erf, otypes=[float])(x / np.sqrt(2))


def by_numpy(name, arrays):
    """[results] of an operation in float64."""
    double = {key: a.astype(np.float64) if is_float(a) else a for key, a in arrays.items()}
    rung = FOLDERS[name.split(".")[0]]
    return [np.asarray(a) for a in results(name, rung, completed(name, rung, double))]


def is_float(a):
    return hasattr(a, "dtype") and a.dtype.kind in "fV"   # V: bf16
