"""A kernel in CUDA C++: machine code of NVRTC on a GPU, of the host's compiler on NumPy arrays.

    code = Source(__file__)                               # the .cu beside this .py
    code.add[grid, block](x, y, n)                        # KERNEL(256) add(const float* x, …) in it
    code.add[grid, block, shared](x, y, n)                # bytes of shared memory

Arrays must be contiguous; None is a null pointer; a number becomes what the kernel takes.
"""

import re
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from .arrays import for_gpu
from .order import turns

NUMBERS = {"int": np.int32, "unsigned": np.uint32, "long": np.int64, "float": np.float32,
           "unsigned long long": np.uint64, "double": np.float64}
INCLUDE = re.compile(r'#include "(.*)"')
HEAD = re.compile(r"\bKERNEL\(([^)]*)\)\s*(\w+)\s*\(([^)]*)\)")


class Source:
    """The kernels of a .cu file, by name."""

    def __init__(self, path):
        self.path, self.functions = Path(path).with_suffix(".cu"), {}

    def __getattr__(self, name):
        if name.startswith("_") or name not in self.kernels:
            raise AttributeError(f"{self.path.name} has no kernel {name!r}")
        return Entry(self, name)

    @cached_property
    def kernels(self):
        """{name: [(the type of an argument, its name), …]}"""
        near = [self.path.with_name(name) for name in INCLUDE.findall(read(self.path))]
        texts = [read(path) for path in [self.path, *near] if path.is_file()]
        return {name: [split(argument) for argument in arguments.split(",")]
                for text in texts for _, name, arguments in HEAD.findall(text)}

    @cached_property
    def on_host(self):
        """{name: a function of grid, block, shared, order and arguments}, built with g++."""
        from .host import build
        return build(self.path, self.kernels)

    @cached_property
    def on_gpu(self):
        """CuPy's module of the machine code for this GPU."""
        import cupy

        from .machine_code import cubin_file
        return cupy.RawModule(path=str(cubin_file(self.path, cupy.cuda.Device())))

    def function(self, name, shared):
        """A kernel of that module, allowed so many bytes of shared memory."""
        if (name, shared) not in self.functions:
            self.functions[name, shared] = function = self.on_gpu.get_function(name)
            if shared > 48 * 1024:                        # more has to be asked for
                function.max_dynamic_shared_size_bytes = shared
        return self.functions[name, shared]


class Entry:
    """One kernel: entry[grid, block](…) runs it."""

    def __init__(self, source, name):
        self.source, self.name = source, name

    def __getitem__(self, launch):
        grid, block, shared = (*launch, 0)[:3]
        return partial(self.launch, triple(grid), triple(block), shared)

    def launch(self, grid, block, shared, *args):
        kinds = self.source.kernels[self.name]
        if len(args) != len(kinds):
            raise TypeError(f"{self.name}: expected {len(kinds)} arguments "
                            f"({', '.join(name for _, name in kinds)}), got {len(args)}")
        args = [typed(a, *kind) for a, kind in zip(args, kinds)]
        if for_gpu(args):
            function = self.source.function(self.name, shared)
            function(grid, block, tuple(args), shared_mem=shared)
        else:
            self.source.on_host[self.name](grid, block, shared, turns().number(), args)


def read(path):
    """The text of a file without its comments."""
    return re.sub(r"//.*", "", path.read_text(encoding="utf-8"))


def split(argument):
    """('const bf16*', 'x') of 'const bf16* __restrict__ x'"""
    kind, name = re.fullmatch(r"\s*(.*?)\s*(\w+)\s*", argument.replace("__restrict__", ""),
                              re.DOTALL).groups()
    return " ".join(kind.split()), name


def typed(value, kind, name):
    """An argument as the kernel takes it.  ValueError unless contiguous and of its type."""
    if not kind.endswith("*"):
        return NUMBERS[kind](value)
    if value is None:
        return np.uint64(0)
    if not value.flags.c_contiguous:
        raise ValueError(f"{name}: expected a contiguous array, got strides {value.strides}")
    wanted = POINTERS[kind.removesuffix("*").removeprefix("const ").strip()]
    if value.dtype.name != wanted:
        raise ValueError(f"{name}: expected numbers of type {wanted}, got {value.dtype}")
    return value


POINTERS = {"bf16": "bfloat16", "float": "float32", "double": "float64", "int": "int32",
            "long": "int64", "unsigned": "uint32", "unsigned char": "uint8",
            "unsigned long long": "uint64"}


def triple(size):
    """(x, y, z) of a number or of one to three."""
    sizes = (size,) if isinstance(size, (int, np.integer)) else tuple(size)
    return (*map(int, sizes), 1, 1)[:3]
