"""Generating, told straight: prompts in, pictures out.

    run = load_run("runs/mnist")              # or the name of a shipped checkpoint
    run.generate(["a handwritten seven"])     # uint8 (1, 28, 28, 1)

A picture depends on (prompt, seed, index within its prompt) and on nothing else.
"""

from collections import deque
from difflib import get_close_matches
from hashlib import sha256
from math import isfinite
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from tinydiff import checkpoint, images
from tinydiff._version import __version__
from tinydiff.autograd import no_grad
from tinydiff.diffusion import noise
from tinydiff.diffusion.editing import inpainted, strength_nodes
from tinydiff.diffusion.guidance import clipped, guided
from tinydiff.diffusion.schedule import Schedule
from tinydiff.models import TextToImage
from tinydiff.parallel import one_blas_thread
from tinydiff.predictor import denoiser
from tinydiff.progress import bar
from tinydiff.recipe import SAMPLERS, Recipe, nearest, walk

SHIPPED = Path(__file__).parent / "weights"


class Run:
    """A trained model with all that is needed to draw: schedule, recipe, size of its pictures."""

    batch = 64                                            # pictures that are drawn at a time

    def __init__(self, model, schedule, recipe, shape, name):
        self.model, self.schedule, self.recipe = model, schedule, recipe
        self.shape, self.name = tuple(shape), name        # shape (H, W, C)
        self.factor = model.unet.config.patch             # sizes are multiples of it, in pixels
        self.own = recipe.sample                          # how to draw unless told otherwise

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
        words = self.contexts([*prompts, asked["negative"]])              # (prompts + 1, L, D)
        prompt, index = np.divmod(np.arange(len(prompts) * n), n)         # index within its prompt

        def drawn(part):
            """x_T, then x_t after each step, of the pictures in this slice."""
            x_T = noise.batch(seed, index[part], 0, shape, purpose=noise.X_T)    # (N, H, W, C)
            x_T = (std * x_T if init is None else
                   self.schedule.q_sample(np.repeat(known, len(x_T), axis=0), times[0], x_T))
            yield x_T
            predict = self.predictor(words[prompt[part]], words[np.full(len(x_T), -1)], **asked)
            if mask is not None:
                predict = inpainted(predict, self.schedule, known=known, mask=paint)
            yield from sampler(predict, x_T, self.schedule, timesteps=times,
                               noise=noise.stream(seed, index[part], shape))

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
        for value, fits, wanted in (
                (steps,    is_whole(steps, 0),                  "a whole number of steps"),
                (prompts,  are_texts(prompts),                  "a list of prompts"),
                (n,        is_whole(n, 1),                      "n of at least 1"),
                (seed,     is_whole(seed, 0) and seed < 2**64,  "seed from 0 to 2⁶⁴ − 1"),
                (w,        isinstance(w, Real) and isfinite(w), "a finite guidance"),
                (negative, isinstance(negative, str),           "negative as a text"),
                (sampler,  isinstance(sampler, str),            "the name of a sampler"),
                (size,     is_pair(size, self.factor), f"size (H, W) in multiples of {self.factor}")
        ):
            if not fits:
                raise ValueError(f"generate: expected {wanted}, got {value!r}")
        size = [int(side) for side in size]
        asked = {"tinydiff": __version__, "model": Path(self.name).resolve().name,
                 "prompts": list(prompts), "n": int(n), "seed": int(seed), "sampler": sampler,
                 "steps": int(steps), "guidance": float(w), "negative": negative, "size": size}
        asked |= editing(init, mask, strength, (*size, self.shape[2]))
        self.walk(**asked)
        return asked

    def walk(self, sampler, steps, strength=None, **_):
        """The sampler of a name, its times, which start at strength · T if given, and x_T's std."""
        nearest(sampler, SAMPLERS, "sampler")
        times = walk(self.schedule, sampler, steps, self.own.spacing)
        if strength is not None:
            times = strength_nodes(self.schedule, strength, steps)
        return SAMPLERS[sampler], times, self.schedule.start_std(times[0])

    def predictor(self, cond, uncond, guidance, **_):
        """A predictor in two contexts (N, L, D), guided away from the second."""
        predict = guided(denoiser(self.model.unet, self.schedule, cond),
                         denoiser(self.model.unet, self.schedule, uncond), guidance)
        return clipped(predict, self.schedule) if self.own.clip else predict

    def shape_of(self, size):
        """The shape of x_t of a picture of `size` (H, W)."""
        return *size, self.shape[2]

    def given(self, init, mask):
        """What is known of x0, and where to paint it (0 to 1), as x_t: (1, …) each, or None."""
        return (None if init is None else images.to_float(init[None]),
                None if mask is None else (mask[None] > 0).astype(np.float32))

    def pixels(self, x_t):
        """A frame x_t as uint8 (N, H, W, C)."""
        return images.to_uint8(x_t)

    def contexts(self, texts):
        """The text encoder's answer (N, L, D), each text read apart: none sways another."""
        with no_grad(), one_blas_thread():
            return np.concatenate([self.model.text_encoder(self.model.tokenizer.encode([text])).data
                                   for text in texts])


def is_whole(value, least):
    return isinstance(value, Integral) and value >= least


def are_texts(value):
    return isinstance(value, (list, tuple)) and value and all(isinstance(t, str) for t in value)


def is_pair(value, patch):
    return (isinstance(value, (list, tuple)) and len(value) == 2
            and all(is_whole(side, 1) and side % patch == 0 for side in value))


def editing(init, mask, strength, shape):
    """What settings tell of the picture that is changed, if any; ValueError where it cannot be."""
    if init is None:
        if mask is not None or strength is not None:
            raise ValueError("generate: a mask or a strength needs init, the picture to change")
        return {}
    for name, picture, wanted in ("init", init, shape), ("mask", mask, (*shape[:2], 1)):
        if picture is not None and (np.shape(picture), getattr(picture, "dtype", None)) != \
                (wanted, np.uint8):
            raise ValueError(f"generate: expected {name} uint8 {wanted}, got "
                             f"{getattr(picture, 'dtype', type(picture).__name__)} "
                             f"{np.shape(picture)}")
    told = {name: sha256(picture.tobytes()).hexdigest() for name, picture
            in (("init", init), ("mask", mask)) if picture is not None}
    return {**told, "strength": (0.8 if mask is None else 1.0) if strength is None else strength}


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


def load_run(path):
    """A Run from a run folder, a checkpoint file, or the name of a shipped checkpoint.

    Raises FileNotFoundError naming the nearest shipped one, ValueError for a damaged file.
    """
    file = find(path)
    arrays, config = checkpoint.load(file)
    if not {"model", "schedule", "recipe", "shape"} <= config.keys():
        raise ValueError(f"{file} is no checkpoint of a tinydiff run: it names no model")
    model = TextToImage.from_config(config["model"], rng=np.random.default_rng(0))
    model.load({name.removeprefix("ema/"): array for name, array in arrays.items()
                if name.startswith("ema/")})
    return Run(model, Schedule.named(**config["schedule"]), Recipe.parse(config["recipe"]),
               config["shape"], str(path))


def find(path):
    """The checkpoint file that `path` means."""
    folder = Path(path)
    if folder.is_file():
        return folder
    if (folder / "checkpoint.safetensors").is_file():
        return folder / "checkpoint.safetensors"
    if folder.is_dir():
        raise FileNotFoundError(f"{path} holds neither checkpoint.safetensors nor "
                                "model_index.json; train it first, tinydiff train RECIPE --out "
                                f"{path}, or name a whole diffusers folder")
    names = {file.stem: file for file in SHIPPED.glob("*.safetensors")}
    if str(path) not in names:
        guess = get_close_matches(str(path), names, n=1, cutoff=0)
        known = f"one of {', '.join(sorted(names))}" if names else "a run folder"
        raise FileNotFoundError(f"no run {str(path)!r}: expected a run folder or {known}"
                                + (f"; did you mean {guess[0]!r}?" if guess else ""))
    return names[str(path)]


def training_run(training, name):
    """A Run of what `training` has learned so far: the running mean of its weights."""
    model = TextToImage.from_config(training.model.config(), rng=np.random.default_rng(0))
    model.load(training.flat.views(training.ema.data))
    return Run(model, training.schedule, training.recipe, training.dataset.images.shape[1:], name)
