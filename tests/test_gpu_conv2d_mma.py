"""Convolutions on tensor cores, stepped through on the CPU, against the definition in float64."""

import numpy as np
import pytest
from conv2d_helpers import SAME, out_shape
from gpu_helpers import any_order, as_bf16, bf16, close, distance, double, needs_compiler, numbers
from tinydiff_kernels.conv2d import (
    rung1_im2col as fast,
    rung7_mma as mma,
    rung8_halo as halo,
    rung9_phase as phase,
    rung10_wgmma as wgmma,
)
from tinydiff_kernels.conv2d.gather import correlate, table, windows
from tinydiff_kernels.gpu import moments
from tinydiff_kernels.gpu.parts import in_parts

__all__ = ["any_order"]
pytestmark = needs_compiler

# N, H, W, C, O, window, stride, padding: ragged tiles, several slabs of channels, pairs of images
CASES = {
    "two slabs, ragged": (2, 9, 7, 72, 40, (3, 3), 1, SAME),
    "wide": (1, 5, 6, 16, 136, (3, 3), 1, SAME),
    "stride 2, one side padded": (3, 8, 8, 16, 24, (3, 3), 2, ((1, 0), (0, 1))),
    "three channels": (2, 6, 5, 3, 5, (3, 3), 1, SAME),
    "one pixel windows": (2, 4, 3, 24, 16, (1, 1), 1, ((0, 0), (0, 0))),
    "no square": (2, 5, 6, 8, 8, (2, 3), 2, ((0, 2), (1, 0))),
    "cropped": (1, 7, 7, 8, 8, (3, 3), 3, ((-1, 1), (0, -1))),
    "window of 5": (1, 6, 6, 8, 16, (5, 5), 1, ((2, 2), (2, 2))),
}
# H, W: patches that are cut, of one image and of two and eight
both = pytest.mark.parametrize("rung", [halo, wgmma], ids=["halo", "wgmma"])
SIZES = {(9, 17): (40, 8), (16, 16): (64, 64), (7, 7): (72, 0), (4, 4): (8, 16), (3, 2): (16, 0)}


@pytest.mark.parametrize("rung", [mma, halo, phase, wgmma], ids=["mma", "halo", "phase", "wgmma"])
@pytest.mark.parametrize("case", CASES)
def test_a_convolution_and_its_gradients_equal_the_definition(rung, case, rng, any_order):
    N, H, W, C, O, window, stride, padding = CASES[case]
    x, w = numbers(rng, N, H, W, C), numbers(rng, *window, C, O)
    dy = numbers(rng, *out_shape(x.shape, w.shape, stride, padding))
    X, W64, DY = double(x, w, dy)
    assert close(rung.forward(x, w, stride, padding), fast.forward(X, W64, stride, padding))
    assert close(rung.grad_input(dy, w, x.shape, stride, padding),
                 fast.grad_input(DY, W64, x.shape, stride, padding))
    dw = rung.grad_weight(dy, x, w.shape, stride, padding)
    assert dw.dtype == np.float32
    assert close(dw, fast.grad_weight(DY, X, w.shape, stride, padding))


def test_the_bias_is_added(rng):
    x, w, b = numbers(rng, 1, 4, 5, 8), numbers(rng, 3, 3, 8, 16), np.arange(16, dtype=np.float32)
    exact = fast.forward(*double(x, w), 1, SAME) + b
    assert close(mma.forward(x, w, 1, SAME, b), exact)
    assert close(halo.forward(x, w, 1, SAME, b), exact)


def test_a_long_sum_over_pixels_is_cut_into_parts_and_never_changes(rng):
    x, dy = numbers(rng, 2, 24, 24, 8), numbers(rng, 2, 24, 24, 8)
    taps = table(windows((3, 3), SAME), x)
    parts, each = in_parts(2 * 24 * 24, 9, step=64)
    assert parts > 1
    assert (parts - 1) * each < 2 * 24 * 24 <= parts * each
    found = [correlate(mma.code, [x], dy, taps, stride=1, step=1) for _ in range(2)]
    assert (found[0] == found[1]).all()
    exact = fast.grad_weight(*double(dy, x), (3, 3, 8, 8), 1, SAME)
    assert close(found[0].reshape(3, 3, 8, 8), exact)


@pytest.fixture(params=SIZES, ids="{0[0]}x{0[1]}".format)
def fused_case(request, rng):
    """Arguments of `fused`, exact and as plain bf16 arithmetic has it."""
    (H, W), (C1, C2) = request.param, SIZES[request.param]
    N, C, O = 3, C1 + C2, 24
    xs = [numbers(rng, N, H, W, n) for n in (C1, C2) if n]
    w, add = numbers(rng, 3, 3, C, O), numbers(rng, N, H, W, O)
    scale, shift = (numbers(rng, N, C, dtype=np.float32) for _ in range(2))
    base = numbers(rng, N, O, dtype=np.float32) + 100     # a mean far from 0
    X = np.concatenate(double(*xs), axis=3)
    z = X * scale[:, None, None].astype(float) + shift[:, None, None]
    a = z / (1 + np.exp(-z))
    around = base[:, None, None] + add.astype(float)
    w64 = w.astype(float)
    exact = fast.forward(a, w64, 1, SAME) + around
    plain = as_bf16(fast.forward(as_bf16(a), w64, 1, SAME) + around)
    return xs, w, dict(scale=scale, shift=shift, base=base, add=add), exact, plain


@both
def test_norm_silu_bias_time_and_residual_come_along_in_one_pass(rung, fused_case, any_order):
    xs, w, around, exact, plain = fused_case
    y = rung.fused(xs, w, **around)
    assert y.dtype == bf16
    assert close(y, exact, plain)


@both
def test_the_mean_and_variance_for_the_next_norm_come_out_with_it(rung, fused_case, any_order):
    xs, w, around, exact, _ = fused_case
    y = rung.fused(xs, w, **around)
    found, counts = moments.recall(y)
    assert counts.sum() == np.prod(exact.shape[1:3])
    mean = (found[..., 0] * counts[:, None]).sum(axis=1) / counts.sum()            # (N, O)
    away = found[..., 0] - mean[:, None]
    var = (found[..., 1] + counts[:, None] * away**2).sum(axis=1) / counts.sum()
    assert distance(mean, exact.mean(axis=(1, 2))) < 1e-4
    assert distance(var, exact.var(axis=(1, 2))) < 5e-3   # of bf16 activations, not of y's rounding


def test_moments_are_forgotten_with_their_array(rng):
    y = halo.fused([numbers(rng, 1, 4, 4, 8)], numbers(rng, 3, 3, 8, 8))
    known = len(moments._known)
    assert moments.recall(y.copy()) is None
    del y
    assert len(moments._known) == known - 1


@both
def test_the_gradients_of_a_fused_convolution_come_apart_at_the_seam(rung, fused_case, any_order):
    xs, w, around, _, _ = fused_case
    dy = around["add"]
    X = np.concatenate(double(*xs), axis=3)
    split = xs[0].shape[3] if len(xs) > 1 else None
    dxs = rung.fused_grad_input(dy, w, split=split)
    whole = fast.grad_input(*double(dy, w), X.shape, 1, SAME)
    assert [dx.shape for dx in dxs] == [x.shape for x in xs]
    assert close(np.concatenate(dxs, axis=3), whole)
    dw = rung.fused_grad_weight(dy, xs)
    assert close(dw, fast.grad_weight(dy.astype(float), X, w.shape, 1, SAME))


@pytest.mark.parametrize(("H", "W", "C", "O"), [(5, 7, 16, 24), (8, 8, 72, 136), (3, 3, 3, 5)])
def test_four_phases_equal_an_upsampling_and_a_convolution(H, W, C, O, rng, any_order):
    x, w, dy = numbers(rng, 2, H, W, C), numbers(rng, 3, 3, C, O), numbers(rng, 2, 2 * H, 2 * W, O)
    b = numbers(rng, O, dtype=np.float32)
    X, W64, DY = double(x, w, dy)
    large = X.repeat(2, axis=1).repeat(2, axis=2)
    exact = fast.forward(large, W64, 1, SAME)
    w_phase = [as_bf16(m) for m in sums_of_taps(W64)]     # what rounding them alone costs
    plain = as_bf16(by_phases(X, w_phase) + b)
    assert distance(by_phases(X, sums_of_taps(W64)), exact) < 1e-14
    assert close(phase.upsampled(x, w, b), exact + b, plain)
    dx = fast.grad_input(DY, W64, large.shape, 1, SAME).reshape(2, H, 2, W, 2, C).sum(axis=(2, 4))
    assert close(phase.upsampled_grad_input(dy, w), dx, dx * (1 + 3e-3))
    assert close(phase.upsampled_grad_weight(dy, x, w.shape),
                 fast.grad_weight(DY, large, w.shape, 1, SAME))


def sums_of_taps(w):
    """The 2 × 2 windows of the four phases, from their definition."""
    rows = {0: [[0], [1, 2]], 1: [[0, 1], [2]]}
    return [np.array([[sum(w[s, t] for s in us for t in vs) for vs in rows[b]] for us in rows[a]])
            for a in (0, 1) for b in (0, 1)]


def by_phases(x, windows):
    """Each phase a convolution of the small image."""
    N, H, W, _ = x.shape
    y = np.empty((N, 2 * H, 2 * W, windows[0].shape[-1]))
    for (a, b), w in zip(np.ndindex(2, 2), windows):
        y[:, a::2, b::2] = fast.forward(x, w, 1, ((1 - a, a), (1 - b, b)))
    return y
