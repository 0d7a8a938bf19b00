"""Addressed noise: published Philox vectors, Box–Muller by hand, independence of the batch."""

from itertools import islice
from math import cos, log, pi, sin, sqrt

import numpy as np
import pytest

from tinydiff.diffusion import noise


def philox4x64(counter, key):
    """Philox4x64-10 in Python integers, from its definition (Salmon et al. 2011)."""
    mask = 2**64 - 1
    (a, b, c, d), (k, q) = counter, key
    for _ in range(10):
        x, y = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = (y >> 64) ^ b ^ k, y & mask, (x >> 64) ^ d ^ q, x & mask
        k, q = (k + 0x9E3779B97F4A7C15) & mask, (q + 0xBB67AE8584CAA73B) & mask
    return [a, b, c, d]


def test_words_match_the_published_known_answer():
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert noise.words(0, 0, 0, 0, 4).tolist() == expected
    assert philox4x64((0, 0, 0, 0), (0, 0)) == expected


@pytest.mark.parametrize(("seed", "purpose", "image", "step"), [
    (0, 0, 0, 0), (1, 2, 3, 4), (2**64 - 1, 5, 2**64 - 1, 2**64 - 1), (7, 1, 0, 999),
])
def test_words_are_philox_at_their_address(seed, purpose, image, step):
    blocks = [philox4x64((block, image, step, 0), (seed, purpose)) for block in range(3)]
    expected = [word for block in blocks for word in block]
    assert noise.words(seed, purpose, image, step, 12).tolist() == expected


def test_normal_is_box_muller_of_the_words():
    z = noise.normal(3, 5, 7, (2, 3), np.float64, purpose=noise.SAMPLER)
    expected = []
    for w0, w1 in noise.words(3, noise.SAMPLER, 5, 7, 6).reshape(3, 2).tolist():
        r, angle = sqrt(-2 * log(((w0 >> 11) + 1) / 2**53)), 2 * pi * (w1 >> 11) / 2**53
        expected += [r * cos(angle), r * sin(angle)]
    np.testing.assert_allclose(z.ravel(), expected, rtol=1e-13)


def test_the_rarest_word_gives_a_large_but_finite_number(monkeypatch):
    monkeypatch.setattr(noise, "rows", lambda *address: np.zeros((1, 2), np.uint64))
    z = noise.normal(0, 0, 0, (2,), np.float64)
    assert z.tolist() == [pytest.approx(sqrt(2 * 53 * log(2))), 0]


def test_uniform_is_the_top_53_bits():
    w = noise.words(3, noise.TRAIN_T, 1, 2, 5)
    assert noise.unit(w).tolist() == [(word >> 11) / 2**53 for word in w.tolist()]


def test_rows_of_several_images_are_the_words_of_each():
    images = [5, 0, 2**64 - 1, 5]
    each = [noise.words(3, noise.DATA, image, 2**64 - 1, 7) for image in images]
    np.testing.assert_array_equal(noise.rows(3, noise.DATA, images, 2**64 - 1, 7), each)
    assert noise.rows(3, noise.DATA, [], 0, 7).shape == (0, 7)


def test_normal_has_the_moments_of_a_standard_normal():
    z, n = noise.normal(0, 0, 0, (100_001,), np.float64), 100_001
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert abs((z[:-1] * z[1:]).mean()) < 4 / n**0.5


def test_odd_and_even_sizes_share_their_beginning():
    long = noise.normal(0, 0, 0, (8,))
    for size in range(1, 8):
        assert (noise.normal(0, 0, 0, (size,)) == long[:size]).all()


def test_an_image_does_not_depend_on_its_batch():
    whole = noise.batch(9, range(5), 3, (4, 5, 1), purpose=noise.SAMPLER)
    for image in (4, 0, 2):
        alone = noise.normal(9, image, 3, (4, 5, 1), purpose=noise.SAMPLER)
        assert (alone == whole[image]).all()
    assert (noise.batch(9, [3, 1], 3, (4, 5, 1), purpose=noise.SAMPLER) == whole[[3, 1]]).all()


def test_every_part_of_the_address_changes_the_noise():
    address = {"seed": 1, "image": 1, "step": 1, "purpose": 1}
    ours = noise.normal(**address, shape=(64,))
    for part in address:
        other = noise.normal(**{**address, part: 2}, shape=(64,))
        assert abs(np.corrcoef(ours, other)[0, 1]) < 0.5
        assert (ours != other).all()


def test_stream_is_the_samplers_noise_step_by_step():
    steps = list(islice(noise.stream(4, iter([2, 7]), (3,), np.float64), 3))
    for step, z in enumerate(steps):
        expected = noise.batch(4, [2, 7], step, (3,), np.float64, purpose=noise.SAMPLER)
        assert (z == expected).all()


def test_generator_reads_the_same_words():
    raw = noise.generator(5, 6, purpose=noise.CAPTION).bit_generator.random_raw(4)
    assert (raw == noise.words(5, noise.CAPTION, 0, 6, 4)).all()
    assert (noise.generator(5, 6, purpose=noise.CAPTION).permutation(50)
            == noise.generator(5, 6, purpose=noise.CAPTION).permutation(50)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_has_the_dtype_and_shape_asked_for(dtype):
    z = noise.batch(0, range(3), 0, (2, 5), dtype)
    assert (z.dtype, z.shape) == (dtype, (3, 2, 5))
    np.testing.assert_array_equal(z, noise.batch(0, range(3), 0, (2, 5), np.float64).astype(dtype))


@pytest.mark.parametrize(("part", "value"), [
    ("seed", -1), ("seed", 2**64), ("seed", 0.5), ("image", -1), ("step", 2**64),
])
def test_addresses_outside_64_bits_are_refused(part, value):
    address = {"seed": 0, "image": 0, "step": 0} | {part: value}
    with pytest.raises(ValueError, match=rf"{part} must be .* got {value}"):
        noise.normal(**address, shape=(2,))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_noise_that_would_be_cut_off_is_refused(dtype):
    with pytest.raises(ValueError, match="noise needs floats, and x is of"):
        noise.normal(0, 0, 0, (2,), dtype)
