"""Which machine code a GPU gets, and that it is made once, and again when stale or damaged."""

import re
import shutil
import sys
from types import SimpleNamespace

import pytest
from tinydiff_kernels.gpu import listing, machine_code
from tinydiff_kernels.gpu.python import Kernel


def test_a_kernel_is_for_two_architectures_unless_its_file_says_another(tmp_path):
    path = tmp_path / "kernel.cu"
    path.write_text("// adds\n")
    assert machine_code.architectures(path) == ("sm_80", "sm_90")
    path.write_text("// multiplies\n// needs: sm_90a sm_100a\n")
    assert machine_code.architectures(path) == ("sm_90a", "sm_100a")


@pytest.mark.parametrize(("needs", "capability", "arch"), [
    ("", "80", "sm_80"), ("", "89", "sm_89"), ("", "120", "sm_120"),
    ("// needs: sm_90a", "90", "sm_90a"), ("// needs: sm_90", "90", "sm_90"),
])
def test_a_gpu_gets_the_code_that_fits_it(monkeypatch, tmp_path, needs, capability, arch):
    path = tmp_path / "kernel.cu"
    path.write_text(needs)
    monkeypatch.setattr(machine_code, "compiled", lambda path, arch: (arch, "log"))
    device = SimpleNamespace(compute_capability=capability)
    assert machine_code.cubin_file(path, device) == arch


@pytest.mark.parametrize(("needs", "capability", "words"), [
    ("", "75", "made for sm_80 and sm_90, this GPU is sm_75"),
    ("// needs: sm_90a", "80", "made for sm_90a, this GPU is sm_80"),
    ("// needs: sm_90a", "100", "made for sm_90a, this GPU is sm_100"),
])
def test_a_gpu_that_cannot_run_a_kernel_is_told_so(tmp_path, needs, capability, words):
    path = tmp_path / "kernel.cu"
    path.write_text(needs)
    with pytest.raises(RuntimeError, match=f"kernel.cu: {words}"):
        machine_code.cubin_file(path, SimpleNamespace(compute_capability=capability))


class Compiler:
    """In place of NVRTC: its machine code says how often it was asked."""

    def __init__(self):
        self.asked, self.version = 0, (13, 0)

    def nvrtcVersion(self):
        return (0, *self.version)

    def compile_source(self, nvrtc, path, arch, options):
        self.asked += 1
        return f"code {self.asked}".encode(), "warning: π"


@pytest.fixture
def nvrtc(monkeypatch, tmp_path):
    """A compiler in place of NVRTC, and an empty folder for what it makes."""
    fake = Compiler()
    monkeypatch.setattr(machine_code, "compiler", lambda: fake)
    monkeypatch.setattr(machine_code, "cuda_headers", lambda: [])
    monkeypatch.setattr(machine_code, "compile_source", fake.compile_source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    machine_code.folder.cache_clear()
    yield fake
    machine_code.folder.cache_clear()


@pytest.fixture
def source(tmp_path):
    (tmp_path / "beside.cuh").write_text("int one;\n")
    path = tmp_path / "kernel.cu"
    path.write_text('#include "device.cuh"\n#include "beside.cuh"\n')
    return path


def test_what_was_compiled_once_is_not_compiled_again(nvrtc, source):
    for _ in range(2):
        assert machine_code.cubin(source, "sm_90") == (b"code 1", "warning: π")
    file, _ = machine_code.compiled(source, "sm_90")
    assert file.read_bytes() == b"code 1"
    assert nvrtc.asked == 1


@pytest.mark.parametrize("change", ["source", "header", "architecture", "define", "compiler"])
def test_whatever_the_code_depends_on_makes_it_anew(nvrtc, source, change):
    machine_code.cubin(source, "sm_90")
    arch, defines = "sm_90", ()
    if change == "source":
        source.write_text(source.read_text() + "// more\n")
    elif change == "header":
        (source.parent / "beside.cuh").write_text("int two;\n")
    elif change == "architecture":
        arch = "sm_80"
    elif change == "define":
        defines = ("D=64",)
    else:
        nvrtc.version = (13, 1)
    assert machine_code.cubin(source, arch, defines) == (b"code 2", "warning: π")


@pytest.mark.parametrize("suffix", [".cubin", ".log"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_file_is_compiled_again(nvrtc, source, suffix, damage):
    file = machine_code.compiled(source, "sm_90")[0].with_suffix(suffix)
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[:3] if damage == "cut" else whole[:-1] + b"\xff")
    assert machine_code.cubin(source, "sm_90")[0] == b"code 2"
    assert machine_code.cubin(source, "sm_90")[0] == b"code 2"


def test_a_file_in_the_folders_place_means_a_passing_folder(nvrtc, source, tmp_path):
    (tmp_path / "home").write_text("in the way")
    file, _ = machine_code.compiled(source, "sm_90")
    assert file.parent.name.startswith("tinydiff-gpu-")
    shutil.rmtree(file.parent)


INSTALL = re.escape("; pip install 'tinydiff[cuda13]'") + "$"


def test_a_missing_compiler_is_one_sentence_that_says_what_to_install(monkeypatch, source):
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ModuleNotFoundError, match=r"^CUDA C\+\+ becomes .*" + INSTALL):
        machine_code.cubin(source, "sm_90")
    with pytest.raises(ModuleNotFoundError, match=r"^a kernel in Python becomes .*" + INSTALL):
        machine_code.python_cubin(Kernel(len, "float32[:]"), "sm_90")
    with pytest.raises(ModuleNotFoundError, match=r"nvdisasm; .*\[kernels\]'$"):
        listing.disassembly(b"")


def test_bindings_without_the_compilers_library_are_told_the_same(monkeypatch, source):
    def no_library():
        raise RuntimeError("libnvrtc.so.13 was not found")
    nvrtc = SimpleNamespace(nvrtcVersion=no_library)
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(nvrtc=nvrtc))
    with pytest.raises(ModuleNotFoundError, match=r"^CUDA C\+\+ becomes .*" + INSTALL):
        machine_code.cubin(source, "sm_90")
