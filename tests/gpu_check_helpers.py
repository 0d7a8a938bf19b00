"""A GPU that is none, for tests of tools/gpu_check.py, so that every line of its GPU path has run.

Arrays are those of the stand-in for CuPy and lie where an allocator puts them; kernels run thread
by thread on the host; PyTorch's GPU is its CPU; NVIDIA's programs are scripts that run what they
are given, and say what the real ones have been seen to say.

    python tests/gpu_check_helpers.py check …              # tools/gpu_check.py …, on such a GPU
    python tests/gpu_check_helpers.py MODULE …             # python -m gpu MODULE …, likewise
"""

import ctypes
import os
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import numpy as np

TOOLS = Path(__file__).resolve().parents[1] / "tools"
DEVICE = {"name": b"NVIDIA Stand-in", "multiProcessorCount": 132, "l2CacheSize": 50 << 20,
          "totalGlobalMem": 80 << 30}

MEMCHECK = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at overrun+0x70
=========     by thread (8,0,0) in block (0,0,0)
=========     Access at 0x7f3c8a000220 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7f3c8a000200 of size 32 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cuLaunchKernel [0x2dc4eb] in /usr/lib/x86_64-linux-gnu/libcuda.so.1
========= ERROR SUMMARY: 1 error
"""
SANITIZER = """#!{python}
import subprocess, sys
words = sys.argv[1:]
done = subprocess.run(words[words.index({python!r}):], capture_output=True, text=True)
if "planted" in words:
    print({memcheck!r})
    sys.exit(9 if "wrote outside" in done.stderr else 0)
print("========= COMPUTE-SANITIZER", done.stdout, done.stderr, sep="\\n")
print("========= ERROR SUMMARY: 0 errors")
sys.exit(done.returncode)
"""
NCU = """#!{python}
import subprocess, sys
words = sys.argv[1:]
subprocess.run(words[words.index({python!r}):], check=True)
print("==PROF== Connected to process 7")
print('"ID","Host Name","Kernel Name","dram__bytes_read.sum","sm__throughput.avg.pct"')
print('"","","","Mbyte","%"')
print('"0","machine","fused","12.5","61.2"')
"""
SMI = """#!{python}
print("580.159.04, 345 MHz, 1980 MHz, 2619 MHz, 700.00 W, 31")
"""


def programs(folder):
    """NVIDIA's, in a folder for the PATH."""
    for name, text in (("compute-sanitizer", SANITIZER), ("ncu", NCU), ("nvidia-smi", SMI)):
        path = Path(folder) / name
        path.write_text(text.format(python=sys.executable, memcheck=MEMCHECK), encoding="utf-8")
        path.chmod(0o755)


class Pointer:
    """cupy.cuda.MemoryPointer"""

    def __init__(self, memory, offset=0):
        self.memory, self.offset = memory, offset

    ptr = property(lambda self: self.memory.ctypes.data + self.offset)

    def __add__(self, offset):
        return Pointer(self.memory, self.offset + int(offset))

    def memset_async(self, value, size, stream=None):
        self.memory[self.offset:][:size] = value

    def copy_to_host(self, mem, size):
        ctypes.memmove(mem if isinstance(mem, int) else mem.value, self.ptr, size)

    def array(self, like):
        """The memory from here on as an array like another."""
        return self.memory[self.offset:][:like.nbytes].view(like.dtype).reshape(like.shape)


class MemoryPool:
    def malloc(self, size):
        return Pointer(np.zeros(size, np.uint8))

    def free_all_blocks(self):
        """There is nothing to give back."""


class Event:
    happened = 0.0                                        # all that was recorded until then

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.seconds = None

    def record(self, stream=None):
        self.seconds = perf_counter()

    def synchronize(self):
        Event.happened = max(Event.happened, self.seconds)


def get_elapsed_time(start_event, end_event):
    """Milliseconds"""
    assert end_event.seconds <= Event.happened, "the event has not happened yet"
    return 1e3 * (end_event.seconds - start_event.seconds)


def install():
    """Let `import cupy` find the stand-in, with what gpu_check.py asks for besides."""
    import stand_in_cupy
    stand_in_cupy.clear()
    allocators, plain = [], stand_in_cupy.ours

    def ours(y):
        """An array that owns its memory lies where the allocator puts it."""
        if allocators and isinstance(y, np.ndarray) and y.base is None and y.nbytes:
            place = allocators[-1](y.nbytes).array(y)
            place[...] = y
            y = place
        return plain(y)

    @contextmanager
    def using_allocator(allocator):
        allocators.append(allocator)
        yield
        allocators.pop()

    stand_in_cupy.ours = ours
    modules = stand_in_cupy.modules()
    sys.modules.update(modules)
    cupy, capability = modules["cupy"], stand_in_cupy.device.capability
    cupy.__version__ = "14.2.0"
    cupy.cuda.MemoryPool, cupy.cuda.using_allocator = MemoryPool, using_allocator
    cupy.cuda.set_allocator = lambda allocator=None: None
    cupy.cuda.Event, cupy.cuda.get_elapsed_time = Event, get_elapsed_time
    cupy.cuda.Device = lambda device=0: SimpleNamespace(
        id=0, compute_capability=capability, synchronize=lambda: None)
    cupy.cuda.runtime = SimpleNamespace(**vars(cupy.cuda.runtime) | {
        "getDeviceProperties": lambda device: DEVICE})
    return cupy


def shrink():
    """What the host's emulation manages: tiny sizes, one rung in Python; and PyTorch's CPU."""
    from gpu import cases, ceilings, child, clock, ops, sanitizer, timing
    for name, op in ops.OPS.items():
        op.rungs["float32"] = [idea for idea in op.rungs["float32"] if idea == "cuda_naive"
                               or not ops.in_python(name, idea)]
    child.PYTHON = (sys.executable, str(Path(__file__).resolve()))
    cases.REAL.update({**cases.TINY, "conv": [(1, 4, 4, 8, 8, 3, 1)],
                       "heads": [(1, 2, 8, 8, 8, 0)]})
    cases.RAGGED.update({"rows": [(7, 33)]} | {key: [] for key in cases.RAGGED if key != "rows"})
    clock.BYTES, ceilings.SIDES = 2**16, dict.fromkeys(ceilings.SIDES, 64)
    timing.CALLS, timing.REPEATS, timing.BACKEND = 2, 2, "eager"
    sanitizer.TOOLS = sanitizer.TOOLS[:2]
    try:
        from gpu import peers
        peers.device = lambda: "cpu"
    except ImportError:
        pass                                              # the stages say that PyTorch is missing


def main(module, *words):
    sys.path.insert(0, str(TOOLS))
    install()
    shrink()
    if module == "check":
        import gpu_check
        return gpu_check.main(words)
    return import_module(f"gpu.{module}").main(*words)


if __name__ == "__main__":
    os.environ["PATH"] = f"{os.environ.get('FAKES', '')}:{os.environ['PATH']}"
    sys.exit(main(*sys.argv[1:]))
