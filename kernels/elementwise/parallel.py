"""The loops of elementwise operations on contiguous float32; an item is a piece of the arrays.

Each number comes from memory once and goes there once, on all threads: one alone cannot keep the
memory busy. SiLU counts its own exponentials, WIDTH at a time.
"""

from ..memory import empty
from ..simd.functions import WIDTH, gelu as gelu_of, gelu_slope, sigmoid, silu as silu_of
from ..simd.pool import run
from ..simd.tasks import Task, task
from ..simd.vector import fma, load_part, splat, store_part

EACH = 2**14                                              # numbers an item takes of each array


def add(x, y, out=None):
    return over(sums, x, y, out=out)


def mul(x, y):
    return over(products, x, y)


def gelu(x):
    return over(gelus, x)


def gelu_backward(dy, x):
    return over(gelu_slopes, dy, x)


def silu(x):
    return over(silus, x)


def silu_backward(dy, x):
    return over(slopes, dy, x)


def upsample2(x):
    N, H, W, C = x.shape
    y = empty((N, 2 * H, 2 * W, C))
    rows = max(1, EACH // (4 * W * C))
    run(spread, -(-N * H // rows), x, y, N * H, W, C, rows)
    return y


def upsample2_backward(dy):
    N, H, W, C = dy.shape
    dx = empty((N, H // 2, W // 2, C))
    rows = max(1, EACH // (2 * W * C))
    run(gather, -(-N * H // 2 // rows), dy, dx, N * H // 2, W // 2, C, rows)
    return dx


def over(task, *arrays, out=None):
    """out = f(*arrays), number by number."""
    out = empty(arrays[0].shape) if out is None else out
    run(task, -(-out.size // EACH), *arrays, out, out.size)
    return out


def of_one(name, f):
    """The task y = f(x)."""
    def each(item, worker, x, y, n):
        last = min(item * EACH + EACH, n)
        for i in range(item * EACH, last, WIDTH):
            lanes = min(WIDTH, last - i)
            store_part(y, i, f(load_part(x, i, lanes)), lanes)

    return Task(each, common=True, name=f"elementwise.{name}")


def of_two(name, f):
    """The task out = f(x, y)."""
    def each(item, worker, x, y, out, n):
        last = min(item * EACH + EACH, n)
        for i in range(item * EACH, last, WIDTH):
            lanes = min(WIDTH, last - i)
            store_part(out, i, f(load_part(x, i, lanes), load_part(y, i, lanes)), lanes)

    return Task(each, common=True, name=f"elementwise.{name}")


def plus(x, y):
    return x + y


def times(x, y):
    return x * y


def steep(dy, x):
    """dy · d silu/dx"""
    s = sigmoid(x)
    return dy * (s * fma(x, splat(1.0) - s, splat(1.0)))


def gelu_steep(dy, x):
    """dy · d gelu/dx"""
    return dy * gelu_slope(x)


sums, products, slopes = of_two("sums", plus), of_two("products", times), of_two("slopes", steep)
gelus, silus = of_one("gelus", gelu_of), of_one("silus", silu_of)
gelu_slopes = of_two("gelu_slopes", gelu_steep)


@task
def spread(item, worker, x, y, total, W, C, rows):
    """Two rows of y for each of an item's rows of x (total, W, C)."""
    for row in range(item * rows, min(item * rows + rows, total)):
        for q in range(W):
            source, target = (row * W + q) * C, (row * 4 * W + 2 * q) * C
            for c in range(0, C, WIDTH):
                lanes = min(WIDTH, C - c)
                pixel = load_part(x, source + c, lanes)
                for i in range(2):
                    here = target + i * 2 * W * C + c
                    store_part(y, here, pixel, lanes)
                    store_part(y, here + C, pixel, lanes)


@task
def gather(item, worker, dy, dx, total, W, C, rows):
    """One row of dx (total, W, C) for each two of an item's rows of dy."""
    for row in range(item * rows, min(item * rows + rows, total)):
        for q in range(W):
            source, target = (row * 4 * W + 2 * q) * C, (row * W + q) * C
            for c in range(0, C, WIDTH):
                lanes = min(WIDTH, C - c)
                up, down = source + c, source + 2 * W * C + c
                above = load_part(dy, up, lanes) + load_part(dy, up + C, lanes)
                below = load_part(dy, down, lanes) + load_part(dy, down + C, lanes)
                store_part(dx, target + c, above + below, lanes)
