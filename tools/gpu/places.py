"""Where kernels run to be checked: on the GPU, or thread by thread on the host.

    place = PLACES["gpu"]()
    with place.guarded("reverse") as launched:            # the order of threads, on the host
        y = rung.forward(place.put(x), place.put(w), …)
    place.get(y), launched                                # {("conv2d/rung7_mma.cu", "forward")}

Inside, fresh memory is all ones, which is NaN, and around every array lie bytes that nobody may
write. If somebody did, the launch raises Fault on the host, and on the GPU leaving raises Overrun.
"""

import ctypes
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from tinydiff_kernels.gpu.order import stepping
from tinydiff_kernels.gpu.python import Kernel
from tinydiff_kernels.gpu.source import Entry

from gpu import KERNELS

ZONE = 4096                                               # bytes on either side of an array


class Overrun(RuntimeError):
    """Somebody wrote where no array is."""


class Host:
    """NumPy arrays, guarded by kernels/gpu/host.py and watched.py."""

    def put(self, x):
        return x.copy()

    def get(self, x):
        return np.array(x)

    @contextmanager
    def guarded(self, order="forward"):
        with launches() as launched, stepping(order=order):
            yield launched

    def free(self):
        """The garbage collector's work."""


class Gpu:
    """CuPy arrays; those made inside `guarded` lie between red zones."""

    def put(self, x):
        import cupy
        return cupy.asarray(x)

    def get(self, x):
        return x.get() if hasattr(x, "get") else x

    @contextmanager
    def guarded(self, order="forward"):
        """The order is for the host alone: a GPU has one of its own."""
        import cupy
        zones = RedZones(cupy.cuda.MemoryPool())
        with launches() as launched, cupy.cuda.using_allocator(zones):
            yield launched
        cupy.cuda.Device().synchronize()
        zones.check()

    def free(self):
        """Give back what CuPy keeps for the next array."""
        import cupy
        cupy.get_default_memory_pool().free_all_blocks()


PLACES = {"gpu": Gpu, "host": Host}


class RedZones:
    """An allocator for CuPy whose memory is all ones, as are 4 KiB before and behind it.

    It keeps everything until it has been checked, so no array takes the place of another.
    """

    def __init__(self, pool):
        self.pool, self.given = pool, []                  # [(where, bytes between the zones)]

    def __call__(self, size):
        whole = self.pool.malloc(size + 2 * ZONE)
        whole.memset_async(0xFF, size + 2 * ZONE)
        self.given.append((whole, size))
        return whole + ZONE

    def check(self):
        for whole, size in self.given:
            for side, start in (("before", 0), ("behind", ZONE + size)):
                zone = np.zeros(ZONE, np.uint8)
                (whole + start).copy_to_host(ctypes.c_void_p(zone.ctypes.data), ZONE)
                touched = np.flatnonzero(zone != 0xFF)
                if touched.size:
                    at = touched[0] + 1 if side == "behind" else ZONE - touched[-1]
                    raise Overrun(f"wrote {at} bytes {side} an array of {size} bytes")


@contextmanager
def launches():
    """{(file, kernel)} of everything that is launched inside a `with`."""
    seen, of_cu, of_python = set(), Entry.launch, Kernel.launch

    def launch_cu(self, *launch):
        seen.add((named(self.source.path), self.name))
        of_cu(self, *launch)

    def launch_python(self, *launch):
        seen.add((named(self.function.__code__.co_filename), self.__name__))
        of_python(self, *launch)

    with patch.object(Entry, "launch", launch_cu), patch.object(Kernel, "launch", launch_python):
        yield seen


def named(path):
    """"conv2d/rung7_mma.cu" of a kernel's file"""
    path = Path(path).resolve()
    inside = path.is_relative_to(KERNELS)
    return path.relative_to(KERNELS).as_posix() if inside else path.name
