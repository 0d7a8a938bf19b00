"""What a recipe gives, shown honestly: its curve and an uncurated grid, into docs/recipes.md.

    tinydiff train cifar10 && python benchmarks/recipe_page.py runs/cifar10

Reads a finished run, draws one picture of each class with seeds 0 to 7, none left out, and replaces
the block of that name in docs/recipes.md and the pictures beside it. Of a run that was stopped on
its way, as `--stop-at` does, it shows the curve only, and says how much there was to come.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from machine import in_words, machine
from pages import replace_block

from tinydiff import data, images, viz
from tinydiff.files import write_atomically
from tinydiff.runs import load_run

ROOT = Path(__file__).resolve().parents[1]
SEEDS = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    folder = parser.parse_args().run
    name, docs = folder.name, ROOT / "docs"
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    step, loss = (np.array([float(row[key]) for row in rows]) for key in ("step", "loss"))
    write_atomically(docs / f"{name}-loss.png", viz.png(viz.loss_curve(step, loss)))
    run = load_run(folder)
    if len(rows) < run.recipe.train.steps:
        return publish(name, beginning(name, run, rows, loss))
    prompts = [data.captions(run.recipe.data.name, label)[0] for label in range(10)]
    drawn = run.generate(prompts, n=SEEDS, seed=0, show=True)
    images.write_png(docs / f"{name}-grid.png", images.grid(drawn, columns=SEEDS))
    publish(name, block(name, run, rows, loss, prompts))


def publish(name, text):
    if not replace_block(ROOT / "docs" / "recipes.md", name, text):
        sys.exit(f"docs/recipes.md has no block {name}")
    print(text)


def beginning(name, run, rows, loss):
    t, rate, few = run.recipe.train, pace(rows), max(1, len(rows) // 10)
    return f"""The first {len(rows):,} of {t.steps:,} steps of {t.batch} pictures, for
{run.model.count():,} parameters. At their median of {rate:.1f} pictures a second the whole would
take {t.steps * t.batch / rate / 86400:,.0f} days. The loss of the first {few} steps is
{loss[:few].mean():.4f}, of the last {few} {loss[-few:].mean():.4f}.

![the loss of each step and its running mean]({name}-loss.png)

{in_words(machine())}:
`tinydiff train {name} --stop-at {len(rows)}`, `python benchmarks/recipe_page.py runs/{name}`."""


def pace(rows):
    """Pictures a second, the median over the steps."""
    return float(np.median([float(row["images_per_s"]) for row in rows]))


def block(name, run, rows, loss, prompts):
    t = run.recipe.train
    minutes = float(rows[-1]["seconds"]) / 60
    return f"""{len(rows):,} steps of {t.batch} pictures, {minutes:.0f} minutes at a median of
{pace(rows):.0f} pictures a second; {run.model.count():,} parameters. The loss of the last hundred
steps is {loss[-100:].mean():.4f}, of the first hundred {loss[:100].mean():.4f}.

![the loss of each step and its running mean]({name}-loss.png)

![{SEEDS} pictures of each prompt, one row a prompt]({name}-grid.png)

The rows run from “{prompts[0]}” to “{prompts[-1]}”. Seed 0, the first {SEEDS} pictures of each,
none left out, guidance {run.recipe.sample.guidance:g}, {run.recipe.sample.steps} steps of
{run.recipe.sample.sampler}. {in_words(machine())}:
`python benchmarks/recipe_page.py runs/{name}`."""


if __name__ == "__main__":
    main()
