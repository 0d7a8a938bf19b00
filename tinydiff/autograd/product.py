"""Products of matrices and of windows: matmul, conv2d and attention."""

from numbers import Integral

from tinydiff.autograd.reduce import softmax_array
from tinydiff.autograd.tensor import op
from tinydiff.backend import array_module
from tinydiff.kernels import pick


@op
def matmul(x, w):
    """x (…, L, C) @ w (…, C, O) -> (…, L, O); the leading axes broadcast"""
    if x.ndim < 2 or w.ndim < 2 or x.shape[-1] != w.shape[-2]:
        raise ValueError(f"matmul: x {x.shape} and w {w.shape} do not fit: "
                         "expected (…, L, C) @ (…, C, O)")

    def vjp(dy):
        if w.ndim == 2:                                   # one weight for all rows: one product
            rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
            return (drows @ w.T).reshape(x.shape), rows.T @ drows
        return dy @ w.swapaxes(-1, -2), x.swapaxes(-1, -2) @ dy

    if w.ndim == 2:
        return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[-1]), vjp
    return x @ w, vjp


@op
def conv2d(x, w, b=None, *, stride=1, padding=0):
    """x (N, H, W, C), w (K, K', C, O), b (O,) -> y (N, H', W', O).  docs/derivations/convolution.md

    padding is an int or ((top, bottom), (left, right)); H' = (H + top + bottom − K) // stride + 1.
    Raises ValueError where channels or sizes do not fit.
    """
    if isinstance(padding, Integral):
        padding = ((padding, padding), (padding, padding))
    check_conv2d(x, w, b, stride, padding)
    rung = pick("conv2d")

    def vjp(dy):
        dx = rung.grad_input(dy, w, x.shape, stride, padding)
        dw = rung.grad_weight(dy, x, w.shape, stride, padding)
        return (dx, dw) if b is None else (dx, dw, dy.sum(axis=(0, 1, 2)))

    y = rung.forward(x, w, stride, padding)
    if b is not None:
        y += b
    return y, vjp


def check_conv2d(x, w, b, stride, padding):
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError("conv2d: expected x (N, H, W, C) and w (K, K, C, O), "
                         f"got {x.shape}, {w.shape}")
    if x.shape[3] != w.shape[2]:
        raise ValueError(f"conv2d: x has {x.shape[3]} channels, w expects {w.shape[2]}")
    if b is not None and b.shape != w.shape[3:]:
        raise ValueError(f"conv2d: b has shape {b.shape}, w has {w.shape[3]} output channels")
    if not isinstance(stride, Integral) or stride < 1:
        raise ValueError(f"conv2d: expected a whole stride of at least 1, got {stride}")
    if 0 in w.shape:
        raise ValueError(f"conv2d: w has shape {w.shape}, expected at least one weight")
    for size, (before, after), K in zip(x.shape[1:3], padding, w.shape, strict=False):
        if size + before + after < K:
            raise ValueError(f"conv2d: a window of {K} does not fit into "
                             f"{size} + {before} + {after} pixels")


@op
def attention(q, k, v, *, mask=None):
    """softmax(q kᵀ / √d) v: each query's mix of the values.  docs/derivations/attention.md

    q (…, L, d), k (…, M, d), v (…, M, e) -> (…, L, e); mask, broadcastable to (…, L, M), is True
    where a query may look. A query that may look nowhere gets zeros.
    """
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"attention: q {q.shape}, k {k.shape}, v {v.shape} do not fit: "
                         "expected (…, L, d), (…, M, d), (…, M, e)")
    xp = array_module(q)
    scale = q.shape[-1] ** -0.5
    scores = (q * scale) @ k.swapaxes(-1, -2)             # (…, L, M)
    if mask is not None:
        mask = xp.asarray(mask, bool)
        scores = xp.where(mask, scores, xp.finfo(scores.dtype).min / 2)
    p = softmax_array(scores)
    if mask is not None:
        p = p * mask

    def vjp(dy):
        dp = dy @ v.swapaxes(-1, -2)                      # (…, L, M)
        dp -= (dp * p).sum(axis=-1, keepdims=True)
        dp *= p
        return (dp @ k) * scale, dp.swapaxes(-1, -2) @ (q * scale), p.swapaxes(-1, -2) @ dy

    return p @ v, vjp
