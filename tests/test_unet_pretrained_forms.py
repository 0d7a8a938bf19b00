"""The forms of published U-Nets, against plain NumPy: transformers, waves, corners, middles."""

import json
from dataclasses import asdict, replace
from math import cos, erf, sin, sqrt

import numpy as np
import pytest
from test_models import TINY, Checked, randomised

from tinydiff.autograd import Tensor, gradcheck
from tinydiff.models import TextEncoderConfig, TextToImage, Tokenizer, UNet, UNetConfig
from tinydiff.models.blocks import (
    AttentionBlock,
    Downsample,
    ResDownsample,
    ResUpsample,
    SpatialTransformer,
    Upsample,
    attention_block,
)
from tinydiff.models.transformer import ContextBlock, GatedMLP
from tinydiff.nn import Attention, TimeEmbedding, sinusoids
from tinydiff.pretrained.unet import place, read_config, write_config
from tinydiff.pretrained.weights import UNSET, as_theirs

SMALL = replace(TINY, transformer=1, pooled=False, t_first=0)


def numbers(module):
    return {path: p.data for path, p in module.parameters().items()}


def normed(x, p, name, groups=None, eps=1e-5):
    """Mean 0, variance 1 over all but the first axis of each group, or over the last axis."""
    parts = x[..., None, :] if groups is None else x.reshape(*x.shape[:-1], groups, -1)
    axes = -1 if groups is None else tuple(a for a in range(1, parts.ndim) if a != parts.ndim - 2)
    parts = parts - parts.mean(axes, keepdims=True)
    parts = parts / np.sqrt((parts**2).mean(axes, keepdims=True) + eps)
    return parts.reshape(x.shape) * p[f"{name}.scale"] + p[f"{name}.shift"]


def attended(x, context, p, name, heads):
    """Attention head by head, row by row; biases where there are some."""
    q, k, v = (a @ p[f"{name}.{part}.w"] + p.get(f"{name}.{part}.b", 0)
               for part, a in (("q", x), ("k", context), ("v", context)))
    width = q.shape[-1] // heads
    out = np.zeros_like(q)
    for n, i, h in np.ndindex(len(x), x.shape[1], heads):
        own = slice(h * width, (h + 1) * width)
        scores = np.exp(k[n, :, own] @ q[n, i, own] / sqrt(width))
        out[n, i, own] = scores / scores.sum() @ v[n, :, own]
    return out @ p[f"{name}.out.w"] + p[f"{name}.out.b"]


def geglu(x, p, name):
    value, gate = (x @ p[f"{name}.{part}.w"] + p[f"{name}.{part}.b"] for part in ("value", "gate"))
    gate = gate * (1 + np.vectorize(erf)(gate / sqrt(2))) / 2
    return (value * gate) @ p[f"{name}.out.w"] + p[f"{name}.out.b"]


def test_a_spatial_transformer_is_the_papers(rng):
    block = randomised(SpatialTransformer(8, depth=2, heads=2, groups=4, context_width=5, rng=rng),
                       rng)
    x, context = 1e-2 * rng.standard_normal((2, 3, 4, 8)), rng.standard_normal((2, 6, 5))
    p = numbers(block)
    h = normed(x, p, "norm", 4, 1e-6) @ p["proj_in.w"] + p["proj_in.b"]
    h = h.reshape(2, 12, 8)
    for i in range(2):
        own = {path.removeprefix(f"blocks.{i}."): a for path, a in p.items()}
        y = normed(h, own, "norm1")
        h = h + attended(y, y, own, "self_attention", 2)
        h = h + attended(normed(h, own, "norm2"), context, own, "cross_attention", 2)
        h = h + geglu(normed(h, own, "norm3"), own, "mlp")
    expected = x + (h @ p["proj_out.w"] + p["proj_out.b"]).reshape(x.shape)
    np.testing.assert_allclose(block(Tensor(x), context).data, expected, rtol=0, atol=1e-12)


def test_a_fresh_spatial_transformer_changes_nothing(rng):
    x = rng.standard_normal((2, 3, 4, 8)).astype(np.float32)
    block = attention_block(8, depth=1, heads=2, groups=4, context_width=None, rng=rng)
    np.testing.assert_array_equal(block(Tensor(x), None).data, x)
    assert not any("cross" in path or "norm2" in path for path in block.parameters())


def test_queries_keys_and_values_may_have_a_width_of_their_own_and_no_bias(rng):
    layer = randomised(Attention(6, heads=2, inner=10, bias=False, context_width=5, rng=rng), rng)
    x, context = rng.standard_normal((2, 3, 6)), rng.standard_normal((2, 4, 5))
    p = {f"a.{path}": data for path, data in numbers(layer).items()}
    assert p.keys() == {"a.q.w", "a.k.w", "a.v.w", "a.out.w", "a.out.b"}
    np.testing.assert_allclose(layer(x, context).data, attended(x, context, p, "a", 2), rtol=1e-10)
    with pytest.raises(ValueError, match="width 10 cannot be shared out among 3 heads"):
        Attention(6, heads=3, inner=10, rng=rng)


@pytest.mark.parametrize("context", [True, False])
def test_a_context_block_has_the_right_gradients(context, rng):
    block = randomised(ContextBlock(6, heads=2, context_width=5 if context else None, rng=rng), rng)
    x = rng.standard_normal((2, 3, 6))
    words = [rng.standard_normal((2, 4, 5))] if context else []
    assert gradcheck(lambda x, words=None: block(x, words), x, *words) < 1e-6


def test_a_gated_mlp_without_bias_has_three_matrices(rng):
    mlp = GatedMLP(4, 6, bias=False, activation=lambda x: x, rng=rng).astype(np.float64)
    x, p = rng.standard_normal((2, 4)), numbers(mlp)
    assert p.keys() == {"value.w", "gate.w", "out.w"}
    np.testing.assert_allclose(mlp(x).data, x @ p["value.w"] * (x @ p["gate.w"]) @ p["out.w"])


@pytest.mark.parametrize("change", [
    dict(), dict(transformer=(0, 2), attend=(0, 1), heads=(1, 4)), dict(corner=True, pooled=True),
    dict(middle=1, attend_middle=False), dict(middle=0, attend_up=(0,)),
    dict(middle_groups=0, transformer=0),
    dict(resample_blocks=(True, False), resample_up=(False, True), adaptive=True)], ids=str)
def test_a_unet_of_any_form_has_the_right_slope_along_4_random_directions(change, rng):
    checked = Checked(replace(SMALL, **change), 6, 9, rng)
    for _ in range(4):
        differences, exact = checked.slope_along_a_direction(rng)
        assert differences == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("cosines_first", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 0.5])
@pytest.mark.parametrize("width", [8, 7])
def test_waves_may_be_shifted_turned_and_odd(width, shift, cosines_first):
    t = np.array([0, 3, 999.5])
    for row, time in zip(sinusoids(t, width, shift=shift, cosines_first=cosines_first), t):
        angles = [time * 10_000 ** (-i / (width // 2 - shift)) for i in range(width // 2)]
        waves = [[f(angle) for angle in angles] for f in (sin, cos)]
        expected = np.ravel(waves[::-1] if cosines_first else waves).tolist() + [0.0] * (width % 2)
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-4)     # float32 angles near 1000


def test_a_time_embedding_hears_the_waves_it_was_made_for(rng):
    form = dict(shift=1, cosines_first=True)
    layer, t = TimeEmbedding(9, 4, rng=rng, **form), np.array([7.0, 500])
    waves = sinusoids(t, 9, **form)
    h = waves @ layer.linear1.w.data
    expected = h / (1 + np.exp(-h)) @ layer.linear2.w.data
    np.testing.assert_allclose(layer(t).data, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("H", "W"), [(4, 6), (5, 7), (2, 3)])
def test_a_corner_pads_right_and_below_only(H, W, rng):
    layer = Downsample(3, corner=True, rng=rng).astype(np.float64)
    x, w = rng.standard_normal((2, H, W, 3)), layer.conv.w.data
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = np.zeros((2, H // 2, W // 2, 3))
    for i, j in np.ndindex(H // 2, W // 2):
        window = padded[:, 2 * i:2 * i + 3, 2 * j:2 * j + 3]
        expected[:, i, j] = np.einsum("nuvc,uvco->no", window, w)
    np.testing.assert_allclose(layer(x).data, expected, atol=1e-12)


@pytest.mark.parametrize(("H", "W"), [(5, 9), (5, 8), (4, 9), (3, 7), (4, 8)])
def test_upsampling_takes_the_nearest_pixel_of_any_size(H, W, rng):
    up = Upsample(3, rng=rng).astype(np.float64)
    up.conv.w.data[...] = 0
    up.conv.w.data[1, 1] = np.eye(3)                      # the convolution does nothing
    small, like = rng.standard_normal((2, 2, 4, 3)), np.zeros((2, H, W, 3))
    rows, columns = [i * 2 // H for i in range(H)], [j * 4 // W for j in range(W)]
    np.testing.assert_allclose(up(Tensor(small), like=like).data, small[:, rows][:, :, columns],
                               rtol=0, atol=1e-12)
    assert gradcheck(lambda h: up(h, like=like), small) < 1e-6


def test_what_differs_from_level_to_level_is_said_level_by_level(rng):
    unet = UNet(UNetConfig(base=8, mults=(1, 2, 2), attend=(0, 1), attend_up=(2,), heads=(2, 1, 8),
                           blocks=(1, 3, 2), transformer=(0, 1, 2), groups=4, context_width=6,
                           resample_blocks=(True, False, False), resample_up=(True, True, False)),
                rng=rng)
    kinds = [[type(block.attention) for block in level.blocks] for level in (*unet.down, *unet.up)]
    none, plain, deep = type(None), AttentionBlock, SpatialTransformer
    assert kinds == [[plain], [deep] * 3, [none] * 2, [deep] * 3, [none] * 4, [none] * 2]
    assert unet.down[0].blocks[0].attention.self_attention.heads == 2
    assert unet.middle1.attention.blocks[1].cross_attention.heads == 8
    assert [type(level.resize) for level in (*unet.down, *unet.up)] == [
        ResDownsample, Downsample, none, Upsample, ResUpsample, none]


def test_widths_need_not_be_multiples_of_the_first():
    config = UNetConfig(base=48, mults=(1, 2 / 3, 56 / 48), attend=())
    assert config.widths == (48, 32, 56)
    assert UNet(config, rng=UNSET).parameters()["down.1.blocks.0.res.conv1.w"].shape[2:] == (48, 32)


def test_middles_of_fewer_blocks_are_the_whole_one_with_silent_blocks(rng):
    whole = randomised(UNet(replace(SMALL, attend_middle=False), rng=rng), rng)
    x, t, context = rng.standard_normal((1, 4, 6, 1)), 7, rng.standard_normal((1, 3, 64))
    for middle in (1, 0):
        block = getattr(whole, f"middle{middle + 1}")
        block.res.conv2.w.data[...] = block.res.conv2.b.data[...] = 0
        part = UNet(replace(SMALL, attend_middle=False, middle=middle), rng=rng).astype(np.float64)
        weights = numbers(whole)
        part.load({path: weights[path] for path in part.parameters()})
        np.testing.assert_allclose(part.predict(x, t, context), whole.predict(x, t, context),
                                   rtol=0, atol=1e-12)


def test_a_middle_without_a_norm_looks_at_pixels_as_they_are(rng):
    with_norm, without = (
        randomised(UNet(replace(UNetConfig.tiny(), middle_groups=groups), rng=rng),
                   np.random.default_rng(1)).middle1.attention for groups in (2, 0))
    assert with_norm.norm1.groups == 2
    assert {path for path in without.parameters() if "norm" in path} == set()
    x = rng.standard_normal((1, 3, 2, 16))
    tokens, p = x.reshape(1, 6, 16), numbers(without)
    expected = x + attended(tokens, tokens, p, "self_attention", 2).reshape(x.shape)
    np.testing.assert_allclose(without(Tensor(x), None).data, expected, atol=1e-12)


def test_pixels_from_0_to_1_are_stretched_and_the_result_may_have_other_channels(rng):
    config = UNetConfig(base=8, groups=4, channels=2, outputs=5)
    plain = randomised(UNet(config, rng=rng), rng)
    centred = UNet(replace(config, centre_input=True), rng=rng).astype(np.float64)
    centred.load(numbers(plain))
    x = rng.uniform(size=(1, 4, 6, 2))
    assert plain.predict(x, 3).shape == (1, 4, 6, 5)
    np.testing.assert_allclose(centred.predict(x, 3), plain.predict(2 * x - 1, 3), atol=1e-12)


def test_stable_diffusion_has_as_many_parameters_as_published():
    assert UNet(UNetConfig.stable_diffusion(), rng=UNSET).count() == 859_520_964


def test_the_text_need_not_join_the_time_embedding(rng):
    unet = randomised(UNet(SMALL, rng=rng), rng)
    t, context = np.array([3]), rng.standard_normal((1, 2, 64))
    np.testing.assert_array_equal(unet.embed(t, context, None).data, unet.time(t).data)
    assert "pooled.w" not in unet.parameters()


def test_every_form_comes_back_from_a_checkpoint(rng):
    unet = replace(SMALL, heads=(2, 4), blocks=(1, 2), attend_up=(0,), resample_up=(False, True))
    model = TextToImage(Tokenizer([], 6), TextEncoderConfig(width=64), unet, rng=rng)
    config = json.loads(json.dumps(model.config()))
    assert TextToImage.from_config(config, rng=rng).unet.config == unet


@pytest.mark.parametrize("config", [
    SMALL, UNetConfig.stable_diffusion(), replace(UNetConfig.adm_imagenet64(), dropout=0.0),
    replace(UNetConfig.ddpm_cifar10(), corner=True, frequency_shift=1, eps=1e-6, centre_input=True),
    replace(SMALL, channels=9, outputs=4, heads=(2, 4), blocks=(2, 1), emb=2.5),
], ids=range(5))
def test_a_config_comes_back_from_diffusers_words(config):
    written = json.loads(json.dumps(write_config(config)))
    again, n = read_config(written, "config.json"), range(len(config.mults))
    assert write_config(again) == written
    alike = {name: value for name, value in asdict(replace(config, t_first=0, dropout=0.0)).items()
             if name not in ("attend", "attend_up", "pooled", "resample_up", "middle_groups")}
    for name, value in alike.items():
        if name in ("blocks", "heads", "transformer", "resample_blocks"):
            assert [again.at(name, i) for i in n] == [config.at(name, i) for i in n], name
        elif name != "head_width" or value:
            assert getattr(again, name) == value, name
    assert set(again.attend) == set(again.attend_up) == set(config.attend)
    assert as_theirs(UNet(again, rng=UNSET), place).keys() \
        == as_theirs(UNet(config, rng=UNSET), place).keys()


def test_a_place_is_called_by_diffusers_name():
    assert place("up.0.blocks.1.res.shift.w") == (
        "up_blocks.0.resnets.1.time_emb_proj.weight", 1, False)
    assert place("up.1.blocks.0.res.scale.b").half == 0
    assert place("middle1.attention.blocks.0.mlp.gate.w") == (
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight", 1, False)
    assert place("middle1.attention.blocks.0.mlp.value.w").half == 0
    assert place("middle1.attention.proj_in.w").window
    assert not place("middle1.attention.proj_in.w", linear=True).window
    assert place("middle1.attention.self_attention.out.w").key == \
        "mid_block.attentions.0.to_out.0.weight"
    assert place("down.0.resize.conv.b") == ("down_blocks.0.downsamplers.0.conv.bias", 0, False)


@pytest.mark.parametrize(("change", "message"), [
    (dict(heads=(2, 2, 2)), r"heads \(2, 2, 2\) needs an entry for each of 2 levels"),
    (dict(blocks=(1, 0)), r"blocks must be at least 1, got \(1, 0\)"),
    (dict(attend_up=(2,)), "attend names level 2, but 2 mults make levels 0 to 1"),
    (dict(mults=(1, 1.3)), r"base 32 times mults \(1, 1.3\) makes no whole channels"),
    (dict(mults=()), r"mults must be at least 1, got \(\)"),
    (dict(middle=3), "middle is 0, 1 or 2 blocks, not 3"),
    (dict(frequency_shift=16), "frequency_shift 16 is half of base 32 or more"),
    (dict(middle_groups=7), "64 channels cannot be shared out among 7 groups"),
    (dict(attend=(), heads=5), "64 channels .* 5 heads"),
])
def test_a_form_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=f"^UNetConfig: {message}"):
        UNetConfig(**change)


def test_heads_need_not_fit_a_level_that_does_not_look(rng):
    heads = UNet(UNetConfig(mults=(1, 1.5), heads=3), rng=UNSET).middle1.attention
    assert heads.self_attention.heads == 3
    assert UNet(UNetConfig(attend=(), attend_middle=False, heads=5), rng=UNSET).count() > 0
