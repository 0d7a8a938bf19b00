"""A block of CUDA C++ on the CPU: right kernels are right in every order, each fault is found."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tinydiff_kernels
from gpu_helpers import ORDERS, any_order, close, double, needs_compiler, numbers
from tinydiff_kernels.gpu.host import Fault
from tinydiff_kernels.gpu.order import stepping
from tinydiff_kernels.gpu.source import Source

__all__ = ["any_order"]
pytestmark = needs_compiler
KERNELS = Path(tinydiff_kernels.__file__).parent
NAN = np.float32(np.nan)

REVERSE = """
#include "device.cuh"
struct Line { float at[64]; };

KERNEL(64) reverse(const float* x, float* y) {
    Line& line = shared<Line>();
    line.at[threadIdx.x] = x[threadIdx.x];
    __syncthreads();                                      // the barrier
    y[threadIdx.x] = line.at[63 - threadIdx.x];
}
"""
FETCH = """
#include "device.cuh"
KERNEL(32) fetch(const float* x, float* y) {
    float* line = reinterpret_cast<float*>(shared_memory());
    cp_async16(line + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
    cp_commit();
    cp_wait<0>();                                         // the wait
    for (int i = 0; i < 4; i++)
        y[4 * threadIdx.x + i] = line[4 * threadIdx.x + i];
}
"""
WHOLE = """
#include "device.cuh"
KERNEL(64) total(const float* x, float* y, int n) {
    if ((int)threadIdx.x < n)                             // the branch
        __syncthreads();
    y[threadIdx.x] = warp_sum(x[threadIdx.x]);
}
"""


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A function: C++ as a file -> its kernels, and the line of a remark in it."""
    home = tmp_path_factory.mktemp("written")

    def write(text, remark=""):
        folder = home / hashlib.sha256(text.encode()).hexdigest()      # the same text: built once
        folder.mkdir(exist_ok=True)
        (folder / "planted.cu").write_text(text, encoding="utf-8")
        lines = [i for i, line in enumerate(text.splitlines(), 1) if remark and remark in line]
        return Source(folder / "planted.cu"), *lines
    return write


def line_of(x):
    return np.arange(x, dtype=np.float32), np.full(x, NAN)


def test_threads_meet_at_a_barrier(written, any_order):
    code, = written(REVERSE)
    x, y = line_of(64)
    code.reverse[1, 64](x, y)
    assert (y == x[::-1]).all()


def test_a_copy_under_way_has_arrived_after_the_wait(written, any_order):
    code, = written(FETCH)
    x, y = line_of(128)
    code.fetch[1, 32, 512](x, y)
    assert (y == x).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_forgotten_barrier_reads_what_nobody_wrote(order, written):
    code, = written(REVERSE.replace("__syncthreads();", ""))
    x, y = line_of(64)
    with stepping(order=order):
        code.reverse[1, 64](x, y)
    assert np.isnan(y).any()


@pytest.mark.parametrize("order", ORDERS)
def test_a_forgotten_wait_reads_what_has_not_arrived(order, written):
    code, = written(FETCH.replace("cp_wait<0>();", ""))
    x, y = line_of(128)
    with stepping(order=order):
        code.fetch[1, 32, 512](x, y)
    assert np.isnan(y).all()


@pytest.mark.parametrize(("n", "says"), [(40, "has left the kernel|is elsewhere|at different"),
                                         (8, "at different instructions|is elsewhere")])
def test_a_barrier_under_a_branch_is_named_with_line_and_thread(n, says, written, any_order):
    code, _ = written(WHOLE, "// the branch")
    x, y = line_of(64)
    where = r"line \d+: thread \(\d+, 0, 0\) of block \(0, 0, 0\): "
    with pytest.raises(Fault, match=f"{where}.*({says})"):
        code.total[1, 64](x, y, n)


def test_a_sum_over_part_of_a_warp_is_named_with_its_line(written, any_order):
    text = WHOLE.replace("__syncthreads();", "y[0] = __shfl_xor_sync(~0u, x[0], 1);   // here")
    code, line = written(text, "// here")
    x, y = line_of(64)
    with pytest.raises(Fault, match=rf"line ({line}|\d+): thread .* different instructions"):
        code.total[1, 64](x, y, 8)


def test_who_leaves_before_a_barrier_is_named(written, any_order):
    code, line = written(REVERSE.replace("__syncthreads(); ", "if (threadIdx.x == 5) return;\n"
                                         "    __syncthreads(); "), "// the barrier")
    x, y = line_of(64)
    with pytest.raises(Fault, match=rf"thread \(5, 0, 0\) .* has left .* wait at line {line}"):
        code.reverse[1, 64](x, y)


@pytest.mark.parametrize(("found", "planted", "says"), [
    ("x + 4 * threadIdx.x", "x + 4 * threadIdx.x + 1", "no multiple of 16 bytes"),
    ("line + 4 * threadIdx.x, x", "line + 4 * threadIdx.x + 4, x", "outside the shared memory")])
def test_an_address_that_a_gpu_would_refuse_is_refused(found, planted, says, written, any_order):
    code, line = written(FETCH.replace(found, planted), "cp_async16")
    x, y = line_of(128)
    with pytest.raises(Fault, match=rf"line {line}: thread .*{says}"):
        code.fetch[1, 32, 512](x, y)


def test_writing_past_the_shared_memory_asked_for_is_found(written):
    code, = written(FETCH.replace("cp_commit();", "line[128] = 0;"))
    with pytest.raises(Fault, match="wrote past the 512 bytes of shared memory"):
        code.fetch[1, 32, 512](*line_of(128))


@pytest.mark.parametrize("index", ["64", "-1"])
def test_writing_outside_an_array_is_found(index, written):
    code, = written(REVERSE.replace("y[threadIdx.x]", f"y[threadIdx.x == 3 ? {index} : 0]"))
    with pytest.raises(Fault, match="reverse: wrote outside an array of 256 bytes"):
        code.reverse[1, 64](*line_of(64))


def test_more_threads_or_memory_than_a_gpu_has_are_refused(written):
    code, = written(REVERSE)
    with pytest.raises(Fault, match=r"2048 threads .* at most 1024"):
        code.reverse[1, (64, 32)](*line_of(64))
    with pytest.raises(Fault, match=r"300000 bytes of shared memory: .* 232448"):
        code.reverse[1, 64, 300_000](*line_of(64))


def test_arguments_that_do_not_fit_are_refused(written):
    code, = written(REVERSE)
    x, y = line_of(64)
    with pytest.raises(TypeError, match=r"reverse: expected 2 arguments \(x, y\), got 1"):
        code.reverse[1, 64](x)
    with pytest.raises(ValueError, match="x: expected numbers of type float32, got float64"):
        code.reverse[1, 64](x.astype(float), y)
    with pytest.raises(ValueError, match="y: expected a contiguous array"):
        code.reverse[1, 64](x, y[::-1])
    with pytest.raises(AttributeError, match=r"planted.cu has no kernel 'turn'"):
        _ = code.turn


def test_what_the_compiler_refuses_is_told_with_its_line(written):
    code, line = written(REVERSE.replace("= x[", "= z["), "= z[")
    with pytest.raises(RuntimeError, match=rf"planted.cu:{line}:.*'?z'?"):
        code.reverse[1, 64](*line_of(64))


def test_without_a_compiler_one_sentence_says_what_to_install(written, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, = written(REVERSE.replace("64", "128"))
    with pytest.raises(ModuleNotFoundError, match=r"needs a C\+\+ compiler; install g\+\+"):
        code.reverse[1, 128](*line_of(128))


FAULTS = {                                                # in the pipeline of gpu/tiles.cuh
    "no barrier": ("__syncthreads();", ""),
    "a step too early": ("cp_wait<STAGES - 2>();", "cp_wait<STAGES - 1>();"),
    "lanes crossed": ("m + lane % 16", "m + lane / 2"),
    "no swizzle in one place": ("place(n + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2)",
                                "(n + lane / 16 * 8 + lane % 8) * DEPTH + k + lane / 8 % 2 * 8"),
    "one step short": ("step < steps; step++", "step < steps - 1; step++"),
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_fault_in_the_pipeline_of_products_shows_in_every_order(fault, rng, written, any_order):
    tiles = (KERNELS / "gpu" / "tiles.cuh").read_text(encoding="utf-8")
    if fault:
        assert tiles.count(FAULTS[fault][0]) == 1
        tiles = tiles.replace(*FAULTS[fault])
    products = (KERNELS / "matmul" / "products.cuh").read_text(encoding="utf-8")
    products = products.replace('#include "tiles.cuh"', "using BlockSums = Sums;")
    code, = written(tiles + products)
    x, w = numbers(rng, 130, 328), numbers(rng, 136, 328)             # y = x wᵀ, six steps
    y = np.full((130, 136), NAN).astype(x.dtype)
    code.grad_input[(2, 2), 128, 98304](x, w, y, y, 130, 136, 136, 328)
    exact = np.matmul(*double(x, w.T))
    assert close(y, exact) == (fault is None)


SANITIZED = """
import numpy as np, sys
from pathlib import Path
from tinydiff_kernels.gpu.source import Source
x, y = np.zeros(64, np.float32), np.zeros(64, np.float32)
Source(Path(sys.argv[1])).reverse[1, 64](x, y)
print("came through")
"""


def sanitized(*command):
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True,
                             check=True).stdout.strip()
    if not Path(library).is_file():
        pytest.skip("the compiler came without AddressSanitizer's library")
    settings = "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1"
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False,
                          env=os.environ | {"LD_PRELOAD": library, "TINYDIFF_SANITIZE": "1",
                                            "ASAN_OPTIONS": settings})


@pytest.mark.parametrize("index", ["64", "-1"])
def test_reading_outside_an_array_is_named_by_address_sanitizer(index, written):
    text = REVERSE.replace("= x[threadIdx.x]", f"= x[threadIdx.x == 3 ? {index} : 0]")
    code, line = written(text, "x[threadIdx.x ==")
    done = sanitized("-c", SANITIZED, str(code.path))
    assert done.returncode != 0
    assert "use-after-poison" in done.stderr
    assert re.search(rf"in reverse\S* \S*planted\.cu:{line}\b", done.stderr)


def test_address_sanitizer_finds_nothing_in_a_right_kernel(written):
    done = sanitized("-c", SANITIZED, str(written(REVERSE)[0].path))
    assert (done.returncode, done.stdout) == (0, "came through\n"), done.stderr


def test_the_other_way_to_switch_stacks_gives_the_same(written, monkeypatch):
    from tinydiff_kernels.gpu import host
    monkeypatch.setattr(host, "FLAGS", [*host.FLAGS, "-DTINYDIFF_UCONTEXT"])
    code, = written(REVERSE)
    x, y = line_of(64)
    code.reverse[1, 64](x, y)
    assert (y == x[::-1]).all()
