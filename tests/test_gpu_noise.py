"""The noise that a GPU makes, stepped through on the CPU, is the noise of the definition."""

import subprocess
import sys

import numpy as np
import pytest
from gpu_helpers import any_order, needs_compiler
from tinydiff_kernels.gpu.arrays import bfloat16
from tinydiff_kernels.noise import keep, mask, normal, normal_into, philox

from tinydiff.diffusion import noise

__all__ = ["any_order"]
HERE = np.zeros(1, np.float32)                            # an array where the noise shall live
ADDRESSES = [(0, [0], 0, (8,)), (7, range(3, 9), 999, (8, 9, 3)), (1, [4, 2, 2], 5, (5, 5, 1)),
             (2**64 - 1, [2**64 - 1, 5], 2**64 - 1, (3, 7)), (3, [1], 2, ())]


def ulps(got, exact):
    """The largest distance in units of the last place."""
    return (np.abs(got - exact) / np.spacing(np.abs(exact))).max()


@needs_compiler
@pytest.mark.parametrize(("seed", "images", "step", "shape"), ADDRESSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("purpose", [noise.X_T, noise.SAMPLER])
def test_noise_is_that_of_the_host(seed, images, step, shape, dtype, purpose, any_order):
    got = normal(seed, images, step, shape, dtype, purpose=purpose, like=HERE)
    exact = noise.batch(seed, images, step, shape, dtype, purpose=purpose)
    assert (got.dtype, got.shape) == (exact.dtype, exact.shape)
    assert ulps(got, exact) <= (1 if dtype == np.float32 else 4)      # of two libraries' sin, cos
    if dtype == np.float32:
        assert (got == exact).mean() > 0.99


@needs_compiler
@pytest.mark.parametrize("images", [range(2, 5), np.array([9, 2, 2**63], np.uint64)], ids=str)
def test_noise_of_an_address_in_memory_is_the_same_noise(images):
    state, out = np.array([2**63 + 1, 0], np.uint64), np.full((3, 5, 3), np.nan, np.float32)
    for step in (3, 4):
        state[1] = step
        normal_into(out, images, state, purpose=noise.TRAIN_EPS)
        exact = noise.batch(2**63 + 1, [int(i) for i in images], step, (5, 3),
                            purpose=noise.TRAIN_EPS)
        assert ulps(out, exact) <= 1


@needs_compiler
def test_an_image_does_not_depend_on_its_batch_or_its_size():
    whole = normal(5, range(6), 1, (4, 7), purpose=noise.X_T, like=HERE)
    alone = normal(5, [3], 1, (4, 7), purpose=noise.X_T, like=HERE)
    np.testing.assert_array_equal(alone[0], whole[3])
    short = normal(5, [3], 1, (9,), purpose=noise.X_T, like=HERE)
    np.testing.assert_array_equal(short[0], whole[3].ravel()[:9])


def test_images_that_count_up_are_not_sent():
    assert philox.addressed([4, 5, 6], HERE) == (None, 4)
    sent, first = philox.addressed([4, 6, 5], HERE)
    assert sent.tolist() == [4, 6, 5]
    assert sent.dtype == np.uint64
    assert first == 0


def test_no_images_and_no_pixels_are_no_noise():
    assert normal(0, [], 0, (3,), purpose=0, like=HERE).shape == (0, 3)
    assert normal(0, [1, 2], 0, (0, 3), purpose=0, like=HERE).shape == (2, 0, 3)


def test_a_type_that_noise_is_not_made_in_is_refused():
    with pytest.raises(ValueError, match="noise on a GPU is float32 or float64, got int32;"):
        normal(0, [0], 0, (3,), np.int32, purpose=0, like=HERE)


def test_the_package_asks_for_numpy_alone_until_noise_is_made():
    code = ("import sys, tinydiff_kernels.noise; "
            "print([m for m in sys.modules if m.split('.')[0] in ('numba', 'cupy', 'ml_dtypes')])")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True,
                          text=True, check=True)
    assert done.stdout == "[]\n"


@needs_compiler
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7, 9), (64, 65), (2, 0)])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, np.nextafter(1, 0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_keeps_what_the_host_keeps(dtype, p, shape, monkeypatch, any_order):
    like = np.ones(shape, bfloat16() if dtype == "bfloat16" else dtype)
    kept = [keep(p, 2**63 + 5, like)]
    monkeypatch.setattr(mask, "on_device", lambda a: True)
    kept += [keep(p, seed, like) for seed in (2**63 + 5, np.array([2**63 + 5], np.uint64))]
    for k in kept:
        assert (k.dtype, k.shape) == (like.dtype, shape)
        assert k.tobytes() == kept[0].tobytes()


def test_what_is_kept_makes_up_for_what_is_not():
    for p in 0.1, 0.37:
        k = keep(p, 3, np.zeros(400_000))
        share = round(p * 2**16) / 2**16
        assert set(np.unique(k)) == {0.0, 1 / (1 - share)}
        assert abs((k == 0).mean() - share) < 5 * (p * (1 - p) / k.size) ** 0.5
    again, other = keep(0.37, 3, np.zeros(400_000)), keep(0.37, 4, np.zeros(400_000))
    np.testing.assert_array_equal(k, again)
    assert abs(((k == 0) & (other == 0)).mean() - 0.37**2) < 5e-3     # seeds are strangers
