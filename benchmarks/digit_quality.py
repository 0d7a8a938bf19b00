"""Do the drawn digits show what was asked for, and do they vary as real ones do?

    python benchmarks/digit_quality.py             the shipped `mnist`, and out/demo if it is there
    python benchmarks/digit_quality.py RUN … --n 100 1000 --page README.md

A classifier of our own, the judge, learns from real MNIST digits, never from drawn ones. It says
how many of n drawn digits, n/10 a prompt, show the digit that was asked for, and describes each
picture by its last hidden layer. In these features we compare drawn digits with real ones.

    recognised       share of pictures whose most probable class is the one asked for
    nearest          per digit, the two most similar drawn pictures: their pixel distance as a
                     multiple of the 1st percentile of real pairs of that digit. The smallest of
                     the ten: ≥ 0.5 at n = 100, or some pictures are all but copies of each
                     other. It falls with n for real digits too: see nearest_real
    frechet_ratio    Fréchet distance of n drawn digits from the held-out ones, over that of n real
                     training digits (mean of 10 draws): ≤ 4. Not FID: the features are our own

The held-out digits are MNIST's test images. The demo learns from those very images, so there the
Fréchet ratio says how well it fits; for `mnist` it says how well it generalises.
"""

import argparse
import hashlib
import inspect
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from machine import machine
from pages import replace_block

import tinydiff as td
from tinydiff import checkpoint, data, images, metrics
from tinydiff.models import classifier
from tinydiff.models.classifier import Classifier, ClassifierConfig, in_batches

ROOT = Path(__file__).resolve().parents[1]
STEPS, SEED = 3000, 0                       # of the judge's training: 100 pictures a step
DRAWS, PAIRED = 10, 500                     # sets of n real digits; digits a class for pairs


class Judge:
    """A classifier that says what a picture shows, and real pictures to compare with.

    Drawn pictures are uint8 (n, H, W, C): n/10 zeros, then n/10 ones, …
    """

    def __init__(self, network, learned, held_out):
        self.network, self.learned, self.held_out = network, learned, held_out
        self.classes = len(learned.classes)
        self.reference = self.features(held_out.images)
        self.usual = [np.percentile(distances(learned.images[learned.labels == digit][:PAIRED]), 1)
                      for digit in range(self.classes)]

    def features(self, pictures):
        """uint8 (N, H, W, C) -> (N, features)"""
        return in_batches(self.network.features, images.to_float(pictures))

    def accuracy(self, pictures, labels):
        return metrics.accuracy(self.network.predict(images.to_float(pictures)), labels)

    def recognised(self, drawn):
        """The share recognised as asked, for each digit."""
        return [self.accuracy(part, np.full(len(part), digit))
                for digit, part in enumerate(np.split(drawn, self.classes))]

    def nearest(self, drawn):
        """The distance of the two most similar pictures over the usual one, for each digit."""
        return [float(distances(part).min() / self.usual[digit])
                for digit, part in enumerate(np.split(drawn, self.classes))]

    def frechet(self, drawn):
        """The Fréchet distance from the held-out pictures."""
        return metrics.frechet(self.features(drawn), self.reference)


def distances(pictures):
    """Between every two uint8 pictures, with pixels counted from -1 to 1."""
    return metrics.pixel_distances(images.to_float(pictures))


def real_digits():
    """(to learn from, held out): MNIST's two splits, or 4/5 and 1/5 of the packaged digits."""
    try:
        return data.load("mnist", "train"), data.load("mnist", "test")
    except OSError as error:
        print(f"{error}\nThe judge learns from the digits in the package instead.", file=sys.stderr)
    digits = data.load("digits")
    fifth = np.arange(len(digits.images)) % 5 == 0
    return tuple(replace(digits, images=digits.images[part], labels=digits.labels[part])
                 for part in (~fifth, fifth))


def trained_judge():
    """The judge, trained now or, if nothing it depends on has changed, read from out/."""
    learned, held_out = real_digits()
    config, rng = ClassifierConfig(), np.random.default_rng(SEED)
    source = hashlib.sha256(inspect.getsource(classifier).encode()).hexdigest()
    made_by = {"config": json.loads(json.dumps(asdict(config))), "source": source,
               "pictures": len(learned.images), "steps": STEPS, "seed": SEED}
    network = Classifier(config, rng=rng)
    path = ROOT / "out" / f"judge-{len(learned.images)}.safetensors"
    weights, found = checkpoint.load(path) if path.exists() else ({}, {})
    if found == made_by:
        network.load(weights)
        return Judge(network, learned, held_out)
    print(f"The judge learns from {len(learned.images):,} digits: a minute or two", file=sys.stderr)
    classifier.fit(network, learned.images, learned.labels, steps=STEPS, rng=rng)
    checkpoint.save(path, {name: p.data for name, p in network.parameters().items()}, made_by)
    return Judge(network, learned, held_out)


def measure(drawn, judge):
    """What the docstring above defines, for uint8 (n, H, W, C): n/10 zeros, then n/10 ones, …"""
    n, rng = len(drawn), np.random.default_rng(SEED)
    real = [real_draw(judge.learned, n, rng) for _ in range(DRAWS)]
    recognised, nearest = judge.recognised(drawn), judge.nearest(drawn)
    frechet = judge.frechet(drawn)
    frechet_real = float(np.mean([judge.frechet(draw) for draw in real]))
    share = float(np.mean(recognised))
    return {"n": n, "recognised": round(share, 4),
            "ci95": [round(end, 4) for end in metrics.wilson(share, n)],
            "recognised_by_digit": [round(part, 4) for part in recognised],
            "nearest": round(min(nearest), 3),
            "nearest_by_digit": [round(ratio, 3) for ratio in nearest],
            "nearest_real": round(float(np.mean([min(judge.nearest(draw)) for draw in real])), 3),
            "frechet": round(frechet, 4), "frechet_real": round(frechet_real, 4),
            "frechet_ratio": round(frechet / frechet_real, 3)}


def real_draw(dataset, n, rng):
    """n real pictures, as many of each class, in the order of the classes."""
    classes = len(dataset.classes)
    rows = [rng.choice(np.flatnonzero(dataset.labels == digit), n // classes, replace=False)
            for digit in range(classes)]
    return dataset.images[np.concatenate(rows)]


def table(result):
    """The block for README."""
    judge, on = result["judge"], result["machine"]
    counts = " ".join(str(r["n"]) for r in next(iter(result["runs"].values())))
    rows = [f"| `{name}` | {r['n']} | {r['recognised']:.1%} "
            f"({r['ci95'][0]:.1%} – {r['ci95'][1]:.1%}) "
            f"| {r['nearest']:.2f} ({r['nearest_real']:.2f}) | {r['frechet_ratio']:.2f} |"
            for name, found in result["runs"].items() for r in found]
    return "\n".join([
        "| model | digits | recognised as asked (95 %) | nearest pair (real) | Fréchet ratio |",
        "|---|---:|---:|---:|---:|", *rows, f"""
*Nearest pair*: the pixel distance of the two most similar pictures of a digit, in units of the 1st
percentile of real pairs; 0 is a copy. *Fréchet ratio*: the distance from held-out real digits over
that of as many real training digits; 1 is as good as real. Recognition and features are those of a
classifier of our own that learned from {judge['learned_from']:,} real digits and reads
{judge['accuracy']:.2%} of {judge['held_out']:,} others. Measured {on['date']} with Python
{on['python']} and NumPy {on['numpy']}: `python benchmarks/digit_quality.py --n {counts}`."""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders or shipped names")
    parser.add_argument("--n", nargs="+", type=int, default=[100], help="how many pictures")
    parser.add_argument("--page", default=ROOT / "README.md", help="where the table goes")
    options = parser.parse_args()
    if any(n < 20 or n % 10 for n in options.n):
        parser.error(f"--n: expected multiples of 10 from 20 on, got {options.n}")
    demo = ROOT / "out" / "demo"
    names = options.runs or ["mnist", *([str(demo)] if demo.is_dir() else [])]
    judge = trained_judge()
    prompts = [f"a handwritten {digit}" for digit in judge.learned.classes]
    result = {"benchmark": "digit quality", "machine": machine(), "runs": {}, "judge": {
        "accuracy": judge.accuracy(judge.held_out.images, judge.held_out.labels),
        "learned_from": len(judge.learned.images), "held_out": len(judge.held_out.images)}}
    for name in names:
        run = td.load_run(name)
        result["runs"][Path(name).name] = [
            measure(run.generate(prompts, n=n // len(prompts), seed=0), judge) for n in options.n]
    print(json.dumps(result, ensure_ascii=False))
    replace_block(options.page, "digit-quality", table(result))


if __name__ == "__main__":
    main()
