"""What tests of a GPU's kernels share: bf16 numbers, an honest tolerance, the orders of threads."""

import shutil

import numpy as np
import pytest
from tinydiff_kernels.gpu.order import stepping

bf16 = pytest.importorskip("ml_dtypes", reason="bf16 arrays need ml_dtypes").bfloat16
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs the compiler g++")
ORDERS = ("forward", "reverse", 7)


@pytest.fixture(params=ORDERS, ids=str)
def any_order(request):
    """Run the test once for each order in which the threads of a block may take turns."""
    with stepping(order=request.param):
        yield request.param


def numbers(rng, *shape, dtype=bf16):
    return rng.standard_normal(shape).astype(dtype)


def double(*arrays):
    return [a.astype(np.float64) for a in arrays]


def as_bf16(exact):
    """What is left of numbers that are stored as bf16, in float64."""
    return exact.astype(np.float32).astype(bf16).astype(np.float64)


def distance(got, exact):
    """‖got − exact‖ / ‖exact‖; infinite for NaN and for another shape, so that neither passes."""
    got = np.asarray(got, np.float64)
    if got.shape != exact.shape or not np.isfinite(got).all():
        return np.inf
    return np.linalg.norm(got - exact) / max(np.linalg.norm(exact), 1e-30)


def close(got, exact, plain=None):
    """Whether `got` is at most twice as far from the truth as plain arithmetic of its precision.

    plain: what that gives; else, for bf16 the truth rounded, for float32 a sum in float32, whose
    error is some 1e-7.
    """
    if plain is None:
        plain = as_bf16(exact) if got.dtype == bf16 else exact * (1 + 3e-7)
    return distance(got, exact) <= 2 * distance(plain, exact)
