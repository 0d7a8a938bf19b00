"""Do the words of a prompt point at their objects? Cross-attention maps against true masks.

    python benchmarks/attention_iou.py RUN … --n 200          shapes, 32 × 32

Of n prompts, half for one object and half for two, the map of each colour and shape word (the mean
over layers, heads and steps) is compared with the mask of its object as the parser finds it in the
drawn picture: intersection over union, the map cut off at as many pixels as the mask has. Chance
is the mean IoU of as many random pixels. The same maps with the mask of the other object of the
picture tell whether a word knows its own.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from machine import in_words, machine
from pages import replace_block

import tinydiff as td
from tinydiff import data, viz
from tinydiff.evaluation.attention import pointing, word_maps
from tinydiff.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
GROUP = 20                                                # prompts drawn at a time
SHOWN = ("a red circle above a blue square", "a green triangle left of a yellow cross",
         "a large orange diamond on black")


def measure(run, n, seed):
    """What the docstring above defines, for n prompts."""
    world, rng = data.load("shapes", "train"), np.random.default_rng(seed)
    prompts = [world.ask(rng, 1 + i % 2, "train")[0] for i in range(n)]
    rows = np.concatenate([pointing(run, prompts[i:i + GROUP], seed=seed + i)
                           for i in range(0, n, GROUP)])
    own, other = (rows[rows[:, 0] == same, 1:] for same in (1, 0))
    if not len(own) or not len(other):
        sys.exit(f"{run.name}: of {n} prompts the parser found {len(own)} objects that were asked "
                 "for; train longer, or raise --n")
    objects, own, other = len(own), own.mean(axis=0), other.mean(axis=0)
    return {"prompts": n, "objects": objects,
            "colour": round(own[0], 4), "shape": round(own[1], 4), "chance": round(own[2], 4),
            "colour_ratio": round(own[0] / own[2], 2), "shape_ratio": round(own[1] / own[2], 2),
            "other_ratio": round((other[0] + other[1]) / (2 * other[2]), 2)}


def figure(run, prompts=SHOWN, seed=0):
    """A row for each prompt: what was drawn, then the map of each of its words over it."""
    pictures, told = word_maps(run, prompts, seed=seed)
    across = 1 + max(len(words) for words, _ in told)
    fig = viz.new_figure(0.95 * across, 1.15 * len(prompts))
    axes = fig.subplots(len(prompts), across, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for row, picture, (words, maps) in zip(axes, pictures, told, strict=True):
        H, W, _ = picture.shape
        row[0].imshow(picture)
        for ax, word, heat in zip(row[1:], words, maps.mean(axis=0)):
            ax.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255, extent=(0, W, H, 0))
            ax.imshow(heat, cmap="magma", alpha=0.7, extent=(0, W, H, 0), interpolation="bilinear")
            ax.set_title(word, fontsize=9)
    return fig


def table(result):
    """The block for a page."""
    rows = [f"| `{name}` | {r['objects']} | {r['colour']:.3f} ({r['colour_ratio']:.1f} ×) "
            f"| {r['shape']:.3f} ({r['shape_ratio']:.1f} ×) | {r['chance']:.3f} "
            f"| {r['other_ratio']:.1f} × |" for name, r in result["runs"].items()]
    n = next(iter(result["runs"].values()))["prompts"]
    return "\n".join([
        "| model | objects | colour word | shape word | chance | the other object |",
        "|---|---:|---:|---:|---:|---:|", *rows, f"""
IoU of a word's map with the mask of its object, and as a multiple of chance: of as many random
pixels. *The other object*: the same maps with the mask of the other object in the picture, also
over chance. Measured on {in_words(result['machine'])}:
`python benchmarks/attention_iou.py --n {n}`."""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or shipped names")
    parser.add_argument("--n", type=int, default=200, help="how many prompts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", default=ROOT / "docs" / "shapes.md", help="where the table goes")
    parser.add_argument("--figure", metavar="FILE.png", help="maps of the first run, to look at")
    options = parser.parse_args()
    runs = {Path(name).name: td.load_run(name) for name in options.runs}
    result = {"benchmark": "attention iou", "machine": machine(),
              "runs": {name: measure(run, options.n, options.seed) for name, run in runs.items()}}
    print(json.dumps(result, ensure_ascii=False))
    replace_block(options.page, "attention-iou", table(result))
    if options.figure:
        write_atomically(options.figure, viz.png(figure(next(iter(runs.values())))))


if __name__ == "__main__":
    main()
