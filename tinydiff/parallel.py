"""How many threads there are, and BLAS kept to one of them.

The kernels have threads of their own (kernels/simd/pool.py). BLAS is left the small products:
its threads would fight theirs for the cores, and round differently for each number of them.
"""

from contextlib import contextmanager
from functools import cache

from tinydiff.kernels import threads as cores

__all__ = ["cores", "one_blas_thread"]


@contextmanager
def one_blas_thread():
    """A context in which BLAS uses the caller's thread alone, where threadpoolctl is installed."""
    if not blas():
        yield
        return
    with blas().limit(limits=1):
        yield


@cache
def blas():
    """The BLAS that NumPy has loaded, as something that can be limited."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")
