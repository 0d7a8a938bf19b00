"""Generating, told straight: prompts in, pictures out.

    run = load_run("runs/mnist")              # or the name of a shipped checkpoint
    run.generate(["a handwritten seven"])     # uint8 (1, 28, 28, 1)

A picture depends on (prompt, seed, index within its prompt) and on nothing else.
"""

import io
from collections import deque
from difflib import get_close_matches
from math import isfinite
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from tinydiff import checkpoint, images
from tinydiff._version import __version__
from tinydiff.autograd import no_grad
from tinydiff.diffusion import noise
from tinydiff.diffusion.guidance import clipped, guided
from tinydiff.diffusion.schedule import Schedule
from tinydiff.files import write_atomically
from tinydiff.models import TextToImage
from tinydiff.parallel import one_blas_thread
from tinydiff.predictor import denoiser
from tinydiff.progress import bar
from tinydiff.recipe import SAMPLERS, Recipe, nearest, walk

SHIPPED = Path(__file__).parent / "weights"


class Run:
    """A trained model with all that is needed to draw: schedule, recipe, size of its pictures."""

    def __init__(self, model, schedule, recipe, shape, name):
        self.model, self.schedule, self.recipe = model, schedule, recipe
        self.shape, self.name = tuple(shape), name        # shape (H, W, C)

    def generate(self, prompts, *, n=1, seed=0, steps=None, guidance=None, sampler=None,
                 negative="", size=None, batch=64, show=False):
        """n pictures of each prompt, all of the first prompt first -> uint8 (N, H, W, C)

        steps, guidance and sampler are the recipe's unless given; guidance leads away from
        `negative`; size is (H, W); `batch` pictures are drawn at a time. Raises ValueError, at
        once, for what cannot be drawn.
        """
        frames = self.denoise(prompts, n=n, seed=seed, steps=steps, guidance=guidance,
                              sampler=sampler, negative=negative, size=size, batch=batch, show=show)
        return images.to_uint8(deque(frames, maxlen=1).pop())

    def denoise(self, prompts, *, batch=64, show=False, **options):
        """Iterate over x_t float32 (N, H, W, C) from pure noise to x0: the frames of a film.

        The options are those of `generate`.
        """
        asked = self.settings(prompts, **options)
        if not is_whole(batch, 1):
            raise ValueError(f"generate: expected batch of at least 1, got {batch!r}")
        n, seed, steps, w = (asked[key] for key in ("n", "seed", "steps", "guidance"))
        times = walk(self.schedule, asked["sampler"], steps, self.recipe.sample.spacing)
        shape = (*asked["size"], self.shape[2])
        words = self.contexts([*prompts, asked["negative"]])              # (prompts + 1, L, D)
        prompt, index = np.divmod(np.arange(len(prompts) * n), n)         # index within its prompt

        def drawn(part):
            """x_T, then x_t after each step, of the pictures in this slice."""
            x_T = noise.batch(seed, index[part], 0, shape, purpose=noise.X_T)    # (N, H, W, C)
            x_T = self.schedule.start_std(times[0]) * x_T
            yield x_T
            cond, uncond = words[prompt[part]], words[np.full(len(x_T), -1)]     # (N, L, D) each
            predict = guided(denoiser(self.model.unet, self.schedule, cond),
                             denoiser(self.model.unet, self.schedule, uncond), w)
            if self.recipe.sample.clip:
                predict = clipped(predict, self.schedule)
            yield from SAMPLERS[asked["sampler"]](predict, x_T, self.schedule, timesteps=times,
                                                  noise=noise.stream(seed, index[part], shape))

        return frames([drawn(part) for part in parts(len(index), batch)], steps, show)

    def settings(self, prompts, *, n=1, seed=0, steps=None, guidance=None, sampler=None,
                 negative="", size=None):
        """All that a picture is made of, as its PNG tells it: what is not given is the recipe's.

        Raises ValueError, in one sentence, for what cannot be drawn.
        """
        own = self.recipe.sample
        sampler = own.sampler if sampler is None else sampler
        steps = own.steps if steps is None else steps
        w = own.guidance if guidance is None else guidance
        size = self.shape[:2] if size is None else size
        patch = self.model.unet.config.patch
        for value, fits, wanted in (
                (prompts,  are_texts(prompts),                  "a list of prompts"),
                (n,        is_whole(n, 1),                      "n of at least 1"),
                (seed,     is_whole(seed, 0) and seed < 2**64,  "seed from 0 to 2⁶⁴ − 1"),
                (w,        isinstance(w, Real) and isfinite(w), "a finite guidance"),
                (negative, isinstance(negative, str),           "negative as a text"),
                (sampler,  isinstance(sampler, str),            "the name of a sampler"),
                (size,     is_pair(size, patch), f"size (H, W) in multiples of {patch}")):
            if not fits:
                raise ValueError(f"generate: expected {wanted}, got {value!r}")
        nearest(sampler, SAMPLERS, "sampler")
        walk(self.schedule, sampler, steps, own.spacing)
        return {"tinydiff": __version__, "model": Path(self.name).resolve().name,
                "prompts": list(prompts), "n": int(n), "seed": int(seed), "sampler": sampler,
                "steps": int(steps), "guidance": float(w), "negative": negative,
                "size": [int(side) for side in size]}

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
        raise FileNotFoundError(f"{path} holds no checkpoint.safetensors; train it first: "
                                f"tinydiff train RECIPE --out {path}")
    names = {file.stem: file for file in SHIPPED.glob("*.safetensors")}
    if str(path) not in names:
        guess = get_close_matches(str(path), names, n=1, cutoff=0)
        known = f"one of {', '.join(sorted(names))}" if names else "a run folder"
        raise FileNotFoundError(f"no run {str(path)!r}: expected a run folder or {known}"
                                + (f"; did you mean {guess[0]!r}?" if guess else ""))
    return names[str(path)]


def write_pictures(path, frames, n, provenance):
    """The last of the frames x_t (N, H, W, C) as .npy or .png, or all as a film, .gif or .webp.

    Several pictures make a grid, with n > 1 of several prompts one row a prompt.
    """
    frames = [images.to_uint8(x_t) for x_t in frames]
    suffix = path.suffix.lower()
    if suffix == ".npy":
        memory = io.BytesIO()                             # into a file, np.save hides a full disk
        np.save(memory, frames[-1])
        return write_atomically(path, memory.getvalue())
    columns = n if 1 < n < len(frames[-1]) else None
    sheets = [images.grid(frame, columns) for frame in frames]
    if suffix == ".png":
        images.write_png(path, sheets[-1], provenance)
    else:
        images.write_film(path, sheets)


def training_run(training, name):
    """A Run of what `training` has learned so far: the running mean of its weights."""
    model = TextToImage.from_config(training.model.config(), rng=np.random.default_rng(0))
    model.load(training.flat.views(training.ema.data))
    return Run(model, training.schedule, training.recipe, training.dataset.images.shape[1:], name)
