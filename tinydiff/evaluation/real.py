"""Real pictures to compare drawn ones with: those a model learned from, and others."""

from typing import NamedTuple

import numpy as np

from tinydiff import data
from tinydiff.data.sources import DOWNLOAD

LEARNED = 60_000                        # pictures it learned from, at most
SAMPLE  = 10_000                        # scenes that stand for a world without end
OTHERS  = 2_000                         # pictures that the drawn ones should be like


class Real(NamedTuple):
    """Pictures uint8 (N, H, W, C), three times."""

    learned:  np.ndarray                # all that the model learned from
    known:    np.ndarray                # those of them that are not among the others
    others:   np.ndarray                # as drawn pictures should be
    captions: list[str]                 # plain ones of the others


def real_pictures(table):
    """Real pictures for a recipe's [data], and a sentence on them; (None, why) where there are none

    The others are a world's next scenes; else of the other split, if it is on this machine; else
    of the second half of what the model learned from.
    """
    try:
        source = data.load(table.name, table.split, table.size)
    except (OSError, ValueError) as error:
        return None, f"{error}: all that needs real pictures is left out"
    learned, captions = some(source, LEARNED if source.count else SAMPLE, 0)
    if source.count is None:
        return Real(learned, learned, *some(source, OTHERS, 1)), (
            f"it learned from scenes without end, of which {SAMPLE:,} stand for all; the others "
            "are new ones")
    twin = ("mnist", "train") if table.name == "digits" else (
        table.name, "test" if table.split == "train" else "train")
    if twin in {(row.name, row.split) for row in data.available() if row.place != DOWNLOAD}:
        return Real(learned, learned, *some(data.load(*twin), OTHERS, 1)), (
            f"the others are {OTHERS:,} of the {twin[1]} split of {twin[0]}")
    half = len(learned) // 2
    others = slice(half, half + OTHERS)
    return Real(learned, learned[:half], learned[others], captions[others]), (
        "no others are on this machine: half of what it learned from stands for them")


def some(source, count, seed):
    """Pictures and plain captions of a data source: so many, or as many as there are."""
    count = min(count, source.count or count)
    return source.batch(count, 0, seed, 1.0, np.random.default_rng(seed))
