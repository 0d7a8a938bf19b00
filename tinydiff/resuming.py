"""How training is written down, and taken up again bit for bit."""

import numpy as np

from tinydiff import checkpoint
from tinydiff.backend import alongside
from tinydiff.recipe import Recipe


class Diverged(ArithmeticError):
    """The loss or the gradient is no longer a number."""


def refuse_lost(state, step, advice):
    """Raise Diverged, naming step and array, where a state {path: array} holds what is no number.
    """
    for name, array in state.items():
        if not np.isfinite(array).all():
            raise Diverged(f"step {step} lost a number in {name}; {advice}")


def read_state(path, recipe, decides=""):
    """({path: array}, config) of a checkpoint from which training goes on.

    Raises ValueError unless its recipe is the same, in all keys that begin as `decides`.
    """
    arrays, config = checkpoint.load(path)
    if not {"recipe", "step"} <= config.keys():
        raise ValueError(f"{path} holds weights only, no training to go on with")
    theirs = Recipe.parse(config["recipe"]).settings()
    for key, now in recipe.settings().items():
        if theirs[key] != now and key.startswith(decides):
            raise ValueError(f"{path} was trained with {key} = {theirs[key]}, the recipe now "
                             f"says {now}; resume with the same recipe or train into another "
                             "folder")
    return arrays, config


def put_back(path, arrays, state):
    """Copy into `state` what was read; ValueError where it is of other names or shapes."""
    if {k: a.shape for k, a in arrays.items()} != {k: a.shape for k, a in state.items()}:
        raise ValueError(f"{path} holds other weights than its recipe makes now; "
                         "train into another folder")
    for name, view in state.items():
        view[...] = alongside(arrays[name], view)
