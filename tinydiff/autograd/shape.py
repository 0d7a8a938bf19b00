"""Ops that move numbers and change none of them. Backward moves the gradient home."""

import numpy as np

from tinydiff.autograd.tensor import op
from tinydiff.backend import alongside, array_module
from tinydiff.kernels import elementwise


@op
def reshape(x, *, shape):
    """The same numbers in the same order under another shape"""
    return x.reshape(shape), lambda dy: (dy.reshape(x.shape),)


@op
def transpose(x, *, axes):
    """Axes in another order: y.shape[i] = x.shape[axes[i]]"""
    home = tuple(np.argsort([axis % x.ndim for axis in axes]).tolist())
    return x.transpose(axes), lambda dy: (dy.transpose(home),)


@op
def getitem(x, *, index):
    """x[index] for slices, numbers and arrays of integers; what is taken twice is added twice"""
    xp = array_module(x)
    basic = all(isinstance(i, (int, slice, type(None), type(...)))
                for i in (index if isinstance(index, tuple) else (index,)))

    def vjp(dy):
        dx = xp.zeros_like(x)
        if basic:
            dx[index] = dy
        else:
            xp.add.at(dx, index, dy)
        return (dx,)

    return x[index], vjp


@op
def embedding(table, *, ids):
    """table (V, D) looked up at ids (…) of integers -> (…, D).  Raises ValueError outside 0…V−1."""
    xp, ids = array_module(table), rows_of(ids, table)

    def vjp(dy):
        dtable = xp.zeros_like(table)
        xp.add.at(dtable, ids, dy)
        return (dtable,)

    return table[ids], vjp


def rows_of(ids, table):
    """ids where `table` lives.  ValueError for one without a row, unless they are there already."""
    if array_module(ids) is np and ids.size and not 0 <= ids.min() <= ids.max() < len(table):
        raise ValueError(f"embedding: ids from {ids.min()} to {ids.max()}, "
                         f"the table has rows 0 to {len(table) - 1}")
    return alongside(ids, table)


@op
def concat(*xs, axis=-1):
    """One after the other along `axis`"""
    separate("concat", xs)
    xp = array_module(xs[0])
    cuts = np.cumsum([x.shape[axis] for x in xs])[:-1]
    return xp.concatenate(xs, axis=axis), lambda dy: tuple(xp.split(dy, cuts, axis=axis))


@op
def stack(*xs, axis=0):
    """Side by side along a new `axis`"""
    separate("stack", xs)
    xp = array_module(xs[0])

    def vjp(dy):
        return tuple(xp.moveaxis(dy, axis, 0))

    return xp.stack(xs, axis=axis), vjp


def separate(name, xs):
    """Refuse a list, in which Tensors could not be seen."""
    if not xs or isinstance(xs[0], (list, tuple)):
        raise ValueError(f"{name}: expected {name}(x, y, …), got one list; write {name}(*xs)")


@op
def pad(x, *, widths):
    """Zeros around: widths ((before, after), …), one pair an axis"""
    inside = tuple(slice(before, before + n)
                   for (before, _), n in zip(widths, x.shape, strict=True))
    return array_module(x).pad(x, widths), lambda dy: (dy[inside],)


@op
def broadcast(x, *, shape):
    """x stretched to `shape`; `backward` sums it up again"""
    return array_module(x).broadcast_to(x, shape), lambda dy: (dy,)


@op
def upsample(x, *, factor=2):
    """Nearest neighbour: x (N, H, W, C) -> (N, H·factor, W·factor, C)"""
    N, H, W, C = x.shape
    if factor == 2:
        return elementwise.upsample2(x), lambda dy: (elementwise.upsample2_backward(dy),)
    xp = array_module(x)
    y = xp.broadcast_to(x[:, :, None, :, None], (N, H, factor, W, factor, C))

    def vjp(dy):
        return (dy.reshape(N, H, factor, W, factor, C).sum(axis=(2, 4)),)

    return y.reshape(N, H * factor, W * factor, C), vjp
