"""What the demo costs: seconds, of them training and drawing, and peak memory.

    python benchmarks/demo_time.py --threads 2

Runs `tinydiff demo` in a process of its own, its BLAS held to --threads (all cores if left out).

    seconds        from start to end, the start of Python included
    train_s        what metrics.csv counts up to the last step
    sample_s       from the finished checkpoint to the last file: grid, film, page
    peak_rss_mb    the most memory the process held at any moment, 10⁶ bytes
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from machine import machine

POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
UNIT = 1 if sys.platform == "darwin" else 1024            # bytes in one of ru_maxrss


def run_demo(folder, threads):
    """Seconds that the demo takes; what it prints goes to stderr."""
    start = perf_counter()
    subprocess.run([sys.executable, "-m", "tinydiff", "demo", "--out", str(folder)], check=True,
                   stdout=sys.stderr, env=os.environ | dict.fromkeys(POOLS, str(threads)))
    return perf_counter() - start


def train_seconds(folder):
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["seconds"])


def sample_seconds(folder):
    last = max(path.stat().st_mtime for path in folder.rglob("*") if path.is_file())
    return last - (folder / "checkpoint.safetensors").stat().st_mtime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="BLAS threads at most")
    threads = parser.parse_args().threads
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "demo"
        seconds = run_demo(folder, threads)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * UNIT
        print(json.dumps({"benchmark": "demo time", "threads": threads,
                          "seconds": round(seconds, 1),
                          "train_s": round(train_seconds(folder), 1),
                          "sample_s": round(sample_seconds(folder), 1),
                          "peak_rss_mb": round(peak / 1e6), "machine": machine()},
                         ensure_ascii=False))


if __name__ == "__main__":
    main()
