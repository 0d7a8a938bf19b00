"""Whole pipelines: prompts to pixels as diffusers draws them, from the same folder and noise."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
import peers
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import tinydiff as td
from tinydiff.diffusion import noise

PROMPTS = ["an astronaut on a horse", "a cat"]
SCHEDULERS = {
    "PNDMScheduler": {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1},
    "DDIMScheduler": {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False},
    "DDIMScheduler clipped": {"clip_sample": True, "steps_offset": 0},
    "DDIMScheduler v": {"prediction_type": "v_prediction", "timestep_spacing": "trailing",
                        "rescale_betas_zero_snr": True, "clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "EulerDiscreteScheduler": {},
    "EulerDiscreteScheduler leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {"use_karras_sigmas": True},
    "DPMSolverMultistepScheduler": {"use_karras_sigmas": True},
    "DPMSolverMultistepScheduler sde": {"algorithm_type": "sde-dpmsolver++"},
    "UniPCMultistepScheduler": {},
    "LCMScheduler": {},
}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The networks and the tokenizer of a tiny Stable Diffusion, all random."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = [f"{a} {b} on a {c}" for a in ("an astronaut", "a cat", "blurry")
             for b in ("red", "big") for c in ("horse", "hat")]
    base = ByteLevelBPETokenizer(lowercase=True, end_of_word_suffix="</w>")
    base.train_from_iterator(words, vocab_size=600, min_frequency=1,
                             special_tokens=["<|startoftext|>", "<|endoftext|>"])
    base.save_model(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = [tuple(line.split(" ")) for line in
              (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=20)
    text = CLIPTextConfig(vocab_size=len(vocab), hidden_size=32, intermediate_size=48,
                          num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=20)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=2,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32,
        norm_num_groups=8)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, scaling_factor=0.3,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    return {"text_encoder": peers.randomise(CLIPTextModel(text), 1), "tokenizer": tokenizer,
            "unet": peers.randomise(unet, 2), "vae": peers.randomise(vae, 3)}


@pytest.fixture
def folder(parts, tmp_path):
    """A function scheduler -> the pipeline of diffusers with it, in float64, and its folder."""
    def save(scheduler):
        pipe = diffusers.StableDiffusionPipeline(
            **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False)
        pipe.save_pretrained(tmp_path / "sd")
        pipe.set_progress_bar_config(disable=True)
        for part in ("unet", "vae", "text_encoder"):
            setattr(pipe, part, peers.in_float64(parts[part]))
        return pipe, tmp_path / "sd"

    return save


@pytest.fixture
def our_noise(monkeypatch):
    """A function seed, n: diffusers draws what tinydiff does for n pictures of a prompt each."""
    def replay(seed, n):
        steps = iter(range(1000))

        def drawn(shape, *args, **kwargs):
            z = noise.batch(seed, [0] * n, next(steps), (*shape[2:], shape[1]),
                            purpose=noise.SAMPLER)
            return peers.channels_first(z).double()

        for name, module in list(sys.modules.items()):
            if name.startswith("diffusers.schedulers.scheduling") and \
                    "randn_tensor" in vars(module):
                monkeypatch.setattr(module, "randn_tensor", drawn)

    return replay


def scheduler_of(name):
    kind, options = getattr(diffusers, name.split()[0]), SCHEDULERS[name]
    return kind(num_train_timesteps=1000, **BETAS, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_prompt_becomes_the_picture_that_diffusers_draws(folder, our_noise, name):
    theirs, path = folder(scheduler_of(name))
    ours = td.pretrained.load(path)
    frames = list(ours.denoise(PROMPTS, seed=5, steps=5, guidance=7.5, negative="blurry",
                               size=(16, 24), batch=2))
    our_noise(5, 2)
    start = noise.batch(5, [0, 0], 0, (8, 12, 4))
    options = dict(negative_prompt=["blurry"] * 2, num_inference_steps=5, guidance_scale=7.5,
                   latents=peers.channels_first(start).double(), height=16, width=24)
    latents = theirs(PROMPTS, output_type="latent", **options).images
    assert peers.worst(frames[-1], peers.channels_last(latents)) < 2e-4
    picture = theirs.vae.decode(latents / 0.3).sample
    assert peers.worst(ours.autoencoder.pictures(frames[-1]), peers.channels_last(picture)) < 2e-4
    our_noise(5, 2)
    shown = theirs(PROMPTS, output_type="np", **options).images
    drawn = ours.generate(PROMPTS, negative_prompt="blurry", seed=5, steps=5, guidance=7.5,
                          height=16, width=24, batch=2)
    assert drawn.dtype == np.uint8
    assert abs(drawn - 255 * shown).max() < 0.6


@pytest.mark.filterwarnings("ignore")
def test_no_guidance_asks_for_the_prompt_alone(folder):
    theirs, path = folder(scheduler_of("DDIMScheduler"))
    ours = td.pretrained.load(path)
    *_, last = ours.denoise(PROMPTS[:1], seed=1, steps=3, guidance=1.0)
    start = noise.batch(1, [0], 0, (8, 8, 4))
    latents = theirs(PROMPTS[:1], num_inference_steps=3, guidance_scale=1.0, output_type="latent",
                     latents=peers.channels_first(start).double()).images
    assert peers.worst(last, peers.channels_last(latents)) < 2e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler",
                                  "DPMSolverMultistepScheduler", "DDPMScheduler"])
def test_a_picture_is_changed_as_diffusers_does(folder, our_noise, monkeypatch, name):
    theirs, path = folder(scheduler_of(name))
    ours = td.pretrained.load(path)
    init = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    *_, last = ours.denoise(PROMPTS, seed=9, steps=8, init=init, strength=0.6, batch=2)
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**theirs.components,
                                                      requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    our_noise(9, 2)
    z = peers.channels_first(noise.batch(9, [0, 0], 0, (8, 12, 4))).double()
    module = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: z)
    with torch.no_grad():
        picture = peers.channels_first(init[None] / 127.5 - 1).double()
        known = 0.3 * theirs.vae.encode(picture).latent_dist.mode()
    drawn = theirs(PROMPTS, image=known.expand(2, -1, -1, -1), strength=0.6, guidance_scale=7.5,
                   num_inference_steps=8, output_type="latent").images
    assert peers.worst(last, peers.channels_last(drawn)) < 2e-4


@pytest.mark.filterwarnings("ignore")
def test_where_the_mask_is_dark_the_latent_stays_and_any_sampler_will_do(folder):
    _, path = folder(scheduler_of("DPMSolverMultistepScheduler"))
    ours = td.pretrained.load(path)
    init = np.random.default_rng(1).integers(0, 256, (16, 24, 3), np.uint8)
    mask = np.zeros((16, 24, 1), np.uint8)
    mask[3:7, 8:17] = 255
    known, paint = ours.given(init, mask)
    np.testing.assert_array_equal(np.argwhere(paint[0, :, :, 0]).min(0), [1, 4])
    np.testing.assert_array_equal(np.argwhere(paint[0, :, :, 0]).max(0), [3, 8])
    for sampler in None, "dpmpp_2m", "ddpm":
        *_, last = ours.denoise(PROMPTS[:1], steps=4, init=init, mask=mask, sampler=sampler)
        still = np.broadcast_to(paint, last.shape) == 0
        np.testing.assert_allclose(last[still], known[still], atol=1e-5)
        assert abs(last - known)[~still].max() > 0.1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flat", [False, True], ids=["folders", "flat"])
@pytest.mark.parametrize("kind", ["DDPMPipeline", "DDIMPipeline"])
def test_a_network_without_text_draws_as_its_pipeline_does(tmp_path, monkeypatch, kind, flat):
    unet = peers.randomise(diffusers.UNet2DModel(
        sample_size=(8, 12), block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=None,
        up_block_types=("AttnUpBlock2D", "UpBlock2D")), 4)
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large") if kind == "DDPMPipeline" \
        else diffusers.DDIMScheduler()
    pipe = getattr(diffusers, kind)(unet, scheduler)
    pipe.save_pretrained(tmp_path / "ddpm")
    pipe.set_progress_bar_config(disable=True)
    pipe.unet = peers.in_float64(unet)
    for file in list((tmp_path / "ddpm").glob("*/*")) if flat else []:     # as in 2022
        file.rename(tmp_path / "ddpm" / file.name)
        if not list(file.parent.iterdir()):
            file.parent.rmdir()
    ours = td.pretrained.load(tmp_path / "ddpm")
    assert ours.settings([""])["steps"] == (1000 if kind == "DDPMPipeline" else 50)
    *_, last = ours.denoise([""], n=2, seed=7, steps=6, batch=2)
    start = peers.channels_first(noise.batch(7, [0, 1], 0, (8, 12, 3))).double()
    draws = iter([start, *(peers.channels_first(noise.batch(7, [0, 1], step, (8, 12, 3),
                                                            purpose=noise.SAMPLER)).double()
                           for step in range(6))])
    for module in (diffusers.pipelines.ddpm.pipeline_ddpm, diffusers.pipelines.ddim.pipeline_ddim,
                   diffusers.schedulers.scheduling_ddpm, diffusers.schedulers.scheduling_ddim):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(draws))
    shown = pipe(batch_size=2, num_inference_steps=6, output_type="np").images
    assert peers.worst((last / 2 + 0.5).clip(0, 1), shown.astype(np.float64)) < 2e-4
    with pytest.raises(ValueError, match="draws without prompts"):
        ours.generate(["a cat"])
