"""The door of the device rungs: which arrays they take, and what their kernels get of them.

Inside, arrays have four axes, (N, h, L, d), and any steps: a head of (N, L, h·d) is read where it
lies. What comes out lies in memory as (N, L, h, d), heads side by side, as the network wants them.
"""

import numpy as np

from ..gpu.arrays import address, as_float, contiguous, empty, module_of, widened

ROWS, SUMS = "float32[:,:,:,:]", "float32[:,:,::1]"       # Numba's names, for signatures
WIDEST = 256                                              # d and e for which kernels have room
GRID   = 65535                                            # blocks along y and z, at most


def take(dtype, q, k, v, *others, mask, bias, widest=WIDEST):
    """Whether all are of that type, with the same leading axes, at most two, and none is empty."""
    scores = (*q.shape[:-1], k.shape[-2])
    return (all(a.dtype.name == dtype and a.shape[:-2] == q.shape[:-2]
                for a in (q, k, v, *others))
            and q.ndim <= 4 and min(q.size, k.size, v.size) > 0
            and max(q.shape[-1], v.shape[-1]) <= widest and max(four(q).shape[:2]) <= GRID
            and all(a is None or np.broadcast_shapes(a.shape, scores) == scores
                    for a in (mask, bias)))


def forward_by(rung, q, k, v, mask, scale, bias):
    """forward of a rung below, for which bf16 becomes float32."""
    y, log_sum = rung.forward(*widen(q, k, v), mask, scale, *widen(bias))
    return y.astype(q.dtype, copy=False), log_sum


def backward_by(rung, dy, q, k, v, mask, scale, y, log_sum, bias):
    slopes = rung.backward(*widen(dy, q, k, v), mask, scale, *widen(y), log_sum, *widen(bias))
    return tuple(slope.astype(a.dtype, copy=False) for slope, a in zip(slopes, (q, k, v)))


def forward_with(attend, rows, block, below):
    """forward of a rung whose kernel is attend(q, k, v, more, scale, y, log_sum).

    A block of threads has `rows` queries of one head. The rung `below` takes what is too wide.
    """
    def forward(q, k, v, mask, scale, bias=None):
        if not take("float32", q, k, v, mask=mask, bias=bias):
            return forward_by(below, q, k, v, mask, scale, bias)
        shape, q, k, v = q.shape[:-1], four(q), four(k), four(v)
        y, log_sum = heads_beside(q, v.shape[3]), empty(q.shape[:3], np.float32, q)
        attend[grid(q, rows), block](q, k, v, added_to_all(mask, bias, q, k), np.float32(scale), y,
                                     log_sum)
        return y.reshape(*shape, -1), log_sum.reshape(shape)

    return forward


def backward_with(slopes, weigh, rows, block, below):
    """backward of a rung with two kernels, in which a block owns `rows` rows of the result z:

        slopes(a, b, c, d, more, log_sum, mean, scale, z)     z = ds c · scale, s = a cᵀ, dp = b dᵀ
        weigh(a, c, d, more, log_sum, scale, z)               z = p d,          s = a cᵀ

    The rows are queries for dq. They are keys for dk and dv, and all that is a number for each
    query and key is turned; so there is one kernel for dq and dk, and no sum has two owners.
    """
    def backward(dy, q, k, v, mask, scale, y, log_sum, bias=None):
        if not take("float32", q, k, v, dy, y, log_sum[..., None], mask=mask, bias=bias):
            return backward_by(below, dy, q, k, v, mask, scale, y, log_sum, bias)
        shapes = q.shape, k.shape, v.shape
        each = for_each_score(dy, q, k, mask, y, log_sum, bias)
        q, k, v, dy = map(four, (q, k, v, dy))
        turned = [a.swapaxes(2, 3) for a in each]
        dq, dk, dv = (heads_beside(a, a.shape[3]) for a in (q, k, v))
        scale = np.float32(scale)
        slopes[grid(q, rows), block](q, dy, k, v, *each, scale, dq)
        slopes[grid(k, rows), block](k, v, q, dy, *turned, scale, dk)
        weigh[grid(k, rows), block](k, q, dy, *turned[:2], scale, dv)
        return tuple(a.reshape(shape) for a, shape in zip((dq, dk, dv), shapes))

    return backward


def grid(rows, each):
    """Blocks of `each` rows of an array (N, h, L, d), heads, images"""
    N, h, L, _ = rows.shape
    return -(-L // each), h, N


def for_each_score(dy, q, k, mask, y, log_sum, bias):
    """Views (N, h, L, M) of what is added to the scores, of log_sum, and of mean = Σ dy · y."""
    with np.errstate(under="ignore"):
        mean = (dy * y).sum(axis=-1)                      # that of dp, weighted by p
    q, k = four(q), four(k)
    return [added_to_all(mask, bias, q, k),
            *(spread(four(a[..., None]), q, k) for a in (log_sum, mean))]


def widen(*arrays):
    """The arrays, those of bf16 as float32."""
    return [as_float(a) if a is not None and a.dtype.name == "bfloat16" else a for a in arrays]


def four(a):
    """a with four axes: ones in front."""
    return a.reshape((1,) * (4 - a.ndim) + a.shape)


def heads_beside(a, columns):
    """An empty array (N, h, L, columns) for a (N, h, L, d); it lies as (N, L, h, columns)."""
    N, h, L, _ = a.shape
    return empty((N, L, h, columns), a.dtype, a).swapaxes(1, 2)


def added(mask, bias, like):
    """What is added to the scores, in four axes: a bias, −∞ where a mask hides; None: nothing."""
    if mask is None and bias is None:
        return None
    xp = module_of(like)
    more = np.float32(0) if bias is None else xp.asarray(bias).astype(np.float32)
    if mask is not None:
        more = xp.where(xp.asarray(mask).astype(bool), more, np.float32(-np.inf))
    return four(more.astype(np.float32, copy=False))


def added_to_all(mask, bias, q, k):
    """The same, or zeros, as a view (N, h, L, M)."""
    more = added(mask, bias, q)
    more = module_of(q).zeros((1, 1, 1, 1), np.float32) if more is None else more
    return spread(more, q, k)


def spread(a, q, k):
    """a (…, L or 1, M or 1) as a view (N, h, L, M)"""
    return module_of(q).broadcast_to(a, (*q.shape[:3], k.shape[2]))


def rows(a):
    """(memory, steps to the next image, head, row): what CUDA C++ is told of bf16 rows."""
    image, head, row, number = steps_of(a)
    if (a.shape[3] % 8 or number > 1 or address(a) % 16
            or any(step < 0 or step % 8 for step in (image, head, row))):
        return rows_in_chunks(a)
    return memory(a), image, head, row


def rows_in_chunks(a):
    """The same of a copy, in which rows are whole chunks of 16 bytes with zeros behind."""
    a = widened(a, 3) if a.shape[3] % 8 else a.copy()
    return memory(a), *steps_of(a)[:3]


def numbers(a):
    """(memory, steps along the four axes) of float32; None is a null pointer."""
    if a is None:
        return None, 0, 0, 0, 0
    if min(steps_of(a)) < 0:
        return numbers(*contiguous(a))
    return memory(a), *steps_of(a)


def steps_of(a):
    """Numbers from one to the next along each axis, 0 where there is but one."""
    return [step // a.itemsize if n > 1 else 0 for n, step in zip(a.shape, a.strides)]


def memory(a):
    """From an array's first number to its last, all that lies between."""
    size = 1 + sum((n - 1) * step for n, step in zip(a.shape, steps_of(a)))
    return module_of(a).lib.stride_tricks.as_strided(a, (size,), (a.itemsize,))
