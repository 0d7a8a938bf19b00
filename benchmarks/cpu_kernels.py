"""What each operation costs on the CPU, rung by rung, and how far it is from the machine's limit.

    python benchmarks/cpu_kernels.py --threads 4 --vs torch

For every operation of a step, at the shapes at which the two benchmark networks use it: the
milliseconds of each rung, of PyTorch in the better of its two layouts (with --vs torch), all turn
about in one run; medians. Replaces the tables of kernels/README.md and draws docs/cpu-roofline.png:
how many FLOPs an operation does for each byte it must move, and how many a second it reaches.
"""

import argparse
import json
import os
import sys
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import NamedTuple

from demo_time import POOLS
from machine import machine
from pages import replace_block

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.01                        # seconds between turns: another library's threads stop spinning
BLAS = ("im2col", "blas", "plain", "numpy")


class Case(NamedTuple):
    """One operation at one shape: {rung: function to time}, and what it must do at least."""

    ladder: str
    name:   str
    shape:  str
    run:    dict
    gflop:  float
    mbytes: float


def conv_cases(ag, rng):
    """3 × 3 and other convolutions: forward, gradient of the input, gradient of the weights."""
    from tinydiff.kernels import LADDERS
    ladder = LADDERS["conv2d"].LADDER
    for N, H, C, O, K, stride in (
            (64, 32, 32, 32, 3, 1), (64, 32, 64, 32, 3, 1), (64, 16, 64, 64, 3, 1),
            (64, 8, 64, 64, 3, 1), (64, 14, 24, 48, 3, 1), (16, 32, 128, 128, 3, 1),
            (16, 16, 256, 256, 3, 1), (16, 8, 256, 256, 3, 1), (16, 4, 256, 256, 3, 1),
            (1, 32, 128, 128, 3, 1), (64, 32, 1, 32, 3, 1), (64, 32, 32, 1, 3, 1),
            (64, 32, 32, 32, 3, 2), (16, 32, 128, 128, 3, 2), (64, 16, 64, 64, 1, 1)):
        pad = ((K // 2, K // 2),) * 2
        side = -(-H // stride)
        x, w, dy = (ag(rng, shape) for shape in ((N, H, H, C), (K, K, C, O), (N, side, side, O)))
        gflop, mbytes = 2e-9 * dy.size * K * K * C, 4e-6 * (x.size + w.size + dy.size)
        calls = {"forward": (x, w), "grad_input": (dy, w, x.shape), "grad_weight": (dy, x, w.shape)}
        for name, arguments in calls.items():
            run = {idea: partial(getattr(ladder[idea], name), *arguments, stride, pad)
                   for idea in ladder.plain[1:] + ladder.compiled}
            run["torch"] = torch_conv(name, x, w, dy, stride, K // 2)
            shape = f"{N}×{H}×{H}×{C} → {O}, {K}×{K}" + f", stride {stride}" * (stride > 1)
            yield Case("conv2d", name, shape, run, gflop, mbytes)


def torch_conv(name, x, w, dy, stride, pad):
    """{layout: function} in PyTorch; empty where it is not asked for."""
    if not TORCH:
        return {}
    import torch
    out = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        a, b, g = (torch.from_numpy(z).permute(axes).contiguous(memory_format=layout)
                   for z, axes in ((x, (0, 3, 1, 2)), (w, (3, 2, 0, 1)), (dy, (0, 3, 1, 2))))
        mask = [name == "grad_input", name == "grad_weight", False]

        def call(a=a, b=b, g=g, mask=mask):
            with torch.inference_mode():
                if name == "forward":
                    return torch.nn.functional.conv2d(a, b, stride=stride, padding=pad)
                return torch.ops.aten.convolution_backward(
                    g, a, b, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, mask)
        out[str(layout)] = call
    return out


def other_cases(ag, rng):
    """Products, attention, norms and the optimizer."""
    from tinydiff.kernels import LADDERS
    ladders = {name: module.LADDER for name, module in LADDERS.items()}

    def case(ladder, name, shape, call, skip, gflop, mbytes, torch_call):
        run = {idea: lambda idea=idea: call(ladders[ladder][idea])
               for idea in ladders[ladder].plain + ladders[ladder].compiled
               if idea not in skip}
        run["torch"] = {"": torch_call} if TORCH else {}
        return Case(ladder, name, shape, run, gflop, mbytes)

    for P, C, O in ((65536, 64, 32), (16384, 256, 128), (4096, 256, 256), (4096, 64, 64)):
        x, w, dy = ag(rng, (P, C)), ag(rng, (C, O)), ag(rng, (P, O))
        t = tensors(x, w, dy)
        size = 2e-9 * P * C * O, 4e-6 * (x.size + w.size + dy.size)
        for name, call, theirs in (
                ("forward",     lambda r, x=x, w=w: r.forward(x, w),       lambda t=t: t[0] @ t[1]),
                ("grad_input",  lambda r, w=w, dy=dy: r.grad_input(dy, w),
                 lambda t=t: t[2] @ t[1].T),
                ("grad_weight", lambda r, x=x, dy=dy: r.grad_weight(x, dy),
                 lambda t=t: t[0].T @ t[2])):
            yield case("matmul", name, f"{P}×{C} → {O}", call, ["loops"], *size, theirs)

    for N, h, L, d in ((64, 1, 64, 64), (16, 1, 256, 256), (64, 4, 256, 32)):
        q, k, v = (ag(rng, (N, h, L, d)) for _ in range(3))
        t = tensors(q, k, v)
        yield case("attention", "forward", f"{N}×{h}×{L}×{d}",
                   lambda r, q=q, k=k, v=v, d=d: r.forward(q, k, v, None, d ** -0.5), [],
                   4e-9 * N * h * L * L * d, 16e-6 * q.size, lambda t=t: sdpa(t))

    for N, H, C, G in ((64, 32, 32, 8), (16, 32, 128, 32), (64, 8, 64, 8)):
        x, dy, one = ag(rng, (N, H, H, C)), ag(rng, (N, H, H, C)), ag(rng, (N, C))
        mean, rstd = ag(rng, (N, G)), abs(ag(rng, (N, G)))
        yield case("norm", "measure", f"{N}×{H}×{H}×{C}, {G} groups",
                   lambda r, x=x, G=G: r.measure([x], G, 1e-5), [], 3e-9 * x.size, 4e-6 * x.size,
                   None)
        yield case("norm", "backward", f"{N}×{H}×{H}×{C}, {G} groups",
                   lambda r, a=(dy, x, one, mean, rstd): r.backward(
                       [a[0].copy()], [a[1]], a[2], a[2], a[3], a[4], True), [],
                   30e-9 * x.size, 12e-6 * x.size, None)


def tensors(*arrays):
    if not TORCH:
        return None
    import torch
    return [torch.from_numpy(a) for a in arrays]


def sdpa(t):
    import torch
    with torch.inference_mode():
        return torch.nn.functional.scaled_dot_product_attention(*t)


def measure(case, rounds, blas):
    """{contestant: median milliseconds}, all turn about, each called once before it is timed.

    blas: the rungs that call NumPy's BLAS, else all others. BLAS's threads spin on for a while when
    they are done, in everybody else's way; so those come last, when the others have been measured.
    """
    own = {name: f for name, f in case.run.items() if name != "torch" and (name in BLAS) == blas}
    theirs = {f"torch {layout}": f for layout, f in case.run["torch"].items() if f and not blas}
    times = {name: [] for name in (*own, *theirs)}
    for _ in range(rounds):
        for name, f in (*own.items(), *theirs.items()):
            sleep(PAUSE)
            f()                                           # wakes its own threads
            start = perf_counter()
            f()
            times[name].append(1e3 * (perf_counter() - start))
    out = {name: median(values) for name, values in times.items()}
    if theirs:
        out["torch"] = min(out.pop(name) for name in theirs)
    return out


def table(results, ladder):
    """Markdown: a row for each operation and shape, the fastest rung in bold."""
    rows = [(case, ms) for case, ms in results if case.ladder == ladder]
    rungs = sorted((name for name in rows[0][1] if name != "torch"), key=lambda n: n not in BLAS)
    lines = ["| | shape | " + " | ".join(rungs) + " | torch | best / torch | GFLOP/s |",
             "|---|---|" + "---:|" * (len(rungs) + 3)]
    for case, ms in rows:
        best = min(rungs, key=ms.get)
        cells = [f"**{ms[r]:.2f}**" if r == best else f"{ms[r]:.2f}" for r in rungs]
        torch = f"{ms['torch']:.2f} | {ms[best] / ms['torch']:.2f}" if "torch" in ms else "| "
        lines.append(f"| {case.name} | {case.shape} | {' | '.join(cells)} | {torch} "
                     f"| {case.gflop / ms[best] * 1e3:.0f} |")
    return "\n".join(lines)


def roofline(results, flops, bandwidth, path):
    """Draw GFLOP/s over FLOPs a byte: each operation's best rung, and the machine's two limits."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    x = [2.0**i for i in range(-4, 12)]
    axes.plot(x, [min(flops, i * bandwidth) / 1e9 for i in x], color="0.3",
              label=f"limit: {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s")
    for ladder, marker in zip(dict.fromkeys(case.ladder for case, _ in results), "os^dv"):
        points = [(case.gflop * 1e3 / case.mbytes, case.gflop * 1e3 / min(
            v for name, v in ms.items() if name != "torch"))
            for case, ms in results if case.ladder == ladder]
        axes.scatter(*zip(*points), marker=marker, s=22, label=ladder)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte that must move",
             ylabel="GFLOP/s", title="Operations under the roofline: winograd4 counts the FLOPs "
             "it replaces")
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main():
    global TORCH
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 0))
                        or os.cpu_count())
    parser.add_argument("--vs", choices=["torch"], help="measure PyTorch beside it")
    parser.add_argument("--rounds", type=int, default=15, help="times each is measured")
    parser.add_argument("--only", help="one ladder")
    parser.add_argument("--json", action="store_true", help="one JSON line at the end")
    parser.add_argument("--page", default=ROOT / "kernels" / "README.md")
    parser.add_argument("--png", default=ROOT / "docs" / "cpu-roofline.png")
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != str(options.threads):     # read when libraries load
        os.environ.update(dict.fromkeys(POOLS, str(options.threads)))
        os.execv(sys.executable, [sys.executable, *sys.argv])
    TORCH = options.vs == "torch"
    report(options)


def report(options):
    import numpy as np
    from tinydiff_kernels.simd import peak

    def draw(rng, shape):
        return rng.standard_normal(shape, dtype=np.float32)

    rng = np.random.default_rng(0)
    flops, bandwidth = peak.flops_per_second(), peak.bytes_per_second()
    found = {}
    for blas in (False, True):
        for case in chain(conv_cases(draw, rng), other_cases(draw, rng)):
            if options.only in (None, case.ladder):
                ms = measure(case, options.rounds, blas)
                found.setdefault(case._replace(run=None), {}).update(ms)
                print(case.ladder, case.name, case.shape,
                      {name: round(t, 2) for name, t in ms.items()}, flush=True)
    results = list(found.items())
    roofline(results, flops, bandwidth, options.png)
    on = machine()
    note = (f"Milliseconds, medians of {options.rounds}, {options.threads} threads, all turn about "
            f"in one run, {on['date']}, {on['cpu']}, NumPy {on['numpy']}, Numba {version('numba')}"
            + (f", PyTorch {version('torch')} in the better of its two layouts" * TORCH) + ". The "
            f"machine: {flops / 1e9:.0f} GFLOP/s from registers, {bandwidth / 1e9:.0f} GB/s from "
            "memory. `python benchmarks/cpu_kernels.py`")
    for ladder in dict.fromkeys(case.ladder for case, _ in results):
        replace_block(options.page, f"{ladder}-speed", table(results, ladder) + "\n\n" + note)
    if options.json:
        print(json.dumps({"machine": on, "threads": options.threads, "gflops": flops / 1e9,
                          "gbytes": bandwidth / 1e9, "cases": [
                              {"ladder": c.ladder, "name": c.name, "shape": c.shape, "ms": ms}
                              for c, ms in results]}, ensure_ascii=False))


if __name__ == "__main__":
    main()
