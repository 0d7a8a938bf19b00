"""What a trained model is and how good it is: docs/cards/NAME.md, with its numbers and pictures.

    python benchmarks/model_card.py mnist                        a shipped checkpoint
    python benchmarks/model_card.py shapes-latent --run runs/shapes-latent
    python benchmarks/model_card.py mnist --from-json            the page again, nothing measured

Evaluates as `tinydiff eval NAME --n N --json` does and keeps that answer, with machine and date, in
docs/cards/NAME.json; then draws an uncurated grid, the guidance sweep and the loss beside the least
possible one. The time that training took is read from the run that the checkpoint was made of.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
from machine import in_words, machine

from tinydiff import data, viz
from tinydiff._version import __version__
from tinydiff.evaluation.judging import JUDGES, load_judge
from tinydiff.evaluation.quality import evaluate, table_of
from tinydiff.files import write_atomically
from tinydiff.recipe import SHIPPED
from tinydiff.runs import load_run
from tinydiff.upscale import Cascade

CARDS = Path(__file__).resolve().parents[1] / "docs" / "cards"
COLUMNS, ROWS = 8, 10                                     # of the grid
LARGEST = 200_000                                         # bytes of a picture
MNIST = ("MNIST (LeCun, Cortes and Burges, derived from NIST's; as commonly stated CC BY-SA 3.0)")
SCENES = "captioned scenes without end, drawn by tinydiff itself (MIT)"
DATA = {"digits": f"the 10,000 test images of {MNIST}",
        "mnist": f"the 60,000 training images of {MNIST}",
        "fashion-mnist": "Fashion-MNIST (Zalando Research, MIT)",
        "cifar10": "CIFAR-10 (Krizhevsky, Nair and Hinton; its page states no licence: for "
                   "research and teaching)",
        "shapes": SCENES, "shapes64": SCENES}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a shipped checkpoint")
    parser.add_argument("--n", type=int, default=1000, help="pictures for the numbers (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="the finished run it was made of")
    parser.add_argument("--from-json", action="store_true", help="measure nothing anew")
    options = parser.parse_args()
    name, run, stored = options.name, load_run(options.name), CARDS / f"{options.name}.json"
    found = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    if not options.from_json:
        began = time.perf_counter()
        found = {**evaluate(run, n=options.n, seed=options.seed, show=True),
                 "seconds": round(time.perf_counter() - began), "machine": machine(),
                 "tinydiff": __version__, "training": found.get("training")}
    if options.run:
        found["training"] = [took(options.run / log) for log in ("autoencoder.csv", "metrics.csv")
                             if (options.run / log).exists()]
    write_atomically(stored, (json.dumps(rounded(found), indent=1, ensure_ascii=False)
                              + "\n").encode())
    prompts = prompts_of(run)
    pictures = {"grid": viz.image_grid(run.generate(prompts, n=COLUMNS, seed=0), rows=prompts,
                                       zoom=2 if run.shape[0] <= 32 else 1)}
    if found["guidance_sweep"]:
        pictures["guidance"] = sweep(found)
    if found["loss_gap"]:
        pictures["loss"] = losses(found["loss_gap"])
    for what, figure in pictures.items():
        png = viz.png(figure)
        if len(png) > LARGEST:
            raise ValueError(f"{name}-{what}.png takes {len(png):,} bytes, more than {LARGEST:,}")
        write_atomically(CARDS / f"{name}-{what}.png", png)
    write_atomically(CARDS / f"{name}.md", card(name, run, rounded(found), prompts).encode())
    print(CARDS / f"{name}.md")


def prompts_of(run):
    """What the grid shows: the classes of a set, or some scenes."""
    name = table_of(run).name
    return ([data.captions(name, label)[0] for label in range(10)] if name not in data.WORLDS
            else list(data.load(name).prompts))[:ROWS]


def took(log):
    """The steps and the minutes in a metrics.csv."""
    with open(log, encoding="utf-8", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return {"steps": int(last["step"]), "minutes": round(float(last["seconds"]) / 60, 1)}


def sweep(found):
    """Accuracy and recall over guidance, and where the recipe stands."""
    turns = found["guidance_sweep"]
    w = [turn["guidance"] for turn in turns]
    figure = viz.curves(w, {
        "prompt accuracy": [turn["prompt_accuracy"] for turn in turns],
        "recall (variety)": [np.nan if turn["recall"] is None else turn["recall"]
                             for turn in turns]}, xlabel="guidance w", ylabel="share of pictures")
    ax = figure.axes[0]
    ax.fill_between(w, *np.array([turn["ci95"] for turn in turns]).T, alpha=0.2, linewidth=0)
    ax.axvline(found["guidance"], color="black", linewidth=0.8, linestyle="--")
    ax.set_ylim(0, 1.05)
    return figure


def losses(gap):
    """The loss of the model and of whoever knows its pictures by heart, over t."""
    figure = viz.curves(gap["times"], {"the model": gap["loss"], "least possible": gap["bayes"]},
                        xlabel="t", ylabel="loss in eps", log=True)
    figure.axes[0].set_ylim(bottom=1e-4)                  # below, all is rounding
    return figure


def card(name, run, found, prompts):
    """The page."""
    said, on = SHIPPED / f"{name}.toml", found["machine"]
    about = " ".join(line.lstrip("# ") for line in said.read_text(encoding="utf-8").split("\n\n")[0]
                     .splitlines()) if said.exists() else (
        f"Two in a row: {run.small.name} draws, {run.large.name} makes it larger.")
    return f"""# `{name}`

{about}

![{COLUMNS} pictures of each prompt]({name}-grid.png)

*Seed 0, the first {COLUMNS} pictures of {each(prompts)}, none left out: {found['steps']} steps of
{found['sampler']}, guidance {found['guidance']:g}.*

```
tinydiff sample {name} --prompt "{prompts[len(prompts) * 7 // 10]}"
```

## What it is

| | |
|---|---|
{made(name, run, found)}

## How good it is

{numbers(found)}

*real*: the same of as many real pictures. *Fréchet distance*, *precision*, *recall* and *coverage*
are in the features of a small classifier of our own, so they compare with nothing but themselves;
none of them is FID. *For endless pictures*: extrapolated to N → ∞, where real pictures are at 0.
*Nearest learned picture*: the distance to it, over the same of real pictures that were not learned
from; far below 1 would mean copies.

{notes(found)}
{plots(name, found)}
## Measured

{found['n']} pictures of seed {found['seed']}, and others for the sweep, in
{found['seconds']} seconds: {in_words(on)}, tinydiff {found['tinydiff']}. All numbers are
in [{name}.json]({name}.json). Again: `python benchmarks/model_card.py {name} --n {found['n']}`;
with other pictures and prompts: `tinydiff eval {name} --seed 1`.
"""


def each(prompts):
    return f"each of {len(prompts)} prompts" if len(prompts) > 1 else "its prompt"


def made(name, run, found):
    """The rows of what it is: data, networks, recipe, training."""
    stages = [run.small, run.large] if isinstance(run, Cascade) else [run]
    rows = []
    for stage in stages:
        own, (H, W, C) = Path(stage.name).name, stage.shape
        parts = {"text encoder": stage.model.text_encoder, "U-Net": stage.unet,
                 "autoencoder": stage.autoencoder}
        table, t = stage.recipe.data, stage.recipe.train
        rows += [("pictures", f"{H} × {W}, {'grey' if C == 1 else 'RGB'}"),
                 ("learned from", DATA.get(table.name, "pictures of your own")
                  + (", of it only the 10,000 test images" if table.split == "test" else "")),
                 ("parameters", ", ".join(f"{part.count():,} {what}" for what, part in parts.items()
                                          if part)),
                 ("diffusion", f"{stage.recipe.diffusion.schedule} schedule, "
                  f"T = {stage.schedule.T}, predicts {stage.unet.config.predicts}"
                  + (", in latents" if stage.autoencoder else "")),
                 ("training", f"[{own}.toml](../../tinydiff/recipes/{own}.toml): {t.steps:,} steps "
                  f"of {t.batch} pictures, seed {t.seed}"),
                 ("made by", f"`tinydiff train {own}`, `python tools/ship.py runs/{own} {own}`")]
    for stage in found["training"] or ():
        rows.append(("time", f"{stage['minutes']:.1f} minutes for {stage['steps']:,} steps"
                     + " of the autoencoder" * (stage["steps"] != t.steps)))
    return "\n".join(f"| {what} | {said} |" for what, said in rows)


def numbers(found):
    """The table of results; what is not known has no row."""
    real, gap = found["real"] or {}, found["copies"] or {}
    rows = [("prompt accuracy", share(found), read_rightly(found["data"]))]
    rows += [("· " + kind, share(part), "") for kind, part in (found["by_kind"] or {}).items()]
    if unseen := found["unseen"]:
        rows += [("unseen combinations", share(unseen), "")]
        rows += [("· " + kind, share(part), "") for kind, part in unseen["by_kind"].items()]
    rows += [("Fréchet distance", plain(found["frechet"], found["frechet_ci95"]),
              plain(found["frechet_real"]))]
    rows += [(said, plain(found[key]), plain(real.get(key))) for said, key in (
        ("· for endless pictures", "frechet_extrapolated"), ("precision", "precision"),
        ("recall", "recall"), ("coverage", "coverage"))]
    rows += [("nearest learned picture", plain(gap.get("ratio")), "1" * bool(gap)),
             ("· the closest of all", plain(gap.get("closest")), plain(gap.get("closest_real"))),
             ("bits a number, at most", plain(found["nll_bits_per_dim"]), "")]
    return "\n".join(["| | drawn | real |", "|---|---:|---:|",
                      *(f"| {' | '.join(row)} |" for row in rows if row[1])])


def read_rightly(name):
    """The share of real pictures that the judge of a set with classes reads rightly."""
    if name not in JUDGES or name in data.WORLDS:
        return ""
    return f"{100 * load_judge(name).accuracy_on_real:.1f} %"


def share(part):
    """98.2 % (97.1 – 99.0)"""
    if part["prompt_accuracy"] is None:
        return ""
    low, high = (100 * end for end in part["ci95"])
    return f"{100 * part['prompt_accuracy']:.1f} % ({low:.1f} – {high:.1f})"


def plain(value, ends=None):
    if value is None:
        return ""
    return f"{value:.3g}" + (f" ({ends[0]:.3g} – {ends[1]:.3g})" if ends else "")


def notes(found):
    """What the numbers rest on."""
    said = [found["judge"], found["real_pictures"],
            found["nll_note"] and f"Bits: {found['nll_note']}"]
    return "\n".join(f"- {note[0].upper()}{note[1:]}." for note in said if note)


def plots(name, found):
    """The figures there are, with a sentence each."""
    text = ""
    if found["guidance_sweep"]:
        text += f"""
## Guidance: what was asked for, against variety

![prompt accuracy and recall over guidance]({name}-guidance.png)

*{found['guidance_sweep'][0]['n']} pictures each, with 95 % intervals; dashed: the recipe's own.*
"""
    if gap := found["loss_gap"]:
        text += f"""
## Loss, and the least there can be

![loss over t]({name}-loss.png)

*On {gap['n']} pictures it learned from, unprompted. The least is that of the exact predictor of
{gap['known']:,} of its pictures, which would draw nothing but these: what lies between is what the
model leaves open.*
"""
    return text


def rounded(value):
    """Floats to six digits, wherever they are."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
