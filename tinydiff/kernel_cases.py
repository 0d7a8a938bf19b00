"""What `tinydiff kernels` tries a rung with: arrays of any shape, and a call of each function.

A call is a function of the rung and of arrays, which are drawn by the names of its arguments. It
may work in place, since every call gets copies.
"""

import re
import time
from collections.abc import Callable
from math import prod
from typing import NamedTuple

import numpy as np
from tinydiff_kernels.gpu.arrays import bfloat16

from tinydiff.backend import device_for, gpu, to_device, to_host, wait_for, why_no_gpu
from tinydiff.kernels import LADDERS, can_compile
from tinydiff.parallel import cores
from tinydiff.tables import nearest

SINGLE = {"b", "scale", "shift", "data", "grad", "m", "square", "ema"}   # float32 beside bf16, too
BF16_RUNGS = {"mma", "halo", "phase", "wgmma", "flash"}   # what else they are given goes down


class Case(NamedTuple):
    """How the functions of a ladder are called."""

    letters: str                 # of a shape, in the order in which it is typed
    small: tuple                 # a shape that is stepped through in seconds, with ragged edges
    whole: tuple                 # one of whole warps, to be traced
    large: tuple                 # one of a real network
    shapes: Callable             # sizes -> {array: shape}
    terms: Callable              # sizes -> multiplications of one product
    calls: dict                  # {functions: (products, call)}


def draw(case, sizes, dtype):
    """{name: array} of normal numbers of `dtype`, a NumPy type."""
    rng, arrays = np.random.default_rng(0), {}
    for name, shape in case.shapes(*sizes).items():
        numbers = rng.standard_normal(shape)
        numbers = abs(numbers) if name == "square" else numbers
        single = name in SINGLE and dtype.itemsize < 4
        arrays[name] = numbers.astype(np.float32 if single else dtype)
    return arrays


def retyped(arrays, dtype):
    return {name: a.astype(dtype) for name, a in arrays.items()}


def arguments(call, arrays):
    """Copies of the arrays that a call takes beside the rung."""
    names = call.__code__.co_varnames[1:call.__code__.co_argcount]
    return [arrays[name].copy() for name in names]


def flat(results):
    """The arrays of a result, whatever lists they stand in."""
    several = isinstance(results, (tuple, list))
    return [a for part in results for a in flat(part)] if several else [results]


def distance(got, exact):
    """‖got − exact‖ / ‖exact‖ of the worst array; infinite for NaN and for another shape."""
    worst = 0.0
    for y, right in zip(got, exact, strict=True):
        y = np.asarray(y, np.float64)
        if np.shape(right) != y.shape or not np.isfinite(y).all():
            return np.inf
        worst = max(worst, np.linalg.norm(y - right) / max(np.linalg.norm(right), 1e-30))
    return worst


def same(w):
    """The padding that keeps the size."""
    return tuple(((K - 1) // 2, K // 2) for K in w.shape[:2])


def attend(rung, q, k, v):
    return rung.forward(q, k, v, None, q.shape[-1] ** -0.5, None)


def attend_back(rung, dy, q, k, v):
    y, log_sum = attend(rung, q, k, v)
    return rung.backward(dy, q, k, v, None, q.shape[-1] ** -0.5, y, log_sum, None)


def norm_back(rung, dy, x, scale, shift, groups):
    mean, rstd = rung.measure([x], groups.size, 1e-5)
    return rung.backward([dy], [x], scale, shift, mean, rstd, True)


def adamw(rung, data, grad, m, square, ema):
    rung.step(data, grad, m, square, ema, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.01,
              decaying=data.size // 2, step=3, ema_decay=0.99, scale=0.5)
    return data, m, square, ema


CASES = {
    "attention": Case(
        "N h L M d", (1, 2, 5, 7, 16), (1, 1, 32, 32, 32), (16, 4, 256, 256, 64),
        lambda N, h, L, M, d: {"q": (N, h, L, d), "k": (N, h, M, d), "v": (N, h, M, d),
                               "dy": (N, h, L, d)},
        lambda *sizes: prod(sizes),
        {"forward": (2, attend), "forward, backward": (7, attend_back)}),
    "conv2d": Case(
        "N H W C O K", (1, 5, 6, 8, 8, 3), (1, 8, 8, 32, 32, 1), (16, 32, 32, 128, 128, 3),
        lambda N, H, W, C, O, K: {"x": (N, H, W, C), "w": (K, K, C, O), "b": (O,),
                                  "dy": (N, H, W, O)},
        lambda *sizes: prod(sizes) * sizes[-1],
        {"forward":     (1, lambda rung, x, w, b: rung.forward(x, w, 1, same(w), b)),
         "grad_input":  (1, lambda rung, dy, w: rung.grad_input(
             dy, w, (*dy.shape[:3], w.shape[2]), 1, same(w))),
         "grad_weight": (1, lambda rung, dy, x, w: rung.grad_weight(dy, x, w.shape, 1, same(w)))}),
    "matmul": Case(
        "P C O", (33, 20, 18), (32, 16, 32), (16384, 256, 256),
        lambda P, C, O: {"x": (P, C), "w": (C, O), "b": (O,), "add": (P, O), "dy": (P, O)},
        lambda *sizes: prod(sizes),
        {"forward":     (1, lambda rung, x, w, b, add: rung.forward(x, w, b, add)),
         "grad_input":  (1, lambda rung, dy, w: rung.grad_input(dy, w)),
         "grad_weight": (1, lambda rung, x, dy: rung.grad_weight(x, dy))}),
    "norm": Case(
        "N H W C groups", (2, 3, 5, 16, 4), (1, 4, 8, 32, 4), (64, 32, 32, 64, 8),
        lambda N, H, W, C, groups: {"x": (N, H, W, C), "dy": (N, H, W, C), "scale": (N, C),
                                    "shift": (N, C), "groups": (groups,)},
        lambda *sizes: prod(sizes[:4]),
        {"measure":   (0, lambda rung, x, groups: rung.measure([x], groups.size, 1e-5)),
         "normalize": (0, lambda rung, x, scale, shift: rung.normalize(x, scale, shift, True)),
         "measure, backward": (0, norm_back)}),
    "optimizer": Case(
        "n", (1000,), (1024,), (10_000_000,),
        lambda n: dict.fromkeys(("data", "grad", "m", "square", "ema"), (n,)),
        lambda n: n,
        {"step": (0, adamw), "norm": (0, lambda rung, grad: rung.norm(grad))}),
}


class Asked(NamedTuple):
    """A rung, and with what it is tried."""

    name:    str                                          # of the ladder
    idea:    str
    sizes:   tuple
    dtype:   object
    device:  str                                          # "cpu" or "cuda"
    stepped: bool                                         # a GPU's rung on the CPU

    @property
    def rung(self):
        return LADDERS[self.name].LADDER[self.idea]

    def __str__(self):
        place = (f"stepped through on the CPU: no GPU ({why_no_gpu() or '--device cpu'})"
                 if self.stepped else f"device: {where(self.device)}")
        return f"{place} · {'×'.join(map(str, self.sizes))}, {self.dtype.name}"


def ask(rung, shape=None, dtype=None, device="auto", size="small"):
    """What was typed about a rung, LADDER/IDEA.  ValueError for what cannot be."""
    name, _, idea = rung.partition("/")
    nearest(name, list(LADDERS), "ladder")
    ladder, case = LADDERS[name].LADDER, CASES[name]
    nearest(idea, list(ladder), f"rung of {name}")
    if idea in ladder.compiled and not can_compile():
        raise ValueError(f"{rung} needs Numba; pip install numba")
    if dtype == "bfloat16" and idea not in ladder.device:
        raise ValueError(f"--dtype bfloat16: {rung} runs on the CPU; take one of "
                         f"{', '.join(ladder.device)}")
    if device == "cuda" and idea in ladder.compiled:
        raise ValueError(f"--device cuda: {rung} runs on the CPU; take one of "
                         f"{', '.join(ladder.plain[-1:] + ladder.device)}")
    place = "cpu" if device == "auto" and idea not in ladder.device else device_for(device)
    dtype = dtype or ("bfloat16" if idea in BF16_RUNGS else "float32")
    return Asked(name, idea, sizes_of(shape, case) if shape else getattr(case, size),
                 bfloat16() if dtype == "bfloat16" else np.dtype(dtype), place,
                 idea in ladder.device and place == "cpu")


def sizes_of(shape, case):
    sizes = re.findall(r"\d+", shape) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) else ()
    letters = case.letters.split()
    if len(sizes) != len(letters):
        raise ValueError(f"--shape: expected {'x'.join(letters)}, as in "
                         f"{'x'.join(map(str, case.small))}, got {shape!r}")
    return tuple(map(int, sizes))


def where(device):
    return gpu() if device == "cuda" else f"cpu × {cores()}"


def timed(call, asked, arrays):
    """(seconds, results on the host) of a call; of its second, unless it is stepped through."""
    for _ in range(1 if asked.stepped else 2):
        given = [to_device(a, asked.device) for a in arguments(call, arrays)]
        wait_for(given[0])
        start = time.perf_counter()
        found = flat(call(asked.rung, *given))
        wait_for(given[0])
        seconds = time.perf_counter() - start
    return seconds, [to_host(a) for a in found]
