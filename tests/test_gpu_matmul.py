"""The matrix product's kernels in Python, stepped through on the CPU: right and without races."""

import re
from pathlib import Path

import numpy as np
import pytest
from gpu_helpers import ORDERS, needs_compiler
from test_kernels_matmul import LAYOUTS, RESULTS, agree, arrays, results
from tinydiff_kernels.gpu.order import stepping
from tinydiff_kernels.gpu.parts import in_parts
from tinydiff_kernels.gpu.python import Kernel
from tinydiff_kernels.gpu.trace import bank_conflicts, coalescing
from tinydiff_kernels.gpu.watched import Race
from tinydiff_kernels.matmul import LADDER

pytest.importorskip("greenlet", reason="stepping through a kernel in Python needs greenlet")

RUNGS = ["cuda_naive", "cuda_coalesced", "cuda_shared", "cuda_register"]
each_rung = pytest.mark.parametrize("idea", RUNGS)

# P, C, O: one of each; several tiles of 16 and steps, all ragged; two tiles of 64 each way
CASES = [((1, 1, 1), "forward"), ((33, 20, 18), "reverse"), ((33, 20, 18), 7),
         ((70, 20, 5), 3), ((5, 20, 70), "forward"), ((3, 66, 17), "reverse")]


@each_rung
@pytest.mark.parametrize(("shape", "order"), CASES)
def test_a_rung_is_as_exact_as_plain_arithmetic_in_any_order_of_threads(idea, shape, order):
    of = arrays(*shape)
    with stepping(order=order):
        agree(results(LADDER[idea], *of), of)


@each_rung
def test_the_order_of_threads_changes_no_bit(idea):
    of = arrays(9, 17, 5)
    first, *others = [stepped(idea, order, of) for order in ORDERS]
    for other in others:
        for name in RESULTS:
            np.testing.assert_array_equal(other[name], first[name])


def stepped(idea, order, of):
    with stepping(order=order):
        return results(LADDER[idea], *of)


def test_rungs_3_and_4_differ_in_an_index_and_not_in_a_bit():
    of = arrays(9, 5, 35)
    naive, coalesced = (results(LADDER[idea], *of) for idea in RUNGS[:2])
    for name in RESULTS:
        np.testing.assert_array_equal(naive[name], coalesced[name])


@each_rung
@pytest.mark.parametrize(("P", "C1", "C2", "O"), [(18, 3, 17, 5), (5, 16, 1, 17)])
def test_two_inputs_side_by_side_are_one(idea, P, C1, C2, O):
    rung = LADDER[idea]
    x, w, b, add, dy = of = arrays(P, C1 + C2, O)
    parts = [x[:, :C1], x[:, C1:]]
    dx = rung.grad_input(dy, w, C1)
    assert [part.shape for part in dx] == [(P, C1), (P, C2)]
    agree({"forward": rung.forward(parts, w), "fused": rung.forward(parts, w, b, add),
           "grad_input": np.concatenate(dx, axis=1), "grad_weight": rung.grad_weight(parts, dy)},
          of)


@needs_compiler
def test_the_sum_over_many_rows_is_cut_into_parts_and_never_changes(monkeypatch):
    rung = LADDER["cuda_register"]
    for name, small in {"SIDE": 4, "EACH": 4, "WIDE": 16, "ROOM": (16, 18)}.items():
        monkeypatch.setattr(rung, name, small)            # many parts, few results
    x, _, _, _, dy = of = arrays(197, 5, 3)
    parts, each = in_parts(197, 1, step=16)
    assert parts == 3
    assert (parts - 1) * each < 197 <= parts * each
    found = []
    for order in ORDERS:
        with stepping(order=order):
            found.append(rung.grad_weight(x, dy))
        np.testing.assert_array_equal(found[-1], found[0])
    agree({"grad_weight": found[0]}, of, floor=0)


@each_rung
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rung_reads_arrays_of_any_layout_and_leaves_them(idea, layout):
    of = arrays(5, 6, 7)
    other = [LAYOUTS[layout](a) for a in of]
    agree(results(LADDER[idea], *other), of)
    for before, after in zip(of, other):
        np.testing.assert_array_equal(before, after)


@each_rung
def test_what_is_not_float32_or_is_empty_goes_to_blas(idea, monkeypatch):
    monkeypatch.setattr(Kernel, "launch", lambda *arguments: pytest.fail("a kernel was launched"))
    blas = LADDER["blas"]
    for of in (arrays(9, 5, 7, np.float64), arrays(0, 3, 4), arrays(3, 0, 4), arrays(3, 4, 0)):
        for name, y in results(LADDER[idea], *of).items():
            np.testing.assert_array_equal(y, results(blas, *of)[name])
    x, w, *_ = arrays(9, 5, 7)
    assert LADDER[idea].forward(x, w.astype(np.float64)).dtype == np.float64
    for call in (lambda: LADDER[idea].forward(x, w[1:]), lambda: LADDER[idea].forward([x, x], w),
                 lambda: LADDER[idea].grad_weight(x, x[1:])):
        with pytest.raises(ValueError, match=r"5|9|8"):
            call()


def accesses(idea, count):
    """{(function, array, kind): rows that `count` makes} of a rung's three kernels, warps full."""
    traces = []
    x, w, _, _, dy = arrays(32, 32, 32)
    rung = LADDER[idea]
    with stepping(trace=traces, races=False):
        rung.forward(x[:, :16], w[:16])
        rung.grad_input(dy[:, :16], w[:, :16])
        rung.grad_weight(x[:16], dy[:16])
    found = {}
    for name, trace in zip(("forward", "grad_input", "grad_weight"), traces, strict=True):
        for row in count(trace):
            found.setdefault((name, row.array, row.kind), set()).add(row)
    return found


SECTORS = {
    "cuda_naive": {("forward", "x", "read"): 32, ("forward", "w", "read"): 1,
                   ("forward", "y", "write"): 32, ("grad_input", "dy", "read"): 32,
                   ("grad_weight", "x", "read"): 4, ("grad_weight", "dy", "read"): 1},
    "cuda_coalesced": {("forward", "x", "read"): 1, ("forward", "w", "read"): 4,
                       ("forward", "y", "write"): 4, ("grad_input", "w", "read"): 32,
                       ("grad_weight", "x", "read"): 1, ("grad_weight", "dy", "read"): 4},
    "cuda_shared": dict.fromkeys([("forward", "x", "read"), ("forward", "w", "read"),
                                  ("forward", "y", "write"), ("grad_input", "dy", "read"),
                                  ("grad_input", "w", "read"), ("grad_weight", "x", "read"),
                                  ("grad_weight", "dy", "read")], 4),
}
SECTORS["cuda_register"] = SECTORS["cuda_shared"]


@each_rung
def test_a_warp_asks_for_as_many_sectors_of_memory_as_its_docstring_says(idea):
    found = accesses(idea, coalescing)
    for what, sectors in SECTORS[idea].items():
        assert {row.sectors for row in found[what]} == {sectors}, what


@pytest.mark.parametrize("idea", RUNGS[2:])
def test_lanes_of_a_warp_meet_in_no_bank_of_shared_memory(idea):
    found = accesses(idea, bank_conflicts)
    turned = {("grad_input", "right", "write")} if idea == "cuda_shared" else set()
    for what, rows in found.items():
        assert {row.ways for row in rows} == {2 if what in turned else 1}, what


BARRIERS = [(idea, n) for idea in RUNGS[2:] for n in (0, 1)]


@pytest.mark.parametrize(("idea", "n"), BARRIERS)
def test_each_barrier_is_needed_in_every_order(idea, n):
    """Without it the simulator finds a race: so it would find one that is there."""
    path = Path(LADDER[idea].__file__)
    source = path.read_text(encoding="utf-8")
    barrier = [at.span() for at in re.finditer(r"cuda\.syncthreads\(\)", source)][n]
    source = f"{source[:barrier[0]]}pass{source[barrier[1]:]}"
    rung = {"__name__": LADDER[idea].__name__, "__package__": LADDER[idea].__package__}
    exec(compile(source, path, "exec"), rung)
    x, w, *_ = arrays(5, 40, 7)
    for order in ORDERS:
        with pytest.raises(Race, match=r"(left|right)\["), stepping(order=order):
            rung["forward"](x, w)
