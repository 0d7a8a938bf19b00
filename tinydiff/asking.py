"""What may be asked of whoever draws, and the sentences that refuse the rest."""

from hashlib import sha256
from math import isfinite
from numbers import Integral, Real

import numpy as np


def refuse_unless(*wanted):
    """ValueError for the first (value, fits, what was wanted) that does not fit."""
    for value, fits, what in wanted:
        if not fits:
            raise ValueError(f"generate: expected {what}, got {value!r}")


def refuse_drawing(prompts, n, seed, steps, sampler, guidance, negative, size, factor):
    """ValueError unless pictures can be drawn of these; sides of `size` are multiples of factor."""
    refuse_unless(
        (steps,    is_whole(steps, 0),                 "a whole number of steps"),
        (prompts,  are_texts(prompts),                 "a list of prompts"),
        (n,        is_whole(n, 1),                     "n of at least 1"),
        (seed,     is_whole(seed, 0) and seed < 2**64, "seed from 0 to 2⁶⁴ − 1"),
        (guidance, isinstance(guidance, Real) and isfinite(guidance), "a finite guidance"),
        (negative, isinstance(negative, str),          "negative as a text"),
        (sampler,  isinstance(sampler, str),           "the name of a sampler"),
        (size,     is_pair(size, factor),              f"size (H, W) in multiples of {factor}"))


def is_whole(value, least):
    return isinstance(value, Integral) and value >= least


def are_texts(value):
    return isinstance(value, (list, tuple)) and value and all(isinstance(t, str) for t in value)


def is_pair(value, factor):
    return (isinstance(value, (list, tuple)) and len(value) == 2
            and all(is_whole(side, 1) and side % factor == 0 for side in value))


def editing(init, mask, strength, shape):
    """What settings tell of the picture that is changed, if any; ValueError where it cannot be."""
    if init is None:
        if mask is not None or strength is not None:
            raise ValueError("generate: a mask or a strength needs init, the picture to change")
        return {}
    told = {"init": digest("init", init, shape)}
    if mask is not None:
        told["mask"] = digest("mask", mask, (*shape[:2], 1))
    return {**told, "strength": (0.8 if mask is None else 1.0) if strength is None else strength}


def digest(name, picture, shape):
    """The sha256 of a uint8 picture of this shape; ValueError for any other."""
    if (np.shape(picture), getattr(picture, "dtype", None)) != (tuple(shape), np.uint8):
        raise ValueError(f"generate: expected {name} uint8 {tuple(shape)}, got "
                         f"{getattr(picture, 'dtype', type(picture).__name__)} "
                         f"{np.shape(picture)}")
    return sha256(picture.tobytes()).hexdigest()
