"""Layers: parameters by their paths, loading, how weights start, and what each layer computes."""

import math

import numpy as np
import pytest

from tinydiff.autograd import Tensor
from tinydiff.nn import (
    Attention,
    Conv2d,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    Module,
    TimeEmbedding,
    sinusoids,
)


class Tree(Module):
    """One parameter in every place where parameters may be."""

    def __init__(self, rng):
        self.name = "not a parameter"
        self.table = np.ones(5)                           # nor this
        self.bias = Tensor(np.zeros(3), requires_grad=True)
        self.inner = Linear(2, 3, rng=rng)
        self.blocks = [Linear(3, 1, rng=rng, bias=False), [GroupNorm(4, 2)]]
        self.pair = (None, LayerNorm(2))


def randomised(module, rng):
    """The module in float64, every parameter off its start: zeros would hide what they scale."""
    for p in module.astype(np.float64).parameters().values():
        p.data += 0.3 * rng.standard_normal(p.shape)
    return module


def test_a_parameter_is_called_by_its_path(rng):
    tree = Tree(rng)
    assert list(tree.parameters()) == [
        "bias", "inner.w", "inner.b", "blocks.0.w", "blocks.1.0.scale", "blocks.1.0.shift",
        "pair.1.scale", "pair.1.shift"]
    assert tree.parameters()["blocks.0.w"] is tree.blocks[0].w
    assert tree.count() == 3 + 6 + 3 + 3 + 4 + 4 + 2 + 2


def test_parameters_are_float32_that_want_gradients_until_asked_otherwise(rng):
    linear = Linear(2, 3, rng=rng)
    assert linear.w.dtype == linear.b.dtype == np.float32
    assert linear.w.requires_grad
    assert linear.b.requires_grad
    assert linear.astype(np.float64) is linear
    assert linear.w.dtype == linear.b.dtype == np.float64


def test_load_makes_two_modules_equal(rng):
    one, other = Tree(rng), Tree(rng)
    kept = other.inner.w.data
    other.load({name: p.data.astype(np.float16) for name, p in one.parameters().items()})
    for name, p in other.parameters().items():
        np.testing.assert_allclose(p.data, one.parameters()[name].data, rtol=1e-3)
    assert other.inner.w.data is kept                     # in place: a flat buffer's view stays one
    assert kept.dtype == np.float32


@pytest.mark.parametrize(("change", "message"), [
    (lambda a: a.pop("blocks.0.w"), r"blocks\.0\.w is missing from the weights"),
    (lambda a: a.update(extra=np.ones(1)), "extra is missing from the model"),
    (lambda a: a.update({"inner.b": np.ones(4)}), r"inner\.b has shape \(4,\), .* expects \(3,\)"),
])
def test_load_names_the_parameter_that_does_not_fit_and_changes_nothing(change, message, rng):
    tree = Tree(rng)
    before = {name: p.data.copy() for name, p in tree.parameters().items()}
    arrays = {name: a + 1 for name, a in before.items()}
    change(arrays)
    with pytest.raises(ValueError, match=message):
        tree.load(arrays)
    for name, p in tree.parameters().items():
        np.testing.assert_array_equal(p.data, before[name])


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_new_layer_turns_unit_inputs_into_variance_scale_squared(scale, rng):
    x = rng.standard_normal((500, 300))
    y = Linear(300, 400, rng=rng, scale=scale)(x).data
    assert y.var() == pytest.approx(scale**2, rel=0.02)
    pictures = rng.standard_normal((2, 16, 16, 40))
    y = Conv2d(40, 60, 3, rng=rng, scale=scale)(pictures).data[:, 1:-1, 1:-1]
    assert y.var() == pytest.approx(scale**2, rel=0.05)


def test_scale_zero_starts_silent(rng):
    assert not Linear(3, 4, rng=rng, scale=0.0)(np.ones((2, 3))).data.any()
    assert not Attention(4, heads=2, rng=rng, scale=0.0)(np.ones((1, 3, 4))).data.any()


def test_the_same_seed_makes_the_same_layer():
    one, same, other = (Linear(3, 4, rng=np.random.default_rng(seed)).w.data for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).all()


def test_linear_without_bias_is_a_product(rng):
    linear = Linear(3, 4, rng=rng, bias=False)
    x = rng.standard_normal((2, 5, 3)).astype(np.float32)
    assert list(linear.parameters()) == ["w"]
    np.testing.assert_allclose(linear(x).data, x @ linear.w.data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("K", "stride", "shape"), [(3, 1, (7, 5)), (3, 2, (4, 3)), (1, 1, (7, 5)),
                                                    (5, 3, (3, 2))])
def test_conv2d_keeps_the_size_or_divides_it_rounded_up(K, stride, shape, rng):
    conv = Conv2d(2, 3, K, rng=rng, stride=stride)
    conv.w.data[...] = 0
    conv.w.data[K // 2, K // 2, 1, 0] = 1                 # output 0 is every stride-th of input 1
    x = rng.standard_normal((2, 7, 5, 2)).astype(np.float32)
    y = conv(x).data
    assert y.shape == (2, *shape, 3)
    np.testing.assert_allclose(y[..., 0], x[:, ::stride, ::stride, 1], rtol=0, atol=1e-5)


def test_norms_leave_mean_zero_and_variance_one(rng):
    x = 5 + 3 * rng.standard_normal((2, 8, 9, 6))
    y = GroupNorm(6, 2).astype(np.float64)(x).data.reshape(2, 72, 2, 3)
    np.testing.assert_allclose(y.mean(axis=(1, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=(1, 3)), 1, atol=1e-5)
    y = LayerNorm(6).astype(np.float64)(x).data
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=-1), 1, atol=1e-3)


def test_embedding_looks_rows_up(rng):
    layer = Embedding(5, 3, rng=rng)
    rows = layer.table.data
    np.testing.assert_array_equal(layer(np.array([[4, 0], [1, 4]])).data,
                                  [[rows[4], rows[0]], [rows[1], rows[4]]])


@pytest.mark.parametrize("context_width", [None, 5])
def test_attention_is_each_head_on_its_own_slice_of_the_width(context_width, rng):
    layer = randomised(Attention(6, heads=3, context_width=context_width, rng=rng), rng)
    x = rng.standard_normal((2, 4, 6))
    context = None if context_width is None else rng.standard_normal((2, 7, 5))
    source = x if context is None else context
    heads = []
    for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
        q, k, v = (a @ linear.w.data[:, part] + linear.b.data[part]
                   for a, linear in ((x, layer.q), (source, layer.k), (source, layer.v)))
        p = np.exp(np.einsum("nld,nmd->nlm", q, k) / math.sqrt(2))
        heads.append(np.einsum("nlm,nmd->nld", p / p.sum(axis=-1, keepdims=True), v))
    expected = np.concatenate(heads, axis=-1) @ layer.out.w.data + layer.out.b.data
    np.testing.assert_allclose(layer(x, context).data, expected, rtol=1e-12)


def test_attention_does_not_see_the_order_of_its_context(rng):
    layer = randomised(Attention(6, heads=2, context_width=5, rng=rng), rng)
    x, context = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 7, 5))
    np.testing.assert_allclose(layer(x, context[:, ::-1]).data, layer(x, context).data, rtol=1e-12)


@pytest.mark.parametrize(("make", "message"), [
    (lambda rng: Attention(6, heads=4, rng=rng), "width 6 .* 4 heads"),
    (lambda rng: GroupNorm(6, 4), "6 channels .* 4 groups"),
])
def test_a_layer_that_cannot_be_divided_is_refused(make, message, rng):
    with pytest.raises(ValueError, match=message):
        make(rng)


def test_sinusoids_are_sines_then_cosines_of_ever_longer_waves():
    t = np.array([0, 1, 37, 999.5])
    expected = [[f(a / 10_000 ** (i / 4)) for f in (math.sin, math.cos) for i in range(4)]
                for a in t]
    waves = sinusoids(t, 8)
    np.testing.assert_allclose(waves, expected, atol=1e-4)           # float32 of t near 1000
    np.testing.assert_allclose(waves[:3], expected[:3], atol=5e-6)
    assert waves.dtype == np.float32


def test_the_time_embedding_tells_neighbouring_times_apart(rng):
    waves = sinusoids(np.arange(1001), 32)
    distance = np.linalg.norm(waves[:, None] - waves, axis=-1) + 9 * np.eye(1001, dtype=np.float32)
    assert distance.min() > 0.5
    emb = TimeEmbedding(32, 64, rng=rng)(np.array([500, 501])).data
    assert emb.shape == (2, 64)
    assert np.abs(emb[0] - emb[1]).max() > 0.01
