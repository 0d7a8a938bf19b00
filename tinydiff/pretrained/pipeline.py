"""Published pipelines: a diffusers folder that draws, as its authors' code would.

    pipe = tinydiff.pretrained.load("stable-diffusion-v1-5")
    pipe.generate(["an astronaut on a horse"], negative_prompt="blurry", seed=0, steps=20)

text ─tokenizer─▶ ids ─text encoder─▶ context; noise ─scheduler, U-Net─▶ z_0 ─autoencoder─▶ RGB.
A folder with a U-Net and a scheduler alone (DDPM) draws without being told what.
"""

import re
from collections import deque
from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tinydiff.diffusion.guidance import guided
from tinydiff.generate import Run
from tinydiff.models import Autoencoder, TextEncoder, UNet
from tinydiff.parallel import one_blas_thread
from tinydiff.predictor import denoiser
from tinydiff.pretrained.folders import load_model
from tinydiff.pretrained.options import Options, is_list
from tinydiff.pretrained.schedulers import Scheduler, load_scheduler
from tinydiff.pretrained.tensors import named, read_json
from tinydiff.pretrained.tokens import load_tokenizer

PROMPTED = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline", "LatentConsistencyModelPipeline")
ALONE    = "DDPMPipeline", "DDIMPipeline"
STEPS    = {"DDPMPipeline": 1000, "LatentConsistencyModelPipeline": 4}     # unless asked; else 50


class Pipeline(Run):
    """A U-Net and its scheduler, with text_encoder and tokenizer, and autoencoder, or None each.

    `generate` and `denoise` draw; frames are latents, which `pixels` decodes one by one.
    """

    batch = 1

    def __init__(self, name, kind, unet, scheduler, size, *, tokenizer=None, text_encoder=None,
                 autoencoder=None):
        self.name, self.scheduler, self.schedule = name, scheduler, scheduler.schedule
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.made_of(unet, autoencoder, unet.config.channels)
        C = autoencoder.config.channels if autoencoder else unet.config.channels
        self.shape = *(side * self.factor for side in size), C            # (H, W, C) of a picture
        self.own = SimpleNamespace(sampler=scheduler.name, steps=STEPS.get(kind, 50), clip=False,
                                   guidance=7.5 if tokenizer else 1.0, spacing="own")

    def generate(self, prompts=("",), *, n=1, negative_prompt="", seed=0, steps=None, guidance=None,
                 height=None, width=None, sampler=None, batch=1, show=False, **options):
        """n pictures of each prompt, all of the first prompt first -> uint8 (N, height, width, C)

        What is not given is as published: 50 steps, guidance 7.5. `sampler` is one of tinydiff's
        by name, in place of the folder's. Options: init, mask and strength, as of `Run.generate`.
        Raises ValueError, at once, for what cannot be drawn.
        """
        size = self.shape[:2] if options.get("init") is None else np.shape(options["init"])[:2]
        size = tuple(own if asked is None else asked for asked, own in zip((height, width), size))
        frames = self.denoise(prompts, n=n, negative=negative_prompt or "", seed=seed, steps=steps,
                              guidance=guidance, size=size, sampler=sampler, batch=batch, show=show,
                              **options)
        return self.pixels(deque(frames, maxlen=1).pop())

    def walk(self, sampler, steps, strength=None, **_):
        """As of `Run`; the folder's own scheduler takes the last strength · steps of its steps."""
        if sampler != self.own.sampler:
            return super().walk(sampler, steps, strength)
        times, std = self.scheduler.nodes(steps), self.scheduler.start_std(steps)
        if strength is not None and not 0 < strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], where 1 is all noise, got {strength}")
        skip = 0 if strength is None else steps - max(1, int(steps * strength))

        def walked(predict, x_T, schedule, *, timesteps, noise):
            return self.scheduler(predict, x_T, steps=steps, skip=skip, noise=noise)

        return walked, times[skip:], std

    def contexts(self, texts):
        """The text encoder's answer (N, L, D), each text read apart; nothing where none is."""
        if self.tokenizer is None:
            return np.zeros((len(texts), 0, 0), np.float32)
        with one_blas_thread():
            return np.concatenate([self.text_encoder.encode(self.tokenizer.encode([text]))[0]
                                   for text in texts])

    def predictor(self, cond, uncond, guidance, sampler, steps, **_):
        """As of `Run`, the U-Net asked once for both contexts; it is told the checkpoint's time."""
        clock = self.scheduler.clock(steps) if sampler == self.own.sampler else None
        alone = self.tokenizer is None or guidance == 1
        words = cond if alone else np.concatenate([cond, uncond])
        both = denoiser(self.unet, self.schedule, words if self.tokenizer else None, clock=clock)
        if alone:
            return both

        def predict(x_t, t):
            p, N = both(np.concatenate([x_t, x_t]), t), len(x_t)
            c, u = (p._replace(x0=p.x0[half], eps=p.eps[half])
                    for half in (slice(N), slice(N, None)))
            return guided(lambda *_: c, lambda *_: u, guidance)(x_t, t)

        return predict

    def pixels(self, x_t):
        """A frame x_t as uint8 (N, H, W, C), decoded one by one."""
        return np.concatenate([super(Pipeline, self).pixels(part)
                               for part in np.split(x_t, len(x_t))])


def load_pipeline(folder):
    """The Pipeline of a folder with a model_index.json.

    Raises FileNotFoundError for a part that is missing, ValueError naming the file for a pipeline
    that is not supported, and for parts that do not fit together.
    """
    folder = Path(folder)
    file = folder / "model_index.json"
    index = read_json(file)
    kind = index.get("_class_name")
    if kind not in (*PROMPTED, *ALONE):
        raise ValueError(f"{file}: _class_name {named(kind)} is not supported; expected one of "
                         f"{', '.join((*PROMPTED, *ALONE))}")
    prompted = kind in PROMPTED

    def home(name):
        """The sub-folder of a part; the DDPM pipelines of 2022 have all beside the index."""
        return folder / name if prompted or (folder / name).is_dir() else folder

    def model(name, wanted):
        found = load_model(home(name))
        if not isinstance(found, wanted):
            raise ValueError(f"{file}: {name} is a {type(found).__name__}, which no pipeline "
                             "takes there; download the folder again")
        return found

    scheduler, parts = load_scheduler(home("scheduler")), {}
    if prompted:                                          # as diffusers corrects old folders
        scheduler = Scheduler(scheduler.config | {"steps_offset": 1, "clip_sample": False}, file)
        parts["tokenizer"] = load_tokenizer(home("tokenizer"))
        parts["text_encoder"] = model("text_encoder", TextEncoder)
    if is_list(entry := index.get("vae")) and entry[0]:
        parts["autoencoder"] = model("vae", Autoencoder)
    unet = model("unet", UNet)
    unet.config = replace(unet.config, predicts=scheduler.predicts)
    refuse_strangers(folder, unet.config, scheduler, **parts)
    size = sample_size(home("unet") / "config.json", prompted)
    return Pipeline(str(folder), kind, unet, scheduler, size, **parts)


def refuse_strangers(folder, c, scheduler, *, tokenizer=None, text_encoder=None, autoencoder=None):
    """Refuse parts that have nothing to say to each other; c is the U-Net's config."""
    text = text_encoder and text_encoder.config
    learned = scheduler.config.get("variance_type") == "learned_range"
    for fits, expected in (
            (c.classes is None, "unet/config.json to have no num_class_embeds"),
            (c.outputs is None and c.learned_variance == learned,
             f"out_channels of the unet to be {c.channels * (2 if learned else 1)}"),
            (not autoencoder or autoencoder.config.latent == c.channels,
             f"latent_channels of the vae to be {c.channels}, as of the unet"),
            (c.context_width == (text and text.width),
             f"hidden_size of the text_encoder to be {c.context_width}, as of the unet"),
            (not text or (tokenizer.size <= text.vocabulary
                          and (tokenizer.length or 0) <= (text.length or inf)),
             "ids and texts of the tokenizer to fit the text_encoder's tables")):
        if not fits:
            raise ValueError(f"{folder}: expected {expected}; these parts belong to different "
                             "pipelines")


def sample_size(file, prompted):
    """(h, w) of what a U-Net was trained on; early files of Stable Diffusion said 32 for 64."""
    theirs = read_json(file)
    size = Options(theirs, file).each("sample_size", 64, 2)
    version = [int(n) for n in re.findall(r"\d{1,4}", str(theirs.get("_diffusers_version", 9)))]
    if isinstance(size, tuple):
        return size
    return (max(size, 64) if prompted and version[:2] < [0, 9] else size,) * 2
