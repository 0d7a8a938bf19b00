"""The products of a linear layer on tensor cores, stepped through on the CPU, against float64."""

import numpy as np
import pytest
from gpu_helpers import any_order, bf16, close, double, needs_compiler, numbers
from tinydiff_kernels.gpu.host import Fault
from tinydiff_kernels.gpu.parts import in_parts, sum_parts
from tinydiff_kernels.gpu.source import Source
from tinydiff_kernels.matmul import rung7_mma as mma, rung8_wgmma as wgmma

__all__ = ["any_order"]
pytestmark = needs_compiler
both = pytest.mark.parametrize("rung", [mma, wgmma], ids=["mma", "wgmma"])
# P, C, O: ragged tiles, one and several steps and blocks, widths that are no multiples of 8
SHAPES = [(100, 72, 136), (300, 20, 9), (130, 264, 24), (1, 8, 8), (64, 3, 200)]
each_shape = pytest.mark.parametrize(("P", "C", "O"), SHAPES)


@both
@each_shape
def test_a_linear_layer_and_its_gradients_equal_the_definition(rung, P, C, O, rng, any_order):
    x, w, dy, add = (numbers(rng, *shape) for shape in ((P, C), (C, O), (P, O), (P, O)))
    b = numbers(rng, O, dtype=np.float32)
    X, W, DY, ADD = double(x, w, dy, add)
    y, dx, dw = rung.forward(x, w, b, add), rung.grad_input(dy, w), rung.grad_weight(x, dy)
    assert (y.dtype, dx.dtype, dw.dtype) == (bf16, bf16, np.float32)
    assert close(y, X @ W + b + ADD)
    assert close(rung.forward(x, w), X @ W)
    assert close(dx, DY @ W.T)
    assert close(dw, X.T @ DY)


@both
@pytest.mark.parametrize("C1", [40, 37])
def test_two_inputs_side_by_side_are_read_where_they_lie(rung, C1, rng):
    xs, w, dy = [numbers(rng, 130, n) for n in (C1, 88 - C1)], numbers(rng, 88, 24), None
    dy = numbers(rng, 130, 24)
    X, (W, DY) = np.concatenate(double(*xs), axis=1), double(w, dy)
    assert close(rung.forward(xs, w), X @ W)
    assert close(rung.grad_weight(xs, dy), X.T @ DY)
    first, second = rung.grad_input(dy, w, C1)
    assert close(first, (DY @ W.T)[:, :C1])
    assert close(second, (DY @ W.T)[:, C1:])


@pytest.mark.parametrize(("length", "blocks"), [
    (1, 1), (64, 1), (2304, 9), (131072, 1), (131072, 72), (100_000, 264), (0, 4)])
def test_parts_cover_a_sum_once_and_are_some_steps_long(length, blocks):
    parts, each = in_parts(length, blocks, step=64)
    assert each % 64 == 0
    assert (parts - 1) * each < max(length, 1) <= parts * each
    assert parts * blocks <= max(264, blocks)
    assert parts == 1 or each >= 4 * 64


def test_parts_are_added_from_the_first_to_the_last(rng):
    x = numbers(rng, 5, 3, 100, dtype=np.float32)
    assert (sum_parts(x) == (((x[0] + x[1]) + x[2]) + x[3]) + x[4]).all()


WGMMA = """
#include "wgmma.cuh"
KERNEL(128) square(const bf16* x, float* y) {             // y = x xᵀ, x (128, 64)
    Stage& tiles = *reinterpret_cast<Stage*>(shared_memory());
    Warp warp;
    GroupSums sums;
    auto from = [&](int, int row, int c) { return Chunk{x + row * 64 + 8 * c, true}; };
    copy_tile(tiles.a, from);
    copy_tile(tiles.b, from);
    cp_commit();
    cp_wait<0>();
    show_copies();
    __syncthreads();
    sums.add<false, false>(tiles, warp);
    for_each(sums, warp, [&](int m, int n, float u, float v) {
        y[m * 128 + n] = u, y[m * 128 + n + 1] = v;
    });
}
"""


@pytest.fixture
def square(tmp_path, rng):
    """A function: x xᵀ by wgmma, something left out of its source -> whether it is right."""
    def run(found="", planted="", header=None):
        text = WGMMA.replace(found, planted) if header is None else WGMMA.replace(
            '#include "wgmma.cuh"', header)
        (tmp_path / "square.cu").write_text(text, encoding="utf-8")
        x, y = numbers(rng, 128, 64), np.full((128, 128), np.nan, np.float32)
        Source(tmp_path / "square.cu").square[1, 128, 33792](x, y)
        return close(y, double(x)[0] @ double(x)[0].T)
    return run


def test_a_warpgroup_multiplies_tiles_that_lie_in_shared_memory(square):
    assert square()


def test_wgmma_before_copies_are_shown_to_it_is_named(square):
    with pytest.raises(Fault, match="wgmma may not see what"):
        square("    show_copies();\n", "")


def test_wgmma_of_a_tile_at_a_crooked_address_is_named(square):
    with pytest.raises(Fault, match="no multiple of 1024 bytes"):
        square("Stage& tiles = *reinterpret_cast<Stage*>(shared_memory())",
               "Stage& tiles = *reinterpret_cast<Stage*>(shared_memory() + 16)")


def test_sums_of_wgmma_are_not_there_before_the_wait(square):
    from tinydiff_kernels.gpu import host
    text = (host.HERE / "wgmma.cuh").read_text(encoding="utf-8")
    early = text.replace("wgmma_wait<0>();", "")
    assert early != text
    assert square(header=text)
    assert not square(header=early)
