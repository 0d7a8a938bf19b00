"""What the stand-in for CuPy (stand_in_cupy.py) takes for a GPU: its state, memory, failures."""

import weakref
from types import SimpleNamespace

import numpy as np

# driver: the CUDA it is made for, 0 for none; limit: bytes of memory, None for no end
device = SimpleNamespace(driver=13000, count=1, capability="90", limit=None, used=0, pool=0)
live = {}                                                 # {id of an array's memory: bytes}


class OutOfMemoryError(MemoryError):
    __module__ = "cupy.cuda.memory"

    def __init__(self, size, total):
        super().__init__(f"Out of memory allocating {size:,} bytes "
                         f"(allocated so far: {total:,} bytes).")


class CUDARuntimeError(RuntimeError):
    __module__ = "cupy_backends.cuda.api.runtime"

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def charge(array):
    """Count memory that nobody has counted yet, for as long as it lives."""
    if device.limit is None:
        return
    while isinstance(array.base, np.ndarray):
        array = array.base
    if id(array) in live:
        return
    if device.used + array.nbytes > device.limit:
        raise OutOfMemoryError(array.nbytes, device.pool)
    live[id(array)] = array.nbytes
    device.used += array.nbytes
    device.pool = max(device.pool, device.used)
    weakref.finalize(array, release, id(array))


def release(key):
    device.used -= live.pop(key)


def get_device_count():
    if device.driver < 13000:
        raise CUDARuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is "
                                   "insufficient for CUDA runtime version")
    if device.count == 0:
        raise CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
    return device.count


def free_all_blocks():
    device.pool = device.used


def mem_info():
    """(free, all) bytes, as the driver sees them: what the pool holds is not free."""
    most = device.limit or 1 << 40
    return most - device.pool, most


pool = SimpleNamespace(free_all_blocks=free_all_blocks, total_bytes=lambda: device.pool)
memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError, driverGetVersion=lambda: device.driver,
    runtimeGetVersion=lambda: 13000, getDeviceCount=get_device_count,
    getDeviceProperties=lambda i: {"name": b"NVIDIA Stand-in"})
