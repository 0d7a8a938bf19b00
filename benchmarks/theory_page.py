"""What the theory is worth on real digits: bits/dim of three losses, and the gap to the optimum.

    python benchmarks/theory_page.py                      both tables of docs/theory.md
    python benchmarks/theory_page.py --only optimum       just one: bits or optimum

*bits*: one network learns the first 9,000 packaged digits under L_simple, under the hybrid loss and
under L_vlb, all else equal; the variational bound of others is measured, term by term, on the whole
chain and on a respaced one. *optimum*: the loss of the shipped network at some t, on digits it
learned from and on others, beside the least loss any predictor can have on the former.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import in_words, machine
from pages import replace_block

from tinydiff import data, images, viz
from tinydiff.diffusion import Mixture, fixed_large, fixed_small, loss_gap, trailing, vlb
from tinydiff.files import write_atomically
from tinydiff.parallel import one_blas_thread
from tinydiff.predictor import denoiser
from tinydiff.progress import bar
from tinydiff.recipe import load_recipe
from tinydiff.runs import load_run, training_run
from tinydiff.train import Training

DOCS = Path(__file__).resolve().parents[1] / "docs"
LEARNED, JUDGED = 9_000, 100                              # digits; the judged ones come last
CHAINS = (1000, 100, 25)                                  # steps of the chain that is judged
SETTINGS = ["diffusion.schedule=cosine", "train.lr=2e-3", "train.ema=0.995"]
TIMES = (1, 3, 10, 30, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)


def learned(loss, steps, digits):
    """A Run of the recipe `demo`, on the cosine schedule, under another loss."""
    recipe = load_recipe("demo").override([*SETTINGS, f"train.steps={steps}",
                                            f"diffusion.loss={loss}"])
    part = replace(digits, images=digits.images[:LEARNED], labels=digits.labels[:LEARNED])
    training = Training(recipe, part)
    with bar(steps, what=loss) as progress:
        for _ in range(steps):
            training.step()
            progress.update()
    return training_run(training, loss)


def knowing(run, labels):
    """The run's predictor for pictures of these labels, told each one's plain caption."""
    names = [data.captions("digits", label)[0] for label in range(10)]
    return denoiser(run.model.unet, run.schedule, run.contexts(names)[labels])


def bits(steps):
    """The table of bits/dim of held-out digits, after so many training steps of each loss."""
    digits = data.load("digits")
    x0, labels = images.to_float(digits.images[-JUDGED:]), digits.labels[-JUDGED:]
    rows = []
    for loss in ("simple", "hybrid", "vlb"):
        run = learned(loss, steps, digits)
        for variance in [fixed_small, fixed_large] if loss == "simple" else [None]:
            name = variance.__name__.replace("_", " ") if variance else "learned"
            cells = [f"L_{loss}", name]
            for n in CHAINS:
                times = trailing(run.schedule, n)
                with one_blas_thread():
                    found = vlb(knowing(run, labels), x0, run.schedule, timesteps=times,
                                variance=variance or fixed_small)
                cells.append(f"{found.total.mean():.3f} ± {found.total.std() / JUDGED**0.5:.3f}")
                if n == run.schedule.T:
                    error = f"{found.mse.mean():.4f}"
            rows.append(f"| {' | '.join([*cells, error])} |")
            print(rows[-1], flush=True)
    T = CHAINS[0]
    return "\n".join([
        "| loss | variance | " + " | ".join(f"{n:,} steps" for n in CHAINS)
        + " | error of x0 |", "|---|---|" + "---:|" * (len(CHAINS) + 1), *rows, f"""
Bits/dim of {JUDGED} digits that were not learned from, ± one standard error: the bound on
−log₂ p(x0), smaller is better, of the chain of {T:,} steps and of respaced ones. *Error of x0*: its
mean square, over all t of the long chain. The network of the recipe `demo`, on the
cosine schedule, after {steps:,} steps of each loss on {LEARNED:,} packaged digits, from the same
start. {in_words(machine())}:
`python benchmarks/theory_page.py --only bits`."""])


def optimum(steps):
    """The table, and a plot, of the shipped network's loss beside the least possible."""
    run, learned_from, others = load_run("mnist"), data.load("mnist", "train"), data.load("digits")
    rng, found = np.random.default_rng(0), []
    for label in range(10):                               # a caption names it: so may the ideal
        known, new = (images.to_float(rng.permutation(d.images[d.labels == label]))
                      for d in (learned_from, others))
        ideal = Mixture(known).predictor(run.schedule)
        each = np.full(JUDGED // 10, label)
        told = knowing(run, each)
        with one_blas_thread():
            ours, least = loss_gap(told, ideal, known[:len(each)], run.schedule, TIMES)
            unseen, _ = loss_gap(told, ideal, new[:len(each)], run.schedule, TIMES)
        found.append([least, ours, unseen, linear(known, run.schedule)])
    columns = np.mean(found, 0)                           # (4, K): the mean over the digits
    names = ("least possible", "digits it learned from", "other digits", "best linear")
    write_atomically(DOCS / "optimal-loss.png", viz.png(viz.curves(
        TIMES, {name: line.clip(1e-5) for name, line in zip(names, columns, strict=True)},
        xlabel="t", ylabel="mean squared error of eps", log=True)))
    return "\n".join([
        f"| t | {' | '.join(names)} |", "|---:|" + "---:|" * len(names),
        *(f"| {t} | " + " | ".join(f"{loss:.2g}" for loss in row) + " |"
          for t, row in zip(TIMES, columns.T, strict=True)), f"""
![the columns over t, from 0.00001 up](optimal-loss.png)

The mean squared error of eps at each t: of the exact predictor of MNIST's 60,000 digits on
{JUDGED} of them, which no predictor can beat there; of the shipped `mnist` on the same digits and
on {JUDGED} others; and the least that a linear predictor can have. Each is told which
digit it looks at. {in_words(machine())}:
`python benchmarks/theory_page.py --only optimum`."""])


def linear(x0, schedule):
    """The loss of the best linear predictor of eps at each of TIMES, from the data's covariance."""
    spectrum = np.linalg.eigvalsh(np.cov(x0.reshape(len(x0), -1).T)).clip(0)
    shares = [(a * a * spectrum, b * b) for a, b in map(schedule.levels, TIMES)]
    return [np.mean(signal / (signal + noise)) for signal, noise in shares]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("bits", "optimum"), help="just one of the tables")
    parser.add_argument("--steps", type=int, default=1500, help="of training, for the first (1500)")
    options = parser.parse_args()
    for name, table in (("bits", bits), ("optimum", optimum)):
        if options.only in (None, name):
            text = table(options.steps)
            print(text)
            if not replace_block(DOCS / "theory.md", name, text):
                raise SystemExit(f"docs/theory.md has no block {name}")


if __name__ == "__main__":
    main()
