"""What tests of the stories share: a recipe of a second, a few digits, a fresh process."""

import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from tinydiff import data
from tinydiff.autograd import no_grad
from tinydiff.recipe import Recipe
from tinydiff.train import Training

TINY = """
[text]
length = 20
width = 16
depth = 1
heads = 2

[model]
base = 8
mults = [1, 2]
groups = 4
patch = 4
predicts = "v"

[diffusion]
T = 50

[train]
steps = 20
batch = 8
warmup = 5
save_every = 7

[sample]
steps = 4
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}


def tiny(**tables):
    """The recipe above with other values, as in tiny(train={"lr": 0.1})."""
    return Recipe.parse(TINY).change(tables)


@cache
def few_digits(n=64):
    """The middle 8 × 8 pixels of the first n digits."""
    digits = data.load("digits")
    return data.DataSet(digits.images[:n, 10:18, 10:18], digits.labels[:n], digits.classes, "here")


def in_training(**tables):
    """A Training of the tiny recipe on few digits."""
    return Training(tiny(**tables), few_digits())


def randomised(model, seed=1):
    """The model with weights that all matter, those that start at zero as well."""
    rng = np.random.default_rng(seed)
    for p in model.parameters().values():
        p.data[...] += 0.2 * rng.standard_normal(p.shape)
    return model


def assert_gradients(loss, parameters, rng):
    """Each parameter's gradient is the slope of loss() by central differences."""
    for name, p in parameters.items():
        direction = rng.standard_normal(p.shape)
        here, ends = p.data.copy(), []
        for eps in (1e-6, -1e-6):
            p.data = here + eps * direction
            with no_grad():
                ends.append(loss().item())
        p.data = here
        slope = (ends[0] - ends[1]) / 2e-6
        assert (p.grad * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-9), name


def tinydiff(*words, **variables):
    """Start `python -m tinydiff` with these words in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "tinydiff", *map(str, words)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                            env=ENVIRONMENT | variables)


def finished(process):
    """(exit code, stdout, stderr) of a process once it has ended."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def answer(code, *words, threads):
    """What `code` prints in a process of its own, held to so many threads."""
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, text=True,
                          stdout=subprocess.PIPE,
                          env=ENVIRONMENT | dict.fromkeys(pools, str(threads))).stdout
