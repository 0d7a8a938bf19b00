"""Machine code for a GPU, made without one: of CUDA C++ by NVRTC, of Python by Numba.

    code, log = cubin("kernels/conv2d/rung7_mma.cu", "sm_90")        # listing.py looks inside

Files that a newer GPU alone can run say for which they are, the others are for sm_80 and sm_90:

    // needs: sm_90a

Both compilers keep their defaults: denormals stay, division and roots are right to the last digit,
a product and a sum become one fma. A kernel that wants less asks for it, as exp2_fast does.
"""

import hashlib
import re
from functools import cache
from pathlib import Path

from ..simd.cache import kept, replace
from .python import bind

HERE = Path(__file__).resolve().parent
EVERYWHERE = ("sm_80", "sm_90")                           # an A100, an H100
OPTIONS = ["--std=c++17", "--ptxas-options=-v"]           # -v: registers and spills in the log


class CompileError(RuntimeError):
    """A compiler's own words, with file and line."""


def architectures(path):
    """What a kernel's file is for: its line `needs:`, or else (sm_80, sm_90)."""
    needs = re.search(r"(?m)^\s*(?://|#) needs:(.*)", Path(path).read_text(encoding="utf-8"))
    return tuple(needs[1].split()) if needs else EVERYWHERE


def cubin_file(path, device):
    """The file of machine code for CuPy's `device`."""
    sm = f"sm_{device.compute_capability}"
    needs = architectures(path)
    fitting = sm if needs == EVERYWHERE else next((a for a in needs if a in (sm, sm + "a")), None)
    if fitting is None or int(device.compute_capability) < 80:
        raise RuntimeError(f"{Path(path).name}: made for {' and '.join(needs)}, this GPU is {sm}")
    return compiled(path, fitting)[0]


def cubin(path, arch, defines=()):
    """A .cu file as machine code for arch, and what its compilers said: (bytes, log)."""
    file, log = compiled(path, arch, defines)
    return file.read_bytes(), log


def compiled(path, arch, defines=()):
    """(the file of machine code, the log), made anew where either is missing or damaged.

    Its name is a digest of all that it depends on. The log, beside it, begins with its own.
    """
    path = Path(path).resolve()
    nvrtc = compiler()
    chosen = [*OPTIONS, f"-arch={arch}", *(f"-D{d}" for d in defines)]
    facts = [path.name, *chosen, *nvrtc.nvrtcVersion()[1:], *texts(path)]
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    file = folder() / f"{path.stem}-{arch}-{name}.cubin"
    try:
        digest, _, log = file.with_suffix(".log").read_bytes().decode().partition("\n")
        if digest == hashlib.sha256(log.encode() + file.read_bytes()).hexdigest():
            return file, log
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    places = [path.parent, HERE, *cuda_headers()]
    code, log = compile_source(nvrtc, path, arch, [*chosen, *(f"-I{place}" for place in places)])
    digest = hashlib.sha256(log.encode() + code).hexdigest()
    replace(file, code)
    replace(file.with_suffix(".log"), f"{digest}\n{log}".encode())
    return file, log


def texts(path):
    """The texts of a .cu file and of our own files that it includes."""
    pending, seen = [path], {}
    while pending:
        path = pending.pop()
        seen[path] = path.read_text(encoding="utf-8")
        for name in re.findall(r'(?m)^\s*#include "(.*)"', seen[path]):
            places = [(folder / name).resolve() for folder in (path.parent, HERE)]
            pending += [p for p in places if p.exists() and p not in seen][:1]
    return sorted(seen.values())


@cache
def folder():
    """Where machine code for GPUs lies."""
    return kept("gpu")


def compiler():
    """NVRTC.  ModuleNotFoundError, with what to install, where it is missing."""
    try:
        from cuda.bindings import nvrtc
        nvrtc.nvrtcVersion()                              # the first call loads the library
    except (ImportError, RuntimeError):
        raise ModuleNotFoundError("CUDA C++ becomes machine code with cuda-bindings and NVRTC; "
                                  "pip install 'tinydiff[cuda13]'") from None
    return nvrtc


def cuda_headers():
    """The folders of cuda_bf16.h and of what it includes."""
    from cuda import pathfinder
    found = [pathfinder.find_nvidia_header_directory(name) for name in ("cudart", "cccl")]
    if found[0] is None:
        raise ModuleNotFoundError("CUDA's headers are missing; pip install 'tinydiff[cuda13]'")
    return [folder for folder in found if folder]


def compile_source(nvrtc, path, arch, options):
    """(machine code, log) of a .cu file."""
    def ask(question, *arguments):
        error, *answer = getattr(nvrtc, f"nvrtc{question}")(*arguments)
        if error:
            raise RuntimeError(f"{path.name}: NVRTC says {error.name} when asked to {question}")
        return answer[0] if answer else None

    def read(what):
        content = bytearray(ask(f"Get{what}Size", program))
        ask(f"Get{what}", program, content)
        return bytes(content)

    program = ask("CreateProgram", path.read_bytes(), path.name.encode(), 0, [], [])
    try:
        error, = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        log = read("ProgramLog").rstrip(b"\0 \n").decode(errors="replace")
        if error:
            raise CompileError(f"{path} cannot be compiled for {arch}:\n{log}")
        return read("CUBIN"), log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def python_cubin(kernel, arch):
    """A kernel in Python as machine code for arch, and what its compilers said: (bytes, log)."""
    try:
        from cuda.bindings import nvjitlink
        from numba import cuda
        from numba.core.errors import NumbaError
        nvjitlink.version()                               # the first call loads the library
    except (ImportError, RuntimeError):
        raise ModuleNotFoundError("a kernel in Python becomes machine code with numba-cuda and "
                                  "nvJitLink; pip install 'tinydiff[cuda13]'") from None
    number = int(re.sub(r"\D", "", arch))
    inline = cuda.jit(device=True, inline="always")       # else Numba asks a GPU what it is
    function = bind(kernel.function, cuda, inline)
    try:
        ptx, _ = cuda.compile(function, f"void({kernel.signature})", cc=divmod(number, 10),
                              device=False, abi="numba", output="ptx")
    except NumbaError as error:
        code = function.__code__
        raise CompileError(f"{code.co_filename}({code.co_firstlineno}): {kernel.__name__} cannot "
                           f"be compiled for {arch}:\n{error}") from None
    return link(nvjitlink, ptx.encode(), arch)


def link(nvjitlink, ptx, arch):
    """(machine code, log) of PTX."""
    options = [f"-arch={arch}", "-verbose"]
    linker = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(linker, nvjitlink.InputType.PTX, ptx, len(ptx), "kernel")
        nvjitlink.complete(linker)
        log = bytearray(nvjitlink.get_info_log_size(linker))
        nvjitlink.get_info_log(linker, log)
        code = bytearray(nvjitlink.get_linked_cubin_size(linker))
        nvjitlink.get_linked_cubin(linker, code)
        return bytes(code), log.rstrip(b"\0 \n").decode()
    finally:
        nvjitlink.destroy(linker)
