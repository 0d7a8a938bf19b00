"""Inputs of a GroupNorm, what a rung makes of them, and how far off it may be, on CPUs and GPUs."""

import numpy as np
import pytest
from tinydiff_kernels.norm import LADDER

numpy_rung = LADDER["numpy"]
EPS = 1e-5

#    name: (shapes of the inputs, groups)
SHAPES = {
    "whole vectors":        ([(3, 4, 4, 64)], 8),
    "less than a vector":   ([(2, 5, 7, 6)], 3),
    "a vector and a rest":  ([(3, 5, 7, 40)], 8),
    "one group":            ([(2, 3, 5, 33)], 1),
    "a group each channel": ([(2, 3, 5, 33)], 33),
    "many images":          ([(70, 2, 2, 8)], 4),
    "one pixel":            ([(3, 1, 1, 32)], 8),
    "vectors":              ([(5, 16)], 4),
    "two inputs":           ([(3, 5, 7, 32), (3, 5, 7, 16)], 8),
    "a group in both":      ([(2, 9, 9, 33), (2, 9, 9, 63)], 8),
    "one group, two inputs": ([(2, 3, 5, 17), (2, 3, 5, 1)], 1),
}
with_and_without_silu = pytest.mark.parametrize("silu", [True, False])


def arrays(shapes, mean=0.5, std=2.0, dtype=np.float32):
    """xs, dys, gamma, beta; the latter two at least in float32"""
    rng = np.random.default_rng(0)
    N, C = shapes[0][0], sum(shape[-1] for shape in shapes)
    xs = [(mean + std * rng.standard_normal(shape)).astype(dtype) for shape in shapes]
    dys = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    gamma, beta = rng.standard_normal((2, N, C)).astype(np.promote_types(dtype, np.float32))
    return xs, dys, 1 + gamma, beta


def results(rung, xs, dys, gamma, beta, mean, rstd, groups, silu):
    """What a rung makes of the same arrays."""
    C = xs[0].shape[-1]
    out = dict(zip(("mean", "rstd"), rung.measure(xs, groups, EPS)))
    out["y"] = rung.normalize(xs[0], gamma[:, :C], beta[:, :C], silu)
    dxs, out["dscale"], out["dshift"] = rung.backward(
        [dy.copy() for dy in dys], xs, gamma, beta, mean, rstd, silu)
    return out | {f"dx{i}": dx for i, dx in enumerate(dxs)}


def compare(rung, xs, dys, gamma, beta, groups, silu):
    """Hold a rung's error against twice that of plain float32 arithmetic, rounded to what it gives.
    """
    wide = lambda arrays: [a.astype(np.float64) for a in arrays]
    mean, rstd = numpy_rung.measure(wide(xs), groups, EPS)
    weights = gamma, beta, mean.astype(np.float32), rstd.astype(np.float32)
    single = [[x.astype(np.float32) for x in side] for side in (xs, dys)]
    plain = results(numpy_rung, *single, *weights, groups, silu)
    exact = results(numpy_rung, wide(xs), wide(dys), *wide(weights), groups, silu)
    for name, got in results(rung, xs, dys, *weights, groups, silu).items():
        narrow = name[0] in "yd" and name[1:2] != "s"     # y, dx
        assert got.dtype == (xs[0].dtype if narrow else np.float32), name
        rounded = exact[name].astype(got.dtype).astype(np.float64) if narrow else exact[name]
        smallest = 2**-24 * np.abs(exact[name]).max(initial=0)        # of float32
        allowed = max(error(plain[name], exact[name]), smallest, error(rounded, exact[name]))
        assert error(got, exact[name]) <= 2 * allowed, name


def error(got, exact):
    """Root mean square; infinite for NaN and for another shape."""
    got = np.asarray(got, np.float64)
    if got.shape != exact.shape or not np.isfinite(got).all():
        return np.inf
    return np.sqrt(np.square(got - exact).sum() / max(1, exact.size))


def assert_silu_of_large_numbers_is_themselves_or_nothing(rung):
    x = np.array([[-1e4, -200, -90, 90, 200, 1e4]], np.float32)
    one, zero = np.ones_like(x), np.zeros_like(x)
    y = rung.normalize(x, one, zero, True)
    np.testing.assert_allclose(y, [[0, 0, 0, 90, 200, 1e4]], rtol=1e-6, atol=1e-30)
    moments = np.zeros((1, 6), np.float32), np.ones((1, 6), np.float32)
    _, _, slope = rung.backward([one.copy()], [x], one, zero, *moments, True)
    np.testing.assert_allclose(slope, [[0, 0, 0, 1, 1, 1]], rtol=1e-6, atol=1e-30)
