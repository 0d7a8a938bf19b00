"""tinydiff kernels list, run, trace and bench: what they say, and what they find."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from tinydiff_kernels.gpu.host import Fault

from tinydiff import kernel_cases, kernel_commands
from tinydiff.kernels import LADDERS

pytest.importorskip("greenlet", reason="stepping through a kernel in Python needs greenlet")
pytest.importorskip("ml_dtypes", reason="bf16 arrays need ml_dtypes")
pytest.importorskip("numba", reason="rungs of every kind")

ON_A_GPU = [f"{name}/{idea}" for name, module in LADDERS.items() for idea in module.LADDER.device]
TINY = {"attention": "1x1x3x5x16", "conv2d": "1x3x4x8x8x1", "matmul": "5x8x7", "norm": "2x3x2x8x2",
        "optimizer": "65"}
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs the compiler g++")


def test_the_list_has_every_rung_and_says_of_each_what_is_known(typed):
    code, out, err = typed("kernels", "list", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert [(row["ladder"], row["rung"], row["number"]) for row in rows] == [
        (name, idea, i) for name, module in LADDERS.items()
        for i, idea in enumerate(module.LADDER)]
    for row in rows:
        module = LADDERS[row["ladder"]]
        assert (row["place"] == "GPU") == (row["rung"] in module.LADDER.device)
        assert (row["needs"] == "NumPy") == (row["rung"] in module.LADDER.plain)
        assert row["default"] == (row["rung"] in (module.DEFAULT, module.ON_GPU))


def test_the_three_marks_are_read_from_files_and_none_stands_for_another(typed, monkeypatch):
    proof = {"matmul/rung7_mma.cu": {"date": "2026-12-24", "device": "NVIDIA H100"}}
    compiled = {"kernels": {"matmul/rung6_cuda_register.py": {"sm_80": {}, "sm_90": {}}}}
    monkeypatch.setattr(kernel_commands, "stored", {"resources": compiled, "verified": proof}.get)
    lines = typed("kernels", "list")[1].split("matmul: ")[1].splitlines()
    said = {line.split()[1]: line for line in lines[1:10]}
    assert said["cuda_shared"].endswith("  host-tested · not yet GPU-verified")
    assert said["cuda_register"].endswith(
        "  compiles (sm_80, sm_90) · host-tested · not yet GPU-verified")
    assert said["mma"].endswith("  host-tested · GPU-verified 2026-12-24, NVIDIA H100")
    assert said["simd"].endswith("Numba")


@needs_compiler
@pytest.mark.parametrize("rung", ON_A_GPU)
def test_host_tested_is_true_of_every_rung_that_the_list_says_it_of(typed, rung):
    code, out, err = typed("kernels", "run", rung, "--shape", TINY[rung.split("/")[0]],
                           "--order", "reverse", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "stepped through on the CPU: no GPU (" in out
    assert "threads in order reverse" in out
    assert out.count(", allowed ") == len(kernel_cases.CASES[rung.split("/")[0]].calls)


@pytest.mark.parametrize("rung", ["matmul/simd", "conv2d/winograd4", "attention/plain"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_rung_of_the_cpu_runs_there(typed, rung, dtype):
    code, out, err = typed("kernels", "run", rung, "--dtype", dtype)
    assert (code, err) == (0, "")
    assert out.startswith("Rung ")
    assert "device: cpu × " in out
    assert f", {dtype}\n" in out
    assert "threads in order" not in out


@pytest.mark.parametrize("wrong", [1 + 1e-6, np.nan])
def test_an_error_too_large_is_said_and_the_exit_code_is_1(typed, monkeypatch, wrong):
    rung = LADDERS["matmul"].LADDER["simd"]
    right = rung.forward
    monkeypatch.setattr(rung, "forward", lambda *a: right(*a) * np.float32(wrong))
    code, out, _ = typed("kernels", "run", "matmul/simd")
    assert code == 1
    assert [line.endswith("too large") for line in out.splitlines() if " error " in line] == [
        True, False, False]


def test_a_fault_is_one_sentence(typed, monkeypatch):
    def race(*arguments):
        raise Fault("rung5_cuda_shared.py: product: race: line 33")
    monkeypatch.setattr(LADDERS["matmul"].LADDER["cuda_shared"], "forward", race)
    code, _, err = typed("kernels", "run", "matmul/cuda_shared")
    assert (code, err) == (1, "tinydiff: rung5_cuda_shared.py: product: race: line 33\n")


def test_without_greenlet_one_sentence_says_what_to_install(typed, monkeypatch):
    monkeypatch.setitem(sys.modules, "greenlet", None)
    code, _, err = typed("kernels", "run", "matmul/cuda_shared", "--shape", "1x1x1")
    assert code == 1
    assert err.endswith("needs greenlet; pip install greenlet\n")


def test_without_a_compiler_one_sentence_says_what_to_install(typed, monkeypatch):
    rung = LADDERS["optimizer"].LADDER["fused"]
    monkeypatch.delitem(rung.code.__dict__, "on_host", raising=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, _, err = typed("kernels", "run", "optimizer/fused", "--shape", "5")
    assert code == 1
    assert "needs a C++ compiler; install g++" in err


@pytest.mark.parametrize(("words", "says"), [
    (["run", "mathmul/simd"], "there is no ladder called 'mathmul'; did you mean 'matmul'? "),
    (["run", "matmul/sind"], "there is no rung of matmul called 'sind'; did you mean 'simd'? "),
    (["run", "matmul"], "there is no rung of matmul called ''"),
    (["run", "matmul/simd", "--shape", "3x4"], "expected PxCxO, as in 33x20x18, got '3x4'"),
    (["run", "matmul/simd", "--shape", "3x4xO"], "expected PxCxO, as in 33x20x18, got '3x4xO'"),
    (["run", "matmul/simd", "--order", "3"], "--order: expected a GPU's rung that is stepped"),
    (["run", "matmul/mma", "--order", "1"], "expected a whole number from 2, got '1'"),
    (["run", "matmul/simd", "--dtype", "bfloat16"], "matmul/simd runs on the CPU; take one of "
                                                    "cuda_naive, "),
    (["run", "matmul/simd", "--device", "cuda"], "matmul/simd runs on the CPU; take one of blas, "),
    (["trace", "matmul/mma"], "trace draws what kernels in Python do, not matmul/mma; take "),
    (["trace", "matmul/simd"], "not matmul/simd; take one of "),
    (["trace", "matmul/cuda_naive", "--function", "fro"], "called 'fro'; did you mean 'forward'?"),
    (["trace", "matmul/cuda_naive", "--array", "b2"], "called 'b2'; did you mean 'b'?"),
    (["bench", "norms"], "there is no ladder called 'norms'; did you mean 'norm'?"),
    (["bench", "norm", "--rungs", "numpy,onepas"], "called 'onepas'; did you mean 'onepass'?"),
])
def test_what_is_typed_wrongly_is_said_and_the_exit_code_is_2(typed, words, says):
    code, _, err = typed("kernels", *words)
    assert code == 2
    assert says in err


def test_on_a_device_arrays_go_there_by_the_one_door(typed, cupy):
    for rung in ("matmul/blas", "matmul/cuda_shared"):
        code, out, err = typed("kernels", "run", rung, "--shape", "5x6x7", "--device", "cuda")
        assert (code, err) == (0, "")
        assert "stepped" not in out


def test_trace_tells_what_accesses_cost_and_draws_them(typed, tmp_path):
    code, out, err = typed("kernels", "trace", "matmul/cuda_naive", "--out", "x.png")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [row[4:5] for row in rows if row[1:3] == ["x", "read"]] == [["32"]]
    assert [row[4:5] for row in rows if row[1:3] == ["w", "read"]] == [["1"]]
    assert "lines are those of kernels/matmul/rung3_cuda_naive.py" in out
    with Image.open(tmp_path / "x.png") as picture:
        assert min(picture.size) > 300
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 32                              # a thread has one of its own


def test_trace_draws_the_first_array_of_any_function(typed, tmp_path):
    code, out, _ = typed("kernels", "trace", "matmul/cuda_naive", "--function", "grad_weight",
                         "--shape", "2x3x4")
    assert code == 0
    assert "product_xt: global memory" in out
    assert (tmp_path / "matmul-cuda_naive-x.png").exists()


def test_bench_counts_products_and_bytes_and_names_what_it_cannot_time(typed):
    code, out, _ = typed("kernels", "bench", "matmul", "--rungs", "blas,cuda_naive",
                         "--shape", "50x60x70", "--json")
    found = json.loads(out)
    assert code == 0
    assert [(row["function"], row["rung"]) for row in found["timed"]] == [
        ("forward", "blas"), ("grad_input", "blas"), ("grad_weight", "blas")]
    floats = [50 * 60 + 60 * 70 + 70 + 2 * 50 * 70] + [50 * 60 + 60 * 70 + 50 * 70] * 2
    for row, numbers in zip(found["timed"], floats):
        seconds = 1e-3 * row["ms"]
        assert row["gflops"] * seconds == pytest.approx(2e-9 * 50 * 60 * 70)
        assert row["gbytes"] * seconds == pytest.approx(4e-9 * numbers)
    assert found["not_timed"]["cuda_naive"].startswith("no GPU (")


def test_bench_prints_a_line_for_each_rung(typed):
    code, out, _ = typed("kernels", "bench", "optimizer", "--shape", "1000")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["step", "numpy"], ["step", "onepass"], ["norm", "numpy"], ["norm", "onepass"]]
    assert lines[-1].startswith("not timed: cuda_elementwise, fused: no GPU (")
    assert "GFLOP/s" not in out                           # nothing is multiplied by a matrix


def test_a_distance_is_relative_to_the_worst_array_and_nan_is_infinite():
    ones = np.ones(4)
    assert kernel_cases.distance([ones, 3 * ones], [ones, 2 * ones]) == pytest.approx(0.5)
    assert kernel_cases.distance([ones * np.nan], [ones]) == np.inf
    assert kernel_cases.distance([np.ones((2, 2))], [ones]) == np.inf


@pytest.mark.parametrize("name", LADDERS)
def test_a_case_gives_functions_copies_and_bf16_where_it_belongs(name):
    case = kernel_cases.CASES[name]
    arrays = kernel_cases.draw(case, case.small, kernel_cases.bfloat16())
    for array, numbers in arrays.items():
        single = array in kernel_cases.SINGLE
        assert numbers.dtype.name == ("float32" if single else "bfloat16")
    for _, call in case.calls.values():
        for copy in kernel_cases.arguments(call, arrays):
            assert not any(np.shares_memory(copy, a) for a in arrays.values())
    assert len(case.letters.split()) == len(case.small) == len(case.whole) == len(case.large)
