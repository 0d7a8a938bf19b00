"""Every kernel for a GPU becomes machine code, and the kind of machine code that it should."""

import json
import re
from pathlib import Path

import pytest

NEEDS = "compiling for a GPU needs pip install '.[kernels]'"
for module in ("cuda.bindings.nvrtc", "cuda.bindings.nvjitlink", "numba_cuda"):
    pytest.importorskip(module, reason=NEEDS)

import compile_cuda  # noqa: E402
from tinydiff_kernels.gpu import listing, machine_code  # noqa: E402
from tinydiff_kernels.gpu.python import cuda, device, kernel  # noqa: E402

TABLE = json.loads(compile_cuda.TABLE.read_text(encoding="utf-8"))
EACH = [(name, arch) for name in compile_cuda.files()
        for arch in machine_code.architectures(compile_cuda.KERNELS / name)]
SPILLING = """\
extern "C" __global__ __launch_bounds__(1024, 2) void spilling(float* y, int n) {
    float a[96];
    #pragma unroll
    for (int i = 0; i < 96; i++)
        a[i] = y[threadIdx.x + i * n];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 96; i++)
        y[threadIdx.x * n + i] = a[i] * a[95 - i];
}
"""
WARPGROUP = """\
// needs: sm_90a
extern "C" __global__ void warpgroup(float* y, unsigned long long tile) {
    float c[4] = {};
    asm volatile("wgmma.fence.sync.aligned;");
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3}, %4, %4, 1, 1, 1, 0, 0;"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "l"(tile));
    asm volatile("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;");
    for (int i = 0; i < 4; i++)
        y[4 * threadIdx.x + i] = c[i];
}
"""
TENSOR = """\
#include "device.cuh"
KERNEL(32) product(const bf16* x, float* y) {
    __shared__ bf16x8 tile[32];
    cp_async16(tile + threadIdx.x, x + 8 * threadIdx.x, true);
    cp_commit();
    cp_wait<0>();
    __syncthreads();
    unsigned a[4];
    ldmatrix_x4(a, tile + threadIdx.x);
    float c[4] = {};
    mma_bf16(c, a, a[0], a[1]);
    for (int i = 0; i < 4; i++)
        y[4 * threadIdx.x + i] = c[i];
}
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function: a .cu file with this text; what it becomes is kept in the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine_code.folder.cache_clear()

    def write(text):
        path = tmp_path / "kernel.cu"
        path.write_text(text)
        return path

    yield write
    machine_code.folder.cache_clear()


@pytest.mark.parametrize(("name", "arch"), EACH)
def test_a_kernel_is_what_its_file_and_the_table_say(name, arch):
    facts, wrong = compile_cuda.examine(name, arch)
    if compile_cuda.versions().items() <= TABLE.items():
        wrong += compile_cuda.changed(facts, TABLE["kernels"].get(name, {}).get(arch, {}))
    assert wrong == []
    assert facts


def test_an_undeclared_name_is_told_with_file_and_line(written):
    path = written('#include "device.cuh"\nKERNEL(32) wrong(float* y) {\n    y[0] = nobody;\n}\n')
    with pytest.raises(machine_code.CompileError) as told:
        machine_code.cubin(path, "sm_90")
    assert str(told.value).startswith(f"{path} cannot be compiled for sm_90:\n")
    assert 'kernel.cu(3): error: identifier "nobody" is undefined' in str(told.value)


def test_an_architecture_that_there_is_not_is_told(written):
    with pytest.raises(machine_code.CompileError, match=r"sm_77.*\n.*gpu-architecture"):
        machine_code.cubin(written(SPILLING), "sm_77")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_a_warpgroup_kernel_is_refused_for_others_by_the_instructions_name(written, arch):
    with pytest.raises(machine_code.CompileError, match=r"'wgmma\.mma_async.* not supp"):
        machine_code.cubin(written(WARPGROUP), arch)


def test_a_warpgroup_kernel_compiles_for_its_own_architecture_alone(written):
    path = written(WARPGROUP)
    assert machine_code.architectures(path) == ("sm_90a",)
    code, _ = machine_code.cubin(path, "sm_90a")
    assert listing.instructions(listing.disassembly(code)["warpgroup"])["HGMMA.64x8x16.F32.BF16"]


def test_the_planted_spill_is_found(written, monkeypatch):
    path = written(SPILLING)
    monkeypatch.setattr(compile_cuda, "KERNELS", path.parent)
    facts, wrong = compile_cuda.examine("kernel.cu", "sm_90")
    assert facts["spilling"]["spill_stores"] > 0
    assert compile_cuda.count(facts["spilling"], "STL") > 0
    assert re.fullmatch("spilling uses local memory: .*", *wrong)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_tensor_cores_instructions_are_found_and_missed(written, monkeypatch, arch):
    path = written("// product holds: HMMA.16816.F32.BF16 LDSM LDGSTS.E.BYPASS.128\n" + TENSOR)
    monkeypatch.setattr(compile_cuda, "KERNELS", path.parent)
    facts, wrong = compile_cuda.examine("kernel.cu", arch)
    assert wrong == []
    assert facts["product"]["shared"] == 32 * 16
    written("// holds: HGMMA LDSM LDGSTS\n" + TENSOR)
    assert compile_cuda.examine("kernel.cu", arch)[1] == [
        "product holds no HGMMA", "its file does not say: product holds: HMMA"]


def test_a_compilers_warning_is_wrong(written, monkeypatch):
    path = written('extern "C" __global__ void idle() {\n    int unused;\n}\n')
    monkeypatch.setattr(compile_cuda, "KERNELS", path.parent)
    _, (wrong,) = compile_cuda.examine("kernel.cu", "sm_90")
    assert re.fullmatch(r'kernel.cu\(2\): warning .* "unused" was declared .*', wrong)


def test_a_define_chooses_what_is_compiled(written):
    path = written('extern "C" __global__ void pick(int* y) {\n    __shared__ int all[N];\n'
                   "    all[threadIdx.x] = y[0];\n    __syncthreads();\n"
                   "    y[threadIdx.x] = all[N - 1 - threadIdx.x];\n}\n")
    shared = [listing.resources(machine_code.cubin(path, "sm_90", [f"N={n}"])[1])["pick"]["shared"]
              for n in (64, 128)]
    assert shared == [256, 512]


def test_what_was_compiled_once_is_read_from_disk_and_damage_is_mended(written, monkeypatch):
    path, asked = written(TENSOR), []
    compile_source = machine_code.compile_source
    monkeypatch.setattr(machine_code, "compile_source",
                        lambda *a: asked.append(a) or compile_source(*a))
    code, log = machine_code.cubin(path, "sm_90")
    assert machine_code.cubin(path, "sm_90") == (code, log)
    assert len(asked) == 1
    file, _ = machine_code.compiled(path, "sm_90")
    file.write_bytes(code[:-1])
    assert machine_code.cubin(path, "sm_90")[0] == code
    assert len(asked) == 2


@device
def limited(x):
    if x > 3:
        return x
    return 2 * x


@device
def turned(x):
    return limited(x) + cuda.threadIdx.x


@kernel("float32[::1], int64")
def reversed_blocks(y, n):
    i = cuda.grid(1)
    tile = cuda.shared.array(256, "float32")
    tile[cuda.threadIdx.x] = y[i] if i < n else 0
    cuda.syncthreads()
    if i < n:
        y[i] = turned(tile[255 - cuda.threadIdx.x])


@kernel("float32[::1]")
def unnamed(y):
    y[0] = nobody                                         # noqa: F821


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_90a"])
def test_a_kernel_in_python_with_its_helpers_becomes_machine_code(arch):
    code, log = machine_code.python_cubin(reversed_blocks, arch)
    used, = listing.resources(log).values()
    assert used["shared"] == 256 * 4
    assert 8 <= used["registers"] <= 64
    assert "\n".join(listing.disassembly(code).values()).count("BAR.SYNC") == 1


def test_an_undeclared_name_in_python_is_told_with_file_and_line():
    line = unnamed.function.__code__.co_firstlineno
    words = re.escape(f"{Path(__file__).name}({line}): unnamed cannot be compiled for sm_90:")
    with pytest.raises(machine_code.CompileError, match=f"(?s){words}.*nobody"):
        machine_code.python_cubin(unnamed, "sm_90")


def test_the_tool_writes_its_table_and_holds_kernels_to_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compile_cuda, "TABLE", tmp_path / "resources.json")
    compile_cuda.write({**compile_cuda.versions(), "kernels": {}})
    assert compile_cuda.main(["gpu/parts.cu"]) == 1
    assert "gpu/parts.cu: sm_90: sum_parts is not in the table" in capsys.readouterr().err
    assert compile_cuda.main(["gpu/parts.cu", "--write"]) == 0
    assert compile_cuda.main(["gpu/parts.cu"]) == 0
    assert "| gpu/parts.cu | sum_parts | sm_90 |" in capsys.readouterr().out

    table = json.loads(compile_cuda.TABLE.read_text())
    table["kernels"]["gpu/parts.cu"]["sm_90"]["sum_parts"]["registers"] -= compile_cuda.MORE + 1
    compile_cuda.write(table)
    assert compile_cuda.main(["gpu/parts.cu"]) == 1
    assert "gpu/parts.cu: sm_90: sum_parts: registers" in capsys.readouterr().err
    compile_cuda.write({**table, "nvrtc": "12.0"})
    assert compile_cuda.main(["gpu/parts.cu"]) == 0
    assert "Not compared: the table is by nvrtc 12.0" in capsys.readouterr().out
