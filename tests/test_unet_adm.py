"""ADM's and Improved DDPM's U-Nets: residual resampling, head width, variance, dropout, memory."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from test_models import TINY, Checked, randomised

from tinydiff.autograd import Tensor
from tinydiff.models import TextEncoderConfig, TextToImage, Tokenizer, UNet, UNetConfig
from tinydiff.models.blocks import (
    AdaptiveResBlock,
    ResBlock,
    ResDownsample,
    ResUpsample,
    halved,
)
from tinydiff.models.unet import dropouts
from tinydiff.nn import Conv2d, GroupNorm, init
from tinydiff.recipe import Recipe

KINDS = pytest.mark.parametrize("kind", [ResBlock, AdaptiveResBlock])
SIZES = pytest.mark.parametrize(("H", "W"), [(4, 6), (5, 7), (1, 1), (2, 3)])
ADM = UNetConfig(channels=3, base=8, mults=(1, 2, 2), attend=(1, 2), groups=4, head_width=4,
                 adaptive=True, classes=5, learned_variance=True, resample_blocks=True, dropout=0.5)
ALL = np.nextafter(1, 0)                                  # a dropout that leaves out everything


def told(config, rng, N=2, H=7, W=5):
    """x, t and labels for a network without text."""
    labels = rng.integers(config.classes, size=N) if config.classes else None
    return dict(x_t=rng.standard_normal((N, H, W, config.channels)), t=np.arange(N) * 300 + 7,
                class_labels=labels)


def test_the_networks_of_the_papers_have_as_many_parameters_as_published(monkeypatch, rng):
    no_memory = lambda shape, *_, **__: np.broadcast_to(np.float32(0), shape)
    monkeypatch.setattr(init, "uniform", no_memory)
    assert UNet(UNetConfig.iddpm_cifar10(), rng=rng).count() == 52_546_438
    assert UNet(UNetConfig.adm_imagenet64(), rng=rng).count() == 295_904_454


@pytest.mark.parametrize("change", [dict(resample_blocks=True), dict(learned_variance=True),
                                    dict(resample_blocks=True, adaptive=True, mults=(1, 2, 1)),
                                    dict(heads=1, head_width=4), dict(checkpoint=True)], ids=str)
def test_a_whole_unet_has_the_right_slope_along_8_random_directions(change, rng):
    checked = Checked(replace(TINY, **change), 7, 9, rng)
    for _ in range(8):
        differences, exact = checked.slope_along_a_direction(rng)
        assert differences == pytest.approx(exact, abs=1e-6)


@SIZES
def test_halving_takes_the_mean_of_the_pixels_there_are(H, W, rng):
    x = rng.standard_normal((2, H, W, 3))
    expected = [[x[:, i:i + 2, j:j + 2].mean((1, 2)) for j in range(0, W, 2)]
                for i in range(0, H, 2)]
    np.testing.assert_allclose(halved(Tensor(x)).data, np.moveaxis(expected, 2, 0), atol=1e-14)


@SIZES
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_fresh_residual_resampler_changes_the_size_and_nothing_else(adaptive, H, W, rng):
    x, emb = Tensor(rng.standard_normal((2, H, W, 4)).astype(np.float32)), Tensor(np.ones((2, 6)))
    options = dict(adaptive=adaptive, groups=2, rng=rng)
    half = ResDownsample(4, 6, **options)(x, emb)
    np.testing.assert_array_equal(half.data, halved(x).data)
    rows, columns = np.arange(H) // 2, np.arange(W) // 2
    np.testing.assert_array_equal(ResUpsample(4, 6, **options)(half, emb, like=x).data,
                                  half.data[:, rows][:, :, columns])


def test_a_head_width_gives_each_level_as_many_heads_as_fit(rng):
    unet = UNet(UNetConfig(base=8, mults=(1, 3), attend=(0, 1), groups=4, head_width=4), rng=rng)
    assert [level.blocks[0].attention.self_attention.heads for level in unet.down] == [2, 6]
    assert [level.blocks[0].attention.self_attention.heads for level in unet.up] == [6, 2]
    assert unet.middle1.attention.self_attention.heads == 6


@pytest.mark.parametrize("patch", [1, 2])
def test_each_half_of_a_learned_variance_is_what_a_network_of_its_own_would_say(patch, rng):
    both = randomised(UNet(replace(ADM, patch=patch), rng=rng), rng)
    alone = UNet(replace(ADM, patch=patch, learned_variance=False), rng=rng).astype(np.float64)
    inputs = told(ADM, rng, H=6, W=4)
    y = both(**inputs).data
    assert y.shape == (2, 6, 4, 6)
    for half in (slice(3), slice(3, 6)):
        weights = {name: p.data for name, p in both.parameters().items()}
        for name in ("conv_out.w", "conv_out.b"):
            w = weights[name].reshape(*weights[name].shape[:-1], patch, patch, 6)[..., half]
            weights[name] = w.reshape(*w.shape[:-3], -1)
        alone.load(weights)
        np.testing.assert_allclose(y[..., half], alone(**inputs).data, atol=1e-12)


def test_nothing_between_activation_and_convolution_changes_nothing(rng):
    norm, conv = GroupNorm(6, 3), Conv2d(6, 5, 3, rng=rng)
    x, skip, late, add = (rng.standard_normal(shape).astype(np.float32) for shape in (
        (2, 4, 3, 4), (2, 4, 3, 2), (2, 5), (2, 4, 3, 5)))
    told = dict(skip=skip, late=Tensor(late), add=add, adapt=tuple(rng.standard_normal((2, 2, 6))))
    np.testing.assert_allclose(conv.behind(norm, x, **told, between=lambda h: h).data,
                               conv.behind(norm, x, **told).data, atol=1e-5)


@KINDS
def test_dropout_leaves_out_its_share_and_scales_up_the_rest(kind, rng):
    block = randomised(kind(8, 8, 6, groups=4, rng=rng), rng)
    block.conv2.w.data[...] = block.conv2.b.data[...] = 0
    block.conv2.w.data[1, 1] = np.eye(8)                  # what comes in comes out
    x, emb = rng.standard_normal((50, 6, 7, 8)), rng.standard_normal((50, 6))
    whole = block(x, emb).data - x
    left = block(x, emb, drop=next(dropouts(0.3, rng))).data - x
    share = np.isclose(left, 0, atol=1e-15)
    assert abs(share.mean() - 0.3) < 5 * (0.3 * 0.7 / x.size) ** 0.5
    kept = 1 - round(0.3 * 2**16) / 2**16                 # of 16 bits
    np.testing.assert_allclose(left[~share], (whole / kept)[~share], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_every_block_of_a_unet_drops_out(checkpoint, rng):
    unet = randomised(UNet(replace(ADM, dropout=ALL, checkpoint=checkpoint), rng=rng), rng)
    inputs = told(ADM, rng)
    y = unet(**inputs, rng=rng).data
    assert np.abs(y - unet(**inputs).data).max() > 1e-2
    for name, p in unet.parameters().items():
        if name.endswith("conv2.w"):
            p.data[...] = 0
    np.testing.assert_allclose(y, unet(**inputs).data, atol=1e-12)


def test_the_generator_decides_what_is_left_out(rng):
    unet, inputs = randomised(UNet(ADM, rng=rng), rng), told(ADM, rng)
    first, again, other = (unet(**inputs, rng=np.random.default_rng(seed)).data
                           for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - unet(**inputs).data).max() > 1e-3


def test_two_blocks_leave_out_different_numbers(rng):
    one, two = (drop for drop, _ in zip(dropouts(0.5, rng), range(2)))
    x = np.ones((4, 8))
    np.testing.assert_array_equal(one(x).data, one(x).data)
    assert (one(x).data != two(x).data).any()


def test_without_dropout_a_generator_changes_nothing_and_is_not_asked(rng):
    unet = randomised(UNet(replace(ADM, dropout=0.0), rng=rng), rng)
    inputs, state = told(ADM, rng), rng.bit_generator.state
    np.testing.assert_array_equal(unet(**inputs, rng=rng).data, unet(**inputs).data)
    assert rng.bit_generator.state == state


def gradients(config, inputs, dy):
    """The result and every gradient of one and the same network, with one and the same dropout."""
    unet = randomised(UNet(config, rng=np.random.default_rng(1)), np.random.default_rng(2))
    x_t = Tensor(inputs["x_t"], requires_grad=True)
    y = unet(**{**inputs, "x_t": x_t}, rng=np.random.default_rng(3))
    y.backward(dy)
    return y.data, {"x_t": x_t.grad, **{name: p.grad for name, p in unet.parameters().items()}}


def test_a_checkpointed_unet_has_the_same_result_and_gradients(rng):
    inputs, dy = told(ADM, rng), rng.standard_normal((2, 7, 5, 6))
    plain, expected = gradients(ADM, inputs, dy)
    y, found = gradients(replace(ADM, checkpoint=True), inputs, dy)
    np.testing.assert_array_equal(y, plain)
    assert found.keys() == expected.keys()
    largest = max(np.abs(g).max() for g in expected.values())
    for name, g in expected.items():                      # a skip's shares add up in another order
        np.testing.assert_allclose(found[name], g, rtol=0, atol=1e-13 * largest, err_msg=name)


def peak(config, inputs):
    """The most bytes in use while a fresh network learns from one batch."""
    unet = UNet(config, rng=np.random.default_rng(0)).astype(np.float64)
    tracemalloc.start()
    y = unet(**inputs)
    y.backward(np.ones(y.shape))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_a_checkpointed_unet_learns_in_less_than_half_of_the_memory(rng):
    config = UNetConfig(base=8, mults=(1, 1), blocks=4, attend=(), groups=4, adaptive=True)
    inputs = told(config, rng, N=2, H=32, W=32)
    assert peak(replace(config, checkpoint=True), inputs) < 0.5 * peak(config, inputs)


def test_the_new_settings_come_back_from_a_recipe_and_from_a_checkpoint(rng):
    settings = dict(head_width=4, dropout=0.25, resample_blocks=True, checkpoint=True)
    recipe = Recipe().change({"model": settings})
    assert Recipe.parse(recipe.toml()) == recipe
    assert {f"model.{key}": value for key, value in settings.items()}.items() \
        <= recipe.settings().items()
    unet = replace(ADM, context_width=8, classes=None, patch=2)
    model = TextToImage(Tokenizer([], 6), TextEncoderConfig(width=8), unet, rng=rng)
    config = json.loads(json.dumps(model.config()))
    assert TextToImage.from_config(config, rng=rng).unet.config == unet
    for name in (*settings, "learned_variance"):          # as older checkpoints are
        del config["unet"][name]
    assert TextToImage.from_config(config, rng=rng).unet.config == replace(
        unet, head_width=None, dropout=0.0, learned_variance=False, resample_blocks=False)


@pytest.mark.parametrize(("change", "message"), [
    (dict(heads=2, head_width=4), "give heads or a head_width .* got heads=2 and head_width=4"),
    (dict(head_width=0), "a head_width of at least 1, got heads=1 and head_width=0"),
    (dict(base=8, head_width=3), "16 channels .* 8 groups and heads 3 wide"),
    (dict(dropout=1.0), "dropout is a share from 0 to below 1, got 1.0"),
    (dict(dropout=-0.1), "dropout is a share from 0 to below 1, got -0.1"),
    (dict(dropout=float("nan")), "dropout is a share from 0 to below 1, got nan"),
])
def test_a_configuration_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**change)
