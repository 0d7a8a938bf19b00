"""Pictures with captions. `load("digits")` and `load("shapes")` need no network; start in mnist.py.

sources.py knows where files come from, wording.py makes captions, batches.py draws batches; shapes
draws scenes without end, folder.py and shards.py read pictures of your own. Whatever `load` gives
has .shape (H, W, C) of its pictures, .source, one line on where they come from, .count of them or
None if there is no end, .prompts to ask a model for, .corpus() for the tokenizer, and .batch(…).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np

from tinydiff.data import cifar10, folder, mnist, shapes
from tinydiff.data.batches import batch_indices, captioned
from tinydiff.data.sources import CACHE, DOWNLOAD, download
from tinydiff.data.wording import captions

__all__ = ["DataSet", "Row", "available", "batch_indices", "captions", "fetch", "load", "verify"]

MODULES = {"digits": mnist, "mnist": mnist, "fashion-mnist": mnist, "cifar10": cifar10}
CLASSES = {"digits": mnist.DIGITS, "mnist": mnist.DIGITS,
           "fashion-mnist": mnist.CLOTHES, "cifar10": cifar10.CLASSES}
COUNTS = {("digits", "train"): 10_000,
          ("mnist", "train"): 60_000, ("mnist", "test"): 10_000,
          ("fashion-mnist", "train"): 60_000, ("fashion-mnist", "test"): 10_000,
          ("cifar10", "train"): 50_000, ("cifar10", "test"): 10_000}
WORLDS = ("shapes", "shapes64")                            # drawn on the fly


@dataclass(frozen=True, eq=False)
class DataSet:
    """One split of a set; its arrays may be read-only."""

    images: np.ndarray              # uint8 (N, H, W, C)
    labels: np.ndarray              # int64 (N,)
    classes: tuple[str, ...]        # classes[label] is the published name
    source: str                     # one line on where the files came from
    name:   str = "digits"          # the set, whose captions are in wording.py

    @property
    def shape(self):
        return self.images.shape[1:]

    @property
    def count(self):
        return len(self.images)

    @property
    def prompts(self):
        return tuple(captions(self.name, label)[0] for label in range(len(self.classes)))

    def corpus(self):
        """All captions there are."""
        return [text for label in range(len(self.classes)) for text in captions(self.name, label)]

    def batch(self, count, step, seed, plain, rng):
        """Pictures uint8 (count, H, W, C) of step 0, 1, 2 …, and a caption of each: `captioned`."""
        return captioned(self.images, lambda i: captions(self.name, self.labels[i]),
                         count, step, seed, plain, rng)


class Row(NamedTuple):
    """A line of `tinydiff data list`."""

    name: str
    split: str
    count: int                      # images
    place: str                      # "embedded", "TINYDIFF_DATA_DIR", "cache" or "download"
    size: int                       # bytes of its files there


def load(name: str, split: str = "train", size: int = 32):
    """A split of "digits", "mnist", "fashion-mnist" or "cifar10", downloaded if it is not here.

    "digits" are MNIST's 10,000 test images, which are part of the package, as a set to train on;
    "shapes" and "shapes64" are scenes drawn on the fly; a path is a folder or shards of your own
    pictures, made `size` pixels wide and high.
    Raises ValueError for an unknown set or split and for damage, OSError if a file cannot be had.
    """
    check_name(name)
    if name in WORLDS:
        return shapes.read(name, split)
    if is_path(name):
        return folder.open_pictures(name, split, size)
    if (name, split) not in COUNTS:
        raise ValueError(f"{name} has the {' and the '.join(_splits(name))} split, got {split!r}")
    images, labels, source = MODULES[name].read(name, split)
    if len(images) != len(labels):
        raise ValueError(f"{name}: {len(images)} images but {len(labels)} labels in {source}")
    return DataSet(images, labels, CLASSES[name], source, name)


def available() -> list[Row]:
    """Every split of every set, and where it would come from now."""
    return [_row(name, split) for name, split in COUNTS]


def verify(name: str) -> Iterator[tuple[Row, str]]:
    """Read every split of a set that is here: (row, "" or the sentence that says what is wrong)."""
    check_name(name)
    for split in _splits(name):
        row = _row(name, split)
        try:
            problem = ""
            if row.place == DOWNLOAD:
                problem = f"{name} {split} is not here yet: tinydiff data fetch {name}"
            else:
                load(name, split)
        except (ValueError, OSError) as error:
            problem = str(error)
        yield row, problem


def fetch(name: str) -> list[Row]:
    """Bring into the cache what is nowhere else, replacing damaged copies there."""
    check_name(name)
    rows = [_row(name, split) for split in _splits(name)]
    files = {file for row in rows if row.place in (CACHE, DOWNLOAD)
             for file in MODULES[name].FILES[name, row.split]}
    for file in sorted(files, key=lambda file: file.path):
        download(file)
    return [_row(name, split) for split in _splits(name)]


def _row(name, split):
    module = MODULES[name]
    found = module.locate(name, split)
    if None in found:
        return Row(name, split, COUNTS[name, split], DOWNLOAD,
                   sum(file.size for file in module.FILES[name, split]))
    return Row(name, split, COUNTS[name, split], found[0].place,
               sum(here.path.stat().st_size for here in found))


def _splits(name):
    return [split for known, split in COUNTS if known == name]


def is_path(name):
    return re.search(r"[/\\.*{]", name) is not None


def check_name(name):
    """Raise ValueError unless `name` is that of a set, or looks like a path."""
    known = [*MODULES, *WORLDS]
    if name not in known and not is_path(name):
        nearest = get_close_matches(str(name), known, n=1, cutoff=0)[0]
        raise ValueError(f"there is no data set {name!r}; did you mean {nearest!r}? Known: "
                         f"{', '.join(known)}; a folder of your own is written with a /")
