"""The convolution's kernels in Python, stepped through on the CPU: right and without races."""

import re
from pathlib import Path

import numpy as np
import pytest
from conv2d_helpers import SAME, arrays, double, error, results
from gpu_helpers import ORDERS, needs_compiler
from test_kernels_conv2d import LAYOUTS, SHAPES, check
from tinydiff_kernels.conv2d import LADDER
from tinydiff_kernels.gpu.order import stepping
from tinydiff_kernels.gpu.parts import in_parts
from tinydiff_kernels.gpu.python import Kernel
from tinydiff_kernels.gpu.trace import bank_conflicts, coalescing
from tinydiff_kernels.gpu.watched import Race

pytest.importorskip("greenlet", reason="stepping through a kernel in Python needs greenlet")

pytestmark = needs_compiler                               # parts of sums are added in CUDA C++
RUNGS = ["cuda_naive", "cuda_tiled"]
SMALL = {"ROWS": 4, "EACH": 4, "LANES": 8, "WIDE": 16, "BLOCK": (8, 4), "SLAB": 5, "ROOM": 1024}
CASES = {
    **SHAPES,
    "many small tiles":    ((2, 9, 6, 7), (3, 2, 7, 18), 1, SAME),
    "a tile's last pixel": ((1, 9, 5, 18), (1, 1, 18, 17), 1, ((0, 0), (0, 0))),
}
CROPPED = [((1, 7, 8, 3), (3, 3, 3, 2), 1, ((-1, 0), (2, -2))),
           ((2, 7, 8, 2), (5, 3, 2, 3), 3, ((2, -1), (-1, 3)))]
each_rung = pytest.mark.parametrize("rung", RUNGS)


@pytest.fixture
def small_tiles(monkeypatch):
    """So that small pictures have many, and are stepped through soon."""
    for name, size in SMALL.items():
        monkeypatch.setattr(LADDER["cuda_tiled"], name, size)


@pytest.mark.parametrize(("shape", "order"), list(zip(CASES, ORDERS * len(CASES))))
@each_rung
def test_a_rung_is_rung_0_in_float32_in_any_order_of_threads(rung, shape, order, small_tiles):
    *_, stride, padding = case = CASES[shape]
    with stepping(order=order):
        check(rung, *arrays(*case), stride, padding)


@each_rung
@pytest.mark.parametrize("case", CROPPED, ids=str)
def test_a_negative_padding_crops(rung, case, small_tiles):
    x, w, dy = arrays(*case)
    exact, plain = (results(LADDER["loops"], *of, *case[2:])
                    for of in (double(x, w, dy), (x, w, dy)))
    for name, y in results(LADDER[rung], x, w, dy, *case[2:]).items():
        allowed = 2 * max(error(plain[name], exact[name]), 2.0**-23 * np.abs(exact[name]).max())
        assert error(y, exact[name]) <= allowed, name


#    x, w, stride, padding: 8 × 8 pixels and 64 channels a tile, 32 channels at a time
LARGE = [((1, 9, 3, 2), (3, 1, 2, 5), 1, ((1, 1), (0, 0))),
         ((1, 2, 9, 33), (1, 2, 33, 2), 1, ((0, 0), (0, 1))),
         ((1, 5, 2, 2), (2, 2, 2, 66), 2, ((1, 0), (0, 1)))]


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_a_tile_of_its_real_size_is_rung_0(case):
    check("cuda_tiled", *arrays(*case), *case[2:])


@each_rung
def test_the_order_of_threads_changes_no_bit(rung, small_tiles):
    *_, stride, padding = case = CASES["halved, one-sided"]
    found = []
    for order in ORDERS:
        with stepping(order=order):
            found.append(results(LADDER[rung], *arrays(*case), stride, padding))
        for name, y in found[0].items():
            np.testing.assert_array_equal(found[-1][name], y)


@each_rung
def test_the_bias_is_added(rung, small_tiles):
    x, w, _ = arrays((1, 3, 5, 2), (3, 3, 2, 17), 1, SAME)
    b = np.arange(17, dtype=np.float32)
    y = LADDER[rung].forward(x, w, 1, SAME, b)
    assert error(y, LADDER["im2col"].forward(x, w, 1, SAME) + b) < 1e-5


def test_the_sum_over_many_rows_of_pixels_is_cut_into_parts(small_tiles):
    case = (4, 11, 3, 2), (1, 1, 2, 3), 1, ((0, 0), (0, 0))
    parts, each = in_parts(4 * 11, 1, step=1)
    assert parts == 11
    assert (parts - 1) * each < 4 * 11 <= parts * each
    check("cuda_tiled", *arrays(*case), *case[2:])


def test_a_window_too_large_for_shared_memory_goes_to_rung_5(small_tiles, monkeypatch):
    x, w, dy = arrays((1, 5, 4, 2), (3, 3, 2, 3), 1, SAME)
    right = results(LADDER["cuda_naive"], x, w, dy, 1, SAME)
    monkeypatch.setattr(LADDER["cuda_tiled"], "ROOM", 6 * 6 - 1)         # (4 − 1) + 3 on a side
    for name, y in results(LADDER["cuda_tiled"], x, w, dy, 1, SAME).items():
        assert error(y, right[name]) < 1e-5, name
    np.testing.assert_array_equal(LADDER["cuda_tiled"].forward(x, w, 1, SAME), right["forward"])


@each_rung
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rung_reads_arrays_of_any_layout_and_leaves_them(rung, layout, small_tiles):
    plain = arrays((1, 4, 5, 3), (3, 2, 3, 2), 1, SAME)
    other = [LAYOUTS[layout](a) for a in plain]
    exact = results(LADDER["im2col"], *plain, 1, SAME)
    for name, got in results(LADDER[rung], *other, 1, SAME).items():
        assert error(got, exact[name]) < 1e-5, name
    for a, b in zip(plain, other):
        np.testing.assert_array_equal(a, b)


@each_rung
def test_float64_goes_to_im2col(rung, monkeypatch):
    monkeypatch.setattr(Kernel, "launch", lambda *arguments: pytest.fail("a kernel was launched"))
    x, w, dy = arrays((2, 5, 4, 3), (3, 3, 3, 2), 2, SAME, dtype=np.float64)
    right = results(LADDER["im2col"], x, w, dy, 2, SAME)
    for name, y in results(LADDER[rung], x, w, dy, 2, SAME).items():
        np.testing.assert_array_equal(y, right[name])


@each_rung
def test_no_kernel_reads_what_does_not_fit(rung, monkeypatch):
    for function in ("forward", "grad_input", "grad_weight"):
        monkeypatch.setattr(LADDER["im2col"], function, lambda *arguments: "left to im2col")
    x, w, dy = arrays((1, 5, 4, 3), (3, 3, 3, 2), 1, SAME)
    assert LADDER[rung].forward(x, w[:, :, 1:], 1, SAME) == "left to im2col"
    assert LADDER[rung].forward(x, w, 1, SAME, np.ones(3, np.float32)) == "left to im2col"
    assert LADDER[rung].grad_input(dy[..., 1:], w, x.shape, 1, SAME) == "left to im2col"
    assert LADDER[rung].grad_weight(dy, x[..., 1:], w.shape, 1, SAME) == "left to im2col"
    assert LADDER[rung].grad_weight(dy[..., 1:], x, w.shape, 1, SAME) == "left to im2col"
    assert LADDER[rung].grad_weight(np.repeat(dy, 2, 0), x, w.shape, 1, SAME) == "left to im2col"
    assert LADDER[rung].grad_input(dy, w, (2, 5, 4, 3), 1, SAME) == "left to im2col"


def traced(rung, count):
    """{(kernel, array, kind): rows that `count` makes}, pictures of one tile, warps full."""
    traces, case = [], ((1, 8, 8, 32), (1, 1, 32, 32), 1, ((0, 0), (0, 0)))
    with stepping(trace=traces, races=False):
        results(LADDER[rung], *arrays(*case), *case[2:])
    found = {}
    for trace in traces:
        for row in count(trace):
            found.setdefault((trace.kernel, row.array, row.kind), set()).add(row)
    return found


def test_a_warp_of_rung_5_asks_for_as_many_sectors_as_its_docstring_says():
    found = traced("cuda_naive", coalescing)
    for what, sectors in {("convolve", "x", "read"): 1, ("convolve", "w", "read"): 4,
                          ("convolve", "y", "write"): 4, ("convolve_back", "dy", "read"): 1,
                          ("convolve_back", "w", "read"): 32, ("correlate", "x", "read"): 1,
                          ("correlate", "dy", "read"): 4}.items():
        assert {row.sectors for row in found[what]} == {sectors}, what


def test_rung_6_wastes_no_sector_and_meets_in_no_bank():
    sectors, banks = traced("cuda_tiled", coalescing), traced("cuda_tiled", bank_conflicts)
    for (kernel, array, kind), rows in sectors.items():
        assert {row.sectors for row in rows} == {4}, (kernel, array, kind)
    assert {row.ways for rows in banks.values() for row in rows} == {1}


@pytest.mark.parametrize("n", range(4))
def test_each_barrier_is_needed_in_every_order(n, small_tiles):
    """Without it the simulator finds a race: so it would find one that is there."""
    tiled = LADDER["cuda_tiled"]
    path = Path(tiled.__file__)
    source = path.read_text(encoding="utf-8")
    first, last = [at.span() for at in re.finditer(r"cuda\.syncthreads\(\)", source)][n]
    rung = {"__name__": tiled.__name__, "__package__": tiled.__package__}
    exec(compile(f"{source[:first]}pass{source[last:]}", path, "exec"), rung)
    rung.update(SMALL)
    x, w, dy = arrays((1, 5, 9, 7), (3, 3, 7, 2), 1, SAME)
    calls = {"forward": (x, w), "grad_weight": (dy, x, w.shape)}
    function = "forward" if n < 2 else "grad_weight"
    for order in ORDERS:
        with pytest.raises(Race, match=r"(pixels|side)\["), stepping(order=order):
            rung[function](*calls[function], 1, SAME)
