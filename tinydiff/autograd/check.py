"""gradcheck: does backward agree with central differences?"""

import numpy as np

from tinydiff.autograd.tensor import Tensor, no_grad


def gradcheck(f, *arrays, eps=1e-6):
    """The largest relative error of f's gradients against (f(x + eps) − f(x − eps)) / 2 eps.

    f takes one Tensor for each array and returns a Tensor of any shape; the numbers in it are added
    up with fixed random weights first. Each entry of each array is moved on its own, in float64.
    An error is measured against the largest gradient of its array (or 1e-3 if all are smaller).
    """
    xs = [np.array(a, dtype=np.float64) for a in arrays]
    tensors = [Tensor(x, requires_grad=True) for x in xs]
    y = f(*tensors)
    dy = np.random.default_rng(0).uniform(0.5, 1.5, y.shape)
    y.backward(dy)
    worst = 0.0
    for x, tensor in zip(xs, tensors, strict=True):
        slopes = np.zeros_like(x)
        for i in np.ndindex(x.shape):
            slopes[i] = slope(lambda: f(*map(Tensor, xs)), x, i, dy, eps)
        exact = np.zeros_like(x) if tensor.grad is None else tensor.grad
        if not (np.isfinite(exact).all() and np.isfinite(slopes).all()):
            return float("inf")
        scale = max(np.abs(slopes).max(initial=0), 1e-3)
        worst = max(worst, np.abs(exact - slopes).max(initial=0) / scale)
    return float(worst)


def slope(f, x, i, dy, eps):
    """d Σ f · dy / d x[i] by a step of eps to either side; x is left as it was."""
    here, ends = x[i], []
    with no_grad():
        for step in (eps, -eps):
            x[i] = here + step
            ends.append((f().data * dy).sum())
    x[i] = here
    return (ends[0] - ends[1]) / (2 * eps)
