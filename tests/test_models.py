"""The U-Net: every gradient right, every image by itself, every size, every refusal."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tinydiff.autograd import Tensor, no_grad, silu
from tinydiff.models import UNet, UNetConfig
from tinydiff.models.blocks import AttentionBlock, Downsample, ResBlock, Upsample
from tinydiff.models.unet import depth_to_space, space_to_depth

TINY = UNetConfig.tiny(context_width=64)


def randomised(module, rng, size=0.1):
    """The module in float64, every parameter off its start: zeros would hide what they scale."""
    for p in module.astype(np.float64).parameters().values():
        p.data += size * rng.standard_normal(p.shape)
    return module


class Checked:
    """A U-Net, a scalar loss of it, and the loss's exact gradients: parameters, x_t and context."""

    def __init__(self, config, H, W, rng):
        self.unet = randomised(UNet(config, rng=rng), rng)
        self.t = np.array([3, 700])
        x_t = Tensor(rng.standard_normal((2, H, W, config.channels)), requires_grad=True)
        context = Tensor(rng.standard_normal((2, 3, config.context_width)), requires_grad=True)
        self.inputs = (x_t, self.t, context)
        y = self.unet(*self.inputs)
        self.dy = rng.standard_normal(y.shape)
        y.backward(self.dy)
        self.tensors = {**self.unet.parameters(), "x_t": x_t, "context": context}
        self.norm = np.sqrt(sum((p.grad**2).sum() for p in self.tensors.values()))

    def loss(self):
        with no_grad():
            return (self.unet(*self.inputs).data * self.dy).sum()

    def slope_along_a_direction(self, rng, eps=1e-6):
        """(by central differences, by backward), in units of the gradient's norm"""
        direction = {name: rng.standard_normal(p.shape) for name, p in self.tensors.items()}
        exact = sum((p.grad * direction[name]).sum() for name, p in self.tensors.items())
        ends = []
        for step in (eps, -2 * eps):
            for name, p in self.tensors.items():
                p.data += step * direction[name]
            ends.append(self.loss())
        for name, p in self.tensors.items():
            p.data += eps * direction[name]
        return (ends[0] - ends[1]) / (2 * eps) / self.norm, exact / self.norm

    def slopes(self, p, entries, eps=1e-5):
        """By central differences, one entry of p at a time."""
        flat, out = p.data.reshape(-1), []
        for i in entries:
            here, ends = flat[i], []
            for step in (eps, -eps):
                flat[i] = here + step
                ends.append(self.loss())
            flat[i] = here
            out.append((ends[0] - ends[1]) / (2 * eps))
        return np.array(out)


def test_tiny_has_about_sixty_thousand_parameters_and_ddpm_cifar10_as_many_as_published(rng):
    assert 55_000 < UNet(TINY, rng=rng).count() < 65_000
    assert UNet(UNetConfig.ddpm_cifar10(), rng=rng).count() == 35_746_307


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_whole_unet_has_the_right_slope_along_32_random_directions(adaptive, rng):
    checked = Checked(replace(TINY, adaptive=adaptive), 7, 9, rng)
    for _ in range(32):
        differences, exact = checked.slope_along_a_direction(rng)
        assert differences == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("part", range(4))
def test_a_whole_unet_has_the_right_gradient_at_20_entries_of_every_tensor(part, rng):
    checked = Checked(TINY, 5, 3, rng)
    for name, p in list(checked.tensors.items())[part::4]:
        entries = rng.permutation(p.data.size)[:20]
        exact = p.grad.reshape(-1)[entries]
        scale = max(np.abs(exact).max(), 1e-4 * checked.norm)     # a key's bias has no effect
        error = np.abs(checked.slopes(p, entries) - exact).max()
        assert error < 1e-6 * scale, name


@pytest.mark.parametrize(("H", "W"), [(7, 7), (9, 13), (1, 1), (2, 5)])
def test_odd_pictures_keep_their_size_and_have_the_right_slope(H, W, rng):
    checked = Checked(replace(TINY, mults=(1, 2, 2), channels=3), H, W, rng)
    assert checked.unet(*checked.inputs).shape == (2, H, W, 3)
    for _ in range(3):
        differences, exact = checked.slope_along_a_direction(rng)
        assert differences == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_unet_with_a_layout_has_the_right_slope(patch, rng):
    checked = Checked(replace(TINY, layout=3, patch=patch), 3 * patch, 5 * patch, rng)
    for _ in range(8):
        differences, exact = checked.slope_along_a_direction(rng)
        assert differences == pytest.approx(exact, abs=1e-6)


def test_a_layout_is_waves_of_cosines_that_the_embedding_moves(rng):
    unet = randomised(UNet(replace(TINY, layout=3), rng=rng), rng)
    unet.conv_in.w.data[...], unet.conv_in.b.data[...] = 0, 0
    told = unet.layout(silu(emb := Tensor(rng.standard_normal((2, 32))))).data.reshape(2, 3, 3, 8)
    got = unet.laid_out(Tensor(np.zeros((2, 4, 5, 1))), emb).data
    down, across = ((np.arange(n) + 0.5) / n for n in (4, 5))
    expected = sum(told[:, i, j, None, None] * np.cos(np.pi * i * down)[:, None, None]
                   * np.cos(np.pi * j * across)[:, None] for i in range(3) for j in range(3))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_each_word_moves_the_waves_of_a_layout_by_itself(rng):
    unet = randomised(UNet(replace(TINY, layout=2), rng=rng), rng)
    unet.conv_in.w.data[...], unet.conv_in.b.data[...] = 0, 0
    emb, context = (rng.standard_normal(shape) for shape in ((2, 32), (2, 3, 64)))
    blank, heard = Tensor(np.zeros((2, 4, 4, 1))), 0
    for word in range(3):
        told = silu(Tensor(emb + unet.words(Tensor(context[:, word])).data))
        heard = heard + unet.layout(told).data.reshape(2, 2, 2, 8) / 3
    got = unet.laid_out(blank, Tensor(emb), Tensor(context)).data
    across = np.cos(np.pi * (np.arange(4) + 0.5) / 4)
    np.testing.assert_allclose(got.mean(axis=(1, 2)), heard[:, 0, 0], atol=1e-6)
    np.testing.assert_allclose((got * across[:, None]).mean(axis=(1, 2)) * 2, heard[:, 0, 1],
                               atol=1e-6)


def test_a_layout_tells_each_pixel_how_far_down_and_across_it_lies(rng):
    unet = UNet(replace(TINY, layout=1), rng=rng)
    unet.conv_in.w.data[...] = 0
    unet.conv_in.w.data[1, 1, 1, 0] = unet.conv_in.w.data[1, 1, 2, 1] = 1
    got = unet.laid_out(Tensor(np.zeros((2, 2, 4, 1))), Tensor(np.zeros((2, 32)))).data
    np.testing.assert_allclose(got[1, :, 3, 0], [-0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(got[0, 1, :, 1], [-0.75, -0.25, 0.25, 0.75], atol=1e-6)


def test_a_fresh_layout_is_not_moved_by_what_is_told(rng):
    unet = UNet(replace(TINY, layout=2), rng=rng)
    h = Tensor(rng.standard_normal((1, 4, 4, 1)))
    one, two = (unet.laid_out(h, Tensor(rng.standard_normal((1, 32)))).data for _ in range(2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("patch", [1, 2])
def test_permuting_the_batch_permutes_the_result(patch, rng):
    unet = randomised(UNet(replace(TINY, classes=4, patch=patch), rng=rng), rng)
    inputs = (rng.standard_normal((5, 8, 6, 1)), np.array([1, 999, 30, 500, 2]),
              rng.standard_normal((5, 3, 64)), np.array([0, 3, 1, 2, 3]))
    order = np.array([3, 0, 4, 1, 2])
    permuted = unet.predict(*(a[order] for a in inputs))
    np.testing.assert_allclose(permuted, unet.predict(*inputs)[order], atol=1e-12)


def test_a_fresh_unet_predicts_zero_and_its_blocks_change_nothing(rng):
    x, emb = rng.standard_normal((2, 5, 5, 8)), rng.standard_normal((2, 32))
    assert not UNet(UNetConfig.tiny(), rng=rng).predict(x[..., :1], 5).any()
    np.testing.assert_array_equal(ResBlock(8, 8, 32, groups=4, rng=rng)(x, emb).data, x)
    block = AttentionBlock(8, heads=2, groups=4, context_width=6, rng=rng)
    np.testing.assert_array_equal(block(Tensor(x), rng.standard_normal((2, 3, 6))).data, x)


@pytest.mark.parametrize("given", ["t", "context", "class_labels"])
def test_the_picture_depends_on_what_the_network_is_told(given, rng):
    unet = randomised(UNet(replace(TINY, classes=4), rng=rng), rng)
    told = {"t": np.array([10]), "context": rng.standard_normal((1, 3, 64)),
            "class_labels": np.array([1])}
    x = rng.standard_normal((1, 5, 5, 1))
    other = {**told, given: told[given] + 1}
    assert np.abs(unet.predict(x, **told) - unet.predict(x, **other)).max() > 1e-3


def test_class_labels_with_a_silent_table_are_no_labels_at_all(rng):
    with_labels = randomised(UNet(UNetConfig(base=8, groups=4, classes=4), rng=rng), rng)
    without = UNet(UNetConfig(base=8, groups=4), rng=rng).astype(np.float64)
    without.load({name: p.data for name, p in with_labels.parameters().items()
                  if name != "label.table"})
    with_labels.label.table.data[...] = 0
    x = rng.standard_normal((2, 5, 5, 1))
    np.testing.assert_array_equal(with_labels.predict(x, 9, class_labels=np.array([0, 3])),
                                  without.predict(x, 9))


def test_predict_takes_one_time_for_all_and_records_nothing(rng):
    unet = randomised(UNet(UNetConfig.tiny(), rng=rng), rng)
    x = rng.standard_normal((3, 5, 5, 1))
    together = unet.predict(x, 7)
    assert type(together) is np.ndarray
    np.testing.assert_array_equal(together, unet(x, np.array([7, 7, 7])).data)
    np.testing.assert_array_equal(together, unet.predict(x, 7.0))
    np.testing.assert_array_equal(together, unet.predict(x, [7, 7, 7]))


@pytest.mark.parametrize(("wrong", "got"), [
    (dict(x=[[[[0.0]]]]), r"x \(1, 1, 1, 1\) and t \(\)"), (dict(x=None), r"x \(\) and t \(\)"),
    (dict(t=[7, 7]), r"x \(3, 5, 5, 1\) and t \(2,\)"), (dict(t=[[7]]), r"t \(1, 1\)"),
    (dict(t=np.ones(4)), r"t \(4,\)"), (dict(t="7"), "t "), (dict(t=None), "t "),
    (dict(context=[[[0.0]]]), "x "), (dict(class_labels=[1, 2, 3]), "x "),
])
def test_what_is_no_array_and_times_that_do_not_fit_are_refused(wrong, got, rng):
    unet = UNet(UNetConfig.tiny(), rng=rng)
    with pytest.raises(ValueError, match=f"^UNet: expected x, context and .*, got .*{got}"):
        unet.predict(**dict(x=np.zeros((3, 5, 5, 1)), t=7) | wrong)


def test_float32_in_is_float32_out(rng):
    unet = UNet(replace(TINY, classes=4, patch=2), rng=rng)
    x, context = np.ones((2, 6, 4, 1), np.float32), np.ones((2, 3, 64), np.float32)
    y = unet(x, np.array([1, 2]), context, np.array([0, 1]))
    y.backward(np.ones(y.shape))
    assert y.dtype == np.float32
    assert {p.grad.dtype for p in unet.parameters().values()} == {np.dtype(np.float32)}


def test_a_parameter_of_the_unet_is_called_by_its_place(rng):
    names = UNet(replace(TINY, classes=4), rng=rng).parameters().keys()
    assert {"time.linear1.w", "pooled.b", "label.table", "conv_in.w", "down.0.blocks.0.res.conv1.w",
            "down.0.resize.conv.w", "down.1.blocks.0.attention.cross_attention.k.w",
            "middle1.attention.norm2.scale", "up.1.blocks.1.res.skip.w", "norm_out.shift"} <= names


@pytest.mark.parametrize(("H", "W"), [(5, 7), (2, 4), (1, 1), (8, 8)])
def test_downsampling_rounds_up_and_upsampling_comes_back(H, W, rng):
    x = rng.standard_normal((2, H, W, 4)).astype(np.float32)
    half = Downsample(4, rng=rng)(x)
    assert half.shape == (2, -(-H // 2), -(-W // 2), 4)
    up = Upsample(4, rng=rng)
    up.conv.w.data[...] = 0
    up.conv.w.data[1, 1] = np.eye(4)                      # the convolution does nothing
    rows, columns = np.arange(H) // 2, np.arange(W) // 2
    np.testing.assert_allclose(up(half, like=x).data, half.data[:, rows][:, :, columns],
                               rtol=0, atol=1e-5)        # but for Winograd's rounding


@given(p=st.integers(1, 3), H=st.integers(1, 4), W=st.integers(1, 4), C=st.integers(1, 3))
def test_patches_become_channels_and_pixels_again(p, H, W, C):
    x = np.random.default_rng(0).standard_normal((2, H * p, W * p, C))
    deep = space_to_depth(Tensor(x), p)
    assert deep.shape == (2, H, W, p * p * C)
    np.testing.assert_array_equal(deep.data[1, 0, -1], x[1, :p, -p:].ravel())
    np.testing.assert_array_equal(depth_to_space(deep, p).data, x)


WRONG = [
    (dict(x=(2, 4, 4, 3)), r"expected x \(N, H, W, 1\), got \(2, 4, 4, 3\)"),
    (dict(x=(4, 4, 1)), r"expected x \(N, H, W, 1\), got \(4, 4, 1\)"),
    (dict(x=(2, 5, 4, 1)), r"multiples of 2, got \(5, 4\)"),
    (dict(t=(3,)), r"expected t of shape \(2,\), one an image, got \(3,\)"),
    (dict(t=()), r"expected t of shape \(2,\), one an image, got \(\)"),
    (dict(context=(2, 3, 65)), r"expected context \(2, L, 64\), got \(2, 3, 65\)"),
    (dict(context=(1, 3, 64)), r"expected context \(2, L, 64\), got \(1, 3, 64\)"),
    (dict(context=(2, 64)), r"expected context \(2, L, 64\), got \(2, 64\)"),
    (dict(context=None), "context is missing, the configuration has it"),
    (dict(class_labels=None), "class_labels is missing, the configuration has it"),
    (dict(class_labels=(1,)), r"class_labels of shape \(2,\), one an image, got \(1,\)"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=str)
def test_what_does_not_fit_the_configuration_is_refused(wrong, message, rng):
    unet = UNet(replace(TINY, classes=4, patch=2), rng=rng)
    shapes = {**dict(x=(2, 4, 4, 1), t=(2,), context=(2, 3, 64), class_labels=(2,)), **wrong}
    given = (None if shape is None else np.zeros(shape, int) for shape in shapes.values())
    with pytest.raises(ValueError, match=message):
        unet(*given)


def test_what_the_configuration_does_not_have_is_refused(rng):
    unet, x, t = UNet(UNetConfig.tiny(), rng=rng), np.ones((2, 4, 4, 1)), np.ones(2)
    with pytest.raises(ValueError, match="context was given, the configuration has none"):
        unet(x, t, np.ones((2, 3, 64)))
    with pytest.raises(ValueError, match="class_labels was given, the configuration has none"):
        unet(x, t, class_labels=np.zeros(2, int))


def test_a_label_that_does_not_exist_is_refused(rng):
    unet = UNet(UNetConfig(base=8, classes=4), rng=rng)
    with pytest.raises(ValueError, match="0 to 4, the table has rows 0 to 3"):
        unet.predict(np.ones((2, 4, 4, 1)), 5, class_labels=np.array([0, 4]))


@pytest.mark.parametrize(("change", "message"), [
    (dict(predicts="noise"), "\"v\", \"velocity\" or \"edm\", not 'noise'"),
    (dict(base=12), "12 channels .* 8 groups and 1 heads"),
    (dict(base=8, heads=3), "16 channels .* 8 groups and 3 heads"),
])
def test_a_configuration_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**change)


def test_attention_at_a_level_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="attend names level 2, but 2 mults make levels 0 to 1"):
        UNetConfig(mults=(1, 2), attend=(0, 2))
