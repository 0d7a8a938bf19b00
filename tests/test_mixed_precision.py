"""bf16 activations, float32 weights: each op, whole U-Nets and a training, on the CPU's emulation.

Allowed is ‖ours − truth‖ ≤ 4e-3 ‖truth‖ for a result, which bf16 rounds by 2⁻⁹ at most, and 1e-2
for a gradient; the truth is the same op in float64 on the same rounded numbers.
"""

import shutil

import numpy as np
import pytest

from tinydiff import autograd as ag
from tinydiff.autograd import Tensor, mse
from tinydiff.kernels import bfloat16, use
from tinydiff.models import UNet, UNetConfig
from tinydiff.nn import Conv2d, GroupNorm, Linear
from tinydiff.optim import EMA, AdamW, Flat, Muon

pytest.importorskip("ml_dtypes")
pytest.importorskip("greenlet")
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs the compiler g++")

HALF = bfloat16() if shutil.which("g++") else None
SMALL = "gamma beta b late scale shift".split()           # float32 beside bf16
X = {"x": (2, 6, 5, 16)}
OPS = {
    "linear": (lambda x, w, b, skip, add: ag.linear(x, w, b, skip, add),
               {"x": (7, 16), "w": (24, 9), "b": (9,), "skip": (7, 8), "add": (7, 9)}),
    "conv2d": (lambda x, w, b: ag.conv2d(x, w, b, stride=2, padding=1),
               X | {"w": (3, 3, 16, 11), "b": (11,)}),
    "conv2d of pictures": (lambda x, w, b: ag.conv2d(x, w, b, padding=1),
                           {"x": (2, 5, 4, 3), "w": (3, 3, 3, 8), "b": (8,)}),
    "upsample_conv2d": (ag.upsample_conv2d, X | {"w": (3, 3, 16, 8), "b": (8,)}),
    "norm_silu_conv2d": (
        lambda *args: ag.norm_silu_conv2d(*args, groups=4),
        X | {"gamma": (24,), "beta": (2, 24), "w": (3, 3, 24, 16), "b": (16,),
             "skip": (2, 6, 5, 8), "late": (2, 16), "add": (2, 6, 5, 16)}),
    "norm_silu": (lambda *args: ag.norm_silu(*args, groups=4), X | {"gamma": (16,), "beta": (16,)}),
    "conv2d_onto": (ag.conv2d_onto, X | {"w": (3, 3, 16, 8), "b": (8,), "late": (2, 8),
                                         "add": (2, 6, 5, 8)}),
    "norm_silu_conv2d to pictures": (
        lambda *args: ag.norm_silu_conv2d(*args, groups=4),
        X | {"gamma": (16,), "beta": (16,), "w": (3, 3, 16, 3), "b": (3,), "skip": None,
             "late": (2, 3)}),
    "attention": (ag.attention, {"q": (2, 3, 9, 8), "k": (2, 3, 5, 8), "v": (2, 3, 5, 16)}),
    "group_norm": (lambda x, gamma, beta: ag.group_norm(x, gamma, beta, groups=4),
                   X | {"gamma": (16,), "beta": (16,)}),
    "layer_norm": (ag.layer_norm, {"x": (2, 7, 16), "gamma": (16,), "beta": (16,)}),
    "silu": (ag.silu, X), "gelu": (ag.gelu, X), "upsample": (ag.upsample, X),
    "mean of 2 × 2": (lambda x: ag.mean(x.reshape(2, 3, 2, 5, 16), axis=2), X),
    "add_to_pixels": (ag.add_to_pixels, X | {"late": (2, 16)}),
    "add": (ag.add, X | {"y": (2, 6, 5, 16)}), "mul": (ag.mul, X | {"y": (2, 6, 5, 16)}),
    "concat": (ag.concat, X | {"y": (2, 6, 5, 3)}),
    "dropout": (lambda x: ag.dropout(x, p=0.3, rng=np.random.default_rng(3)), X),
    "cast": (lambda x: ag.cast(x, dtype=x.dtype), X),
}


def distance(got, truth):
    assert np.isfinite(got.astype(float)).all()
    return np.linalg.norm(got.astype(float) - truth) / np.linalg.norm(truth)


def close(got, truth, limit):
    assert got.shape == truth.shape
    assert distance(got, truth) <= limit


@pytest.mark.parametrize("name", OPS)
def test_an_op_on_bf16_is_as_exact_as_bf16_and_keeps_the_types(name, rng):
    function, shapes = OPS[name]
    rounded = {key: shape and rng.standard_normal(shape).astype(
        np.float32 if key in SMALL else HALF) for key, shape in shapes.items()}
    results = []
    for dtype in None, np.float64:
        xs = [a if a is None else Tensor(a.astype(dtype or a.dtype), requires_grad=True)
              for a in rounded.values()]
        y = function(*xs)
        y.backward(np.random.default_rng(1).standard_normal(y.shape).astype(HALF))
        results.append((y, xs))
    (y, xs), (truth, exact) = results
    assert y.dtype == HALF
    close(y.data, truth.data, 4e-3)
    for x, same in zip(xs, exact, strict=True):
        if x is not None:
            assert x.grad.dtype == x.dtype
            close(x.grad, same.grad, 1e-2)


def test_a_weight_s_gradient_is_summed_in_float32_and_never_rounded(rng):
    layers = Linear(16, 8, rng=rng), Conv2d(16, 8, 3, rng=rng)
    for layer, shape in zip(layers, ((40, 16), (2, 6, 6, 16)), strict=True):
        x = rng.standard_normal(shape).astype(HALF)
        y = layer(x)
        assert y.dtype == HALF
        y.backward(rng.standard_normal(y.shape).astype(HALF))
        assert layer.w.dtype == layer.w.grad.dtype == layer.b.grad.dtype == np.float32
        assert (layer.w.grad != layer.w.grad.astype(HALF)).mean() > 0.9


def test_one_pass_where_channels_are_whole_vectors(monkeypatch, rng):
    from tinydiff_kernels.conv2d import rung9_phase
    calls = []
    for name in "fused", "upsampled":
        real = getattr(rung9_phase, name)
        monkeypatch.setattr(rung9_phase, name, lambda *args, real=real, name=name, **options:
                            (calls.append(name), real(*args, **options))[1])
    x = rng.standard_normal((1, 4, 4, 8)).astype(HALF)
    for c_out in 8, 12:
        Conv2d(8, c_out, 3, rng=rng).behind(GroupNorm(8, 2), x)
    assert calls == ["fused"]
    conv = Conv2d(8, 8, 3, rng=rng)
    ag.upsample_conv2d(x, conv.w.data.astype(HALF), conv.b)
    assert calls == ["fused", "upsampled"]


@pytest.mark.parametrize("dtype", [np.float32, HALF], ids=str)
def test_the_rung_of_a_gpu_without_upsampling_fuses_bf16_alone(dtype, rng):
    conv, norm = Conv2d(8, 8, 3, rng=rng), GroupNorm(8, 2)
    x = rng.standard_normal((1, 4, 4, 8)).astype(dtype)
    exact = conv.behind(norm, x.astype(np.float32)).data
    with use(conv2d="halo"):
        y = conv.behind(norm, x)
    assert y.dtype == dtype
    close(y.data, exact.astype(float), 4e-3 if dtype == HALF else 1e-6)


CONFIGS = {
    "DDPM's":     UNetConfig(base=16, mults=(1, 2), groups=4, attend=(1,), dropout=0.1),
    "told words": UNetConfig(base=16, mults=(1, 2), groups=4, attend=(1,), layout=2,
                             context_width=24, adaptive=True, resample_blocks=(True, True)),
    "with transformers": UNetConfig(base=16, mults=(1, 2), groups=4, attend=(1,), transformer=1,
                                    context_width=24, classes=5, learned_variance=True,
                                    checkpoint=True),
}


def told(config, rng, n=2):
    return (rng.standard_normal((n, 8, 8, config.channels)).astype(np.float32),
            np.linspace(3, 900, n, dtype=np.float32),
            rng.standard_normal((n, 5, 24)).astype(np.float32) if config.context_width else None,
            np.arange(n) if config.classes else None)


def woken(config):
    """A U-Net of which nothing is zero."""
    unet = UNet(config, rng=np.random.default_rng(1))
    for p in unet.parameters().values():
        if not p.data.any():
            p.data[...] = 0.05 * np.random.default_rng(2).standard_normal(p.shape)
    return unet


@pytest.mark.parametrize("name", CONFIGS)
def test_a_u_net_in_bf16_says_what_it_says_in_float32(name, rng):
    unet, inputs, found = woken(CONFIGS[name]), told(CONFIGS[name], rng), {}
    for precision in "float32", "bf16":
        unet.compute_in(precision)
        for p in unet.parameters().values():
            p.grad = None
        y = unet(*inputs, rng=np.random.default_rng(7))
        assert y.dtype == np.float32
        mse(y, np.ones_like(y.data)).backward()
        found[precision] = y.data, np.concatenate([
            p.grad.ravel() for p in unet.parameters().values()])
    (y, dw), (y_half, dw_half) = found.values()
    assert y_half.tobytes() != y.tobytes()
    close(y_half, y.astype(float), 2e-2)
    close(dw_half, dw.astype(float), 2e-2)


def test_no_activation_is_float32_on_its_way_through(rng, monkeypatch):
    """Pictures (N, H, W, C) and tokens (N, L, C), but for what comes in and goes out."""
    from tinydiff.autograd import tensor
    config = CONFIGS["told words"]
    unet, inputs, seen = woken(config), told(config, rng), []
    unet.compute_in("bf16")
    real = tensor.Tensor.__init__
    monkeypatch.setattr(tensor.Tensor, "__init__", lambda self, data, *more: (
        seen.append((data.shape, data.dtype)), real(self, data, *more))[1])
    unet(*inputs)
    wide = [shape for shape, dtype in seen if len(shape) in (3, 4) and shape[0] == 2
            and dtype == np.float32 and shape[-1] not in (config.channels, 2, 24)]
    assert wide == [(2, 4, 16)]                           # the layout's heights, used as weights


def trained(precision, optimizer, steps=6, lr=4e-3):
    config = UNetConfig(base=8, mults=(1, 2), groups=4, attend=())
    unet = UNet(config, rng=np.random.default_rng(0))
    unet.compute_in(precision)
    flat = Flat(unet.parameters(), halved=precision == "bf16")
    step, losses = optimizer(flat, ema=EMA(flat, decay=0.9)), []
    x, t, *_ = told(config, np.random.default_rng(3))
    for k in range(1, steps + 1):
        loss = mse(unet(x, t), 0.5 * x)
        losses.append(loss.item())
        loss.backward()
        step.step(lr, k)
    return losses, flat


@pytest.mark.parametrize("optimizer", [AdamW, Muon])
def test_losses_fall_as_in_float32_and_the_copy_follows_the_weights(optimizer):
    right, _ = trained("float32", optimizer)
    losses, flat = trained("bf16", optimizer)
    np.testing.assert_allclose(losses, right, rtol=2e-2)
    assert losses[-1] < 0.9 * losses[0]
    assert flat.data.dtype == np.float32
    np.testing.assert_array_equal(flat.half, flat.data[:flat.weights].astype(HALF))


def test_steps_too_small_for_bf16_add_up_in_float32(rng):
    layer = Linear(16, 16, rng=rng)
    flat = Flat(layer.parameters(), halved=True)
    step, start, begun = AdamW(flat), flat.data.copy(), flat.half.copy()
    for k in range(1, 1001):
        flat.grad[...] = 1
        step.step(1e-6, k)
    np.testing.assert_allclose(start - flat.data, 1e-3, rtol=2e-2)
    assert (flat.half != begun).mean() > 0.5
    once = (begun.astype(np.float32) - np.float32(1e-6)).astype(HALF)
    assert (once == begun).mean() > 0.95                  # in bf16 hardly one had got away


def test_loaded_weights_forget_the_copy_of_others(rng):
    layer, other = Linear(8, 8, rng=rng), Linear(8, 8, rng=rng)
    layer.halve()
    layer.load({name: p.data for name, p in other.parameters().items()})
    x = rng.standard_normal((3, 8)).astype(HALF)
    np.testing.assert_array_equal(layer(x).data, other(x).data)


# Training and drawing


@pytest.fixture
def in_bf16():
    from story_helpers import few_digits, tiny

    from tinydiff.train import Training
    recipe = tiny(model={"base": 8, "groups": 4}, train={"precision": "bf16", "batch": 2})
    return lambda: Training(recipe, few_digits())


def test_a_training_goes_on_bit_for_bit_from_its_checkpoint(in_bf16, tmp_path):
    whole, again = in_bf16(), in_bf16()
    expected = [whole.step() for _ in range(2)]
    whole.save(tmp_path / "two.safetensors")
    half = whole.flat.half.copy()
    expected.append(whole.step())
    again.load(tmp_path / "two.safetensors")
    np.testing.assert_array_equal(again.flat.half, half)
    assert again.step() == expected[-1]
    assert again.flat.data.tobytes() == whole.flat.data.tobytes()
    assert all(np.isfinite(expected).ravel())


def test_a_preview_draws_with_the_running_mean_not_with_the_copy(in_bf16):
    from tinydiff.runs import training_run
    training = in_bf16()
    training.step()
    run = training_run(training, "half done")
    assert not any(p.half is not None for p in run.unet.parameters().values())
    mean = training.flat.views(training.ema.data)
    np.testing.assert_array_equal(run.unet.conv_in.w.data, mean["unet.conv_in.w"])


def test_a_run_computes_as_its_recipe_says_on_a_gpu_and_in_float32_on_the_cpu(in_bf16, cupy):
    from tinydiff.runs import training_run
    run = training_run(in_bf16(), "half done")
    assert run.to("cuda").unet.activations == HALF
    weights = [p for p in run.unet.parameters().values() if p.ndim > 1]
    assert all(type(p.half).__module__ == "cupy" and p.half.dtype == HALF for p in weights)
    assert run.to("cpu").unet.activations is None
    assert not any(p.half is not None for p in weights)


@pytest.mark.parametrize(("words", "says"), [
    (["--set", "train.precision=bf16", "--device", "cpu"],
     "train.precision: bf16 is for a GPU, and this would train on the CPU"),
    (["--set", "train.precision=fp16"], "there is no precision called 'fp16'; did you mean"),
])
def test_a_precision_that_cannot_be_is_refused_at_the_door(words, says, typed):
    code, _, err = typed("train", "mnist", *words)
    assert code == 2
    assert says in err
