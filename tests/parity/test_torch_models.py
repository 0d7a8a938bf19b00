"""Whole networks equal PyTorch's, values and every gradient, with the same weights."""

from dataclasses import replace

import numpy as np
import pytest

from tinydiff.autograd import Tensor
from tinydiff.models import TextEncoder, TextEncoderConfig, UNet, UNetConfig
from tinydiff.models.tokenizer import PAD
from tinydiff.nn import sinusoids

torch = pytest.importorskip("torch")
import torch_twin  # noqa: E402

TINY = UNetConfig.tiny(context_width=64)
NETWORKS = {                                   # configuration, height, width
    "text, odd sizes":           (TINY, 9, 13),
    "RGB, labels, three levels": (UNetConfig(channels=3, base=8, mults=(1, 2, 3), blocks=2,
                                             attend=(0, 2), heads=2, groups=4, classes=5), 7, 10),
    "patches":                   (replace(TINY, patch=2, blocks=2), 6, 10),
    "adaptive, wide embedding":  (replace(TINY, adaptive=True, emb=6), 5, 8),
    "residual resampling":       (replace(TINY, resample_blocks=True, mults=(1, 2, 2)), 9, 6),
    "ADM": (UNetConfig(channels=3, base=8, mults=(1, 2, 2), attend=(1, 2), groups=4, classes=5,
                       head_width=4, adaptive=True, learned_variance=True, resample_blocks=True),
            7, 8),
}
TOLERANCE = {"float64": 1e-10, "float32": 5e-5}   # of the largest number of the array, or of 0.1;
                                                  # Winograd costs float32 a digit


def assert_close(ours, theirs, tolerance, name=""):
    theirs = theirs.detach().numpy()
    scale = max(np.abs(theirs).max(), 0.1)                # a key's bias has no effect: about 0
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * scale, name


def randomised(module, dtype, rng):
    """Every parameter off its start: zeros would hide what they scale."""
    for p in module.astype(dtype).parameters().values():
        p.data += (0.1 * rng.standard_normal(p.shape)).astype(dtype)
    return module


def twins(module):
    return {name: torch.tensor(p.data, requires_grad=True)
            for name, p in module.parameters().items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_unet_equals_its_torch_twin(network, dtype, rng):
    config, H, W = NETWORKS[network]
    unet = randomised(UNet(config, rng=rng), dtype, rng)
    p, t = twins(unet), np.array([1, 640, 1000])
    x = rng.standard_normal((3, H, W, config.channels)).astype(dtype)
    context = labels = None
    told = {}
    if config.context_width:
        context = rng.standard_normal((3, 5, config.context_width)).astype(dtype)
        told["context"] = torch.tensor(context, requires_grad=True)
    if config.classes:
        labels = np.array([4, 0, 4])
        told["class_labels"] = torch.tensor(labels)
    waves = torch.tensor(sinusoids(t, config.base).astype(dtype))
    x_torch = torch.tensor(x, requires_grad=True)
    theirs = torch_twin.unet(p, config, x_torch, waves, **told)
    dy = rng.standard_normal(tuple(theirs.shape)).astype(dtype)
    theirs.backward(torch.tensor(dy))
    x = Tensor(x, requires_grad=True)
    context = None if context is None else Tensor(context, requires_grad=True)
    ours = unet(x, t, context, labels)
    ours.backward(dy)
    assert ours.dtype == dtype
    assert_close(ours.data, theirs, TOLERANCE[dtype])
    assert_close(x.grad, x_torch.grad, TOLERANCE[dtype], "x")
    if context is not None:
        assert_close(context.grad, told["context"].grad, TOLERANCE[dtype], "context")
    for name, q in unet.parameters().items():
        assert_close(q.grad, p[name].grad, TOLERANCE[dtype], name)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_text_encoder_equals_torchs_transformer(dtype, rng):
    config = TextEncoderConfig(vocabulary=260, length=9, width=12, depth=2, heads=3)
    encoder = randomised(TextEncoder(config, rng=rng), dtype, rng)
    ids, dy = rng.integers(0, PAD, (4, 7)), rng.standard_normal((4, 7, 12)).astype(dtype)
    ids[1, 4:] = ids[2, 1:] = PAD
    p, padding = twins(encoder), torch.tensor(ids == PAD)
    x = p["token.table"][torch.tensor(ids)] + p["position.table"][:7]
    for i in range(config.depth):
        at = lambda name, i=i: p[f"blocks.{i}.{name}"]
        layer = torch.nn.TransformerEncoderLayer(12, 3, 48, dropout=0.0, activation="gelu",
                                                 batch_first=True, norm_first=True)
        q_k_v = [f"attention.{name}" for name in "qkv"]
        weights = {
            "self_attn.in_proj_weight": torch.cat([at(f"{name}.w").T for name in q_k_v]),
            "self_attn.in_proj_bias": torch.cat([at(f"{name}.b") for name in q_k_v]),
            "self_attn.out_proj.weight": at("attention.out.w").T,
            "self_attn.out_proj.bias": at("attention.out.b"),
            **{f"linear{k}.{a}": b for k in (1, 2) for a, b in (
                ("weight", at(f"linear{k}.w").T), ("bias", at(f"linear{k}.b")))},
            **{f"norm{k}.{a}": at(f"norm{k}.{b}") for k in (1, 2) for a, b in (
                ("weight", "scale"), ("bias", "shift"))},
        }
        x = torch.func.functional_call(layer, weights, x, {"src_key_padding_mask": padding})
    x = torch.nn.functional.layer_norm(x, (12,), p["norm.scale"], p["norm.shift"])
    x = x.masked_fill(padding[:, :, None], 0)
    x.backward(torch.tensor(dy))
    ours = encoder(ids)
    ours.backward(dy)
    assert_close(ours.data, x, TOLERANCE[dtype])
    for name, q in encoder.parameters().items():
        assert_close(q.grad, p[name].grad, TOLERANCE[dtype], name)
