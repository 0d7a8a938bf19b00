"""Where runs come from: a folder, a checkpoint file, a shipped name, or training still going on."""

from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from tinydiff import checkpoint
from tinydiff.diffusion.schedule import Schedule
from tinydiff.frozen_text import kind_of_model
from tinydiff.generate import Run
from tinydiff.models import AutoencoderConfig, autoencoder_for
from tinydiff.recipe import Recipe
from tinydiff.upscale import Cascade, Upscaler

SHIPPED = Path(__file__).parent / "weights"
CASCADES = {"shapes": ("shapes-latent", "shapes-upscale")}


def load_run(path, device="cpu"):
    """A Run from a run folder, a checkpoint file, or the name of a shipped checkpoint.

    device: where it draws, "cpu", "cuda", or "auto", on a GPU if there is one.
    "shapes" are two in a row: shapes-latent draws, shapes-upscale enlarges.
    Raises FileNotFoundError naming the nearest shipped one, ValueError for a damaged file.
    """
    if str(path) in CASCADES and not Path(path).exists():
        return Cascade(*map(load_run, CASCADES[path]), path).to(device)
    file = find(path)
    arrays, config = checkpoint.load(file)
    if not {"model", "schedule", "recipe", "shape"} <= config.keys():
        raise ValueError(f"{file} is no checkpoint of a tinydiff run: it names no model")
    model = kind_of_model(config["model"]).from_config(config["model"],
                                                       rng=np.random.default_rng(0))
    model.load(under("ema/", arrays))
    recipe, autoencoder = Recipe.parse(config["recipe"]), None
    if "autoencoder" in config:
        own = AutoencoderConfig(**checkpoint.tuples(config["autoencoder"]))
        autoencoder = autoencoder_for(own, rng=np.random.default_rng(0))
        autoencoder.load(under("autoencoder/", arrays))
    return kind_of(recipe)(model, Schedule.named(**config["schedule"]), recipe, config["shape"],
                           str(path), autoencoder).to(device)


def under(prefix, arrays):
    """{rest of the name: array} of those whose name begins so."""
    return {name.removeprefix(prefix): array for name, array in arrays.items()
            if name.startswith(prefix)}


def kind_of(recipe):
    """The class of Run that a recipe makes."""
    return Upscaler if recipe.upscale.factor > 1 else Run


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
    names = {file.stem: file for file in SHIPPED.glob("*.safetensors")
             if not file.stem.startswith("judge-")}
    if str(path) not in names:
        guess = get_close_matches(str(path), [*names, *CASCADES], n=1, cutoff=0)
        known = f"one of {', '.join(sorted([*names, *CASCADES]))}" if names else "a run folder"
        raise FileNotFoundError(f"no run {str(path)!r}: expected a run folder or {known}"
                                + (f"; did you mean {guess[0]!r}?" if guess else ""))
    return names[str(path)]


def training_run(training, name):
    """A Run of what `training` has learned so far: the running mean of its weights."""
    model = deepcopy(training.model)
    model.load(training.flat.views(training.ema.data))
    return kind_of(training.recipe)(model, training.schedule, training.recipe,
                                    training.dataset.shape, name, training.autoencoder)
