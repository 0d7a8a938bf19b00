"""A long sum in parts that fill the GPU, added up in their order.  parts.cu"""

from .arrays import empty
from .source import Source

code = Source(__file__)
BLOCKS = 2 * 132                                          # of 256 threads, at once on an H100


def in_parts(length, blocks, step):
    """(how many parts, how long each is): as many as fill the GPU, each at least 4 steps long.

    `blocks` is how many there are without parts. What is summed where depends on the shapes alone.
    """
    wanted = max(1, min(BLOCKS // max(blocks, 1), length // (4 * step)))
    each = -(-length // (wanted * step)) * step
    return max(1, -(-length // each)) if each else 1, max(each, step)


def sum_parts(x):
    """x (parts, …) float32 -> Σ over parts, from the first to the last"""
    if len(x) == 1:
        return x[0]
    y = empty(x.shape[1:], x.dtype, like=x)
    code.sum_parts[-(-y.size // 256), 256](x, y, len(x), y.size)
    return y
