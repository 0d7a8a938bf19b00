"""Store what diffusers and transformers answer, for tests that run without them.

    python tools/store_parity.py                        # needs the extra `parity`

Each folder of tests/stored_parity/ is as the peer saves it, with random weights in half precision,
its config without what equals the class's defaults. Its answers.safetensors have, for each method,
what it is given and what the peer returns, computed in float64, also with every weight but the
norms' scales divided by 64, so that each eps shows. A vocabulary once trained stays: of equally
frequent pairs training takes any.
"""

import json
import shutil
import sys
import warnings
from inspect import signature
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "tests" / "stored_parity"
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "parity")]

import peers  # noqa: E402
import test_transformers_tokenizers as vocabularies  # noqa: E402
from transformers.models.t5.modeling_t5 import T5LayerNorm  # noqa: E402

from tinydiff import checkpoint  # noqa: E402
from tinydiff.diffusion import noise  # noqa: E402

QUIET = 1 / 64
NET = dict(layers_per_block=1, norm_num_groups=8)
CROSS = NET | dict(cross_attention_dim=12, block_out_channels=(16, 32),
                   down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                   up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
TEXT = dict(vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4)
MODELS = {
    "unet-ddpm": (diffusers.UNet2DModel, NET | dict(
        block_out_channels=(16, 24), down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"), norm_eps=1e-6, flip_sin_to_cos=False,
        freq_shift=1, downsample_padding=0, attention_head_dim=None)),
    "unet-labels": (diffusers.UNet2DModel, NET | dict(
        block_out_channels=(16, 24), down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"), num_class_embeds=4,
        resnet_time_scale_shift="scale_shift", center_input_sample=True)),
    "unet-sd1": (diffusers.UNet2DConditionModel, CROSS | dict(attention_head_dim=2)),
    "unet-sd2": (diffusers.UNet2DConditionModel, CROSS | dict(
        attention_head_dim=(2, 4), use_linear_projection=True)),
    "vae": (diffusers.AutoencoderKL, NET | dict(
        block_out_channels=(16, 24), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2)),
    "clip": (transformers.CLIPTextModel, transformers.CLIPTextConfig(
        **TEXT, max_position_embeddings=9, eos_token_id=2, bos_token_id=None)),
    "bert": (transformers.BertModel, transformers.BertConfig(
        **TEXT, max_position_embeddings=9)),
    "t5": (transformers.T5EncoderModel, transformers.T5Config(
        vocab_size=60, d_model=16, d_kv=6, num_heads=2, d_ff=24, num_layers=2,
        feed_forward_proj="gated-gelu", relative_attention_num_buckets=8,
        relative_attention_max_distance=20)),
    "clip-eos": (transformers.CLIPTextModel, transformers.CLIPTextConfig(
        **TEXT, max_position_embeddings=9, eos_token_id=7, bos_token_id=None, hidden_act="gelu"))}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
      "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
SCHEDULERS = {
    "DDPMScheduler": {"variance_type": "fixed_large"},
    "DDPMScheduler-small": SD,
    "DDPMScheduler-trailing": SD | TRAILING | {
        "variance_type": "fixed_large", "thresholding": True, "sample_max_value": 2.0},
    "DDIMScheduler": SD | {
        "set_alpha_to_one": False, "prediction_type": "v_prediction",
        "timestep_spacing": "linspace", "rescale_betas_zero_snr": True},
    "PNDMScheduler": SD | {"set_alpha_to_one": False, "skip_prk_steps": True},
    "LCMScheduler": SD | {"timestep_scaling": 0.01},
    "EulerDiscreteScheduler": SD, "EulerAncestralDiscreteScheduler": SD,
    "EulerDiscreteScheduler-leading": SD | {"timestep_spacing": "leading"},
    "HeunDiscreteScheduler": SD | TRAILING | {"use_karras_sigmas": True},
    "DPMSolverMultistepScheduler": SD | {"use_karras_sigmas": True, "solver_order": 3},
    "DPMSolverMultistepScheduler-sde": SD | {"algorithm_type": "sde-dpmsolver++"},
    "UniPCMultistepScheduler": SD, "FlowMatchEulerDiscreteScheduler": {"shift": 3.0}}
TEXTS = ["", "a photo of a cat", "It's   TWO dogs: we'll don't!", "é ÜBER 日本 🎉 123 xx",
         "the quick brown fox's jumps (lazy) dogs " * 3,
         "ofof axxx catж", "[SEP]a</s>cat<|endoftext|> photo"]


def asked(module):
    """[(method of ours, what it is given, what theirs returns)] in the module's own precision."""
    def run(call, *given, **named):
        with torch.no_grad():
            return call(*given, **named)

    dtype, name = next(module.parameters()).dtype, type(module).__name__
    if name == "AutoencoderKL":
        x, z = peers.lopsided((2, 12, 8, 3), 1), peers.lopsided((2, 3, 5, 4), 2)
        q = run(module.encode, peers.channels_first(x).to(dtype)).latent_dist
        y = run(module.decode, peers.channels_first(z).to(dtype)).sample
        return [("encode", {"x": x}, map(peers.channels_last, (q.mean, q.logvar))),
                ("decode", {"z": z}, [peers.channels_last(y)])]
    if name.startswith("UNet"):
        text, named = "cross_attention_dim" in module.config, {}
        H = 7 if text else 8                            # those with text take odd sizes
        given = {"x": peers.lopsided((2, H, 12, module.config.in_channels), 1),
                 "t": np.array([981, 3])}
        if text:
            given["context"] = peers.lopsided((2, 5, 12), 2)
            named["encoder_hidden_states"] = torch.tensor(given["context"]).to(dtype)
        if module.config.num_class_embeds:
            given["class_labels"] = np.array([3, 1])
            named["class_labels"] = torch.tensor(given["class_labels"])
        y = run(module, peers.channels_first(given["x"]).to(dtype), torch.tensor(given["t"]),
                **named).sample
        return [("predict", given, [peers.channels_last(y)])]
    ids = np.random.default_rng(0).integers(3, 60, (3, 9))
    ids[:, 4::3] = 7                                    # clip-eos ends at the first of them
    given = {"ids": ids}
    if name != "CLIPTextModel":
        given["mask"] = np.array([[1] * 9, [1] * 5 + [0] * 4, [0] * 2 + [1] * 7])
    y = run(module, torch.tensor(ids), attention_mask=torch.tensor(given.get("mask", ids > 0)))
    return [("encode", given, [part.double().numpy() for part in
                               (y.last_hidden_state, y.get("pooler_output")) if part is not None])]


def pared(folder, kind, config):
    """Leave out of config.json what its class has by default, as old files do."""
    usual = ({key: p.default for key, p in signature(kind.__init__).parameters.items()}
             if isinstance(config, dict) else type(config)().to_dict())
    said = {key: value for key, value in json.loads((folder / "config.json").read_text()).items()
            if key not in usual or json.dumps(value) != json.dumps(usual[key], default=repr)}
    (folder / "config.json").write_text(json.dumps(said, indent=2) + "\n")


def hush(module):
    """Keep small what the LayerNorms of transformers read, so that their eps shows."""
    with torch.no_grad():
        for key, p in module.named_parameters():
            if any(part in key for part in ("proj_in", "to_out", "net.2")):
                p /= 256
            elif "proj_out" in key:
                p *= 256


def store_model(name, kind, config, seed):
    """One folder; half precision in turns float16 and bfloat16."""
    module = kind(**config) if isinstance(config, dict) else kind(config)
    module = peers.randomise(module, seed)
    if name == "unet-sd2":
        hush(module)
    module = module.to([torch.float16, torch.bfloat16][seed % 2])
    pared(peers.saved(module, STORE / name), kind, config)
    module, arrays, tolerances = module.float(), {}, {}
    for volume in ("ordinary", "quiet"):
        rough, exact = asked(module), asked(peers.in_float64(module))
        for (method, given, single), (_, _, double) in zip(rough, exact, strict=True):
            arrays |= {f"{method}/{key}": array for key, array in given.items()}
            for i, (one, two) in enumerate(zip(single, double, strict=True)):
                arrays[f"{volume}/{method}/{i}"] = two.astype(np.float32)
                tolerances[f"{volume}/{method}/{i}"] = peers.tolerance(one, two)
        with torch.no_grad():
            for key, p in module.named_parameters():
                table = any(p is m.weight for m in module.modules()
                            if isinstance(m, torch.nn.Embedding))
                if p.ndim > 1 or table or not key.endswith("weight"):
                    p *= QUIET
    checkpoint.save(STORE / name / "answers.safetensors", arrays, tolerances)


def store_tokenizers():
    """Three folders, each with texts and their ids in answers.json."""
    clip, bert, t5 = (STORE / f"tokenizer-{name}" for name in ("clip", "bert", "t5"))
    if not clip.exists():
        vocabularies.clip_files(clip, [])
    if not bert.exists():
        transformers.BertTokenizer(vocab=vocabularies.bert_vocabulary()).save_pretrained(bert)
    if not t5.exists():
        transformers.T5Tokenizer(vocab=[*map(tuple, vocabularies.t5_vocabulary())]
                                 ).save_pretrained(t5)
    for folder, kind in {clip: transformers.CLIPTokenizer, bert: transformers.BertTokenizer,
                         t5: transformers.T5Tokenizer}.items():
        tokenizer = kind.from_pretrained(folder)
        ids = tokenizer(TEXTS, truncation=True,
                        padding="max_length" if folder == clip else True).input_ids
        (folder / "answers.json").write_text(json.dumps([TEXTS, ids]))


def store_schedulers(steps=6):
    """A folder each; x_T, the model's outputs and the noise are one set of numbers for all."""
    given = np.random.default_rng(0).normal(size=(33, 2, 3, 2, 1)).astype(np.float32)
    checkpoint.save(STORE / "schedulers.safetensors",
                    {"x_T": given[0], "outputs": given[1:17], "noise": given[17:]}, {})
    for name, config in SCHEDULERS.items():
        scheduler = getattr(diffusers, name.partition("-")[0])(**config)
        scheduler.save_pretrained(STORE / name)
        scheduler.set_timesteps(steps)
        replay = iter(given[17:])
        vars(sys.modules[type(scheduler).__module__])["randn_tensor"] = \
            lambda *args, replay=replay, **kwargs: torch.tensor(next(replay)).double()
        walks_sigma = name.split("Discrete")[0] in ("Euler", "EulerAncestral", "Heun")
        root = (scheduler.sigmas[0].double() ** 2 + 1) ** 0.5 if walks_sigma else torch.tensor(1.0)
        x = torch.tensor(given[0]).double() * root      # they hold x_t / signal
        for t, output in zip(scheduler.timesteps, given[1:17]):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            x = scheduler.step(torch.tensor(output).double(), t, x).prev_sample
        told = [float(t) for t in scheduler.timesteps]
        std = float(getattr(scheduler, "init_noise_sigma", 1.0) / root)
        checkpoint.save(STORE / name / "answers.safetensors", {"x_0": x.numpy().astype(np.float32)},
                        {"steps": steps, "told": told, "std": std})


def store_pipeline():
    """A whole Stable Diffusion of the parts above, and a picture."""
    folder, size = STORE / "pipeline", (8, 12)
    shutil.copytree(STORE / "tokenizer-clip", folder / "tokenizer")
    (folder / "tokenizer" / "answers.json").unlink()
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(
        {"model_max_length": 20, "pad_token": "!"}))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = transformers.CLIPTextConfig(**TEXT | {"vocab_size": len(tokenizer)},
                                       max_position_embeddings=tokenizer.model_max_length)
    parts = {"text_encoder": transformers.CLIPTextModel(text),
             "unet": diffusers.UNet2DConditionModel(
                 **CROSS | dict(cross_attention_dim=16, attention_head_dim=2), sample_size=size),
             "vae": MODELS["vae"][0](**MODELS["vae"][1])}
    for seed, (name, part) in enumerate(parts.items()):
        parts[name] = peers.randomise(part, seed).half()
    pipe = diffusers.StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, scheduler=diffusers.PNDMScheduler(**SCHEDULERS[
            "PNDMScheduler"]), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)
    pipe.save_pretrained(folder)
    pared(folder / "vae", *MODELS["vae"])
    old = folder / "scheduler" / "scheduler_config.json"  # as of 2022: the pipeline corrects it
    old.write_text(old.read_text().replace('"steps_offset": 1', '"steps_offset": 0'))
    for name, part in parts.items():
        setattr(pipe, name, part.double())
    start = peers.channels_first(noise.batch(5, [0], 0, (*size, 4))).double()
    picture = pipe(["a photo of a cat"], negative_prompt=["dogs"], num_inference_steps=4,
                   guidance_scale=7.5, latents=start, height=2 * size[0], width=2 * size[1],
                   output_type="np").images
    checkpoint.save(folder / "answers.safetensors", {"picture": picture.astype(np.float32)},
                    {"prompts": ["a photo of a cat"], "negative_prompt": "dogs", "steps": 4,
                     "seed": 5, "guidance": 7.5, "height": 2 * size[0], "width": 2 * size[1]})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    T5LayerNorm.forward = lambda self, x: self.weight * (       # its own is float32 even of float64
        x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
    for folder in STORE.glob("*/"):
        if not folder.name.startswith("tokenizer"):
            shutil.rmtree(folder)
    for seed, (name, (kind, config)) in enumerate(MODELS.items()):
        store_model(name, kind, config, seed)
    store_tokenizers()
    store_schedulers()
    store_pipeline()
    print(f"{sum(path.stat().st_size for path in STORE.rglob('*') if path.is_file()):,} bytes")
