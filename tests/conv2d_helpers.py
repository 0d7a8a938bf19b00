"""What tests of the convolutions share: the definition with a matrix product for each tap."""

import numpy as np
from tinydiff_kernels.conv2d import LADDER
from tinydiff_kernels.ladder import can_compile

SAME = ((1, 1), (1, 1))                                   # padding that keeps the size, for K = 3
FACTOR = {"winograd2": 4, "winograd4": 20}                # allowed error; for all others 2
COMPILED = LADDER.compiled if can_compile() else []
RUNGS = LADDER.plain + COMPILED


def out_shape(x_shape, w_shape, stride, padding):
    sides = [(n + sum(p) - K) // stride + 1 for n, p, K in zip(x_shape[1:3], padding, w_shape)]
    return (x_shape[0], *sides, w_shape[3])


def arrays(x_shape, w_shape, stride, padding, dtype=np.float32, seed=0):
    """x, w and a dy of the shape that the formula gives."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype)
            for shape in (x_shape, w_shape, out_shape(x_shape, w_shape, stride, padding))]


def results(rung, x, w, dy, stride, padding):
    """What a rung makes of the same arrays: y, dx, dw."""
    return {"forward": rung.forward(x, w, stride, padding),
            "grad_input": rung.grad_input(dy, w, x.shape, stride, padding),
            "grad_weight": rung.grad_weight(dy, x, w.shape, stride, padding)}


def double(*arrays):
    return [a.astype(np.float64) for a in arrays]


def error(got, exact):
    """The largest distance; infinite for NaN and for another shape, so that neither ever passes."""
    if got.shape != exact.shape or not np.isfinite(got).all():
        return np.inf
    return np.abs(got.astype(np.float64) - exact).max(initial=0)


class fast:
    """Rung 0 for many terms: each number is the same sum, in the same order, in NumPy."""

    def forward(x, w, stride, padding):
        y = np.zeros(out_shape(x.shape, w.shape, stride, padding), x.dtype)
        x = np.pad(x, ((0, 0), *padding, (0, 0)))
        for u, v, c in np.ndindex(w.shape[:3]):
            y += x[seen(u, v, y.shape, stride)][..., c, None] * w[u, v, c]
        return y

    def grad_input(dy, w, x_shape, stride, padding):
        (top, bottom), (left, right) = padding
        N, H, W, C = x_shape
        dx = np.zeros((N, H + top + bottom, W + left + right, C), dy.dtype)
        for u, v, o in np.ndindex(*w.shape[:2], w.shape[3]):
            u, v = w.shape[0] - 1 - u, w.shape[1] - 1 - v           # y from its first pixel on
            dx[seen(u, v, dy.shape, stride)] += dy[..., o, None] * w[u, v, :, o]
        return dx[:, top:top + H, left:left + W]

    def grad_weight(dy, x, w_shape, stride, padding):
        x = np.pad(x, ((0, 0), *padding, (0, 0)))
        dw = np.zeros(w_shape, dy.dtype)
        for n, i, j in np.ndindex(dy.shape[:3]):
            window = x[n, i * stride:i * stride + w_shape[0], j * stride:j * stride + w_shape[1]]
            dw += window[..., None] * dy[n, i, j]
        return dw


def seen(u, v, y_shape, stride):
    """The pixels of the padded picture that a tap meets, one for each pixel of y."""
    _, H, W, _ = y_shape
    return slice(None), slice(u, u + stride * H, stride), slice(v, v + stride * W, stride)
