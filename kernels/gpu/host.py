"""A .cu built by the host's C++ compiler, its kernels as functions of NumPy arrays.  host.hpp

Around every array that a kernel is given lie guards, bytes that nobody may write; if they changed,
somebody wrote past the end. With TINYDIFF_SANITIZE=1 AddressSanitizer also watches who reads; then
the process must have been started with LD_PRELOAD=libasan.so.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from .arrays import address
from .machine_code import folder

HERE = Path(__file__).parent
GUARD = 4096                                              # bytes before and behind an array
FLAGS = ["-std=c++20", "-O2", "-g1", "-shared", "-fPIC", "-x", "c++", "-DTINYDIFF_HOST",
         "-fno-strict-aliasing", "-Wno-attributes", f"-I{HERE}",
         "-fvisibility=hidden"]                           # each kernel has a block of its own
SANITIZE = ["-fsanitize=address", "-fno-omit-frame-pointer"] * bool(
    os.environ.get("TINYDIFF_SANITIZE"))


class Fault(RuntimeError):
    """What a kernel may not do: the message names line, thread and block."""


def build(path, kernels):
    """{name: function(grid, block, shared, order, arguments)} of a .cu file's kernels."""
    library = ctypes.CDLL(str(compiled(path, stubs(path, kernels))))
    return {name: runner(getattr(library, f"run_{name}"), name, path) for name in kernels}


def runner(function, name, path):
    function.restype = ctypes.c_char_p

    def run(grid, block, shared, order, arguments):
        guarded = {}
        pointers = [argument(a, guarded) for a in arguments]
        table = (ctypes.c_void_p * len(pointers))(*map(ctypes.addressof, pointers))
        watch(guarded.values(), "poison")
        fault = function((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block),
                         ctypes.c_uint(shared), ctypes.c_int(order), table)
        watch(guarded.values(), "unpoison")
        if fault:
            raise Fault(f"{path.name}: {name}: {fault.decode()}")
        for (at, size), copy in guarded.items():
            if (copy[:GUARD] != 0xFF).any() or (copy[-GUARD:] != 0xFF).any():
                raise Fault(f"{path.name}: {name}: wrote outside an array of {size} bytes")
            ctypes.memmove(at, copy.ctypes.data + GUARD, size)

    return run


def argument(value, guarded):
    """One argument as C has it; an array as the address of its copy between guards."""
    if isinstance(value, np.generic):
        return np.ctypeslib.as_ctypes_type(value.dtype)(value.item())
    at = address(value), value.nbytes
    if at not in guarded:
        copy = np.full(value.nbytes + 2 * GUARD + 64, 0xFF, np.uint8)
        copy = copy[-copy.ctypes.data % 64:][:value.nbytes + 2 * GUARD]   # as the GPU aligns
        ctypes.memmove(copy.ctypes.data + GUARD, *at)
        guarded[at] = copy
    return ctypes.c_void_p(guarded[at].ctypes.data + GUARD)


def watch(copies, what):
    """Let AddressSanitizer, where it is asked for, say who touches a guard."""
    if SANITIZE:
        mark = getattr(ctypes.CDLL(None), f"__asan_{what}_memory_region")
        for copy in copies:
            for at in (0, copy.size - GUARD):
                mark(ctypes.c_void_p(copy.ctypes.data + at), ctypes.c_size_t(GUARD))


STUB = """
extern "C" __attribute__((visibility("default"))) const char* run_{name}(
        const unsigned* grid, const unsigned* size, unsigned shared, int order, void** a) {{
    return block::launch(grid, size, shared, order, [=] {{ {name}({values}); }});
}}
"""


def stubs(path, kernels):
    """C++ that calls each kernel with arguments from a table."""
    values = {name: ", ".join(f"*static_cast<{kind}*>(a[{i}])"
                              for i, (kind, _) in enumerate(arguments))
              for name, arguments in kernels.items()}
    return f'#include "{path}"\n' + "".join(
        STUB.format(name=name, values=values[name]) for name in kernels)


def compiled(path, stub):
    """The shared library, built once for these sources."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if not compiler:
        raise ModuleNotFoundError(f"{path.name}: stepping through CUDA C++ needs a C++ compiler; "
                                  "install g++, or name yours in CXX")
    flags = FLAGS + SANITIZE
    digest = hashlib.sha256(repr([stub, flags, version_of(compiler)]).encode())
    for file in sorted({*HERE.glob("*.[ch]*"), *path.parent.glob("*.cu*")}):
        if file.suffix in (".cuh", ".hpp") or file == path:
            digest.update(file.read_bytes())
    library = folder() / f"{path.stem}-{digest.hexdigest()[:24]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder()) as passing:
            made = Path(passing) / "made.so"
            done = subprocess.run([compiler, *flags, "-", "-o", str(made)], input=stub, text=True,
                                  capture_output=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{path.name}: {compiler} refused it:\n{done.stderr[:2000]}")
            os.replace(made, library)
    return library


@cache
def version_of(compiler):
    return subprocess.run([compiler, "--version"], capture_output=True, text=True,
                          check=False).stdout
