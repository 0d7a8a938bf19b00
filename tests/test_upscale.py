"""Enlarging: what the network sees beside x_t, and the two runs of a cascade in a row."""

import numpy as np
import pytest
from story_helpers import tiny

from tinydiff import data, images
from tinydiff.diffusion import noise
from tinydiff.runs import load_run, training_run
from tinydiff.train import Training
from tinydiff.upscale import Cascade, Upscaler, beside, shrunk, smaller

LARGE = dict(data={"name": "shapes"}, upscale={"factor": 2}, text={"length": 40})


@pytest.fixture(scope="module")
def upscaler():
    """Enlarges 16 × 16 to 32 × 32, hardly trained: its output layer is no longer silent."""
    training = Training(tiny(**LARGE), data.load("shapes"))
    for _ in range(3):
        training.step()
    return training_run(training, "upscaler")


@pytest.fixture(scope="module")
def small():
    """Draws 16 × 16, in colour."""
    scenes = data.load("shapes")
    pictures, _ = scenes.batch(32, 0, 0, 1.0, np.random.default_rng(0))
    few = data.DataSet(images.to_uint8(shrunk(images.to_float(pictures), 2)),
                       np.arange(32) % 10, data.load("digits").classes, "here")
    training = Training(tiny(), few)
    for _ in range(3):
        training.step()
    return training_run(training, "small")


def low(n, seed=0):
    return np.random.default_rng(seed).integers(256, size=(n, 16, 16, 3), dtype=np.uint8)


def test_a_smaller_picture_is_the_mean_of_squares():
    x = np.arange(2 * 4 * 6 * 1, dtype=np.float32).reshape(2, 4, 6, 1)
    expected = [[[x[n, 2 * i:2 * i + 2, 2 * j:2 * j + 2].mean()] for j in range(3)]
                for n in range(2) for i in range(2)]
    np.testing.assert_array_equal(shrunk(x, 2).reshape(4, 3, 1), expected)


def test_what_is_seen_beside_x_t_is_the_noised_small_picture_enlarged_and_its_time(rng):
    schedule = tiny().schedule()
    x, eps = rng.standard_normal((2, 3, 2, 2, 3)).astype(np.float32)
    s = np.array([0.0, 10.0, 25.0])
    seen = beside(x, s, eps, schedule, 2)
    noised = schedule.q_sample(x, s, eps)                 # DDPM Eq. 4
    for i in range(2):
        for j in range(2):
            np.testing.assert_array_equal(seen[:, i::2, j::2, :3], noised)
    np.testing.assert_allclose(seen[..., 3], np.broadcast_to(s[:, None, None] / 50, (3, 4, 4)))
    np.testing.assert_array_equal(seen[0, ::2, ::2, :3], x[0])        # at s = 0 as it is
    assert seen.dtype == np.float32


def test_training_sees_small_pictures_noised_up_to_the_share_the_recipe_says():
    recipe = tiny(**LARGE, train={"batch": 64})
    x0 = np.zeros((64, 32, 32, 3), np.float32)
    s = np.concatenate([smaller(x0, recipe.upscale, recipe.schedule(), 0, step)[:, 0, 0, 3]
                        for step in range(8)])
    assert recipe.upscale.noise == 0.25
    assert 0 <= s.min() < 0.01
    assert 0.24 < s.max() <= 0.25
    assert abs(s.mean() - 0.125) < 0.01
    assert smaller(x0, tiny().upscale, recipe.schedule(), 0, 1) is None


def test_the_network_takes_x_t_the_small_picture_and_its_time_and_gives_one_picture(upscaler):
    config = upscaler.unet.config
    assert isinstance(upscaler, Upscaler)
    assert (config.channels, config.outputs) == (2 * 3 + 1, 3)


def test_a_picture_depends_on_what_is_enlarged_and_not_on_the_batch(upscaler):
    x = low(3)
    prompts = ["a red circle", "two", "three"]
    together = upscaler.generate(prompts, init=x, steps=3)
    assert together.shape == (3, 32, 32, 3)
    for prompt, one, expected in zip(prompts, x, together, strict=True):
        alone = upscaler.generate([prompt], init=one, steps=3)[0]
        assert np.abs(alone.astype(int) - expected).max() <= 1           # rounding of products
    split = upscaler.generate(prompts, init=x, steps=3, batch=2)
    assert np.abs(split.astype(int) - together).max() <= 1
    other = upscaler.generate(prompts, init=low(3, seed=1), steps=3)
    assert (other != together).any(axis=(1, 2, 3)).all()


def test_drawing_shows_the_network_the_small_picture_noised_as_the_recipe_says(upscaler):
    seen, plain = [], upscaler.unet.predict
    upscaler.unet.predict = lambda x, *rest: seen.append(x) or plain(x, *rest)
    try:
        upscaler.generate(["a", "b"], init=low(2), steps=1, guidance=1.0, seed=5)
    finally:
        del upscaler.unet.predict
    table, schedule = upscaler.recipe.upscale, upscaler.schedule
    eps = noise.batch(5, [0, 0], 0, (16, 16, 3), purpose=noise.GIVEN)
    expected = beside(images.to_float(low(2)), np.full(2, table.own * schedule.T), eps, schedule, 2)
    np.testing.assert_array_equal(seen[0][..., 3:], expected)


@pytest.mark.parametrize(("options", "said"), [
    (dict(), "expected init, a picture to enlarge, got None"),
    (dict(init=low(1)[0], mask=low(1)[0, :, :, :1]), "neither mask nor strength"),
    (dict(init=low(1)[0], strength=0.5), "neither mask nor strength"),
    (dict(init=low(1)[0], size=(16, 16)), r"expected size \[32, 32\], 2 times that of init"),
    (dict(init=low(1)[0, :, :, :1]), r"expected init uint8 \(16, 16, 3\), got uint8 \(16, 16, 1\)"),
    (dict(init=low(3)), r"expected init uint8 \(2, 16, 16, 3\), got uint8 \(3, 16, 16, 3\)"),
    (dict(init=low(1)[0] / 255), r"expected init uint8 \(16, 16, 3\), got float64"),
    (dict(init=low(1)[0, :15]), r"size \(H, W\) in multiples of 4, got \[30, 32\]"),
])
def test_what_cannot_be_enlarged_is_refused_at_once(upscaler, options, said):
    with pytest.raises(ValueError, match=said):
        upscaler.denoise(["a", "b"], **options)


def test_a_cascade_draws_small_and_enlarges_what_it_drew(small, upscaler):
    both, prompts = Cascade(small, upscaler, "both"), ["one", "two"]
    first = small.generate(prompts, n=2, seed=3, steps=4)
    expected = upscaler.generate(prompts, n=2, seed=3, init=first)
    np.testing.assert_array_equal(both.generate(prompts, n=2, seed=3, steps=4), expected)
    frames = list(both.denoise(prompts, n=2, seed=3, steps=4))
    assert [f.shape for f in frames] == [(4, 32, 32, 3)] * (5 + 5)
    np.testing.assert_array_equal(frames[4][:, ::2, 1::2], first)     # enlarged by repeating
    assert both.shape == (32, 32, 3)


def test_a_cascade_changes_a_picture_in_the_small(small, upscaler):
    both, init = Cascade(small, upscaler, "both"), np.repeat(np.repeat(low(1)[0], 2, 0), 2, 1)
    mask = np.zeros((32, 32, 1), np.uint8)
    mask[3, 8] = 1                                        # one pixel of the square (1, 4)
    less = np.zeros((16, 16, 1), np.uint8)
    less[1, 4] = 1
    first = small.generate(["one"], init=low(1)[0], mask=less, steps=4)
    expected = upscaler.generate(["one"], init=first)
    np.testing.assert_array_equal(both.generate(["one"], init=init, mask=mask, steps=4), expected)


@pytest.mark.parametrize("options", [dict(size=(36, 32)), dict(init=low(1)[0, :, :15]),
                                     dict(strength=0.5), dict(size="32")])
def test_a_cascade_refuses_what_its_parts_refuse(small, upscaler, options):
    with pytest.raises(ValueError, match="generate: "):
        Cascade(small, upscaler, "both").denoise(["one"], **options)


def test_an_upscaler_comes_back_from_its_checkpoint(tmp_path, upscaler):
    training = Training(tiny(**LARGE), data.load("shapes"))
    for _ in range(3):
        training.step()
    training.save(tmp_path / "checkpoint.safetensors")
    run = load_run(tmp_path)
    np.testing.assert_array_equal(run.generate(["a"], init=low(1)[0], steps=2),
                                  upscaler.generate(["a"], init=low(1)[0], steps=2))
