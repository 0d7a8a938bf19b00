"""Weights between their layout and ours: what stands where, checked before a number is read.

    theirs                  ours
    (O, C, K, K)            (K, K, C, O)        convolutions
    (O, C), (O, C, 1, 1)    (C, O)              linear maps, windows of one pixel
    all others              the same
"""

import re
from typing import NamedTuple

import numpy as np

from tinydiff.pretrained.tensors import FLOATS, named

BLOCK = 1 << 18    # numbers read at a time: 1 MB stays in the cache while its axes are turned


class Place(NamedTuple):
    """Where a parameter of ours stands among theirs."""

    key:    str
    half:   int = 0           # of a tensor of theirs that holds two of ours: the first, or 1
    window: bool = False      # ours is a matrix, theirs a convolution with a 1 × 1 window


class Unset:
    """Stands for `rng` where a module is made to be filled: zeros, which cost no memory yet."""

    def uniform(self, low, high, shape):
        return np.zeros(shape, np.float32)

    normal = uniform


UNSET = Unset()


def fill(model, tensors, place, ignore=(), old=()):
    """Write `tensors` into a model, whose parameters stand at place(path of ours) -> Place.

    `old` is a table that renames keys of earlier times; keys with a pattern of `ignore` may be
    left over. Raises ValueError, before anything is written, for any other key that is missing or
    left over, for another shape, and for integers.
    """
    parts = _parts(model, place)
    keys = {renamed(key, old): key for key in tensors}              # today's, the file's
    _check(tensors, keys, parts, ignore)
    for name, views in parts.items():
        begin = 0
        for view in views:
            step = max(1, BLOCK // max(1, view[:1].size))
            for i in range(0, len(view), step):
                rows = view[i:i + step]
                rows[...] = tensors.read(keys[name], slice(begin + i, begin + i + len(rows)))
            begin += len(view)


def as_theirs(model, place):
    """{key: array} in their layout, as views of the model's own numbers where they can be."""
    return {key: views[0] if len(views) == 1 else np.concatenate(views)
            for key, views in _parts(model, place).items()}


def renamed(path, table):
    """`path` after each (pattern, replacement) of a table in turn."""
    for pattern, replacement in table:
        path = re.sub(pattern, replacement, path)
    return path


def _parts(model, place):
    """{key: views of ours in their layout}: one, or its halves."""
    parts = {}
    for path, p in model.parameters().items():
        key, half, window = place(path)
        parts.setdefault(key, []).append((half, _as_theirs(path, p.data, window)))
    return {key: [view for _, view in sorted(views, key=lambda part: part[0])]
            for key, views in parts.items()}


def _as_theirs(path, array, window):
    """A view in their layout: to write to it is to write to ours."""
    if path.split(".")[-1] != "w" or array.ndim not in (2, 4):
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)                          # (O, C, K, K)
    return array.T[:, :, None, None] if window else array.T         # (O, C, 1, 1) or (O, C)


def _check(tensors, keys, parts, ignore):
    """Refuse, in one sentence, tensors that are not those of the model."""
    shapes = {name: (sum(map(len, views)), *views[0].shape[1:]) for name, views in parts.items()}
    found = {keys[name]: shape for name, shape in shapes.items() if name in keys}
    faults = {
        "missing": [name for name in parts if name not in keys],
        "left over": [named(key) for key in tensors if key not in found
                      and not any(re.search(pattern, key) for pattern in ignore)],
        "misshapen": [f"{named(key)} {tensors[key].shape}, expected {shape}"
                      for key, shape in found.items() if tensors[key].shape != shape],
        "no floats": [f"{named(key)} {tensors[key].dtype}"
                      for key in found if tensors[key].dtype not in FLOATS]}
    told = [f"{what}: {', '.join(names[:3])}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for what, names in faults.items() if names]
    if told:
        raise ValueError(f"{tensors.file} does not hold the weights that the configuration beside "
                         f"it describes; take both from one model ({'; '.join(told)})")
