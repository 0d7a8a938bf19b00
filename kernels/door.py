"""What every fast rung asks at its door: float32, contiguous, present; and sizes rounded up."""

import numpy as np

from .simd.product import PANEL


def single(*arrays):
    """Whether all that are given are float32 and hold something; others take the NumPy rung."""
    return all(a is None or (a.dtype == np.float32 and a.size) for a in arrays)


def contiguous(*arrays):
    """The arrays with their numbers one behind the other, copied only where they are not."""
    return [np.ascontiguousarray(a) for a in arrays]


def sides(xs):
    """(x, skip or a null address, C1, C2) of one input or of two side by side."""
    x, skip = (*xs, None)[:2]
    return x, given(skip), x.shape[-1], 0 if skip is None else skip.shape[-1]


def given(array):
    """The array, contiguous, or a null address for None."""
    return 0 if array is None else np.ascontiguousarray(array)


def up(n, step):
    """n rounded up to a multiple of step."""
    return -(-n // step) * step


def whole_panels(base, N, O):
    """base (O,) or (N, O) as (N, O up to whole panels) with zeros behind; None stays None."""
    if base is None:
        return None
    out = np.zeros((N, up(O, PANEL)), np.float32)
    out[:, :O] = base
    return out
