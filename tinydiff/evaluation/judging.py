"""Judges: small classifiers of our own that learned from real pictures and come with the package.

A judge says what a picture shows, and describes it by the numbers its answer is a linear function
of, in which drawn pictures are compared with real ones.
"""

from pathlib import Path

import numpy as np

from tinydiff import checkpoint, images
from tinydiff.autograd import softmax
from tinydiff.models.classifier import in_batches
from tinydiff.models.residual_classifier import ResidualClassifier, ResidualClassifierConfig
from tinydiff.parallel import one_blas_thread

WEIGHTS = Path(__file__).parents[1] / "weights"
JUDGES = {"digits": "mnist", "mnist": "mnist", "fashion-mnist": "fashion-mnist",
          "cifar10": "cifar10", "shapes": "shapes", "shapes64": "shapes"}

FACTS = "shape", "accuracy_on_real", "learned_from", "held_out"         # stored beside the weights


class Judge:
    """A classifier of pictures uint8 (N, H, W, C) of one size, or a whole number of times it.

    accuracy_on_real is the share it reads rightly of real pictures that it did not learn from.
    Its methods raise ValueError for pictures of another size.
    """

    def __init__(self, network, shape, accuracy_on_real, learned_from, held_out):
        self.network, self.shape = network, tuple(shape)
        self.accuracy_on_real = accuracy_on_real
        self.told = (f"the judge learned from {learned_from} and reads {accuracy_on_real:.1%} of "
                     f"{held_out} rightly")

    def features(self, pictures):
        """uint8 (N, H, W, C) -> (N, D)"""
        return self.asked(self.network.features, pictures)

    def probabilities(self, pictures):
        """Of each class: uint8 (N, H, W, C) -> (N, classes)"""
        return self.asked(lambda x: softmax(self.network(x)), pictures)

    def asked(self, network, pictures):
        H, W, C = self.shape
        times, rest = divmod(pictures.shape[1], H)
        if rest or not times or pictures.shape[1:] != (times * H, times * W, C):
            raise ValueError(f"this judge reads pictures {self.shape}, or some times larger, got "
                             f"{pictures.shape[1:]}")
        x = images.to_float(pictures).reshape(-1, H, times, W, times, C).mean(axis=(2, 4))
        with one_blas_thread():
            return in_batches(network, x)


def load_judge(name):
    """The Judge of a data set of tinydiff.  ValueError for one that has none."""
    if name not in JUDGES:
        raise ValueError(f"there is no judge of {name!r}, there is one of {', '.join(JUDGES)}")
    weights, facts = checkpoint.load(WEIGHTS / f"judge-{JUDGES[name]}.safetensors")
    network = ResidualClassifier(ResidualClassifierConfig(**facts["network"]),
                                 rng=np.random.default_rng(0))
    network.load(weights)
    return Judge(network, *map(facts.get, FACTS))
