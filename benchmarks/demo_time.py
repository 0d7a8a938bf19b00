"""What the demo costs: seconds, of them training and drawing, and peak memory.

    python benchmarks/demo_time.py --threads 2 4

Runs `tinydiff demo` in a process of its own for each number of threads, prints one JSON line and
replaces the `demo-time` block of README.

    seconds        from start to end, the start of Python included
    train_s        what metrics.csv counts up to the last step
    sample_s       from the finished checkpoint to the last file: grid, film, page
    peak_rss_mb    the most memory the process held at any moment, 10⁶ bytes
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from machine import machine
from pages import replace_block

ROOT = Path(__file__).resolve().parents[1]
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
UNIT = 1 if sys.platform == "darwin" else 1024            # bytes in one of ru_maxrss


def run_demo(folder, threads):
    """(seconds, peak bytes) of one demo; what it prints goes to stderr."""
    start = perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tinydiff", "demo", "--out", str(folder)],
                               stdout=sys.stderr,
                               env=os.environ | dict.fromkeys(POOLS, str(threads)))
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the demo failed with status {os.waitstatus_to_exitcode(status)}")
    return perf_counter() - start, usage.ru_maxrss * UNIT


def measure(threads):
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "demo"
        seconds, peak = run_demo(folder, threads)
        return {"threads": threads, "seconds": round(seconds, 1),
                "train_s": round(train_seconds(folder), 1),
                "sample_s": round(sample_seconds(folder), 1), "peak_rss_mb": round(peak / 1e6)}


def train_seconds(folder):
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["seconds"])


def sample_seconds(folder):
    last = max(path.stat().st_mtime for path in folder.rglob("*") if path.is_file())
    return last - (folder / "checkpoint.safetensors").stat().st_mtime


def table(result):
    """The block for README."""
    on = result["machine"]
    rows = [f"| {r['threads']} | {r['train_s']:.0f} s | {r['sample_s']:.0f} s "
            f"| {r['seconds']:.0f} s | {r['peak_rss_mb']} MB |" for r in result["runs"]]
    return "\n".join(["| threads | training | drawing | in all | peak memory |",
                      "|---:|---:|---:|---:|---:|", *rows, f"""
Measured {on['date']} on {on['cpu']} with {on['cores']} cores, Python {on['python']} and NumPy
{on['numpy']}: `python benchmarks/demo_time.py --threads 2 4`."""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count()],
                        help="threads at most, one demo for each")
    parser.add_argument("--page", default=ROOT / "README.md", help="where the table goes")
    options = parser.parse_args()
    result = {"benchmark": "demo time", "machine": machine(),
              "runs": [measure(threads) for threads in options.threads]}
    print(json.dumps(result, ensure_ascii=False))
    replace_block(options.page, "demo-time", table(result))


if __name__ == "__main__":
    main()
