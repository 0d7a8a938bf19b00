"""What training a recipe costs on this machine: FLOPs are counted, time and memory tried out.

Each stage takes real steps for ten seconds: with the recipe's batch or, where that takes too long
or too much memory, with fewer pictures, and from there on along a straight line.
"""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import count
from math import inf, prod
from pathlib import Path
from statistics import fmean
from time import perf_counter

import numpy as np

from tinydiff import data
from tinydiff.autoencoding import AutoencoderTraining
from tinydiff.autograd import Tensor
from tinydiff.autograd.blame import producers_first
from tinydiff.models import TextEncoder, UNet, autoencoder_for
from tinydiff.recipe import Recipe
from tinydiff.train import Training

TABLES   = {"autoencoder": "autoencoder", "diffusion": "train"}       # of the recipe, for a stage
WEIGHTS  = {"conv2d": 1, "linear": 1, "matmul": 1, "in_one_pass": 3}  # which argument of the op
PATIENCE = 60                                             # seconds to load, compile and begin


def cost_of(recipe, seconds=10.0):
    """{parameters, flops_per_step, minutes, peak_rss_mb, stages: [the same of each, and steps]}

    Raises ValueError if the machine is too small to try, or a stage fails.
    """
    size = sum(network.count() for network in (           # of zeros, which take no memory
        UNet(replace(recipe.model, context_width=recipe.text.width), rng=Zeros),
        TextEncoder(recipe.text, rng=Zeros)))
    if 20 * size > memory() / 2:                          # weights, gradient, m, v, running mean
        raise ValueError(f"estimate: {size:,} parameters take {20 * size / 1e9:.0f} GB to train, "
                         f"over half of this machine's {memory() / 1e9:.0f}; take a smaller model")
    rows = []
    for stage, table in TABLES.items():
        if (plan := getattr(recipe, table)).steps:
            parameters, flops, loaded, points = ask(recipe, stage, seconds)
            took, held = (straight(points, i, plan.batch) for i in (1, 2))
            rows.append({"stage": stage, "parameters": parameters,
                         "flops_per_step": flops * plan.batch, "steps": plan.steps,
                         "minutes": plan.steps * took / 60, "peak_rss_mb": max(loaded, held) / 1e6})
    total = {key: sum(row[key] for row in rows)
             for key in ("parameters", "flops_per_step", "minutes")}
    return {**total, "peak_rss_mb": max(row["peak_rss_mb"] for row in rows), "stages": rows}


def in_words(found):
    """An estimate as a table with a line a stage, and the beginning of a sentence."""
    row = "{stage:<12}{parameters:>12,}{flops_per_step:>15.3g}{steps:>10,}{minutes:>10.1f}"
    time = f"{found['minutes']:.3g} minutes" if (minutes := found["minutes"]) < 120 else (
        f"{minutes / 60:,.1f} hours")
    return "\n".join([
        "stage         parameters   FLOPs a step     steps   minutes  peak memory",
        *(f"{row}{{peak_rss_mb:>10.0f}} MB".format(**stage) for stage in found["stages"]),
        f"about {time} and {found['peak_rss_mb'] / 1e3:.2g} GB on this machine"])


class Zeros:
    """A generator of random numbers that are all the same zero."""

    uniform = normal = staticmethod(lambda low, high, shape: np.broadcast_to(np.float32(0), shape))


def straight(points, i, n):
    """Column i of the points at n in column 0, along the line through the last two, if it rises."""
    a, b = [point for point in points if point[0] != points[-1][0]][-1], points[-1]
    return b[i] + (n - b[0]) * max(0, (b[i] - a[i]) / (b[0] - a[0]))


def ask(recipe, stage, seconds):
    """What `answer` prints in a process of its own, whose peak of memory is its alone."""
    code = ("from tinydiff.evaluation.estimate import answer\n"
            f"answer({recipe.toml()!r}, {stage!r}, {seconds})")
    try:
        child = subprocess.run(
            [sys.executable, "-X", "utf8", "-c", code], capture_output=True, encoding="utf-8",
            timeout=PATIENCE + seconds, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        return json.loads(child.stdout)
    except subprocess.TimeoutExpired:
        words = f"no end in {PATIENCE + seconds:.0f} s; take a smaller model"
    except json.JSONDecodeError:
        words = (child.stderr.strip().rpartition("\n")[2].partition(": ")[2]
                 or "the system ended it, for want of memory it seems; take a smaller model")
    raise ValueError(f"estimate: trying the {stage} stage: {words}")


def answer(text, stage, seconds):
    """Print [parameters, FLOPs a picture, bytes once loaded, [(pictures, seconds, bytes), …]]."""
    recipe, table = Recipe.parse(text), TABLES[stage]
    dataset, first = pictures(recipe.data), None
    if recipe.autoencoder.steps and stage != "autoencoder":       # untrained, it takes as long
        first = autoencoder_for(recipe.autoencoder.config(dataset.shape[-1]),
                                rng=np.random.default_rng(0))
    training = (AutoencoderTraining(recipe, dataset) if stage == "autoencoder" else
                Training(recipe, dataset, first))
    loaded = peak()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")     # from here on the peak of what follows

    turns, plan = count(), getattr(recipe, table)

    def step(n):                                          # of n pictures
        now = {"batch": n, "lr": 1e-4}                    # tame; less makes denormals, and slow
        if stage == "autoencoder":                        # contested as often as in the plan
            late = plan.adversarial_from / plan.steps > (0.999 + 0.618 * next(turns)) % 1
            now["adversarial_from"] = int(1e9 * late)
        training.recipe = recipe.change({table: now})
        training.plan = getattr(training.recipe, table)
        started = perf_counter()
        training.step()
        return perf_counter() - started, peak()

    flops = 3 * played_back(lambda: step(1))              # backward: as much for x, and for w
    if first:
        flops += flops_behind(first.moments(np.zeros((1, *dataset.shape), np.float32))[0])
    print(json.dumps([training.model.count(), flops, loaded, calibrate(step, plan.batch, seconds)]))


def pictures(table):
    """The data of a recipe; noise of the same size where it would have to be downloaded."""
    for row in data.available():
        if (row.name, row.split, row.place) == (table.name, table.split, data.DOWNLOAD):
            shape = (row.count, *((32, 32, 3) if table.name == "cifar10" else (28, 28, 1)))
            return data.DataSet(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8),
                                np.arange(row.count) % 10, data.CLASSES[row.name], "", row.name)
    return data.load(table.name, table.split, table.size)


def calibrate(step, batch, seconds):
    """[(n, seconds, bytes)]: the mean time of a step of n pictures, and the peak so far.

    step(n) -> (seconds, peak bytes). n is 1, 2 and `batch`, or as many as fit into `seconds` and
    half the memory, if that is more.
    """
    points = []
    for n, left in (1, seconds / 50), (2, seconds / 50), (batch, seconds):
        if len(points) == 2:
            (_, _, one), (_, took, two) = points
            room = 2 + (memory() / 2 - two) / (two - one + 1)         # pictures, as is the next:
            if (n := min(batch, int(min(room, seconds / took)))) < min(batch, 3):
                break                                     # n · took / 2, twice
        tries = [step(n)]                                 # the first of its size finds new memory
        while (left := left - tries[-1][0]) > 0:
            tries.append(step(n))
        points.append((n, fmean(took for took, _ in tries[1:] or tries), tries[-1][1]))
    return points


def played_back(step):
    """The FLOPs of going forward through all graphs that step() goes back through."""
    found, play = [], Tensor.backward
    Tensor.backward = lambda root, dy=None: play(root, found.append(flops_behind(root)) or dy)
    try:
        step()
    finally:
        Tensor.backward = play
    return sum(found)


def flops_behind(root):
    """Two for each multiplication in the convolutions, matrices and attentions behind a Tensor."""
    return 2 * sum(products(node) for node in producers_first(root) if node._vjp)


def products(node):
    op, args = node._vjp.__qualname__.partition(".")[0], node._parents
    if op == "attention":                                 # q (…, L, d) kᵀ, and that times v
        (*_, d), (*_, M, e) = args[0].shape, args[2].shape
        return node.data.size // e * M * (d + e)
    if op not in WEIGHTS:
        return 0
    w = args[WEIGHTS[op]].shape                           # (K, K, C, O) or (…, C, O)
    return node.data.size * prod(w[-2:-1] if op == "matmul" else w[:-1])


def memory():
    """The bytes of this machine; no end of them where the system does not say."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if os.name == "posix" else inf


def peak():
    """The most bytes this process has held. On Linux ru_maxrss would begin with its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])
    from resource import RUSAGE_SELF, getrusage
    return getrusage(RUSAGE_SELF).ru_maxrss
