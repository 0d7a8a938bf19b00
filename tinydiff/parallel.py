"""Independent pieces of work side by side, each on its own core.

NumPy uses one core for everything but matrix products. Splitting the batch instead keeps all cores
busy all the time; and where the pieces do not depend on the number of cores, no result does.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from functools import cache


def cores():
    """How many cores this process may use; OMP_NUM_THREADS, where set, says fewer."""
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(have, int(wanted))) if wanted.isdecimal() else have


def side_by_side(f, *pieces):
    """[f(*piece) for piece in zip(*pieces)], on as many threads as there are cores.

    BLAS keeps to one thread meanwhile: the two would fight, and its threads round differently.
    Each piece runs in a copy of the caller's context, np.errstate included. The first exception is
    raised, once every piece has ended.
    """
    contexts = [copy_context() for _ in pieces[0]]
    threads = min(cores(), len(contexts))
    with one_blas_thread():
        if threads <= 1:
            return [f(*piece) for piece in zip(*pieces, strict=True)]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda context, *piece: context.run(f, *piece),
                                 contexts, *pieces))


def one_blas_thread():
    """A context in which BLAS uses the caller's thread alone, where threadpoolctl is installed."""
    return blas().limit(limits=1) if blas() else nullcontext()


@cache
def blas():
    """The BLAS that NumPy has loaded, as something that can be limited."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")
