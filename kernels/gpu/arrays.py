"""What a launch needs to know of arrays, NumPy's and CuPy's: where they lie, and new ones there."""

import ctypes
import sys

import numpy as np


def module_of(array):
    """numpy or cupy, whichever the array is of; a NumPy number is of numpy."""
    return sys.modules[type(array).__module__.partition(".")[0]] if on_device(array) else np


def on_device(array):
    return type(array).__module__.partition(".")[0] == "cupy"


def for_gpu(arguments):
    """Whether a kernel with these arguments runs on a GPU; ValueError where some lie elsewhere."""
    arrays = [a for a in arguments if hasattr(a, "dtype") and a.ndim]
    count = sum(map(on_device, arrays))
    if 0 < count < len(arrays):
        raise ValueError(f"expected all arrays in one place, got {count} of {len(arrays)} on the "
                         "GPU; move the others with tinydiff.backend.to_device")
    return count > 0 and not getattr(sys.modules["cupy"], "stand_in", False)


def address(array):
    return array.data.ptr if on_device(array) else array.ctypes.data


def as_numpy(array):
    """The same memory of the host as a NumPy array, whoever calls it his."""
    if isinstance(array, np.ndarray):
        return array
    memory = (ctypes.c_char * max(array.nbytes, 1)).from_address(address(array))
    flat = np.frombuffer(memory, np.uint8, array.nbytes).view(array.dtype)
    return np.lib.stride_tricks.as_strided(flat, array.shape, array.strides)


def empty(shape, dtype, like):
    """An array where `like` lies, to be written by a kernel; on the host all bits are 1: NaN."""
    y = module_of(like).empty(shape, dtype)
    if not for_gpu([y]):
        memory = as_numpy(y)
        memory.reshape(-1).view(np.uint8)[...] = 0xFF
    return y


def bfloat16():
    """The type of bf16 arrays, NumPy's and CuPy's."""
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise ModuleNotFoundError("bf16 arrays need ml_dtypes; pip install ml_dtypes") from None
    return np.dtype(bfloat16)


def is_bf16(*arrays):
    """Whether all that are given are bf16 and hold something."""
    return all(a is None or (a.dtype.name == "bfloat16" and a.size) for a in arrays)


def has_wgmma(*arrays):
    """Whether they are bf16, and where they lie wgmma runs: on the host, or on a Hopper GPU."""
    if not is_bf16(*arrays):
        return False
    return not for_gpu(arrays) or module_of(arrays[0]).cuda.Device().compute_capability == "90"


def contiguous(*arrays):
    """The arrays with their numbers one behind the other, copied only where they are not."""
    return [a if a is None or a.flags.c_contiguous else module_of(a).ascontiguousarray(a)
            for a in arrays]


def widened(a, *axes):
    """a with zeros behind these axes, up to multiples of 8: rows that begin at 16 bytes."""
    if a is None or not any(a.shape[axis] % 8 for axis in axes):
        return a
    shape = list(a.shape)
    for axis in axes:
        shape[axis] = -(-shape[axis] // 8) * 8
    wide = module_of(a).zeros(shape, a.dtype)
    wide[tuple(slice(n) for n in a.shape)] = a
    return wide


def as_float(a):
    return a if a is None else a.astype(np.float32, copy=False)
