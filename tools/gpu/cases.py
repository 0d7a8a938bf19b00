"""Is every rung right?  Each operation at tiny and ragged shapes, and at those of a real U-Net.

At small shapes NumPy's float64 is the truth, at large ones PyTorch's, on the GPU. The error of a
result, ‖result − truth‖ / ‖truth‖, may be 1e-12 in float64, 1e-5 in float32, 4e-3 in bf16, and 1e-2
for a gradient in bf16. A float32 sum of bf16 numbers is judged as bf16, because tensor cores cut
off what they add. NaN fails. A second run must give the same bits; on the host it takes the threads
in reverse.
"""

from functools import partial
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tinydiff_kernels.gpu.host import Fault
from tinydiff_kernels.gpu.source import Source

from gpu import exact
from gpu.child import LeftOut
from gpu.ops import OPS, completed, draw, in_python, results, rung_of
from gpu.places import PLACES, Overrun

LIMITS = {("float64", False): 1e-12, ("float32", False): 1e-5, ("float32", True): 1e-5,
          ("bfloat16", False): 4e-3, ("bfloat16", True): 1e-2}        # (type, whether a gradient)
STEPPED = 6e5                                             # FLOPs that the simulator does in seconds

# The sizes that the functions of ops.py make arrays of. TINY: a moment, even thread by thread.
# RAGGED: several blocks and steps, and edges that fill none. REAL: those of DDPM's CIFAR-10 U-Net.
TINY = {
    "conv": [(1, 3, 4, 3, 5, 3, 1)], "fused": [(1, 5, 6, 8, 8, 16, 2)],
    "upsampled": [(1, 3, 4, 8, 8)], "product": [(17, 10, 0, 9)], "heads": [(1, 2, 5, 9, 4, 1)],
    "images": [(2, 3, 3, 4, 4, 2)], "rows": [(5, 6)], "buffers": [(300,)],
    "pixels": [(2, 6, 8, 5)],
}
RAGGED = {
    "conv": [(2, 9, 7, 72, 40, 3, 1), (3, 8, 8, 16, 24, 3, 2), (2, 6, 5, 3, 5, 3, 1),
             (2, 4, 3, 24, 16, 1, 1), (1, 6, 6, 8, 136, 5, 1)],
    "fused": [(3, 9, 17, 40, 8, 24, 8), (3, 7, 7, 72, 0, 24, 8), (3, 4, 4, 8, 16, 136, 8),
              (2, 16, 16, 64, 64, 64, 32)],
    "upsampled": [(2, 5, 7, 16, 24), (2, 8, 8, 72, 136), (2, 3, 3, 3, 5)],
    "product": [(100, 72, 0, 136), (300, 20, 0, 9), (130, 40, 48, 24), (700, 3, 0, 200)],
    "heads": [(2, 3, 70, 77, 40, 1), (2, 1, 65, 130, 80, 0), (1, 1, 66, 70, 160, 1),
              (1, 2, 9, 8, 200, 0), (1, 2, 130, 150, 16, 0)],
    "images": [(2, 5, 7, 6, 0, 3), (3, 5, 7, 40, 0, 8), (2, 9, 9, 33, 63, 8),
               (2, 3, 3, 520, 0, 8), (70, 2, 2, 8, 0, 4)],
    "rows": [(7, 33), (300, 768), (1, 8)],
    "buffers": [(1,), (4097,), (100_003,)],
    "pixels": [(1, 2, 2, 1), (3, 6, 4, 33), (2, 10, 8, 72)],
}
REAL = {
    "conv": [(128, 32, 32, 128, 128, 3, 1), (128, 16, 16, 256, 256, 3, 1),
             (128, 8, 8, 256, 256, 3, 1), (128, 4, 4, 256, 256, 3, 1),
             (128, 16, 16, 512, 256, 3, 1), (128, 32, 32, 128, 128, 3, 2),
             (128, 32, 32, 3, 128, 3, 1), (128, 32, 32, 128, 3, 3, 1)],
    "fused": [(128, 32, 32, 128, 0, 128, 32), (128, 16, 16, 256, 0, 256, 32),
              (128, 8, 8, 256, 0, 256, 32), (128, 4, 4, 256, 0, 256, 32),
              (128, 16, 16, 256, 256, 256, 32), (128, 32, 32, 128, 128, 128, 32)],
    "upsampled": [(128, 16, 16, 256, 256), (128, 8, 8, 256, 256), (128, 4, 4, 256, 256)],
    "product": [(32768, 256, 0, 256), (32768, 256, 256, 256), (131072, 128, 128, 128)],
    "heads": [(128, 1, 256, 256, 256, 0), (128, 4, 256, 256, 64, 0)],
    "images": [(128, 32, 32, 128, 0, 32), (128, 16, 16, 256, 0, 32), (128, 32, 32, 256, 128, 32)],
    "rows": [(32768, 256)],
    "buffers": [(35_746_307,)],
    "pixels": [(128, 32, 32, 128), (128, 32, 32, 3)],
}
# What PyTorch has as well, peers.py: these are looked at in a real network's sizes, too.
RACED = {"conv2d.forward", "conv2d.grad_input", "conv2d.grad_weight", "conv2d.fused",
         "conv2d.fused_grad_input", "conv2d.fused_grad_weight", "conv2d.upsampled",
         "conv2d.upsampled_grad_input", "conv2d.upsampled_grad_weight", "matmul.forward",
         "matmul.grad_input", "matmul.grad_weight", "attention.forward", "attention.backward",
         "norm.forward", "norm.backward", "norm.rows", "optimizer.step", "elementwise.add",
         "elementwise.silu", "elementwise.silu_backward", "noise.normal"}


def items(options):
    """[(name, a function that gives a row)], those that take least first."""
    place, rng = PLACES[options["backend"]](), np.random.default_rng(options["seed"])
    found = [("planted overrun", partial(planted, place))]
    for table in [TINY] if options["quick"] else [TINY, RAGGED, REAL]:
        for name, idea, dtype in every_rung():
            if table is REAL and (name not in RACED or in_python(name, idea)
                                  or options["backend"] == "host"):
                continue
            for sizes in table[OPS[name].shapes.__name__]:
                case = name, idea, sizes, dtype, int(rng.integers(2**32))
                reason = why_not(name, idea, sizes, options)
                found.append((f"{name} {idea} {shape_of(name, sizes)} {dtype}",
                              partial(leave_out, reason) if reason else
                              partial(check, place, *case, large=table is REAL)))
    return found


def why_not(name, idea, sizes, options):
    """Why a rung is left out at these sizes, or None.

    Where wgmma cannot run, the rung below would answer in its name.
    """
    if options["backend"] == "gpu" and idea == "wgmma" and options["capability"] != "90":
        return "wgmma needs a GPU of capability 9.0"
    if (options["backend"] == "host" and in_python(name, idea)
            and OPS[name].flops(*sizes) > STEPPED):
        return "the simulator would take minutes"
    return None


def every_rung():
    """(operation, rung, type) of all there are"""
    for name, op in OPS.items():
        for dtype, ideas in op.rungs.items():
            for idea in ideas:
                yield name, idea, dtype


def shape_of(name, sizes):
    """As in P=33 C1=20 C2=0 O=9"""
    letters = signature(OPS[name].shapes).parameters
    return " ".join(f"{letter}={n}" for letter, n in zip(letters, sizes))


def leave_out(reason):
    raise LeftOut(reason)


def check(place, name, idea, sizes, dtype, seed, large):
    """A row: how far a rung is from the truth, and whether it gives the same bits again.

    large: the truth is PyTorch's, and results that it does not have are not judged.
    """
    arrays = draw(name, sizes, dtype, np.random.default_rng(seed))
    rung, runs, launched = rung_of(name, idea), [], set()
    for order in ("forward", "reverse"):
        with place.guarded(order) as seen:
            there = {key: place.put(a) if hasattr(a, "dtype") else a for key, a in arrays.items()}
            there = completed(name, rung, there)
            runs.append([place.get(a) for a in results(name, rung, there)])
        launched |= seen
    place.free()
    errors = [(distance(got, right), limit(name, dtype, got))
              for got, right in zip(runs[0], truth(name, arrays, large), strict=not large)]
    err, tol = max(errors, key=lambda pair: pair[0] / pair[1])
    bit_equal = all(a.tobytes() == b.tobytes() for a, b in zip(*runs))
    return {"op": name, "rung": idea, "shape": shape_of(name, sizes), "dtype": dtype,
            "err": err if np.isfinite(err) else None, "tol": tol, "bit_equal": bit_equal,
            "ok": bool(err <= tol and bit_equal), "launched": sorted(map(" ".join, launched))}


def limit(name, dtype, got):
    """How far off a result may be, by the less exact of two types: its own and its inputs'."""
    return max(LIMITS[kind, OPS[name].gradient] for kind in (dtype, got.dtype.name)
               if (kind, OPS[name].gradient) in LIMITS)


def truth(name, arrays, large):
    """[results] in float64"""
    if large:
        from gpu import peers
        if name not in peers.NO_TRUTH:
            return peers.by_torch(name, arrays)
    return exact.by_numpy(name, arrays)


def distance(got, right):
    """‖got − right‖ / ‖right‖; infinite for NaN, and for another shape."""
    got = np.asarray(got, np.float64)
    if got.shape != right.shape or not np.isfinite(got).all():
        return np.inf
    return float(np.linalg.norm(got - right) / max(np.linalg.norm(right), 1e-30))


PLANTED = """
#include "device.cuh"

KERNEL(64) overrun(float* x, int n) {
    if (threadIdx.x <= n)                                 // one too many
        x[threadIdx.x] = 1;
}
"""


def planted(place):
    """A kernel that writes one number past its array's end must be caught."""
    try:
        with place.guarded():
            overrun(place)
    except (Fault, Overrun) as error:
        return {"ok": "wrote" in str(error), "found": str(error)}
    return {"ok": False, "found": "nothing"}


def overrun(place):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "planted.cu"
        path.write_text(PLANTED, encoding="utf-8")
        Source(path).overrun[1, 64](place.put(np.zeros(8, np.float32)), 8)
