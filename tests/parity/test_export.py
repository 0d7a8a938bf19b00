"""What was trained here, exported: diffusers loads it and draws the same pictures."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
import peers
import torch
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from tinydiff import data, images, pretrained
from tinydiff.autoencoding import AutoencoderTraining
from tinydiff.data import captions
from tinydiff.diffusion import Schedule
from tinydiff.generate import Run
from tinydiff.models import TextEncoderConfig, TextToImage, Tokenizer, UNetConfig, autoencoder_for
from tinydiff.pretrained.export import export_run
from tinydiff.recipe import Recipe
from tinydiff.runs import training_run
from tinydiff.train import Training
from tinydiff.upscale import Cascade

TEXTS = [text for label in range(10) for text in captions("digits", label)]
ODD = ["", "  A  digit\tSEVEN ", "naïve ☃ 数字", "seven!?", "\n7"]
LATENT = Recipe().change({
    "data": {"name": "shapes"}, "text": {"form": "clip", "width": 16, "depth": 1, "length": 40},
    "autoencoder": {"steps": 3, "batch": 8, "base": 8, "groups": 4, "mults": [1, 2, 3]},
    "model": {"base": 8, "groups": 4, "heads": 2, "patch": 1, "transformer": 1, "pooled": False,
              "predicts": "v"},
    "train": {"steps": 3, "batch": 4}, "sample": {"clip": False, "steps": 10}})


def a_run(sampler="ddim", schedule=None, text=None, **model):
    """A Run in Stable Diffusion's form, every weight of which matters; pictures 16 × 8."""
    rng = np.random.default_rng(0)
    tokenizer = Tokenizer.learn(TEXTS, 320, 24)
    network = TextToImage(
        tokenizer, TextEncoderConfig(**{"vocabulary": tokenizer.size, "length": 24, "width": 16,
                                        "depth": 2, "heads": 2, "form": "clip", **(text or {})}),
        UNetConfig(**{"base": 8, "groups": 4, "predicts": "v", "context_width": 16, "heads": 2,
                      "transformer": 1, "pooled": False, **model}), rng=rng)
    for p in network.parameters().values():
        p.data += 0.2 * rng.standard_normal(p.shape).astype(np.float32)
    recipe = Recipe().change({"sample": {"clip": False, "steps": 10, "sampler": sampler}})
    return Run(network, schedule or Schedule.cosine(T=1000), recipe, (16, 8, 1), "random")


@pytest.fixture(scope="module")
def latent():
    """A Run of the recipe above, trained, then moved to where every weight matters; 24 × 32."""
    rng, scenes = np.random.default_rng(0), data.load("shapes")
    first = AutoencoderTraining(LATENT, scenes)
    for _ in range(LATENT.autoencoder.steps):
        first.step()
    first.ema.data += 0.1 * rng.standard_normal(first.ema.data.shape).astype(np.float32)
    first.flat.views(first.ema.data)["quant.b"] += 0.5    # so that the latents need a shift
    then = Training(LATENT, scenes, first.finished())
    for _ in range(LATENT.train.steps):
        then.step()
    then.ema.data += 0.1 * rng.standard_normal(then.ema.data.shape).astype(np.float32)
    run = training_run(then, "latent")
    run.shape = 24, 32, 3
    return run


@pytest.fixture
def exported(tmp_path):
    """A function run -> (its folder, the pipeline that diffusers makes of it, as it is told)."""
    def write(run):
        _, told = export_run(run, tmp_path / "out").split("in diffusers: ")
        assert told == (f"StableDiffusionPipeline.from_pretrained({str(tmp_path / 'out')!r}"
                        + ("" if run.autoencoder else ", vae=None") + ")")
        pipe = eval(f"diffusers.{told}")
        pipe.set_progress_bar_config(disable=True)
        return tmp_path / "out", pipe

    return write


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", [
    {}, {"adaptive": True, "emb": 6, "mults": (1, 2, 3), "blocks": 2}, {"predicts": "eps"},
    {"predicts": "x0", "attend": (0, 1), "head_width": 4, "heads": 1, "channels": 3},
    {"cosines_first": True, "frequency_shift": 1, "t_first": 0, "transformer": 2, "corner": True}])
def test_the_network_says_the_same_at_a_time_one_less(exported, model, rng):
    run = a_run(**model)
    _, pipe = exported(run)
    assert type(pipe.unet) is diffusers.UNet2DConditionModel
    x = rng.standard_normal((2, 16, 8, run.model.unet.config.channels)).astype(np.float32)
    context = rng.standard_normal((2, 5, 16)).astype(np.float32)
    t = np.array([0, 637])
    with torch.no_grad():
        theirs = pipe.unet(peers.channels_first(x), torch.tensor(t), torch.tensor(context)).sample
    ours = run.model.unet.predict(x, t + run.model.unet.config.t_first, context)
    assert peers.worst(ours, peers.channels_last(theirs)) < 3e-5


@pytest.mark.filterwarnings("ignore")
def test_text_has_the_same_ids_and_the_same_context(exported):
    run = a_run(text={"activation": "gelu_quick"})
    _, pipe = exported(run)
    assert type(pipe.tokenizer) is PreTrainedTokenizerFast
    assert type(pipe.text_encoder) is CLIPTextModel
    texts = [*TEXTS, *ODD]
    ids = run.model.tokenizer.encode(texts)
    theirs = pipe.tokenizer(texts, padding="max_length", max_length=24, return_tensors="pt")
    np.testing.assert_array_equal(theirs.input_ids, ids)
    with torch.no_grad():
        context = pipe.text_encoder(theirs.input_ids).last_hidden_state
    assert peers.worst(run.model.text_encoder.encode(ids)[0], context.numpy()) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler", "unipc"])
def test_prompts_become_the_same_pictures(exported, sampler):
    run = a_run(sampler, Schedule.scaled_linear())
    _, pipe = exported(run)
    prompts = ["a handwritten seven", "2"]
    frames = list(run.denoise(prompts, seed=3, guidance=3.0))
    drawn = pipe(prompts, num_inference_steps=10, guidance_scale=3.0, output_type="latent",
                 latents=peers.channels_first(frames[0]), height=128, width=64).images
    assert peers.worst(frames[-1], peers.channels_last(drawn)) < 5e-5


@pytest.mark.filterwarnings("ignore")
def test_latents_become_the_same_pictures_and_pictures_the_same_latents(exported, latent):
    c = latent.autoencoder.config
    assert c.shift > 0.2                                  # forgotten, it would show
    _, pipe = exported(latent)
    assert type(pipe.vae) is diffusers.AutoencoderKL
    assert pipe.vae.config.shift_factor is None           # which a pipeline would not apply
    prompts, n = data.load("shapes").prompts[:2], 2
    frames = list(latent.denoise(prompts, n=n, seed=3, guidance=3.0))
    options = dict(num_images_per_prompt=n, num_inference_steps=10, guidance_scale=3.0,
                   latents=peers.channels_first(frames[0]))           # and the size is known
    z0 = pipe(list(prompts), output_type="latent", **options).images
    assert peers.worst(frames[-1], peers.channels_last(z0)) < 1e-4
    with torch.no_grad():
        picture = peers.channels_last(pipe.vae.decode(z0 / pipe.vae.config.scaling_factor).sample)
    ours = latent.autoencoder.pictures(frames[-1])
    assert ours.shape == (4, 24, 32, 3)
    assert peers.worst(ours, picture) < 1e-4
    shown = pipe(list(prompts), output_type="np", **options).images
    assert abs(latent.pixels(frames[-1]) - 255 * shown).max() < 1
    x = images.to_float(latent.pixels(frames[-1]))
    with torch.no_grad():
        q = pipe.vae.encode(peers.channels_first(x)).latent_dist
    mean = peers.channels_last(q.mean * pipe.vae.config.scaling_factor)
    assert peers.worst(latent.autoencoder.latents(x), mean) < 1e-4
    assert peers.worst(latent.autoencoder.encode(x)[1], peers.channels_last(q.logvar)) < 1e-4


def test_a_latent_run_draws_the_same_when_it_comes_back(tmp_path, latent):
    export_run(latent, tmp_path / "out")
    back, prompts = pretrained.load(tmp_path / "out"), data.load("shapes").prompts[:2]
    assert back.shape == latent.shape
    asked = dict(n=2, seed=3, guidance=3.0, steps=10)
    *_, ours = latent.denoise(prompts, **asked)
    *_, theirs = back.denoise(prompts, **asked)
    assert peers.worst(theirs, ours) < 1e-4
    drawn = [run.generate(prompts, **asked).astype(int) for run in (latent, back)]
    assert abs(drawn[0] - drawn[1]).max() <= 1


def test_what_was_exported_draws_the_same_when_it_comes_back(tmp_path):
    for k, sampler in enumerate(("ddim", "ddpm", "dpmpp_2m_sde")):
        run = a_run(sampler, Schedule.scaled_linear(), adaptive=True)
        export_run(run, tmp_path / str(k))
        back = pretrained.load(tmp_path / str(k))
        assert back.shape == run.shape
        *_, ours = run.denoise(["a handwritten seven", "2"], n=2, seed=3, guidance=3.0)
        *_, theirs = back.denoise(["a handwritten seven", "2"], n=2, seed=3, guidance=3.0, steps=10)
        assert peers.worst(theirs, ours) < 5e-5


@pytest.mark.parametrize(("run", "complaint"), [
    (dict(patch=2), r"model\.patch = 2"), (dict(layout=3), r"model\.layout = 3"),
    (dict(transformer=0), r"model\.transformer"),
    (dict(text={"form": "masked"}), r"text\.form"), (dict(predicts="velocity"), "no scheduler"),
    (dict(schedule=Schedule.karras()), "no scheduler")])
def test_what_diffusers_has_no_word_for_is_refused_by_key_and_nothing_written(
        tmp_path, run, complaint):
    with pytest.raises(ValueError, match=complaint):
        export_run(a_run(**run), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def latents_of(**own):
    """A Run with an autoencoder of such keys of its table."""
    run, table = a_run(), LATENT.change({"autoencoder": own}).autoencoder
    run.autoencoder = autoencoder_for(table.config(1), rng=np.random.default_rng(0))
    return run


def enlarging():
    run = a_run()
    run.recipe = run.recipe.set("upscale.factor", 2)
    return run


def read_by(encoder):
    run = a_run()
    run.model.text_encoder = encoder
    return run


@pytest.mark.parametrize(("make", "complaint"), [
    (lambda: latents_of(patch=2), r"no autoencoder\.patch = 2; train with 1"),
    (lambda: latents_of(codes=16), r"no autoencoder\.codes = 16; train with 0"),
    (enlarging, r"no upscale\.factor = 2; train with 1"),
    (lambda: Cascade(a_run(), enlarging(), "both"), "both has two stages; .* first, random"),
    (lambda: read_by(None), r"random learned no text encoder; train without text\.encoder"),
    (lambda: read_by(lambda contexts: contexts), "random learned no text encoder")])
def test_a_run_of_parts_that_no_pipeline_has_is_refused_and_nothing_written(
        tmp_path, make, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        export_run(make(), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_left_alone(tmp_path):
    with pytest.raises(ValueError, match="exists; name a folder that does not"):
        export_run(a_run(), tmp_path)
