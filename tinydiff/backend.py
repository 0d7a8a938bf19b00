"""Which array library holds an array, and the one door between host and device."""

import math
import sys

import numpy


def array_module(x):
    """The module whose functions work on `x`: cupy for an array on the device, else numpy."""
    if type(x).__module__.partition(".")[0] == "cupy":
        return sys.modules["cupy"]
    return numpy


def to_host(x):
    """`x` as a NumPy array; a copy only if it lives on the device."""
    return x.get() if array_module(x) is not numpy else numpy.asarray(x)


def to_device(x, device):
    """`x` on "cpu" or "cuda"; a copy only if it lives elsewhere.

    Raises ValueError for any other device and when there is no GPU to use.
    """
    if device == "cpu":
        return to_host(x)
    if device != "cuda":
        raise ValueError(f'device: expected "cpu" or "cuda", got {device!r}')
    reason = why_no_gpu()
    if reason:
        raise ValueError(f"device cuda cannot be used: {reason}; use --device cpu")
    import cupy
    return cupy.asarray(x)


def normal_cdf(x):
    """Φ(x), the share of a standard normal below x, to float64's last digits also in the tails."""
    if array_module(x) is not numpy:
        from cupyx.scipy.special import ndtr
        return ndtr(x)
    return 0.5 * numpy.vectorize(math.erfc, otypes=[float])(-numpy.asarray(x) / 2**0.5)


def why_no_gpu():
    """One sentence on why there is no GPU to use, or "" when there is one."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no usable NVIDIA driver ({error})"
    return "" if count else "CuPy finds no NVIDIA device"
