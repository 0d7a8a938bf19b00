"""Latents against pixels: two models that trained about equally long, how good and how fast.

    python benchmarks/latents_or_pixels.py --n 400

Asks `shapes-latent` and `shapes-pixel` for the same --n pictures of two objects and as many of one,
with the same seeds, in turn, a group at a time, so that a slow minute hurts all. Sampler and
guidance are of their recipes, and so are the steps, but each is asked for FEW as well. The minutes
of training are read from the cards. Prints JSON and replaces the `latents-or-pixels` block in
docs/shapes.md.
"""

import argparse
import json
from statistics import median
from time import perf_counter

import numpy as np
from machine import in_words, machine
from model_card import CARDS, share
from pages import replace_block

from tinydiff import data
from tinydiff.evaluation import questions
from tinydiff.evaluation.quality import GROUP
from tinydiff.evaluation.scene_parser import parse, satisfies
from tinydiff.runs import load_run

NAMES = "shapes-latent", "shapes-pixel"
FEW   = 8                                                 # steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=400, help="pictures of each kind (400)")
    n = parser.parse_args().n
    runs = {name: load_run(name) for name in NAMES}
    asks = [(name, steps) for steps in (runs[NAMES[0]].own.steps, FEW) for name in NAMES]
    world, kept, taken = data.load("shapes"), {}, {ask: [] for ask in asks}
    for run in runs.values():
        run.generate(["a red circle"], n=GROUP, steps=2)  # kernels are compiled, memory is there
    for objects in (1, 2):
        rng = np.random.default_rng(objects)
        asked = [world.ask(rng, objects, "train") for _ in range(n)]
        for start in range(0, n, GROUP):
            prompts, claims = zip(*asked[start:start + GROUP], strict=True)
            for name, steps in asks:
                began = perf_counter()
                pictures = runs[name].generate(list(prompts), seed=1000 + start, steps=steps)
                taken[name, steps].append((perf_counter() - began) / len(prompts))
                kept.setdefault((name, steps, objects), []).extend(
                    satisfies(parse(picture), claim)
                    for picture, claim in zip(pictures, claims, strict=True))
    usual = taken[asks[1]]                                # pixels in all their steps
    found = [{"name": name, "steps": steps, "minutes": minutes(name),
              "ms": 1000 * median(taken[name, steps]),
              "faster": median(p / t for p, t in zip(usual, taken[name, steps], strict=True)),
              **{f"{k} objects": questions.share(np.array(kept[name, steps, k])) for k in (1, 2)}}
             for name, steps in asks]
    print(json.dumps({"machine": machine(), "n": n, "runs": found}))
    replace_block(CARDS.parent / "shapes.md", "latents-or-pixels", table(found, n))


def minutes(name):
    """Of all stages of its training, as its card has them."""
    card = json.loads((CARDS / f"{name}.json").read_text(encoding="utf-8"))
    return sum(stage["minutes"] for stage in card["training"])


def table(found, n):
    rows = [f"| `{f['name']}` | {f['minutes']:.0f} | {f['steps']} | {share(f['1 objects'])} "
            f"| {share(f['2 objects'])} | {f['ms']:.0f} | {f['faster']:.1f} × |" for f in found]
    return "\n".join([
        "| | minutes of training | steps | one object | two and their relation | ms a picture "
        "| as fast |", "|---|---:|---:|---:|---:|---:|---:|", *rows, f"""
{n} prompts of each kind, with 95 % intervals; *as fast* as the second row, the median over groups
of {GROUP} prompts drawn in turn. {in_words(machine())}:
`python benchmarks/latents_or_pixels.py --n {n}`."""])


if __name__ == "__main__":
    main()
