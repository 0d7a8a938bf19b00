"""Generating, told straight: prompts in, pictures out.

    run = load_run("runs/mnist")              # or the name of a shipped checkpoint
    run.generate(["a handwritten seven"])     # uint8 (1, 28, 28, 1)

A picture depends on (prompt, seed, index within its prompt) and on nothing else.
"""

import io
from difflib import get_close_matches
from math import isfinite
from numbers import Integral
from pathlib import Path

import numpy as np

from tinydiff import checkpoint, images
from tinydiff.autograd import no_grad
from tinydiff.diffusion import noise
from tinydiff.diffusion.guidance import clipped, guided
from tinydiff.diffusion.schedule import Schedule
from tinydiff.diffusion.spacing import nodes
from tinydiff.files import write_atomically
from tinydiff.models import TextToImage
from tinydiff.parallel import cores, one_blas_thread, side_by_side
from tinydiff.predictor import denoiser
from tinydiff.progress import bar
from tinydiff.recipe import SAMPLERS, Recipe, nearest

SHIPPED = Path(__file__).parent / "weights"


class Run:
    """A trained model with all that is needed to draw: schedule, recipe, size of its pictures."""

    def __init__(self, model, schedule, recipe, shape, name):
        self.model, self.schedule, self.recipe = model, schedule, recipe
        self.shape, self.name = tuple(shape), name        # shape (H, W, C)

    def generate(self, prompts, **options):
        """n pictures of each prompt, all of the first prompt first -> uint8 (N, H, W, C)

        The options are those of `denoise`: n, seed, steps, guidance, sampler, …
        """
        *_, x0 = self.denoise(prompts, **options)
        return images.to_uint8(x0)

    def denoise(self, prompts, *, n=1, seed=0, steps=None, guidance=None, sampler=None,
                negative="", size=None, batch=64, show=False):
        """Iterate over x_t float32 (N, H, W, C) from pure noise to x0: the frames of a film.

        steps, guidance and sampler are the recipe's unless given; guidance leads away from
        `negative`; size is (H, W). Raises ValueError, at once, for what cannot be drawn.
        """
        defaults = self.recipe.sample
        steps = defaults.steps if steps is None else steps
        w = defaults.guidance if guidance is None else guidance
        name = defaults.sampler if sampler is None else sampler
        self.check(prompts, n, steps, w, name, size, batch)
        index = list(range(n)) * len(prompts)                         # within the prompt
        shape = (*(size or self.shape[:2]), self.shape[2])
        x_T = noise.batch(seed, index, 0, shape, purpose=noise.X_T)   # (N, H, W, C)
        *words, nothing = self.contexts([*prompts, negative])         # (L, D) each

        def walk(part):
            N = len(index[part])
            cond = np.stack([words[i // n] for i in range(*part.indices(len(index)))])
            predict = guided(denoiser(self.model.unet, self.schedule, cond),
                             denoiser(self.model.unet, self.schedule, np.stack([nothing] * N)), w)
            if defaults.clip:
                predict = clipped(predict, self.schedule)
            return SAMPLERS[name](predict, x_T[part], self.schedule, steps=steps,
                                  noise=noise.stream(seed, index[part], shape))

        return frames(x_T, [walk(part) for part in parts(len(index), batch)], steps, show)

    def contexts(self, texts):
        """The text encoder's answer (N, L, D), each text read apart: none sways another."""
        with no_grad(), one_blas_thread():
            return np.concatenate([self.model.text_encoder(self.model.tokenizer.encode([text])).data
                                   for text in texts])

    def check(self, prompts, n, steps, w, sampler, size, batch):
        """Raise ValueError, in one sentence, for what `denoise` cannot draw."""
        if not isinstance(prompts, (list, tuple)) or not prompts \
                or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"generate: expected a list of prompts, got {prompts!r}")
        for name, value in (("n", n), ("batch", batch)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"generate: expected {name} of at least 1, got {value!r}")
        if not isfinite(w):
            raise ValueError(f"generate: expected a finite guidance, got {w}")
        patch = self.model.unet.config.patch
        if size and (len(size) != 2 or min(size) < 1 or any(side % patch for side in size)):
            raise ValueError(f"generate: expected size (H, W) in multiples of {patch}, got {size}")
        nearest(sampler, SAMPLERS, "sampler")
        nodes(self.schedule, steps)


def frames(x_T, walks, steps, show):
    """x_T, then where the walks, side by side, have got to after each step."""
    yield x_T
    with bar(steps, what="draw", show=show) as progress:
        for _ in range(steps):
            with np.errstate(all="ignore"):               # to_uint8 finds a lost number
                x_t = np.concatenate(side_by_side(next, walks))
            progress.update()
            yield x_t


def parts(N, batch):
    """Slices of at most `batch` pictures, at least one a core if there are enough pictures."""
    size = min(batch, -(-N // cores()))
    return [slice(start, start + size) for start in range(0, N, size)]


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
    if path.suffix == ".npy":
        memory = io.BytesIO()                             # into a file, np.save hides a full disk
        np.save(memory, frames[-1])
        return write_atomically(path, memory.getvalue())
    columns = n if 1 < n < len(frames[-1]) else None
    sheets = [images.grid(frame, columns) for frame in frames]
    if path.suffix == ".png":
        images.write_png(path, sheets[-1], provenance)
    else:
        images.write_film(path, sheets)


def training_run(training, name):
    """A Run of what `training` has learned so far: the running mean of its weights."""
    model = TextToImage.from_config(training.model.config(), rng=np.random.default_rng(0))
    model.load(training.flat.views(training.ema.data))
    return Run(model, training.schedule, training.recipe, training.dataset.images.shape[1:], name)
