"""How true `tinydiff estimate` is: what it says of a recipe beside what a real training takes.

    python benchmarks/estimate_check.py demo mnist cifar10 digits-sd --rounds 3

Estimate and training take turns, so that other work on the machine strikes both. A training runs
for about --seconds a stage, at least 20 steps; its minutes are those of all steps at that pace, as
its own metrics.csv counts them, saves included. Prints JSON and replaces the `estimate` block in
docs/recipes.md.

    minutes        of the whole recipe, said and measured: medians of the rounds
    peak_rss_mb    the most memory the process held at any moment, 10⁶ bytes
    ratio          said / measured: the median of the rounds' own
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from machine import in_words, machine
from pages import replace_block

ROOT = Path(__file__).resolve().parents[1]
UNIT = 1 if sys.platform == "darwin" else 1024            # bytes in one of ru_maxrss
LOGS = {"autoencoder": "autoencoder.csv", "diffusion": "metrics.csv"}
COST = ("minutes", "peak_rss_mb")


def said(recipe):
    """What `tinydiff estimate` answers."""
    return json.loads(subprocess.check_output(
        [sys.executable, "-m", "tinydiff", "estimate", recipe, "--json"]))


def measured(recipe, stages, seconds):
    """{minutes, peak_rss_mb} of a training that is cut short; what it prints goes to stderr."""
    steps = {row["stage"]: min(row["steps"], max(20, round(
        seconds * row["steps"] / (60 * row["minutes"])))) for row in stages}
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", recipe, "--out", folder, "--stop-at", str(steps["diffusion"]),
                 f"--set=train.sample_every={steps['diffusion']}"]
        if "autoencoder" in steps:
            words.append(f"--set=autoencoder.steps={steps['autoencoder']}")
        process = subprocess.Popen([sys.executable, "-m", "tinydiff", *words], stdout=sys.stderr)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"training {recipe} failed with status {os.waitstatus_to_exitcode(status)}")
        minutes = sum(row["steps"] / steps[row["stage"]] * last(Path(folder) / LOGS[row["stage"]])
                      for row in stages) / 60
    return {"minutes": minutes, "peak_rss_mb": usage.ru_maxrss * UNIT / 1e6}


def last(log):
    """Seconds up to the last row of a log."""
    with open(log, encoding="utf-8", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["seconds"])


def compare(rounds):
    """[(said, measured), …] -> {minutes: {said, measured, ratio}, peak_rss_mb: the same}"""
    return {key: {"said": median(s[key] for s, _ in rounds),
                  "measured": median(m[key] for _, m in rounds),
                  "ratio": median(s[key] / m[key] for s, m in rounds),
                  "ratios": [round(s[key] / m[key], 3) for s, m in rounds]} for key in COST}


def table(results, threads, rounds):
    rows = []
    for recipe, found in results.items():
        time, held = (found[key] for key in COST)
        rows.append(f"| `{recipe}` | {time['said']:.1f} | {time['measured']:.1f} "
                    f"| {time['ratio']:.2f} | {held['said']:.0f} | {held['measured']:.0f} "
                    f"| {held['ratio']:.2f} |")
    return "\n".join([
        "| recipe | minutes said | measured | ratio | MB said | measured | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|", *rows, f"""
Medians of {rounds} rounds, estimate and a part of the training in turn, {threads} threads.
{in_words(machine())}: `python benchmarks/estimate_check.py {' '.join(results)}`."""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="of training, a stage (60)")
    args = parser.parse_args()
    rounds = {recipe: [] for recipe in args.recipes}
    for _ in range(args.rounds):
        for recipe, pairs in rounds.items():
            told = said(recipe)
            pairs.append((told, measured(recipe, told["stages"], args.seconds)))
            print(recipe, compare(pairs[-1:]), file=sys.stderr)
    results = {recipe: compare(pairs) for recipe, pairs in rounds.items()}
    threads = os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    print(json.dumps({"machine": machine(), "threads": int(threads), "recipes": results}))
    replace_block(ROOT / "docs" / "recipes.md", "estimate", table(results, threads, args.rounds))


if __name__ == "__main__":
    main()
