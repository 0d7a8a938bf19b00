"""The way back: what was trained here as a folder that diffusers and transformers load.

    unet/  text_encoder/  tokenizer/  scheduler/  vae/  model_index.json

It is a StableDiffusionPipeline. Without an autoencoder x0 is the picture itself: in diffusers
StableDiffusionPipeline.from_pretrained(FOLDER, vae=None), called with output_type="latent" and
8 times the size. What diffusers cannot say is refused by the name of the recipe's key.
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np

from tinydiff import checkpoint
from tinydiff._version import __version__
from tinydiff.diffusion.levels import Levels
from tinydiff.files import write_atomically
from tinydiff.models import TextEncoder
from tinydiff.models.tokenizer import BEGIN, PAD
from tinydiff.nn import sinusoids
from tinydiff.pretrained import text, unet, vae
from tinydiff.pretrained.clip_bpe import SYMBOL
from tinydiff.pretrained.weights import as_theirs
from tinydiff.upscale import Cascade

PREDICTS   = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SOLVER     = "DPMSolverMultistepScheduler"
DDIM       = "DDIMScheduler", {}
SCHEDULERS = {"ddim": DDIM, "euler": DDIM,                # the same steps in other words
              "ddpm": ("DDPMScheduler", {}), "euler_ancestral": ("DDPMScheduler", {}),
              "dpmpp_1s": (SOLVER, {"solver_order": 1}), "dpmpp_2m": (SOLVER, {}),
              "dpmpp_2m_sde": (SOLVER, {"algorithm_type": "sde-dpmsolver++"}),
              "unipc": ("UniPCMultistepScheduler", {})}


def export_run(run, folder):
    """Write a Run as a diffusers folder, whole or not at all; return what to do with it.

    ValueError naming what diffusers has no word for, and if the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists; name a folder that does not")
    refuse(run)
    model, scheduler = run.model, scheduler_config(run)
    configs = {"unet/config.json": unet.write_config(model.unet.config)
               | {"sample_size": run.shape_of(run.shape[:2])[:2], "use_linear_projection": True},
               "text_encoder/config.json": text.write_config(model.text_encoder.config),
               "scheduler/scheduler_config.json": scheduler,
               "tokenizer/tokenizer.json": tokenizer_json(model.tokenizer),
               "tokenizer/tokenizer_config.json": {
                   "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>",
                   "bos_token": "<begin>", "model_max_length": model.tokenizer.length}}
    configs["model_index.json"] = {
        "_class_name": "StableDiffusionPipeline", "requires_safety_checker": False,
        "unet": ["diffusers", configs["unet/config.json"]["_class_name"]],
        "vae": ["diffusers", "AutoencoderKL"] if run.autoencoder else [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        **{part: [None, None] for part in ("safety_checker", "feature_extractor", "image_encoder")}}
    weights = {"unet/diffusion_pytorch_model.safetensors": on_their_clock(model.unet),
               "text_encoder/model.safetensors": as_theirs(model.text_encoder,
                                                           partial(text.place, "clip"))}
    if run.autoencoder:
        configs["vae/config.json"], weights["vae/diffusion_pytorch_model.safetensors"] = \
            without_shift(run.autoencoder)
    unfinished = folder.with_name(f".{os.urandom(8).hex()}.part")
    try:
        for name, config in configs.items():
            write_atomically(unfinished / name, (json.dumps(config, indent=2) + "\n").encode())
        for name, arrays in weights.items():
            checkpoint.write(unfinished / name, arrays, {"format": "pt", "tinydiff": __version__})
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    other = "" if run.own.sampler in SCHEDULERS else f", drawing by ddim, not {run.own.sampler}"
    return (f"wrote {folder}; in diffusers: StableDiffusionPipeline.from_pretrained({str(folder)!r}"
            f"{', vae=None' * (not run.autoencoder)}){other}{', without clipping' * run.own.clip}")


def refuse(run):
    """Refuse what no StableDiffusionPipeline is made of, by the key of the recipe."""
    if isinstance(run, Cascade):
        raise ValueError(f"export: {run.name} has two stages; export the first, {run.small.name}")
    if not isinstance(getattr(run.model, "text_encoder", None), TextEncoder):
        raise ValueError(f"export: {run.name} learned no text encoder; train without text.encoder")
    c = run.autoencoder and run.autoencoder.config
    for key, value, wanted in (("upscale.factor", run.recipe.upscale.factor, 1),
                               ("autoencoder.patch", c.patch if c else 1, 1),
                               ("autoencoder.codes", c.codes if c else 0, 0)):
        if value != wanted:
            raise ValueError(f"export: diffusers has no {key} = {value}; train with {wanted}")


def without_shift(autoencoder):
    """config.json and tensors of the same latents, unshifted: their pipelines only scale them."""
    c, arrays = autoencoder.config, as_theirs(autoencoder, vae.place)
    # Wh + (b − s) for the means, not the log-variances, behind the encoder; before the decoder
    # W(z + s) + b = Wz + (b + Ws)
    added = {"quant_conv.bias": -c.shift * (np.arange(c.encoded) < c.latent),
             "post_quant_conv.bias": c.shift * arrays["post_quant_conv.weight"].sum(axis=(1, 2, 3))}
    return vae.write_config(c) | {"shift_factor": None}, arrays | {
        key: np.float32(arrays[key] + more) for key, more in added.items()}


def on_their_clock(network):
    """A UNet's tensors for times one less, as diffusers counts them from 0.

    sin and cos of (t + 1)·f are those of t·f turned by f: so are the first layer's rows turned.
    """
    arrays, layer = as_theirs(network, partial(unet.place, linear=True)), network.time
    half, w = layer.c // 2, layer.linear1.w.data.astype(np.float64)
    sin, cos = np.split(sinusoids(np.array([network.config.t_first]), 2 * half,
                                  shift=network.config.frequency_shift)[0, :, None], 2)
    first, second = w[:half], w[half:2 * half]
    turn = -1 if network.config.cosines_first else 1      # which of the halves are the sines
    w = np.concatenate([cos * first - turn * sin * second, turn * sin * first + cos * second,
                        w[2 * half:]])
    return arrays | {"time_embedding.linear_1.weight": w.T.astype(np.float32)}


def scheduler_config(run):
    """scheduler_config.json of a Run: its betas one by one, its sampler where diffusers has it."""
    schedule, predicts = run.schedule, run.model.unet.config.predicts
    if isinstance(schedule, Levels) or predicts not in PREDICTS:
        raise ValueError(f"export: diffusion.schedule = {schedule.name} with model.predicts = "
                         f"{predicts} has no scheduler in diffusers; train with a schedule that "
                         "keeps the variance (linear, cosine, …) to predict eps, x0 or v")
    name, own = SCHEDULERS.get(run.own.sampler, DDIM)
    if (name, own) == DDIM and schedule.T % run.own.steps:    # which their DDIM steps past
        name, own = SCHEDULERS["dpmpp_1s"]
    return {"_class_name": name, "num_train_timesteps": schedule.T, "beta_schedule": "linear",
            "trained_betas": schedule.beta[1:].tolist(), "timestep_spacing": "trailing",
            "steps_offset": 1, "prediction_type": PREDICTS[predicts], "clip_sample": run.own.clip,
            **own}


def tokenizer_json(tokenizer):
    """The Tokenizer in the words of the library `tokenizers`: bytes as letters, and merges."""
    spelled = {token: "".join(chr(SYMBOL.get(byte, byte)) for byte in tokenizer.spell(token))
               for token in range(tokenizer.size) if token not in (PAD, BEGIN)}
    if len(set(spelled.values())) < len(spelled):
        raise ValueError("export: two merges of the tokenizer spell the same piece, which has one "
                         "id in transformers; train with another text.vocabulary")
    signs = {PAD: "<pad>", BEGIN: "<begin>"}
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    blank = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
             "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": sign, "special": True, **flags}
                         for i, sign in signs.items()],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Sequence",
                          "pretokenizers": [{"type": "WhitespaceSplit"}, blank]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<begin>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
            "special_tokens": {"<begin>": {"id": "<begin>", "ids": [BEGIN],
                                           "tokens": ["<begin>"]}}},
        "decoder": blank,
        "model": {"type": "BPE",
                  "vocab": {piece: i for i, piece in (spelled | signs).items()},
                  "merges": [[spelled[a], spelled[b]] for a, b in tokenizer.merges]}}
