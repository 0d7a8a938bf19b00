"""The three functions of a rung whose kernels are those of products.cuh."""

from ..gpu.arrays import as_float, contiguous, empty, is_bf16, module_of, widened
from ..gpu.parts import in_parts, sum_parts

SIDE, THREADS, SHARED = 128, 128, 3 * 2 * 128 * 64 * 2    # results, threads, bytes of a block


def functions(code, below, can=is_bf16):
    """forward, grad_input, grad_weight by kernels of `code`; below: who does what it cannot."""

    def forward(x, w, b=None, add=None):
        xs = x if isinstance(x, list) else [x]
        if not can(*xs, w, add):
            return below.forward(x, w, b, add)
        O = w.shape[1]
        if not fit(*xs, w):
            y = forward(widened(join(xs), 1), widened(w, 0, 1), widened(b, 0), widened(add, 1))
            return contiguous(y[:, :O])[0]
        *xs, w, b, add = contiguous(*xs, w, as_float(b), add)
        (P, C1), C = xs[0].shape, w.shape[0]
        y = empty((P, O), w.dtype, like=w)
        code.forward[(tiles(P), tiles(O)), THREADS, SHARED](
            xs[0], xs[-1], w, b, add, y, P, C1, C, O)
        return y

    def grad_input(dy, w, split=None):
        if not can(dy, w):
            return below.grad_input(dy, w, split)
        (P, O), C = dy.shape, w.shape[0]
        C1 = C if split is None else split
        if not fit(dy, w.T) or C1 % 8:
            dx = grad_input(widened(dy, 1), widened(w, 0, 1))
            dxs = contiguous(dx[:, :C1], dx[:, C1:C])
        else:
            dy, w = contiguous(dy, w)
            dxs = [empty((P, n), w.dtype, like=w) for n in (C1, C - C1)]
            code.grad_input[(tiles(P), tiles(C)), THREADS, SHARED](dy, w, *dxs, P, C1, C, O)
        return dxs[0] if split is None else dxs

    def grad_weight(x, dy):
        """dw (C, O) in float32"""
        xs = x if isinstance(x, list) else [x]
        if not can(*xs, dy):
            return below.grad_weight(x, dy)
        O, C = dy.shape[1], sum(part.shape[1] for part in xs)
        if not fit(*xs, dy):
            return contiguous(grad_weight(widened(join(xs), 1), widened(dy, 1))[:C, :O])[0]
        *xs, dy = contiguous(*xs, dy)
        P, C1 = xs[0].shape
        grid = tiles(C), tiles(O)
        parts, each = in_parts(P, grid[0] * grid[1], step=64)
        dw = empty((parts, C, O), "float32", like=dy)
        code.grad_weight[(*grid, parts), THREADS, SHARED](
            xs[0], xs[-1], dy, dw, P, C1, C, O, each)
        return sum_parts(dw)

    return forward, grad_input, grad_weight


def tiles(n):
    return -(-n // SIDE)


def fit(*arrays):
    """Whether each row begins at a multiple of 16 bytes."""
    return all(a.shape[1] % 8 == 0 for a in arrays)


def join(xs):
    return xs[0] if len(xs) == 1 else module_of(xs[0]).concatenate(xs, axis=1)
