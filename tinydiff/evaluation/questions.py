"""What a model is asked to draw, and whether a picture shows it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tinydiff.data import WORLDS, captions, load
from tinydiff.data.scenes import OBJECTS
from tinydiff.evaluation.judging import load_judge
from tinydiff.metrics import wilson


class Questions(NamedTuple):
    """Prompts, each of a kind; right(pictures (M, H, W, C)) says which of the first M show it."""

    prompts: list[str]
    kinds:   list[str]              # what is counted apart: each class, or each number of objects
    right:   Callable               # -> bool (M,)

    def answered(self, pictures):
        """The share of the pictures that show what was asked for, in all and of each kind."""
        right, kinds = self.right(pictures), np.array(self.kinds[:len(pictures)])
        return {**share(right), "by_kind": {kind: share(right[kinds == kind])
                                            for kind in dict.fromkeys(kinds.tolist())}}


def share(right):
    """How many of bool (N,), and the 95 % interval."""
    return {"prompt_accuracy": float(right.mean()), "n": len(right),
            "ci95": list(wilson(float(right.mean()), len(right)))}


def questions_about(name, n, split="train", *, seed=0):
    """n Questions about a data set: each class in turn, or scenes of one to three objects.

    split, of a world: what training showed, or "unseen". ValueError for a set without a judge.
    """
    if name in WORLDS:
        return about_scenes(load(name, split), n, seed)
    judge, labels = load_judge(name), np.arange(n) % 10
    prompts = [captions(name, label)[0] for label in labels]
    return Questions(prompts, prompts, lambda pictures: judge.probabilities(pictures).argmax(axis=1)
                     == labels[:len(pictures)])


def about_scenes(world, n, seed):
    """A parser reads every picture, which must show all that was asked for and no more."""
    from tinydiff.evaluation.scene_parser import parse, satisfies
    rng = np.random.default_rng(seed)
    counts = [OBJECTS[7 * i % len(OBJECTS)] for i in range(n)]      # mixed as in training
    prompts, claims = zip(*(world.ask(rng, count, world.split) for count in counts))

    def right(pictures):
        return np.array([satisfies(parse(picture), claim)
                         for picture, claim in zip(pictures, claims)])

    return Questions(list(prompts), [f"{count} object{'s' * (count > 1)}" for count in counts],
                     right)
