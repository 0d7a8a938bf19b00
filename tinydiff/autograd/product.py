"""Products of matrices and of windows: matmul, conv2d and attention."""

from numbers import Integral

from tinydiff.autograd.tensor import op
from tinydiff.kernels import elementwise, pick


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
def linear(x, w, b=None, skip=None, add=None):
    """(x ‖ skip) w + b + add on the last axis, x and skip read where they lie

    x (…, C1), skip (…, C2), w (C1 + C2, O), b (O,), add (…, O) -> y (…, O). Raises ValueError where
    the widths do not fit.
    """
    xs = [x] if skip is None else [x, skip]
    if w.ndim != 2 or sum(part.shape[-1] for part in xs) != w.shape[0]:
        given = " and ".join(str(part.shape) for part in xs)
        raise ValueError(f"linear: x {given} and w {w.shape} do not fit: "
                         "expected (…, C) and (C, O)")
    rung, O = pick("matmul", w), w.shape[1]
    rows = [part.reshape(-1, part.shape[-1]) for part in xs]          # (P, C1), (P, C2)
    rows = rows[0] if skip is None else rows
    y = rung.forward(rows, w, b, None if add is None else add.reshape(-1, O))

    def vjp(dy):
        drows, dskip = dy.reshape(-1, O), None
        if skip is None:
            dx = lambda: rung.grad_input(drows, w).reshape(x.shape)
        else:
            dx, dskip = rung.grad_input(drows, w, x.shape[-1])
            dx, dskip = dx.reshape(x.shape), dskip.reshape(skip.shape)
        return (dx, lambda: rung.grad_weight(rows, drows),
                lambda: elementwise.sum_rows(drows), dskip, dy)

    return y.reshape(*x.shape[:-1], O), vjp


@op
def conv2d(x, w, b=None, *, stride=1, padding=0):
    """x (N, H, W, C), w (K, K', C, O), b (O,) -> y (N, H', W', O).  docs/derivations/convolution.md

    padding is an int or ((top, bottom), (left, right)); H' = (H + top + bottom − K) // stride + 1.
    Raises ValueError where channels or sizes do not fit.
    """
    if isinstance(padding, Integral):
        padding = ((padding, padding), (padding, padding))
    check_conv2d(x, w, b, stride, padding)
    rung = pick("conv2d", x)

    def vjp(dy):
        return (lambda: rung.grad_input(dy, w, x.shape, stride, padding),
                lambda: rung.grad_weight(dy, x, w.shape, stride, padding),
                lambda: elementwise.sum_rows(dy))

    return rung.forward(x, w, stride, padding, b), vjp


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
def attention(q, k, v, bias=None, *, mask=None, scale=None):
    """softmax(q kᵀ · scale + bias) v: each query's mix of values.  docs/derivations/attention.md

    q (…, L, d), k (…, M, d), v (…, M, e) -> (…, L, e); scale is 1/√d unless given. bias and mask
    broadcast to (…, L, M); mask is True where a query may look. One that may look nowhere gets
    zeros.
    """
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"attention: q {q.shape}, k {k.shape}, v {v.shape} do not fit: "
                         "expected (…, L, d), (…, M, d), (…, M, e)")
    rung = pick("attention", q)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    y, log_sum = rung.forward(q, k, v, mask, scale, bias)

    def vjp(dy):
        case = dy, q, k, v, mask, scale, y, log_sum, bias
        return *rung.backward(*case), lambda: rung.grad_bias(*case)

    return y, vjp
