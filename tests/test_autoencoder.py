"""The autoencoder: as it is defined, every gradient right, every refusal, and lean."""

import tracemalloc
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tinydiff.autograd import Tensor, no_grad
from tinydiff.autograd.tensor import recording
from tinydiff.kernels import pick
from tinydiff.models import Autoencoder, AutoencoderConfig
from tinydiff.pretrained import vae
from tinydiff.pretrained.weights import UNSET

TINY = AutoencoderConfig(channels=2, latent=3, base=8, mults=(1, 2), blocks=1, groups=4, scale=1.0)


def randomised(module, rng, size=0.1):
    """The module in float64, every parameter off its start: zeros would hide what they scale."""
    for p in module.astype(np.float64).parameters().values():
        p.data += size * rng.standard_normal(p.shape)
    return module


class Defined:
    """The same network as loops over what its definition says, in float64."""

    def __init__(self, autoencoder):
        self.config = autoencoder.config
        self.p = {name: p.data.astype(np.float64) for name, p in autoencoder.parameters().items()}

    def moments(self, x):
        h, c = self.conv("encoder.conv_in", x), self.config
        for level in range(len(c.mults)):
            for i in range(c.blocks):
                h = self.block(f"encoder.levels.{level}.blocks.{i}", h, level in c.attend)
            if level < len(c.mults) - 1:                  # a row below and a column on the right
                h = np.pad(h, ((0, 0), (0, 1), (0, 1), (0, 0)))
                h = self.windows(f"encoder.levels.{level}.resize.conv", h)[:, ::2, ::2]
        h = self.block("encoder.middle2", self.block("encoder.middle1", h, True), False)
        h = self.conv("encoder.conv_out", self.silu(self.norm("encoder.norm_out", h)))
        h = self.conv("quant", h)
        return h[..., :c.latent], np.clip(h[..., c.latent:], -30, 20)

    def decoded(self, z):
        h, c = self.conv("decoder.conv_in", self.conv("post_quant", z)), self.config
        h = self.block("decoder.middle2", self.block("decoder.middle1", h, True), False)
        for up, level in enumerate(reversed(range(len(c.mults)))):    # the coarsest first
            for i in range(c.blocks + 1):
                h = self.block(f"decoder.levels.{up}.blocks.{i}", h, level in c.attend)
            if level:
                h = self.conv(f"decoder.levels.{up}.resize.conv", h.repeat(2, 1).repeat(2, 2))
        return self.conv("decoder.conv_out", self.silu(self.norm("decoder.norm_out", h)))

    def block(self, name, x, attends):
        h = x
        for i in "12":
            h = self.conv(f"{name}.res.conv{i}", self.silu(self.norm(f"{name}.res.norm{i}", h)))
        h = h + (self.conv(f"{name}.res.skip", x) if f"{name}.res.skip.w" in self.p else x)
        return self.attend(f"{name}.attention", h) if attends else h

    def attend(self, name, x):
        flat = self.norm(f"{name}.norm1", x).reshape(len(x), -1, x.shape[3])
        q, k, v = (flat @ self.p[f"{name}.self_attention.{a}.w"]
                   + self.p[f"{name}.self_attention.{a}.b"] for a in "qkv")
        weights = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(x.shape[3]))
        y = weights / weights.sum(axis=2, keepdims=True) @ v
        y = y @ self.p[f"{name}.self_attention.out.w"] + self.p[f"{name}.self_attention.out.b"]
        return x + y.reshape(x.shape)

    def norm(self, name, x):
        parts = x.reshape(len(x), x.shape[1] * x.shape[2], self.config.groups, -1)
        centred = parts - parts.mean(axis=(1, 3), keepdims=True)
        rest = centred / np.sqrt((centred**2).mean(axis=(1, 3), keepdims=True) + 1e-6)
        return rest.reshape(x.shape) * self.p[f"{name}.scale"] + self.p[f"{name}.shift"]

    def conv(self, name, x):
        around = len(self.p[f"{name}.w"]) // 2
        return self.windows(name, np.pad(x, ((0, 0), *[(around, around)] * 2, (0, 0))))

    def windows(self, name, x):
        w = self.p[f"{name}.w"]
        K, L, _, _ = w.shape
        H, W = x.shape[1] - K + 1, x.shape[2] - L + 1
        return self.p[f"{name}.b"] + sum(x[:, u:u + H, v:v + W] @ w[u, v]
                                         for u in range(K) for v in range(L))

    @staticmethod
    def silu(x):
        return x / (1 + np.exp(-x))


@pytest.mark.parametrize("size", [0.1, 0.001], ids=["ordinary", "quiet: every eps shows"])
@pytest.mark.parametrize("config", [TINY, replace(TINY, mults=(1, 2, 1.5), blocks=2, attend=(0,))],
                         ids=["tiny", "three levels, one attending"])
def test_both_ways_are_as_defined(config, size, rng):
    autoencoder = Autoencoder(config, rng=UNSET).astype(np.float64)
    for p in autoencoder.parameters().values():
        p.data[...] = size * rng.standard_normal(p.shape)
    x, z = rng.standard_normal((2, 8, 12, 2)), rng.standard_normal((2, 3, 5, 3))
    defined = Defined(autoencoder)
    for ours, theirs in zip((*autoencoder.encode(x), autoencoder.decode(z)),
                            (*defined.moments(x), defined.decoded(z)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


def test_stable_diffusions_has_as_many_parameters_as_published():
    autoencoder = Autoencoder(AutoencoderConfig.stable_diffusion(), rng=UNSET)
    assert autoencoder.count() == 83_653_863
    assert autoencoder.encoder.count() == 34_163_592
    assert 0.8e6 < Autoencoder(AutoencoderConfig.laptop(), rng=UNSET).count() < 1.2e6


def loss(autoencoder, x, z, weights):
    """A number that depends on all that comes out."""
    mean, logvar = autoencoder.moments(x)
    out = (mean, logvar, autoencoder.decoded(z))
    return sum(((y * w).sum() for y, w in zip(out, weights, strict=True)), Tensor(np.zeros(())))


def test_a_whole_autoencoder_has_the_right_gradient(rng):
    autoencoder = randomised(Autoencoder(replace(TINY, attend=(0,)), rng=rng), rng)
    x = Tensor(rng.standard_normal((2, 4, 6, 2)), requires_grad=True)
    z = Tensor(rng.standard_normal((2, 2, 3, 3)), requires_grad=True)
    weights = [rng.standard_normal(shape) for shape in [(2, 2, 3, 3)] * 2 + [(2, 4, 6, 2)]]
    loss(autoencoder, x, z, weights).backward()
    tensors = {**autoencoder.parameters(), "x": x, "z": z}
    norm = np.sqrt(sum((p.grad**2).sum() for p in tensors.values()))
    for name, p in tensors.items():                       # each along a direction of its own
        direction, here, ends = rng.standard_normal(p.shape), p.data, []
        for step in (1e-6, -1e-6):
            p.data = here + step * direction
            with no_grad():
                ends.append(loss(autoencoder, x, z, weights).item())
        p.data = here
        slope = (ends[0] - ends[1]) / 2e-6
        assert slope == pytest.approx((p.grad * direction).sum(), abs=1e-7 * norm), name


def test_the_log_variance_stays_between_its_limits_and_has_no_gradient_there(rng):
    autoencoder = randomised(Autoencoder(TINY, rng=rng), rng)
    x = rng.standard_normal((1, 4, 4, 2))
    for bias, limit in ((-100, -30), (100, 20)):
        autoencoder.quant.b.data[3:] = bias
        mean, logvar = autoencoder.moments(x)
        assert (logvar.data == limit).all()
        assert not (mean.data == limit).any()
        logvar.backward(np.ones(logvar.shape))
        assert not autoencoder.quant.w.grad.any()


def test_permuting_the_batch_permutes_the_result(rng):
    autoencoder = randomised(Autoencoder(TINY, rng=rng), rng)
    x, order = rng.standard_normal((4, 4, 6, 2)), np.array([2, 0, 3, 1])
    for permuted, straight in zip(autoencoder.encode(x[order]), autoencoder.encode(x), strict=True):
        np.testing.assert_allclose(permuted, straight[order], rtol=0, atol=1e-12)


def test_arrays_come_back_as_float32_arrays_of_the_right_sizes(rng):
    autoencoder = Autoencoder(replace(TINY, mults=(1, 1, 2)), rng=rng)
    moments = autoencoder.encode(np.ones((2, 8, 12, 2), np.float32))
    picture = autoencoder.decode(np.ones((1, 1, 5, 3), np.float32))
    assert [y.shape for y in (*moments, picture)] == [(2, 2, 3, 3), (2, 2, 3, 3), (1, 4, 20, 2)]
    for y in (*moments, picture):
        assert type(y) is np.ndarray
        assert y.dtype == np.float32


def test_only_the_ways_on_arrays_remember_nothing(rng):
    autoencoder, seen = Autoencoder(TINY, rng=rng), []
    autoencoder.quant = autoencoder.post_quant = lambda h: seen.append(recording()) or h
    x, z = np.ones((1, 4, 4, 2), np.float32), np.ones((1, 2, 2, 3), np.float32)
    for way, argument in (("encode", x), ("decode", z), ("moments", x), ("decoded", z)):
        getattr(autoencoder, way)(argument)
    assert seen == [False, False, True, True]


def test_without_its_matrices_it_is_what_it_is_with_matrices_that_do_nothing(rng):
    plain = Autoencoder(replace(TINY, quant=False, post_quant=False), rng=rng)
    full = Autoencoder(TINY, rng=rng)
    assert full.count() - plain.count() == 6 * 6 + 6 + 3 * 3 + 3
    assert Autoencoder(replace(TINY, quant=False), rng=rng).count() == full.count() - 6 * 6 - 6
    arrays = {name: p.data for name, p in plain.parameters().items()}
    full.load({**arrays, "quant.w": np.eye(6)[None, None], "quant.b": np.zeros(6),
               "post_quant.w": np.eye(3)[None, None], "post_quant.b": np.zeros(3)})
    x, z = rng.standard_normal((1, 4, 6, 2)), rng.standard_normal((1, 3, 2, 3))
    for a, b in zip((*plain.encode(x), plain.decode(z)), (*full.encode(x), full.decode(z)),
                    strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.skipif(not hasattr(pick("attention"), "FORWARD_KEYS"), reason="needs Numba")
def test_attention_over_4096_places_makes_no_table_of_4096_by_4096(rng):
    autoencoder = Autoencoder(replace(TINY, mults=(1,)), rng=rng)
    autoencoder.decode(np.zeros((1, 4, 4, 3), np.float32))
    tracemalloc.start()
    autoencoder.decode(np.zeros((1, 64, 64, 3), np.float32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4096**2                                 # bytes; a table has four times as many


WRONG = [
    ("encode", (2, 4, 4, 3), r"expected x \(N, H, W, 2\), .* got \(2, 4, 4, 3\)"),
    ("encode", (4, 4, 2), r"expected x \(N, H, W, 2\), .* got \(4, 4, 2\)"),
    ("encode", (2, 4, 5, 2), r"multiples of 2, got \(2, 4, 5, 2\)"),
    ("encode", (2, 3, 4, 2), r"multiples of 2, got \(2, 3, 4, 2\)"),
    ("decode", (2, 4, 4, 2), r"expected z \(N, h, w, 3\), got \(2, 4, 4, 2\)"),
    ("decode", (4, 4, 3), r"expected z \(N, h, w, 3\), got \(4, 4, 3\)"),
]


@pytest.mark.parametrize(("way", "shape", "message"), WRONG)
def test_what_does_not_fit_is_refused(way, shape, message):
    with pytest.raises(ValueError, match=message):
        getattr(Autoencoder(TINY, rng=UNSET), way)(np.zeros(shape, np.float32))


@pytest.mark.parametrize(("changes", "message"), [
    (dict(groups=3), "GroupNorm: 8 channels cannot be shared out among 3 groups"),
    (dict(base=0), "AutoencoderConfig: base must be at least 1, got 0"),
    (dict(mults=()), r"AutoencoderConfig: mults needs a number above 0 .* got \(\)"),
    (dict(mults=(1, -2)), r"AutoencoderConfig: mults needs a number above 0 .* got \(1, -2\)"),
    (dict(attend=(2,)), r"AutoencoderConfig: .* attend names some levels, got \(1, 2\) and \(2,"),
])
def test_a_configuration_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Autoencoder(replace(TINY, **changes), rng=UNSET)


CONFIGS = [TINY, AutoencoderConfig.stable_diffusion(), AutoencoderConfig.laptop(),
           replace(TINY, mults=(1, 1.5, 4), attend=(0, 2), attend_middle=False, quant=False,
                   post_quant=False, scale=0.5, shift=0.1)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.mults))
def test_a_config_written_in_diffusers_words_reads_as_the_same(config):
    assert vae.read_config(vae.write_config(config), "config.json") == config


def test_a_config_that_says_nothing_is_the_classes_own():
    assert vae.read_config({"_class_name": "AutoencoderKL"}, "config.json") == AutoencoderConfig(
        base=64, mults=(1,), blocks=1)


SAID = vae.write_config(CONFIGS[1])


@pytest.mark.parametrize(("key", "value"), [
    ("block_out_channels", [128, 0, 512, 512]), ("block_out_channels", "128"),
    ("block_out_channels", [1e2] * 4), ("block_out_channels", []),
    ("block_out_channels", [10**9] * 4), ("down_block_types", ["DownEncoderBlock2D"] * 3),
    ("down_block_types", ["DownBlock2D"] * 4), ("down_block_types", 4),
    ("up_block_types", ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3),
    ("up_block_types", None), ("act_fn", "gelu"), ("act_fn", ["silu"]), ("out_channels", 1),
    ("in_channels", 3.0), ("in_channels", True), ("latent_channels", -4),
    ("latent_channels", 10**30), ("layers_per_block", 65), ("norm_num_groups", 48),
    ("norm_num_groups", 0), ("norm_num_groups", None), ("mid_block_add_attention", 1),
    ("use_quant_conv", "yes"), ("use_post_quant_conv", None), ("scaling_factor", 0),
    ("scaling_factor", float("nan")), ("scaling_factor", None), ("scaling_factor", 10**400),
    ("shift_factor", [0.0]),
])
def test_a_value_that_cannot_be_is_refused_by_file_and_key(key, value):
    with pytest.raises(ValueError, match=rf"^config.json: {key} .* is not supported; expected ."):
        vae.read_config(SAID | {key: value}, "config.json")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner))


@given(st.dictionaries(st.sampled_from(sorted(SAID)), JSON))
def test_whatever_a_config_says_it_is_read_or_refused(said):
    with suppress(ValueError):
        assert vae.read_config(SAID | said, "config.json").factor >= 1
