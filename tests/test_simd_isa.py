"""Kernels for other CPUs: chosen by features, right on vectors of 8 and 4, compiled for ARM."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

from llvmlite import binding
from tinydiff_kernels.simd import isa

TESTS = Path(__file__).resolve().parent
TOOL = TESTS.parent / "tools" / "compile_neon.py"
RIGHT = ["test_simd.py", "test_simd_products.py",
         *sorted(path.name for path in TESTS.glob("test_kernels_*.py"))]
HASWELL = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}      # no AVX-512 instruction
HAS = binding.get_host_cpu_features()


@pytest.fixture
def host(monkeypatch):
    """host(feature, …): the ISA of a machine with such features."""
    def of(*features, asked=""):
        monkeypatch.setenv(isa.CHOICE, asked)
        monkeypatch.setattr(binding, "get_host_cpu_features",
                            lambda: dict.fromkeys(features, True))
        return isa.host.__wrapped__()
    return of


def test_the_widest_vectors_there_are_get_chosen(host):
    assert host("avx512f", "avx512vl", "avx2", "fma") is isa.AVX512
    assert host("avx512f", "avx2", "fma") is isa.AVX2
    assert host("avx2", "fma") is isa.AVX2
    assert host("avx2") is isa.NEON
    assert host("neon") is isa.NEON


def test_another_choice_is_respected_and_a_wrong_one_refused(host):
    assert host("avx512f", "avx512vl", asked="avx2") is isa.AVX2
    with pytest.raises(ValueError, match="no 'sve'; there are avx512, avx2, neon"):
        host(asked="sve")


@pytest.mark.parametrize("kind", [isa.AVX512, isa.AVX2, isa.NEON], ids=lambda kind: kind.name)
def test_a_block_leaves_registers_to_load_with(kind):
    registers = 16 if kind is isa.AVX2 else 32
    assert kind.panel == kind.width * kind.vectors
    assert kind.rows * kind.vectors + kind.vectors + 1 <= registers


@pytest.mark.slow
@pytest.mark.parametrize(("name", "environment"), [
    pytest.param("avx2", HASWELL, marks=pytest.mark.skipif(
        not (HAS.get("avx2") and HAS.get("fma")), reason="needs AVX2")),
    ("neon", {})])
def test_every_kernel_is_right_on_narrower_vectors(name, environment):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow",
         *(str(TESTS / file) for file in RIGHT)], capture_output=True, text=True, cwd=TESTS.parent,
        env={**os.environ, **environment, "TINYDIFF_ISA": name, "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def compile_neon(*tasks):
    return subprocess.run([sys.executable, str(TOOL), *tasks], capture_output=True,
                          encoding="utf-8", env={**os.environ, "PYTHONIOENCODING": "utf-8",
                                                 "PYTHONPATH": os.pathsep.join(sys.path)})


@pytest.mark.parametrize("tasks", [["conv2d.direct.products", "simd.pool.lead"],
                                   pytest.param([], marks=pytest.mark.slow, id="all")])
def test_kernels_compile_for_arm_with_its_vector_instructions(tasks):
    done = compile_neon(*tasks)
    if "no code for ARM" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.returncode, done.stderr) == (0, "")
    rows = re.findall(r"\| ([a-z]\S+) \| ([\d,]+) \| (\d+) \|", done.stdout)
    if tasks:
        assert [name for name, _, _ in rows] == tasks
    assert all(int(size.replace(",", "")) > 50 for _, size, _ in rows)
    fused = {name: int(count) for name, _, count in rows}
    assert fused["conv2d.direct.products"] >= isa.NEON.rows * isa.NEON.vectors
    assert fused["simd.pool.lead"] == 0
    assert done.stdout.endswith("*compiles, not run*.\n")


def test_an_unknown_task_is_refused_by_name():
    done = compile_neon("conv2d.magic")
    assert done.returncode == 1
    assert re.match("compile_neon: no task 'conv2d.magic'; there are .*direct", done.stderr)
