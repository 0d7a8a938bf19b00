"""Generating, told straight: prompts in, pictures out.

    run = load_run("runs/mnist")              # or the name of a shipped checkpoint
    run.generate(["a handwritten seven"])     # uint8 (1, 28, 28, 1)

A picture depends on (prompt, seed, index within its prompt) and on nothing else.
"""

from collections import deque
from pathlib import Path

import numpy as np

from tinydiff import images
from tinydiff._version import __version__
from tinydiff.asking import editing, is_whole, refuse_drawing
from tinydiff.backend import alongside, device_for
from tinydiff.diffusion import noise
from tinydiff.diffusion.editing import inpainted, strength_nodes
from tinydiff.diffusion.guidance import clipped, guided
from tinydiff.nn import Module
from tinydiff.parallel import one_blas_thread
from tinydiff.predictor import denoiser
from tinydiff.progress import bar
from tinydiff.recipe import walk
from tinydiff.tables import SAMPLERS, nearest

OPTIONS = "prompts n seed steps guidance sampler negative size".split()


class Run:
    """A trained model with all that is needed to draw: schedule, recipe, size of its pictures.

    With an Autoencoder x_t are latents, which `pixels` decodes.
    """

    batch = 64                                            # pictures that are drawn at a time
    precision = "float32"                                 # in which a GPU computes

    def __init__(self, model, schedule, recipe, shape, name, autoencoder=None):
        self.model, self.schedule, self.recipe = model, schedule, recipe
        self.shape, self.name = tuple(shape), name        # shape (H, W, C)
        self.own, self.tokenizer = recipe.sample, model.tokenizer     # how to draw unless told
        self.precision = recipe.train.precision
        self.made_of(model.unet, autoencoder, self.shape[2])

    def made_of(self, unet, autoencoder, channels):
        """Remember what draws, and what follows for sizes. channels: of x_t where it is pixels."""
        self.unet, self.autoencoder = unet, autoencoder
        self.smaller = autoencoder.config.factor if autoencoder else 1    # pixels a side of x_t's
        self.factor = unet.config.patch * self.smaller    # sizes are multiples of it, in pixels
        self.channels = autoencoder.config.latent if autoencoder else channels

    def to(self, device):
        """The same Run, which draws on "cpu", in float32, or "cuda", in the recipe's precision."""
        for part in vars(self).values():
            if isinstance(part, (Module, Run)):
                part.to(device)
        self.compute_in("float32" if device_for(device) == "cpu" else self.precision)
        return self

    def compute_in(self, precision):
        """Have the U-Net compute in "float32" or "bf16"."""
        self.unet.compute_in(precision)
        if precision == "bf16":
            self.unet.halve()

    def generate(self, prompts, *, n=1, seed=0, steps=None, guidance=None, sampler=None,
                 negative="", size=None, init=None, mask=None, strength=None, batch=64, show=False):
        """n pictures of each prompt, all of the first prompt first -> uint8 (N, H, W, C)

        steps, guidance and sampler are the recipe's unless given; guidance leads away from
        `negative`; size is (H, W); `batch` pictures are drawn at a time. A picture init (H, W, C)
        is changed by `strength` in (0, 1] (0.8), or painted anew where mask (H, W, 1) is not 0
        (then 1); both uint8. Raises ValueError, at once, for what cannot be drawn.
        """
        frames = self.denoise(prompts, n=n, seed=seed, steps=steps, guidance=guidance,
                              sampler=sampler, negative=negative, size=size, init=init, mask=mask,
                              strength=strength, batch=batch, show=show)
        return self.pixels(deque(frames, maxlen=1).pop())

    def denoise(self, prompts, *, init=None, mask=None, batch=64, show=False, **options):
        """Iterate over x_t float32 (N, H, W, C) from pure noise to x0: the frames of a film.

        The options are those of `generate`; `pixels` makes uint8 pictures of a frame.
        """
        asked = self.settings(prompts, init=init, mask=mask, **options)
        if not is_whole(batch, 1):
            raise ValueError(f"generate: expected batch of at least 1, got {batch!r}")
        n, seed = asked["n"], asked["seed"]
        sampler, times, std = self.walk(**asked)
        known, paint = self.given(init, mask)
        shape = self.shape_of(asked["size"])
        cond, uncond = self.heard(prompts, n), self.contexts([asked["negative"]])    # (…, L, D)
        index = np.tile(np.arange(n), len(prompts))                       # within its prompt
        if known is not None:
            known = np.broadcast_to(known, (len(index), *known.shape[1:]))

        def drawn(part):
            """x_T, then x_t after each step, of the pictures in this slice."""
            here = None if known is None else known[part]
            x_T = self.normal(seed, index[part], 0, shape, purpose=noise.X_T)    # (N, h, w, C)
            x_T = self.start(x_T, here, times[0], std)
            yield x_T
            predict = self.predictor(cond[part], uncond.repeat(len(x_T), axis=0),
                                     known=here, index=index[part], **asked)
            if mask is not None:
                predict = inpainted(predict, self.schedule, known=here, mask=paint)
            yield from sampler(predict, x_T, self.schedule, timesteps=times,
                               noise=noise.stream(seed, index[part], shape, draw=self.normal))

        return frames([drawn(part) for part in parts(len(index), batch)], len(times) - 1, show)

    def settings(self, prompts, *, n=1, seed=0, steps=None, guidance=None, sampler=None,
                 negative="", size=None, init=None, mask=None, strength=None):
        """All that a picture is made of, as its PNG tells it: what is not given is the recipe's.

        Raises ValueError, in one sentence, for what cannot be drawn.
        """
        own = self.own
        sampler = own.sampler if sampler is None else sampler
        steps = own.steps if steps is None else steps
        w = own.guidance if guidance is None else guidance
        size = (self.shape if init is None else np.shape(init))[:2] if size is None else size
        refuse_drawing(prompts, n, seed, steps, sampler, w, negative, size, self.factor)
        size = [int(side) for side in size]
        asked = {"tinydiff": __version__, "model": Path(self.name).resolve().name,
                 "prompts": list(prompts), "n": int(n), "seed": int(seed), "sampler": sampler,
                 "steps": int(steps), "guidance": float(w), "negative": negative, "size": size}
        asked |= editing(init, mask, strength, (*size, self.shape[2]))
        self.walk(**asked)
        if self.tokenizer is None and (any(prompts) or negative or asked["guidance"] != 1):
            raise ValueError(f"{self.name} draws without prompts: leave prompts, negative and "
                             "guidance out")
        return asked

    def stages(self, asked):
        """Who draws what `settings` told, in how many steps, with which options of `denoise`."""
        yield self, len(self.walk(**asked)[1]) - 1, {
            key: asked[key] for key in OPTIONS if key in asked}

    def walk(self, sampler, steps, strength=None, **_):
        """The sampler of a name, its times, which start at strength · T if given, and x_T's std."""
        nearest(sampler, SAMPLERS, "sampler")
        times = walk(self.schedule, sampler, steps, self.own.spacing)
        if strength is not None:
            times = strength_nodes(self.schedule, strength, steps)
        return SAMPLERS[sampler], times, self.schedule.start_std(times[0])

    def start(self, z, known, t, std):
        """Where sampling begins at t, from standard normal z: noise, or what is known, noised."""
        return std * z if known is None else self.schedule.q_sample(known, t, z)

    def predictor(self, cond, uncond, guidance, **_):
        """A predictor in two contexts (N, L, D), guided away from the second."""
        return self.guided(self.unet, cond, uncond, guidance)

    def guided(self, unet, cond, uncond, guidance):
        predict = guided(*(denoiser(unet, self.schedule, context if context.size else None)
                           for context in (cond, uncond)), guidance)
        return clipped(predict, self.schedule) if self.own.clip else predict

    def heard(self, prompts, n):
        """What is heard while each picture is drawn: the context of its prompt (N, L, D)."""
        return self.contexts(prompts).repeat(n, axis=0)

    def normal(self, seed, index, step, shape, dtype=np.float32, *, purpose):
        """The noise of pictures of these indices, `noise.batch` -> (N, *shape)"""
        return noise.batch(seed, index, step, shape, dtype, purpose=purpose, like=self.unet.home)

    def shape_of(self, size):
        """The shape of x_t of a picture of `size` (H, W)."""
        H, W = (side // self.smaller for side in size)
        return H, W, self.channels

    def given(self, init, mask):
        """What is known of x0, and where to paint it (0 to 1), as x_t: (1, …) each, or None.

        A number of a latent is painted where any pixel under it is to be.
        """
        known = None if init is None else images.to_float(
            alongside(init.reshape(-1, *init.shape[-3:]), self.unet.home))
        if known is not None and self.autoencoder:
            with one_blas_thread():
                known = self.autoencoder.latents(known)
        if mask is None:
            return known, None
        f, (H, W, _) = self.smaller, mask.shape
        paint = (mask > 0).reshape(1, H // f, f, W // f, f, 1).max(axis=(2, 4))
        return known, alongside(paint.astype(np.float32), self.unet.home)

    def pixels(self, x_t):
        """A frame x_t as uint8 (N, H, W, C)."""
        if self.autoencoder:
            with one_blas_thread():
                x_t = self.autoencoder.pictures(x_t)      # LDM §3.1
        return images.to_uint8(x_t)

    def contexts(self, texts):
        """The text encoder's answer (N, L, D), each text read apart: none sways another."""
        with one_blas_thread():
            return self.model.contexts(texts)


def frames(walks, steps, show):
    """Where the walks have got to, all together: x_T, then x_t after each step."""
    yield together(walks)
    with bar(steps, what="draw", show=show) as progress:
        for _ in range(steps):
            x_t = together(walks)
            progress.update()
            yield x_t


@np.errstate(all="ignore")                                # to_uint8 finds a lost number
def together(walks):
    with one_blas_thread():
        return np.concatenate([next(walk) for walk in walks])


def parts(N, batch):
    """Slices of at most `batch` pictures."""
    return [slice(start, start + batch) for start in range(0, N, batch)]
