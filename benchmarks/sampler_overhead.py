"""The samplers side by side: how they converge, how often they ask, and what they cost themselves.

    python benchmarks/sampler_overhead.py --threads 4

*Order*: the slope of the error against the exact curves of three Gaussians on a line, from 128 to
512 steps, Karras-spaced from σ = 80 down to t = 1. *Cost*: pictures (16, 28, 28, 1), float32, 50
steps of the cosine schedule (flow for its own samplers); the network is the U-Net `mnist-small` of
cpu_step.py, asked for the same batch. A sampler is timed with a predictor that answers at once; the
share is its time per step over that of one answer of the network, medians, taken in turn so that a
slow minute hurts both. The target is at most 3 %. Prints
one line of JSON and writes the table into docs/theory.md.
"""

import argparse
import json
import os
from pathlib import Path
from statistics import median
from time import perf_counter

from demo_time import POOLS

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threads", default="4", help="threads of the network and of NumPy")
parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each")
given = parser.parse_args()
os.environ.update(dict.fromkeys(POOLS, given.threads))    # read when NumPy is imported

import numpy as np  # noqa: E402
from cpu_step import CONFIGS  # noqa: E402
from machine import in_words, machine  # noqa: E402
from pages import replace_block  # noqa: E402

from tinydiff.diffusion import Mixture, Prediction, Schedule, karras, trace  # noqa: E402
from tinydiff.models import UNet  # noqa: E402
from tinydiff.recipe import SAMPLERS  # noqa: E402

PAGE = Path(__file__).resolve().parents[1] / "docs" / "theory.md"
SHAPE, STEPS = (16, 28, 28, 1), 50
LAW = Mixture(np.array([[-1.0], [0.2], [1.5]]), 0.5, [0.5, 0.2, 0.3])
DRAWS = {"ddpm", "euler_ancestral", "edm", "dpmpp_2m_sde", "lcm"}          # noise on their way


def seconds(work, *args):
    start = perf_counter()
    work(*args)
    return perf_counter() - start


def schedule_of(name):
    return Schedule.flow() if name.startswith("flow") else Schedule.cosine()


def walk(name, x_T):
    """Run a sampler to its end with a predictor that costs nothing."""
    own = {"churn": 20.0} if name == "edm" else {}        # without it, edm is heun
    for _ in SAMPLERS[name](lambda x_t, t: Prediction(x_t, x_t), x_T, schedule_of(name),
                            steps=STEPS, **own):
        pass


def calls(name):
    """How often a sampler asks in STEPS steps to t = 0."""
    schedule = schedule_of(name)
    asked = trace(lambda x_t, t: Prediction(x_t, x_t))
    *_, _ = SAMPLERS[name](asked, np.zeros((1, 1)), schedule, timesteps=karras(schedule, STEPS))
    return len(asked.predictions)


def order(name):
    """The measured order of a sampler that solves the ODE."""
    schedule, errors = schedule_of(name), []
    for n in (128, 512):
        times = karras(schedule, n + 1)[:-1]              # down to t = 1
        x_T = np.linspace(-2, 2, 9)[:, None] * schedule.noise(times[0])
        *_, x = SAMPLERS[name](LAW.predictor(schedule), x_T, schedule, timesteps=times)
        errors.append(np.abs(x - LAW.flow(x_T, times[0], times[-1], schedule)).mean())
    return float(np.log(errors[0] / errors[1]) / np.log(4))


def table(result):
    rows = [f"| `{name}` | {calls(name)} | "
            f"{'draws noise' if name in DRAWS else f'{order(name):.2f}'} | "
            f"{result['sampler_ms'][name]:.2f} ms | {result['share_percent'][name]:.1f} % |"
            for name in SAMPLERS]
    on = result["machine"]
    return "\n".join([
        f"| sampler | calls in {STEPS} steps | order | own time a step | of the network's |",
        "|---|---:|---:|---:|---:|", *rows, f"""
*Order*: the slope of the error against the exact curves of three Gaussians on a line, from 128 to
512 steps, Karras-spaced from σ = 80 to t = 1. *Own time*: of 16 pictures of 28 × 28, without the
network (`edm` with a churn of 20), which is the U-Net `mnist-small` with
{result['network_ms']:.0f} ms a call, on {result['threads']} threads.
{in_words(on)}:
`python benchmarks/sampler_overhead.py --threads {result['threads']}`."""])


def main():
    unet = UNet(CONFIGS["mnist-small"][0], rng=np.random.default_rng(0))
    x_T = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    t = np.full(len(x_T), 500, np.float32)
    unet.predict(x_T, t)                                  # compile
    times, network = {name: [] for name in SAMPLERS}, []
    for _ in range(given.rounds):
        network += [seconds(unet.predict, x_T, t) for _ in range(5)]
        for name in SAMPLERS:
            times[name].append(seconds(walk, name, x_T) / STEPS)
    step = median(network)
    result = {"benchmark": "sampler overhead", "shape": SHAPE, "threads": given.threads,
              "network_ms": round(1e3 * step, 2),
              "sampler_ms": {k: round(1e3 * median(v), 3) for k, v in times.items()},
              "share_percent": {k: round(100 * median(v) / step, 2) for k, v in times.items()},
              "machine": machine()}
    print(json.dumps(result))
    if not replace_block(PAGE, "samplers", table(result)):
        raise SystemExit("docs/theory.md has no block samplers")


if __name__ == "__main__":
    main()
