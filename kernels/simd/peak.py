"""What the machine could do at best: multiplications in registers, bytes from memory."""

from time import perf_counter

from ..memory import empty
from .functions import at, copy
from .microkernels import multiply
from .pool import run, threads
from .product import PANEL, ROWS
from .tasks import rare_task

DEEP, ROUNDS = 128, 2000                                  # k's of a product that stays in L1
LARGE = 1 << 25                                           # floats to copy: 128 MB, past every cache


@rare_task
def products(item, worker, a, b, c):
    for _ in range(ROUNDS):
        multiply(a, DEEP, 1, b, PANEL, at(c, worker * ROWS * PANEL), PANEL, DEEP)


@rare_task
def copies(item, worker, x, y, n):
    copy(at(x, item * n), at(y, item * n), n)


def flops_per_second():
    """Of all threads together, each multiplying what lies in its nearest cache."""
    a, b = empty((ROWS, DEEP)), empty((DEEP, PANEL))
    a[...] = b[...] = 1
    c, items = empty((threads(), ROWS, PANEL)), 4 * threads()
    best = min(seconds(products, items, a, b, c) for _ in range(10))
    return items * ROUNDS * 2 * ROWS * PANEL * DEEP / best


def bytes_per_second():
    """Of all threads together, reading one large array and writing another."""
    x, y, items = empty((LARGE,)), empty((LARGE,)), 64
    x[...] = 1
    best = min(seconds(copies, items, x, y, LARGE // items) for _ in range(6))
    return 8 * LARGE / best


def seconds(task, items, *arguments):
    start = perf_counter()
    run(task, items, *arguments)
    return perf_counter() - start
