"""Training and drawing on the device: what the host does, and hardly a word between the two."""

import numpy as np
import pytest
from story_helpers import few_digits, in_training, randomised, tiny
from test_frozen_text import STORED, published

from tinydiff import checkpoint, images, pretrained
from tinydiff.autoencoding import AutoencoderTraining
from tinydiff.backend import to_device, to_host
from tinydiff.diffusion import ideal_predictor
from tinydiff.evaluation.attention import word_maps
from tinydiff.models.classifier import Classifier, ClassifierConfig, fit
from tinydiff.report import preview, rehearse
from tinydiff.runs import load_run, training_run
from tinydiff.train import Training, fit as train
from tinydiff.variation import between

SEVEN, TWO = "a handwritten seven", "a handwritten two"
WAYS = {
    "plain": {}, "weighted": {"diffusion": {"weight": "min_snr", "times": "middle"}},
    "muon": {"train": {"optimizer": "muon", "decay": 0.1, "ema": 0.9}},
    "flow": {"model": {"predicts": "velocity"}, "diffusion": {"schedule": "flow"}},
    "edm and mirrors": {"model": {"predicts": "edm"}, "diffusion": {"schedule": "karras"},
                        "data": {"flip": True}},
    "near words, layout": {"text": {"form": "near"}, "model": {"layout": 3, "patch": 1}},
    "hybrid": {"diffusion": {"loss": "hybrid", "T": 12}}, "vlb": {"diffusion": {"loss": "vlb"}},
    "dropout": {"model": {"dropout": 0.3, "checkpoint": True}},
    "upscale": {"upscale": {"factor": 2}},
}
BATCH = {"plain": [(8, 8, 8, 1), (8, 20)],                # pictures and ids; noise of small ones
         "upscale": [(8, 8, 8, 1), (8, 4, 4, 1), (8, 20)]}
GELU = 1e-4                                               # relative: by a table, by CuPy's erf


def in_training_on(device, way):
    return Training(tiny(**WAYS[way]), few_digits(), device=device)


@np.errstate(under="ignore")
def assert_same_state(device, host):
    for (name, ours), theirs in zip(device.state().items(), host.state().values(), strict=True):
        np.testing.assert_allclose(to_host(ours), to_host(theirs), rtol=GELU, atol=1e-5,
                                   err_msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_three_steps_are_those_of_the_host_and_only_the_batch_is_sent(way, cupy):
    host, device = in_training_on("cpu", way), in_training_on("cuda", way)
    expected = [host.step() for _ in range(3)]
    device.step()                                         # captions are read for the first time
    device = in_training_on("cuda", way)
    for step in expected:
        cupy.stand_in.clear()
        np.testing.assert_allclose(device.step(), step, rtol=GELU)
        sent = [shape for _, shape in cupy.stand_in.uploads]
        times = [shape for shape in sent if len(shape) == 1 and shape[0] <= 8]    # and their levels
        batch = [shape for shape in sent if len(shape) > 1]
        assert len(times) + len(batch) == len(sent)
        assert len(times) <= (19 if way in ("hybrid", "vlb") else 9)
        assert batch == BATCH.get(way, BATCH["plain"])
        assert len(cupy.stand_in.synchronisations) == 2               # the loss and the norm
        assert len(cupy.stand_in.downloads) == (way == "vlb")       # L_vlb of each picture
    assert_same_state(device, host)


@pytest.mark.parametrize("kind", [{}, {"codes": 16}, {"adversarial": 0.5, "adversarial_from": 1}])
def test_an_autoencoder_learns_there_and_its_latents_stay_there(kind, cupy):
    size = dict(steps=3, batch=8, base=8, mults=[1, 2], groups=4, latent=3)
    recipe = tiny(autoencoder=size | kind,
                  model={"patch": 1}, sample={"clip": False}, data={"flip": True})
    host, device = (AutoencoderTraining(recipe, few_digits(), device) for device in ("cpu", "cuda"))
    for _ in range(3):
        np.testing.assert_allclose(device.step(), host.step(), rtol=1e-6)
    assert_same_state(device, host)
    trained = [Training(recipe, few_digits(), stage.finished(), device)
               for stage, device in ((host, "cpu"), (device, "cuda"))]
    np.testing.assert_allclose(trained[1].step(), trained[0].step(), rtol=GELU)
    drawn = [training_run(training, "now").generate([SEVEN], seed=3) for training in trained]
    np.testing.assert_array_equal(*drawn)


def test_a_run_goes_on_on_the_other_device(tmp_path, cupy):
    whole = in_training()
    losses = [whole.step() for _ in range(6)]
    first = in_training_on("cuda", "plain")
    np.testing.assert_allclose([first.step() for _ in range(2)], losses[:2], rtol=GELU)
    for i, device in enumerate(("cpu", "cuda")):
        first.save(tmp_path / "a.safetensors")
        first = in_training_on(device, "plain")
        first.load(tmp_path / "a.safetensors")
        np.testing.assert_allclose([first.step() for _ in range(2)], losses[2 + 2 * i:4 + 2 * i],
                                   rtol=GELU)
    assert type(first.flat.data) is cupy.ndarray
    assert_same_state(first, whole)


def test_a_checkpoint_from_the_device_draws_on_the_host(tmp_path, cupy):
    training, given = in_training_on("cuda", "plain"), in_training()
    randomised(given.model)
    given.ema.data[...] = given.flat.data
    given.save(tmp_path / "given.safetensors")
    training.load(tmp_path / "given.safetensors")
    train(training, tmp_path, stop_at=1, preview=preview, show=False)
    arrays, config = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert config["step"] == 1
    assert all(type(array) is np.ndarray for array in arrays.values())
    drawn = [load_run(tmp_path, device).generate([SEVEN, TWO], n=2, seed=5, guidance=3.0)
             for device in ("cpu", "cuda", "auto")]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[1], drawn[2])
    assert drawn[0].std() > 10


def alive(device, **tables):
    """A Run of weights that all matter."""
    training = in_training(**tables)
    randomised(training.model, seed=2)
    training.ema.data[...] = training.flat.data
    return training_run(training, "alive").to(device)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "heun", "unipc"])
def test_a_picture_is_the_host_s_and_goes_down_once_as_bytes(sampler, cupy):
    asked = dict(prompts=[SEVEN, TWO], n=2, seed=7, guidance=2.0, sampler=sampler, batch=3)
    expected = alive("cpu").generate(**asked)
    run = alive("cuda")
    frames = run.denoise(**asked)
    x_t = next(frames)
    cupy.stand_in.clear()
    *_, x_t = frames
    assert cupy.stand_in.uploads == cupy.stand_in.downloads == cupy.stand_in.synchronisations == []
    picture = run.pixels(x_t)
    assert cupy.stand_in.downloads == [("backend.py", (4, 8, 8, 1))]
    assert picture.dtype == np.uint8
    np.testing.assert_allclose(picture.astype(int), expected.astype(int), atol=1)
    assert (picture != expected).mean() < 0.01            # at the edge of two bytes


def test_pictures_from_pictures_and_between_prompts_are_the_host_s(cupy, rng):
    init = rng.integers(256, size=(8, 8, 1), dtype=np.uint8)
    mask = (np.arange(8) > 3).astype(np.uint8)[None, :, None].repeat(8, axis=0)
    for run in (lambda device: alive(device).generate([SEVEN], init=init, strength=0.5),
                lambda device: alive(device).generate([SEVEN], init=init, mask=mask),
                lambda device: between(alive(device), SEVEN, TWO, 3, to_seed=4),
                lambda device: alive(device, upscale={"factor": 2}).generate(
                    [SEVEN], init=init[::2, ::2].copy())):
        np.testing.assert_allclose(run("cuda").astype(int), run("cpu").astype(int), atol=1)


@pytest.mark.parametrize("given", [{}, {"sampler": "ddpm"}, {"guidance": 1.0, "n": 2}])
def test_a_published_pipeline_draws_there(given, cupy):
    drawn = [pretrained.load(STORED / "pipeline").to(device).generate(
        ["a small cat"], negative_prompt="red", steps=3, seed=4, **given)
        for device in ("cpu", "cuda")]
    np.testing.assert_allclose(drawn[1].astype(int), drawn[0].astype(int), atol=1)


def test_its_thresholds_are_found_there(cupy, rng):
    scheduler = pretrained.load_scheduler(STORED / "DDPMScheduler")
    scheduler = type(scheduler)(scheduler.config | {"thresholding": True}, "here")
    x_T = rng.standard_normal((2, 3, 3, 1)).astype(np.float32)
    ways = []
    for x in to_device(x_T, "cpu"), to_device(x_T, "cuda"):
        walk = scheduler(ideal_predictor(x, scheduler.schedule), x, steps=3)
        ways.append([to_host(x_t) for x_t in walk])
    np.testing.assert_allclose(ways[1], ways[0], rtol=1e-6)


@pytest.mark.parametrize("form", ["clip", "t5"])
def test_a_published_encoder_reads_there_and_is_heard(form, cupy, tmp_path):
    folder = published(tmp_path / form, form)
    text = {"text": {"encoder": folder, "length": 24}}
    host, device = (Training(tiny(**text), few_digits(), device=device)
                    for device in ("cpu", "cuda"))
    for _ in range(2):
        np.testing.assert_allclose(device.step(), host.step(), rtol=GELU)
    drawn = [training_run(training, "now").generate([SEVEN], seed=3) for training in (host, device)]
    np.testing.assert_allclose(drawn[1].astype(int), drawn[0].astype(int), atol=1)


def test_words_point_at_places_there_too(cupy):
    told = [word_maps(alive(device, model={"patch": 1}), [SEVEN], seed=1)[1][0][1]
            for device in ("cpu", "cuda")]
    np.testing.assert_allclose(told[1], told[0], atol=1e-4)


def test_small_things_on_the_way_work_there_too(cupy):
    training = in_training_on("cuda", "plain")
    assert rehearse(training) > 0
    assert rehearse(training, pictures=2) > 0
    assert training.plan.batch == 8
    judge = Classifier(ClassifierConfig(size=8), rng=np.random.default_rng(0)).to("cuda")
    digits = few_digits()
    loss = fit(judge, digits.images, digits.labels, steps=2, rng=np.random.default_rng(0), batch=9)
    assert 0 < loss < 10
    assert to_host(judge.predict(cupy.asarray(images.to_float(digits.images)))).shape == (64, 10)
