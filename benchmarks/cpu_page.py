"""The table of whole steps against PyTorch in README, for both networks on 1, 2 and 4 threads.

    python benchmarks/cpu_page.py --steps 10

Runs benchmarks/cpu_step.py once for each network and number of threads, one after the other, prints
what it said as one JSON line and replaces the `cpu-step` block of README.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from machine import machine
from pages import replace_block

ROOT = Path(__file__).resolve().parents[1]


def measure(config, threads, steps):
    """The record that cpu_step.py prints last."""
    out = subprocess.run([sys.executable, ROOT / "benchmarks" / "cpu_step.py", "--config", config,
                          "--threads", str(threads), "--vs", "torch", "--json",
                          "--steps", str(steps)], check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(out.stdout.splitlines()[-1])


def row(record):
    ours, ratios = record["runs"]["ours"], record["ratios"]
    cells = [f"{ours[key]['median']:.0f} ms | {ratios[key]['by_round']:.2f}"
             for key in ("step_ms", "sample_step_ms")]
    return (f"| {record['config']} | {record['threads']} | {' | '.join(cells)} "
            f"| {ours['train_peak_mb']:.0f} MB | {ratios['train_peak_mb']['ratio']:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each kind")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--page", default=ROOT / "README.md", help="where the table goes")
    options = parser.parse_args()
    records = [measure(config, threads, options.steps)
               for config in ("mnist-small", "cifar-ddpm") for threads in options.threads]
    print(json.dumps(records, ensure_ascii=False))
    on = machine()
    replace_block(options.page, "cpu-step", "\n".join([
        "| network | threads | training step | ÷ PyTorch | sampling step | ÷ PyTorch "
        "| peak memory | ÷ PyTorch |", "|---|---:|" + "---:|" * 6, *map(row, records), f"""
Medians of {options.steps} steps, and of their ratios, round by round, to the better of PyTorch
{records[0]['machine']['torch']} eager's two memory formats on the same threads, all in one run,
{on['date']}, {on['cpu']} with {on['cores']} cores, Python {on['python']}, NumPy {on['numpy']}:
`python benchmarks/cpu_page.py --steps {options.steps}`."""]))


if __name__ == "__main__":
    main()
