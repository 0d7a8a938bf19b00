"""Which array library holds an array, and the one door between host and device."""

import math
import sys

import numpy


def array_module(x):
    """The module whose functions work on an array or Tensor: cupy if it is on the device, or numpy.

    NumPy's own functions work there as well, where CuPy has the same: it answers for its arrays.
    """
    library = type(x).__module__.partition(".")[0]
    if library == "tinydiff":
        return array_module(x.data)
    return sys.modules["cupy"] if library == "cupy" else numpy


def to_host(x):
    """`x` as a NumPy array; a copy only if it lives on the device."""
    return x.get() if array_module(x) is not numpy else numpy.asarray(x)


def to_device(x, device):
    """`x` on "cpu", "cuda" or, for "auto", the better of them; a copy only if it lives elsewhere.

    Raises ValueError for any other device and when there is no GPU to use.
    """
    if device_for(device) == "cpu":
        return to_host(x)
    import cupy
    return cupy.asarray(x)


def alongside(x, other):
    """`x` where `other` lives; a copy only if it lives elsewhere."""
    return to_host(x) if array_module(other) is numpy else array_module(other).asarray(x)


def contiguous(x):
    """`x` itself where its numbers lie one behind the other, or else a copy in which they do."""
    return x if x.flags.c_contiguous else array_module(x).ascontiguousarray(x)


def device_for(asked):
    """"cpu" or "cuda"; for "auto" cuda where it can be used.  ValueError as of `to_device`."""
    if asked not in ("auto", "cpu", "cuda"):
        raise ValueError(f'device: expected "auto", "cpu" or "cuda", got {asked!r}')
    reason = "" if asked == "cpu" else why_no_gpu()
    if asked == "cuda" and reason:
        raise ValueError(f"--device cuda: {reason}; use --device cpu")
    return "cpu" if asked == "cpu" or reason else "cuda"


def why_no_gpu():
    """One sentence on why there is no GPU to use, or "" when there is one."""
    try:
        import cupy
    except ModuleNotFoundError:
        return "CuPy is not installed; pip install 'tinydiff[cuda13]'"
    except ImportError as error:
        return f"CuPy cannot be imported ({str(error).strip().splitlines()[-1]})"
    runtime = cupy.cuda.runtime
    driver, ours = (f"{n // 1000}.{n % 1000 // 10}"       # 13020 is CUDA 13.2
                    for n in (runtime.driverGetVersion(), runtime.runtimeGetVersion()))
    if driver == "0.0":
        return "there is no NVIDIA driver"
    try:
        runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return {35:  f"the NVIDIA driver is made for CUDA {driver}, and CuPy for {ours}: install a "
                     "newer driver",
                100: "there is no NVIDIA GPU"}.get(
                    error.status, f"the NVIDIA driver refuses ({error})")
    if int(cupy.cuda.Device().compute_capability) < 80:
        return f"{gpu()}, and the kernels need 8.0"
    return ""


def gpu():
    """What there is, as in "NVIDIA H100 80GB HBM3 has compute capability 9.0"."""
    import cupy
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return f"{name} has compute capability {int(cupy.cuda.Device().compute_capability) / 10}"


def wait_for(x):
    """Return when `x` is computed: a device is asked and goes on by itself, a host never is."""
    if array_module(x) is not numpy:
        sys.modules["cupy"].cuda.Device().synchronize()


def memory_of(work):
    """Bytes of the device's memory: held here while work() runs, and those that could be held."""
    import cupy
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    most = cupy.cuda.Device().mem_info[0] + pool.total_bytes()        # free, and ours already
    work()
    return pool.total_bytes(), most


def of_device(error):
    """Whether an exception came from CuPy or the driver below it."""
    return type(error).__module__.partition(".")[0] in ("cupy", "cupy_backends")


def normal_cdf(x):
    """Φ(x), the share of a standard normal below x, to float64's last digits also in the tails."""
    if array_module(x) is not numpy:
        from cupyx.scipy.special import ndtr
        return ndtr(x)
    return 0.5 * numpy.vectorize(math.erfc, otypes=[float])(-numpy.asarray(x) / 2**0.5)
