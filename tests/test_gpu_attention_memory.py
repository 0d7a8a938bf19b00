"""What attention's kernels in Python ask of memory, and that they need every barrier they have."""

import re
from pathlib import Path

import pytest
from gpu_helpers import ORDERS
from test_kernels_attention import arrays, results
from tinydiff_kernels.attention import LADDER
from tinydiff_kernels.gpu.order import stepping
from tinydiff_kernels.gpu.trace import bank_conflicts, coalescing
from tinydiff_kernels.gpu.watched import Race

pytest.importorskip("greenlet", reason="stepping through a kernel in Python needs greenlet")

# N, h, L, M, d, e with which all warps are full
FULL = {"cuda_naive": (1, 1, 2, 32, 8, 8), "cuda_online": (1, 1, 4, 4, 32, 32),
        "cuda_tiled": (1, 1, 16, 16, 16, 16)}
# (kernel, array, access): sectors of 32 bytes for a warp
SECTORS = {
    "cuda_naive": {("fits", "x", "read"): {1}, ("fits", "y", "read"): {32},
                   ("fits", "s", "write"): {4}},
    "cuda_online": {("attend", "k", "read"): {4}, ("attend", "v", "read"): {4},
                    ("slopes", "c", "read"): {4}, ("weigh", "d", "read"): {4}},
    "cuda_tiled": {("attend", "k", "read"): {4}, ("attend", "v", "read"): {4},
                   ("slopes", "c", "read"): {4}, ("weigh", "d", "read"): {4}},
}


def accesses(idea, count):
    """{(kernel, array): what `count` says of its rows} of a rung, warps full."""
    traces = []
    with stepping(trace=traces, races=False):
        results(LADDER[idea], *arrays(*FULL[idea]))
    found = {}
    for trace in traces:
        for row in count(trace):
            found.setdefault((trace.kernel, row.array, row.kind), []).append(row)
    return found


@pytest.mark.parametrize("idea", FULL)
def test_a_warp_asks_for_as_many_sectors_of_memory_as_its_docstring_says(idea):
    found = accesses(idea, coalescing)
    for what, sectors in SECTORS[idea].items():
        assert {row.sectors for row in found[what]} == sectors, what


def test_lanes_of_a_warp_meet_in_no_bank_of_shared_memory_but_two_that_fetch():
    for (kernel, array, kind), rows in accesses("cuda_tiled", bank_conflicts).items():
        ways = 2 if kind == "write" and array in ("left", "right", "p", "slab") else 1
        assert {row.ways for row in rows} == {ways}, (kernel, array, kind)


@pytest.mark.parametrize("n", range(5))
def test_each_barrier_is_needed_in_every_order(n):
    """Without it the simulator finds a race: so it would find one that is there."""
    path = Path(LADDER["cuda_tiled"].__file__)
    source = path.read_text(encoding="utf-8")
    barriers = [at.span() for at in re.finditer(r"cuda\.syncthreads\(\)", source)]
    assert len(barriers) == 5
    start, end = barriers[n]
    rung = {name: getattr(LADDER["cuda_tiled"], name) for name in ("__name__", "__package__")}
    exec(compile(f"{source[:start]}pass{source[end:]}", path, "exec"), rung)
    q, k, v, _ = arrays(1, 1, 3, 20, 20, 20)
    for order in ORDERS:
        with pytest.raises(Race, match=r"(left|right|p|slab)\["), stepping(order=order):
            rung["forward"](q, k, v, None, 1.0)
