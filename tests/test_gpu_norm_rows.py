"""LayerNorm on a GPU, stepped through on the CPU, against rung 0 in float64."""

import numpy as np
import pytest
from gpu_helpers import any_order, as_bf16, bf16, distance, double, needs_compiler
from tinydiff_kernels.norm import LADDER

pytest.importorskip("greenlet", reason="kernels in Python are stepped through with greenlet")

__all__ = ["any_order"]
EPS = 1e-5


def check(rung, P, D, mean, dtype):
    """Hold a rung's errors against twice those of plain float32 arithmetic, rounded to its type."""
    rng, definition = np.random.default_rng(0), LADDER["numpy"]
    x = (mean + 3 * rng.standard_normal((1, P, D))).astype(dtype)
    dy = rng.standard_normal((1, P, D)).astype(dtype)
    scale, shift = rng.standard_normal((2, D), dtype=np.float32)

    def results(rung, x, dy, scale, shift):
        return rung.rows(x, scale, shift, EPS), *rung.rows_backward(dy, x, scale, EPS)

    exact = results(definition, *double(x, dy, scale, shift))
    plain = results(definition, x.astype(np.float32), dy.astype(np.float32), scale, shift)
    got = results(rung, x, dy, scale, shift)
    for a, b, c, kind in zip(got, plain, exact, (dtype, dtype, np.float32, np.float32)):
        assert a.dtype == kind
        allowed = max(distance(b, c), 2**-24)             # relative to the length of c
        if kind == bf16:
            allowed = max(allowed, distance(as_bf16(c), c))
        assert distance(a, c) <= 2 * allowed


@needs_compiler
@pytest.mark.parametrize(("P", "D"), [(1, 1), (7, 5), (3, 33), (9, 64), (70, 77), (5, 640)])
@pytest.mark.parametrize("dtype", [np.float32, bf16], ids=["float32", "bf16"])
@pytest.mark.parametrize("mean", [0, 100])
def test_vector_normalizes_each_row_by_itself(P, D, mean, dtype, any_order):
    check(LADDER["vector"], P, D, mean, dtype)


@needs_compiler
def test_many_rows_make_several_tiles_of_sums():
    check(LADDER["vector"], 301, 24, 1.0, np.float32)


@pytest.mark.parametrize("idea", ["cuda_twopass", "cuda_shuffle"])
@pytest.mark.parametrize(("P", "D"), [(1, 1), (5, 33), (2, 150)])
def test_a_rung_in_python_normalizes_each_row_by_itself(idea, P, D, any_order):
    check(LADDER[idea], P, D, 1.0, np.float32)


@pytest.mark.parametrize("idea", LADDER.device)
def test_no_rows_and_rows_of_float64_go_down(idea, rng):
    rung, scale = LADDER[idea], np.ones(6)
    x = rng.standard_normal((2, 3, 6))
    np.testing.assert_array_equal(rung.rows(x, scale, scale, EPS),
                                  LADDER["numpy"].rows(x, scale, scale, EPS))
    none = np.zeros((0, 6), np.float32)
    dx, dscale, dshift = rung.rows_backward(none, none, np.ones(6, np.float32), EPS)
    assert (dx.shape, dscale.tolist(), dshift.tolist()) == ((0, 6), [0] * 6, [0] * 6)
