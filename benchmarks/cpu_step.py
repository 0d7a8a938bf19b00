"""What one training step and one sampling step cost on the CPU: milliseconds, and peak memory.

    python benchmarks/cpu_step.py --config mnist-small --threads 4 --vs torch

A training step is forward, mean squared error on eps, backward and AdamW on one whole batch, a
sampling step one prediction for the same batch without a graph. float32, no text, no dropout.

    --vs torch     the same network in eager PyTorch, in both its memory formats, on the same
                   inputs. Every racer lives in a process of its own; one works, the others wait,
                   turn about, so that a slow minute of the machine hurts all alike
    --json         the last line is a JSON object. Without --vs: step_ms and sample_step_ms,
                   medians, and peak_rss_mb, the most the process ever held

Steps to warm up, in which kernels compile, are not counted. Memory is that of the whole process in
10⁶ bytes; the table shows it as it was after the training steps. OMP_WAIT_POLICY is left as it is:
on a quiet machine PyTorch is fastest without it, on a busy one with "passive".
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from importlib import metadata, util
from statistics import median
from time import perf_counter, sleep

import numpy as np
from demo_time import POOLS, UNIT
from machine import machine

from tinydiff.autograd import mse
from tinydiff.models import UNet, UNetConfig
from tinydiff.optim import AdamW, Flat
from tinydiff.parallel import cores

CONFIGS = {                                               # the network, and pictures in a batch
    "mnist-small": (UNetConfig(channels=1, base=32, mults=(1, 2, 2), blocks=2, attend=(2,)), 64),
    "cifar-ddpm":  (UNetConfig.ddpm_cifar10(), 16),
}
OURS, TORCH = "ours", ("torch NCHW", "torch channels_last")
PHASES = {"train": "step_ms", "sample": "sample_step_ms"}
WARM_UP = 2                         # steps of each kind before the first that is timed
PAUSE = 0.05                        # seconds between turns: threads that still spin go to sleep
WAIT = os.environ.get("OMP_WAIT_POLICY", "default")       # what OpenMP's threads do between tasks
LR, DECAY = 2e-4, 0.01


class Ours:
    """A training step and a sampling step in tinydiff, on arrays (N, H, W, C)."""

    def __init__(self, config, x_t, t, eps, *, lr, decay):
        self.x_t, self.t, self.eps = x_t, t, eps
        self.unet = UNet(config, rng=np.random.default_rng(0))
        self.parameters = self.unet.count()
        self.optimizer = AdamW(Flat(self.unet.parameters()), decay=decay)
        self.lr, self.steps = lr, 0

    def train(self):
        loss = mse(self.unet(self.x_t, self.t), self.eps)
        loss.backward()
        self.steps += 1
        self.optimizer.step(self.lr, self.steps)
        return loss.item()

    def sample(self):
        return self.unet.predict(self.x_t, self.t)


def inputs(config, batch, size):
    """The same for everyone: x_t and eps (N, H, W, C), t (N,)"""
    rng = np.random.default_rng(0)
    x_t, eps = rng.standard_normal((2, batch, size, size, config.channels), dtype=np.float32)
    return x_t, rng.integers(1, 1001, batch).astype(np.float32), eps


def work(name, network, batch, size, threads):
    """Life as a racer: do what each word on stdin says, answer with one line on stdout."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)                                         # all else that is printed goes to stderr
    config = UNetConfig(**network)
    given = dict(zip(("x_t", "t", "eps"), inputs(config, batch, size)), lr=LR, decay=DECAY)
    if name == OURS:
        racer = Ours(config, **given)
    else:
        from torch_unet import LAYOUTS, Torch
        racer = Torch(config, **given, layout=LAYOUTS[name], threads=threads)
    print(racer.parameters, file=answers)
    for line in sys.stdin:
        word = line.strip()
        print(peak() if word == "peak" else seconds(getattr(racer, word)), file=answers)


def seconds(step):
    start = perf_counter()
    result = step()
    elapsed = perf_counter() - start
    assert np.isfinite(result).all(), "a number was lost"
    return elapsed


def peak():
    """The most memory this process has held so far, in 10⁶ bytes."""
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT / 1e6


class Racer:
    """A process that works when asked and sleeps in between."""

    def __init__(self, name, processes, job, threads):
        self.name = name
        self.process = processes.enter_context(subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps({"name": name, **job})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | dict.fromkeys(POOLS, str(threads))))
        self.parameters = self.answer()

    def ask(self, word):
        """Seconds for "train" or "sample", 10⁶ bytes for "peak"."""
        sleep(PAUSE)
        with suppress(BrokenPipeError):                   # nobody there: answer() says so
            os.write(self.process.stdin.fileno(), f"{word}\n".encode())
        return self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with status {self.process.wait()} in the middle of it")
        return float(line)


def race(names, phases, job, steps):
    """{name: what was measured}, one process at a time at work."""
    with ExitStack() as processes:
        racers = [Racer(name, processes, job, job["threads"]) for name in names]
        runs = {racer.name: {"parameters": int(racer.parameters)} for racer in racers}
        assert len({racer.parameters for racer in racers}) == 1, runs
        for phase in phases:
            for racer in racers:
                for _ in range(WARM_UP):
                    racer.ask(phase)
            rounds = [[1000 * racer.ask(phase) for racer in racers] for _ in range(steps)]
            for racer, column in zip(racers, zip(*rounds)):
                runs[racer.name][PHASES[phase]] = list(column)
                runs[racer.name][f"{phase}_peak_mb"] = racer.ask("peak")
        return runs


def compare(runs):
    """Ours over the better layout of PyTorch: {measure: {over, ratio, by_round}}.

    ratio: of medians; by_round: the median of the ratios within each round.
    """
    found = {}
    for key in (*PHASES.values(), "train_peak_mb", "sample_peak_mb"):
        if key in runs[OURS]:
            column = {name: np.atleast_1d(run[key]) for name, run in runs.items()}
            better = min(TORCH, key=lambda name: median(column[name]))
            found[key] = {"over": better, "ratio": median(column[OURS]) / median(column[better]),
                          "by_round": median(column[OURS] / column[better])}
    return found


def table(runs, phases, ratios):
    """Lines to read: a row for each racer, and one that compares."""
    rows = [["", *(f"{phase} ms" for phase in phases), "peak MB"]]
    for name, run in runs.items():
        times = [run[PHASES[phase]] for phase in phases]
        rows.append([name, *(f"{median(t):.1f} ({min(t):.1f} – {max(t):.1f})" for t in times),
                     f"{run[f'{phases[0]}_peak_mb']:.0f}"])
    if ratios:
        found = [ratios[key] for key in (*map(PHASES.get, phases), f"{phases[0]}_peak_mb")]
        rows.append(["ours / better torch", *(f"{r['ratio']:.3f}" for r in found)])
        rows.append(["median of rounds", *(f"{r['by_round']:.3f}" for r in found[:-1]), ""])
        rows.append(["better torch", *(r["over"].removeprefix("torch ") for r in found)])
    return "\n".join(f"{row[0]:20}" + "".join(f"{cell:>28}" for cell in row[1:-1])
                     + f"{row[-1]:>15}" for row in rows)


def record(runs, ratios, **what):
    """Everything, for --json: times as median, min and max."""
    def short(value):
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return {f.__name__: round(f(value), 2) for f in (median, min, max)}
        return round(value, 4) if isinstance(value, float) else value

    return {"benchmark": "cpu step", **what, "omp_wait_policy": WAIT, "runs": short(runs),
            "ratios": short(ratios), "machine": machine() | {"torch": metadata.version("torch")}}


def options():
    """What was asked for, or exit 2 with one sentence that says what is wrong."""
    def number(text):
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
        return int(text)

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"{message}\n")
    parser.add_argument("--config", choices=CONFIGS, default="mnist-small")
    parser.add_argument("--threads", type=number, default=cores(),
                        help="default: OMP_NUM_THREADS where set, else all cores")
    parser.add_argument("--vs", choices=["torch"], help="race against PyTorch's two layouts")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--batch", type=number, help="pictures in a batch")
    parser.add_argument("--steps", type=number, default=10, help="timed steps of each kind")
    parser.add_argument("--size", type=number, default=32, help="height and width in pixels")
    parser.add_argument("--base", type=number, help="channels at full resolution")
    parser.add_argument("--only", choices=PHASES, help="one of the two kinds of step")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.vs and util.find_spec("torch") is None:
        parser.error("--vs torch needs PyTorch; install it with pip install torch")
    network, batch = CONFIGS[given.config]
    try:
        given.network = replace(network, base=given.base or network.base)
    except ValueError as error:
        parser.error(f"--base: {error}")
    given.batch = given.batch or batch
    return given


def main():
    given = options()
    if given.worker:
        return work(**given.worker)
    job = {"network": asdict(given.network), "batch": given.batch, "size": given.size,
           "threads": given.threads}
    phases = [given.only] if given.only else list(PHASES)
    runs = race([OURS, *TORCH] if given.vs else [OURS], phases, job, given.steps)
    ratios = compare(runs) if given.vs else {}
    print(f"{given.config}: {runs[OURS]['parameters']:,} parameters, batch {given.batch}, "
          f"{given.size} × {given.size} × {given.network.channels}, threads {given.threads}, "
          f"OMP_WAIT_POLICY={WAIT}; median (min – max) of {given.steps} steps")
    print(table(runs, phases, ratios))
    if given.json and given.vs:
        print(json.dumps(record(runs, ratios, config=given.config, **job, steps=given.steps)))
    elif given.json:
        own = runs[OURS]
        print(json.dumps({PHASES[phase]: round(median(own[PHASES[phase]]), 2) for phase in phases}
                         | {"peak_rss_mb": round(own[f"{phases[-1]}_peak_mb"], 1)}))


if __name__ == "__main__":
    main()
