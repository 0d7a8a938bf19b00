"""Networks and samplers on the device: forward, backward and pictures are those of the host."""

import shutil

import numpy as np
import pytest
from sampler_helpers import EVERY_SAMPLER, Gaussian, named
from story_helpers import randomised

from tinydiff import kernels
from tinydiff.autograd import cross_entropy, mse
from tinydiff.backend import array_module, to_device, to_host
from tinydiff.diffusion import (
    Schedule,
    clipped,
    composed,
    guided,
    guided_rescaled,
    ideal_predictor,
    image_to_image,
    inpainted,
    ode_log_likelihood,
    repaint,
    sample,
    slerp,
    vlb,
)
from tinydiff.diffusion.samplers import ddim, ddpm, ddpm_guided
from tinydiff.models import (
    AutoencoderConfig,
    TextEncoder,
    TextEncoderConfig,
    UNet,
    UNetConfig,
    autoencoder_for,
)
from tinydiff.models.noisy_classifier import NoisyClassifier, NoisyClassifierConfig
from tinydiff.predictor import denoiser, eps_vjp, grad_log_prob

LARGE = kernels.elementwise.large                         # which the fixture sets aside
BASE = dict(base=8, groups=4, heads=2)
CONFIGS = {
    "plain": dict(), "text and patches": dict(context_width=6, patch=2, layout=3),
    "adaptive and labels": dict(adaptive=True, classes=5, head_width=4, heads=1),
    "a transformer": dict(transformer=1, context_width=6, pooled=False, cosines_first=True),
    "sizes change inside": dict(resample_blocks=True, learned_variance=True, frequency_shift=1),
    "computed again": dict(checkpoint=True, corner=True, attend=(0, 1), centre_input=True),
}
ENCODERS = {
    "masked": {}, "near": {}, "clip": dict(end=2, activation="gelu_quick"),
    "bert": dict(activation="gelu_tanh"), "t5": dict(length=0, activation="relu", gated=True),
}


def sent(arrays, device):
    return [to_device(a, device) if isinstance(a, np.ndarray) else a for a in arrays]


def both(cupy, make, run, *arrays):
    """run(module, *arrays) on the host, then on the device, with what was counted there."""
    for device in "cpu", "cuda":
        module = randomised(make(np.random.default_rng(0))).to(device)
        given = sent(arrays, device)
        cupy.stand_in.clear()
        yield [to_host(a) for a in run(module, *given)]


def assert_same(device, host, tolerance=0.0):
    """To the bit, or nearly where there is a GELU: here by a table, there by CuPy's erf."""
    for ours, theirs in zip(device, host, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def untouched(cupy):
    return cupy.stand_in.uploads == cupy.stand_in.downloads == cupy.stand_in.synchronisations == []


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_u_net_and_all_its_gradients(kind, cupy, rng):
    config = UNetConfig(**BASE | CONFIGS[kind])
    size = (2, 6, 6, 1) if config.patch == 1 else (2, 8, 8, 1)        # 6 -> 3: odd on the way
    x, t = rng.standard_normal(size).astype(np.float32), np.array([3.0, 40.0])
    context = rng.standard_normal((2, 3, 6)).astype(np.float32) if config.context_width else None
    labels = np.array([4, 0]) if config.classes else None
    still = []

    def run(unet, x, t, context, labels):
        y = unet(x, t, context, labels)
        mse(y, y.data * 0 + 1).backward()
        still.append(untouched(cupy))
        return y.data, *(p.grad for p in unet.parameters().values() if p.grad is not None)

    host, device = both(cupy, lambda rng: UNet(config, rng=rng), run, x, t, context, labels)
    assert still[1]
    assert len(host) > 30
    assert_same(device, host, tolerance=1e-5 * config.transformer)


@pytest.mark.parametrize("form", ENCODERS)
def test_text_encoders_of_all_forms(form, cupy):
    c = TextEncoderConfig(**dict(vocabulary=260, length=5, width=8, heads=4, form=form)
                          | ENCODERS[form])
    ids = np.array([[257, 7, 8, 256, 256], [257, 9, 2, 3, 256]])
    still = []

    def run(encoder, ids):
        context, summary = encoder.encode(ids)
        y = encoder(ids)
        y.backward(y)
        still.append(cupy.stand_in.downloads + cupy.stand_in.synchronisations)
        given = [p.grad for p in encoder.parameters().values() if p.grad is not None]
        return [context, *([] if summary is None else [summary]), *given]

    host, device = both(cupy, lambda rng: TextEncoder(c, rng=rng), run, ids)
    assert still[1] == []
    assert_same(device, host, tolerance=1e-5 * (c.activation == "gelu"))
    encoder = TextEncoder(c, rng=np.random.default_rng(0)).to("cuda")
    mask = np.array([[1, 1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(                        # what comes from the host is sent over
        to_host(encoder(ids, mask).data), to_host(encoder(*sent([ids, mask], "cuda")).data))
    with pytest.raises(ValueError, match="ids from 0 to 260, the table has rows 0 to 259"):
        encoder(np.array([[0, 260]]))


@pytest.mark.parametrize("codes", [0, 6])
def test_an_autoencoder_and_its_codebook(codes, cupy, rng):
    config = AutoencoderConfig(base=8, mults=(1, 2), blocks=1, groups=4, latent=3, codes=codes)
    x = rng.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)

    def run(model, x):
        z = model.latents(x)
        if codes:
            model.codebook.update(z, np.random.default_rng(3))
        return z, model.pictures(z), *(p.data for p in model.parameters().values())

    host, device = both(cupy, lambda rng: autoencoder_for(config, rng=rng), run, x)
    assert_same(device, host)


@pytest.mark.parametrize(("sampler", "own", "schedule"), **named(EVERY_SAMPLER))
def test_every_sampler_goes_the_same_way_alone(sampler, own, schedule, cupy, rng):
    x_T = schedule.prior_std * rng.standard_normal((2, 3, 3, 1)).astype(np.float32)
    predict, times = Gaussian(schedule).predict, [900, 500, 200, 1, 0]
    host = list(sampler(predict, x_T, schedule, timesteps=times, **own))
    x_T = cupy.asarray(x_T)
    cupy.stand_in.clear()
    device = list(sampler(predict, x_T, schedule, timesteps=times, **own))
    assert untouched(cupy)
    for ours, theirs in zip(device, host, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(to_host(ours), theirs)


def painted(predict, x_T, schedule, known, mask):
    predict = inpainted(predict, schedule, known=known, mask=mask)
    return ddim(predict, x_T, schedule, steps=3)


@pytest.mark.parametrize("way", [
    lambda p, q, x, s, known, paint: ddim(guided(p, q, 3.0), x, s, steps=3),
    lambda p, q, x, s, known, paint: ddim(composed(q, [p, p], [2.0, -1.0]), x, s, steps=3),
    lambda p, q, x, s, known, paint: ddim(guided_rescaled(
        p, q, 3.0, s, predicts="v"), x, s, steps=3),
    lambda p, q, x, s, known, paint: ddpm(clipped(p, s), x, s, steps=3),
    lambda p, q, x, s, known, paint: image_to_image(ddim, p, known, s, strength=0.5, steps=3),
    lambda p, q, x, s, known, paint: painted(p, x, s, known, paint),
    lambda p, q, x, s, known, paint: repaint(p, x, s, known=known, mask=paint, steps=2, resample=2),
    lambda p, q, x, s, known, paint: [slerp(x, known, np.array([0.2, 0.7]))],
    lambda p, q, x, s, known, paint: vlb(p, known, s, steps=3),
    lambda p, q, x, s, known, paint: [ode_log_likelihood(p, x, s, timesteps=[900, 500, 9])],
    lambda p, q, x, s, known, paint: [sample(ddpm, p, x.shape, s, steps=3, like=x)],
], ids="guided composed rescaled clipped init inpainted repaint slerp vlb ode sample".split())
def test_what_is_done_with_predictors(way, cupy, rng):
    schedule, found = Schedule.cosine(), []
    data = rng.uniform(-1, 1, (5, 2, 3, 1)).astype(np.float32)
    x = rng.standard_normal((2, 2, 3, 1)).astype(np.float32)
    mask = (np.arange(3) > 0).astype(np.float32)[None, None, :, None]
    for device in "cpu", "cuda":
        first, second, x_T, known, paint = sent([data[:3], data, x, data[:2], mask], device)
        p, q = ideal_predictor(first, schedule), ideal_predictor(second, schedule)
        found.append([to_host(a) for a in way(p, q, x_T, schedule, known, paint)])
    assert_same(found[1], found[0])


def test_a_network_is_asked_and_guided_without_a_word_to_the_host(cupy, rng):
    schedule = Schedule.cosine()
    x = rng.standard_normal((2, 8, 8, 1)).astype(np.float32)
    still = []

    def run(unet, x, context):
        predict = denoiser(unet, schedule, context)
        steps = list(ddim(guided(predict, predict, 2.0), x, schedule, steps=3))
        still.append(untouched(cupy))
        return [*steps, eps_vjp(unet, schedule, context)(x, 500, x)]

    config = UNetConfig(**BASE, context_width=6, predicts="v")
    context = rng.standard_normal((2, 3, 6)).astype(np.float32)
    host, device = both(cupy, lambda rng: UNet(config, rng=rng), run, x, context)
    assert still[1]
    assert_same(device, host)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="builds kernels for the host with g++")
def test_the_device_s_own_kernels_stepped_through_give_the_same_network(cupy, monkeypatch, rng):
    pytest.importorskip("greenlet")
    from tinydiff_kernels.gpu.order import stepping
    config = UNetConfig(base=4, mults=(1,), groups=2, attend=(), middle=0)
    x, still = rng.standard_normal((1, 4, 4, 1)).astype(np.float32), []

    def run(unet, x):
        if array_module(x) is cupy:
            kernels._chosen.clear()          # the fixture puts its own back
            monkeypatch.setattr(kernels.elementwise, "large", LARGE)
        with stepping(races=False):
            y = unet(x, np.array([3.0]))
            mse(y, y.data * 0 + 1).backward()
        still.append(cupy.stand_in.downloads + cupy.stand_in.synchronisations)
        return y.data, *(p.grad for p in unet.parameters().values())

    host, device = both(cupy, lambda rng: UNet(config, rng=rng), run, x)
    assert still[1] == []
    assert_same(device, host, tolerance=1e-5)


def test_a_classifier_leads_the_way_there(cupy, rng):
    schedule = Schedule.cosine()
    x = rng.standard_normal((2, 8, 8, 1)).astype(np.float32)

    def run(classifier, x):
        wanted = np.array([1, 3])
        steps = ddpm_guided(ideal_predictor(x, schedule), x, schedule, steps=2, y=wanted,
                            grad_log_prob=grad_log_prob(classifier))
        loss = cross_entropy(classifier(x, np.full(2, 7)), labels=wanted)
        return [*steps, classifier.predict(x, 3), loss.data]

    make = lambda rng: NoisyClassifier(NoisyClassifierConfig(widths=(8,)), rng=rng)
    host, device = both(cupy, make, run, x)
    assert_same(device, host)
