"""How each operation of ops.py is called: a rung and arrays -> the list of its results.

NumPy's functions take CuPy's arrays as well.
"""

from functools import partial

import numpy as np
from tinydiff_kernels.gpu.arrays import empty, module_of
from tinydiff_kernels.gpu.moments import recall
from tinydiff_kernels.norm import rung4_vector as vector

from tinydiff.autograd.norm import as_line

EPS, SAME = 1e-5, ((1, 1), (1, 1))
HOW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "decay": 0.01, "step": 3,
       "ema_decay": 0.999}
LARGEST = 2.0                                             # norm of a gradient that is not clipped
SEED, STEP, PURPOSE = 11, 5, 3                            # noise's address, but for the image
LEAST = 20_000                                            # of 2¹⁶: what dropout leaves out


def conv_forward(rung, x, w, b, stride):
    return [rung.forward(x, w, stride, same(w.shape), b)]


def conv_grad_input(rung, dy, w, x_shape, stride):
    return [rung.grad_input(dy, w, x_shape, stride, same(w.shape))]


def conv_grad_weight(rung, dy, x, w_shape, stride):
    return [rung.grad_weight(dy, x, w_shape, stride, same(w_shape))]


def same(w_shape):
    """The padding that keeps the size."""
    return ((w_shape[0] // 2,) * 2,) * 2


def norm_conv(rung, x, skip, w, base, gamma, beta, add, groups):
    """GroupNorm, SiLU, convolution, time and residual, as in a ResBlock"""
    lines = as_lines(rung, x, skip, gamma, beta, groups)
    return [rung.fused(pair(x, skip), w, **lines, base=base, add=add)]


def norm_conv_norm(rung, x, skip, w, base, gamma, beta, add, groups):
    """What the next norm is told of the result"""
    [y] = norm_conv(rung, x, skip, w, base, gamma, beta, add, groups)
    if hasattr(rung, "FUSES") and recall(y) is None:
        raise AssertionError("what the convolution knew of its result is forgotten")
    return [moments(*vector.measure([y], groups, EPS))]


def moments(mean, rstd):
    """Means and standard deviations in one array: beside the latter a mean's error is judged."""
    return np.concatenate([mean, 1 / rstd])


def as_lines(rung, x, skip, gamma, beta, groups):
    """A GroupNorm as scale and shift of each image's channels"""
    mean, rstd = vector.measure(pair(x, skip), groups, EPS)
    return dict(zip(("scale", "shift"), as_line(gamma, beta, mean, rstd)))


def fused_grad_input(rung, dy, w, split):
    return list(rung.fused_grad_input(dy, w, split=split))


def fused_grad_weight(rung, dy, x, skip, scale, shift):
    return [rung.fused_grad_weight(dy, pair(x, skip), scale=scale, shift=shift)]


def pair(x, skip):
    return [x] if skip is None else [x, skip]


def upsampled(rung, x, w, b):
    return [rung.upsampled(x, w, b)]


def upsampled_grad_input(rung, dy, w):
    return [rung.upsampled_grad_input(dy, w)]


def upsampled_grad_weight(rung, dy, x, w_shape):
    return [rung.upsampled_grad_weight(dy, x, w_shape)]


def product_forward(rung, x, skip, w, b, add):
    return [rung.forward(x if skip is None else [x, skip], w, b, add)]


def product_grad_input(rung, dy, w, split):
    dx = rung.grad_input(dy, w, split)
    return [dx] if split is None else list(dx)


def product_grad_weight(rung, dy, x, skip):
    return [rung.grad_weight(x if skip is None else [x, skip], dy)]


def attend(rung, q, k, v, mask):
    """Arrays are (N, L, h, d), as a network has them: a head is read where it lies"""
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))       # (N, h, L, d)
    return list(rung.forward(q, k, v, mask, q.shape[3] ** -0.5, None))


def attended(rung, q, k, v, mask):
    return dict(zip(("y", "log_sum"), attend(rung, q, k, v, mask)))


def attend_back(rung, dy, q, k, v, mask, y, log_sum):
    dy, q, k, v = (a.swapaxes(1, 2) for a in (dy, q, k, v))
    return list(rung.backward(dy, q, k, v, mask, q.shape[3] ** -0.5, y, log_sum, None))


def norm_forward(rung, x, skip, gamma, beta, groups):
    """silu(GroupNorm) of inputs side by side"""
    xs = pair(x, skip)
    mean, rstd = rung.measure(xs, groups, EPS)
    scale, shift = getattr(rung, "line", as_line)(gamma, beta, mean, rstd)
    ys, first = [], 0
    for a in xs:
        part = slice(first, first := first + a.shape[-1])
        ys.append(rung.normalize(a, scale[:, part], shift[:, part], True))
    return [*ys, moments(mean, rstd)]


def measured(rung, x, skip, groups):
    return dict(zip(("mean", "rstd"), rung.measure(pair(x, skip), groups, EPS)))


def norm_backward(rung, dy, dskip, x, skip, gamma, beta, mean, rstd):
    dxs, dgamma, dbeta = rung.backward(pair(dy, dskip), pair(x, skip), gamma, beta, mean, rstd,
                                       True)
    return [*dxs, dgamma, dbeta]


def rows(rung, x, scale, shift):
    return [rung.rows(x, scale, shift, EPS)]


def rows_backward(rung, dy, x, scale):
    return list(rung.rows_backward(dy, x, scale, EPS))


def adamw(rung, data, grad, m, square, ema, half):
    rung.step(data, grad, m, square, ema, half=half, decaying=data.size // 2, scale=0.5, **HOW)
    return [data, grad, m, square, ema, half]


def clipped_adamw(rung, data, grad, m, square, ema, half):
    """The step in parts, one by one, as a captured graph has it"""
    clipped_step = getattr(rung, "clipped_step", None) or partial(in_parts, rung)
    norm = clipped_step(data, grad, m, square, ema, half, largest=LARGEST,
                        decaying=data.size // 2, **HOW)
    return [data, grad, m, square, ema, half, norm]


def in_parts(rung, data, grad, m, v, ema, half, *, largest, decaying, **how):
    numbers, norm = empty(8, np.float32, like=data), empty(1, np.float64, like=data)
    rung.norm_into(norm, grad)
    rung.put(numbers, rung.numbers_of(**how))
    rung.clip_into(numbers, norm, largest)
    rung.step_with(numbers, data, grad, m, v, ema, half, decaying)
    return norm


def grad_norm(rung, grad):
    return [np.array([rung.norm(grad)])]


def cast(rung, x):
    """There and back again"""
    wide = rung.cast(x, np.float32)
    return [wide, rung.cast(wide, x.dtype)]


def normal(rung, like, x_shape):
    """Of images that count up"""
    N, *shape = x_shape
    return [rung.normal(SEED, range(2, 2 + N), STEP, shape, like.dtype, purpose=PURPOSE,
                        like=like)]


def keep(rung, x):
    """What dropout keeps, by the function for a GPU's arrays: the host's have another"""
    return [rung.on_gpu(LEAST, 1 / (1 - LEAST / 2**16), SEED, x)]


def normal_into(rung, out, state):
    """Of every third image; seed and step are read where they lie"""
    images = module_of(out).asarray(np.arange(0, 3 * len(out), 3, dtype=np.uint64))
    rung.normal_into(out, images, state, purpose=PURPOSE)
    return [out]
