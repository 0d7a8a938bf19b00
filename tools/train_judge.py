"""Train one of the judges that ship with the package: python tools/train_judge.py NAME

NAME is mnist, fashion-mnist, cifar10 or shapes. A judge learns from real pictures only, never from
drawn ones, and is tried on others: tinydiff/weights/judge-NAME.safetensors, as float16. That of
shapes learns to name one object; only what it sees is used, as a parser reads scenes exactly.
"""

import json
import sys
import time
from dataclasses import asdict

import numpy as np

from tinydiff import checkpoint, data, metrics
from tinydiff.data.scenes import COLOURS, SHAPES, SPLITS, Dice, random_scene
from tinydiff.data.shapes import SIDES, draw
from tinydiff.evaluation.judging import WEIGHTS, Judge
from tinydiff.models.classifier import fit
from tinydiff.models.residual_classifier import ResidualClassifier, ResidualClassifierConfig
from tinydiff.parallel import one_blas_thread

SEED = 0
GREY = dict(channels=1, widths=(16, 32, 64))
PLANS = {                                   # shape of the network, options of fit
    "mnist":         (GREY, dict(steps=2500)),
    "fashion-mnist": ({**GREY, "widths": (32, 64, 128)}, dict(steps=2500)),
    "cifar10":       ({}, dict(steps=6000, batch=128, shift=4)),
    "shapes":        (dict(classes=len(SHAPES) * len(COLOURS), widths=(16, 32, 64)),
                      dict(steps=4000, shift=0)),
}


def pictures(name):
    """(images, labels) to learn from, the same held out, and words for both."""
    if name == "shapes":
        return scenes(20_000, 0), scenes(2_000, 1), "20,000 scenes of one object", "2,000 others"
    if name == "fashion-mnist":             # its training set may not be at hand
        test = data.load(name, "test")
        learned, held_out = [(test.images[part], test.labels[part])
                             for part in (slice(8000), slice(8000, None))]
        said = "the first 8,000 of Fashion-MNIST's 10,000 test images", "the last 2,000"
    else:
        learned, held_out = [(part.images, part.labels) for part in
                             (data.load(name, "train"), data.load(name, "test"))]
        said = f"the training set of {name}", "its test set"
    if name != "mnist":                     # clothes and photographs may be mirrored, digits not
        x, y = learned
        learned = np.concatenate([x, x[:, :, ::-1]]), np.concatenate([y, y])
    return learned, held_out, *said


def scenes(count, seed):
    """Scenes of one object each, of both splits, and the number of its colour and shape."""
    dice = Dice(np.random.default_rng(seed))
    found = [random_scene(dice, dice.choose(SPLITS), 1) for _ in range(count)]
    things = [scene.objects[0] for scene in found]
    labels = [SHAPES.index(thing.shape) * len(COLOURS) + [*COLOURS].index(thing.colour)
              for thing in things]
    return draw(found, SIDES["shapes"]), np.array(labels)


def main(name):
    shape, options = PLANS[name]
    (x, y), (real, labels), learned_from, held_out = pictures(name)
    config, rng = ResidualClassifierConfig(**shape), np.random.default_rng(SEED)
    network = ResidualClassifier(config, rng=rng)
    began = time.perf_counter()
    with one_blas_thread():
        fit(network, x, y, rng=rng, **options)
    seconds = time.perf_counter() - began
    weights = {path: p.data.astype(np.float16) for path, p in network.parameters().items()}
    network.load(weights)                   # what is shipped is what is tried
    judge = Judge(network, real.shape[1:], 0.0, learned_from, held_out)
    accuracy = metrics.accuracy(judge.probabilities(real), labels)
    facts = {"network": asdict(config), "shape": list(real.shape[1:]),
             "learned_from": learned_from, "held_out": held_out, "accuracy_on_real": accuracy,
             "seed": SEED, **options}
    checkpoint.save(WEIGHTS / f"judge-{name}.safetensors", weights, facts)
    print(json.dumps({**facts, "minutes": round(seconds / 60, 1), "parameters": network.count()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
