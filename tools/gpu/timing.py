"""How fast is every rung at a U-Net's shapes, beside PyTorch, eager and compiled?

Between two events lie ten calls, each on arrays of its own, and that thirty times: half of ours
before PyTorch's and half after them. The floor is the larger of two times: all arrays moved once at
the pace of a copy, or all FLOPs at the pace of a large product, both as measured in this run.
"""

from functools import cache, partial
from inspect import signature
from statistics import median

from gpu.cases import RACED, REAL, leave_out, shape_of, why_not
from gpu.child import LeftOut
from gpu.clock import Clock, noise, spread
from gpu.ops import OPS, completed, in_python, made, results, rung_of, suitable, taken, type_of

CALLS, REPEATS = 10, 30
BACKEND = "inductor"                                      # of torch.compile
ENOUGH = 1.5                                              # seconds; slow rungs are repeated less
SLOWER = {"conv2d.forward": "mma", "conv2d.grad_input": "mma"}        # than halo, as expected
ONE_CALL = {"conv2d.forward", "conv2d.grad_input", "conv2d.grad_weight", "matmul.grad_input",
            "matmul.grad_weight", "attention.forward"}    # of a library: compiled last
NOT_COMPILED = {"attention.backward"}                     # it is autograd's work


def items(options):
    """[(name, a function that gives a row)]; compiled PyTorch comes last, as it takes longest."""
    rows = list(every_row(options["quick"]))
    races = [(f"{name} {idea} {shape_of(name, sizes)} {dtype}",
              partial(leave_out, reason) if (reason := why_not(name, idea, sizes, options)) else
              partial(race, name, idea, sizes, dtype, options["ceilings"]))
             for name, idea, sizes, dtype in rows]
    peers = dict.fromkeys((name, sizes, dtype) for name, _, sizes, dtype in rows
                          if name not in NOT_COMPILED)
    return races + [(f"{name} compiled {shape_of(name, sizes)} {dtype}",
                     partial(compiled, name, sizes, dtype))
                    for name, sizes, dtype in sorted(peers, key=lambda peer: peer[0] in ONE_CALL)]


def every_row(quick):
    """(operation, rung, sizes, type), those in Python last.

    In float32 only those in Python, and operations that have no bf16; those in Python, and SLOWER
    ones, at the first shape alone.
    """
    found, last = [], []
    for name in OPS:
        if name not in RACED:
            continue
        shapes = REAL[OPS[name].shapes.__name__]
        for dtype, ideas in OPS[name].rungs.items():
            for idea in ideas:
                python = in_python(name, idea)
                one = quick or python or idea == SLOWER.get(name)
                if dtype == "bfloat16" or python or not OPS[name].rungs.get("bfloat16"):
                    (last if python else found).extend(
                        (name, idea, sizes, dtype) for sizes in shapes[:1 if one else None])
    return [row for row in found + last if row[3] != "float64"]


def race(name, idea, sizes, dtype, ceilings):
    """A row: our milliseconds, PyTorch's, and the floor under both."""
    rung, calls, again = rung_of(name, idea), [], []
    for _ in range(CALLS):
        arrays = completed(name, rung, on_gpu(name, sizes, dtype))
        calls.append(partial(results, name, rung, arrays))
        again += [(arrays[key], arrays[key].copy()) for key in OPS[name].over if key in arrays
                  and arrays[key] is not None]
    moved = sum(a.nbytes for a in [*taken(OPS[name].call, arrays), *calls[-1]()]
                if hasattr(a, "nbytes"))

    def refresh():
        for array, first in again:
            array[...] = first

    rough = min(clock().times(calls, 2, refresh))
    half = max(2, min(REPEATS, round(1e3 * ENOUGH / (rough * CALLS)))) // 2
    before = clock().times(calls, half, refresh)
    theirs, why = peer_times(name, sizes, dtype)
    after = clock().times(calls, half, refresh)
    ms, flops = median(before + after), OPS[name].flops(*sizes)
    floor = floor_ms(flops, moved, dtype, ceilings)
    calls.clear()
    again.clear()
    free()
    return {"op": name, "rung": idea, "shape": shape_of(name, sizes), "dtype": dtype, "ms": ms,
            "spread": spread(before + after), "noise": noise(before, after),
            "repeats": 2 * half, "gflop": flops / 1e9, "gb": moved / 1e9, "floor_ms": floor,
            "of_floor": floor and floor / ms, "torch_ms": theirs and median(theirs),
            "torch_spread": theirs and spread(theirs), "torch_note": why}


def floor_ms(flops, moved, dtype, ceilings):
    """What no version can beat; None where the ceilings are not known."""
    if not {"bytes", dtype} <= ceilings.keys():
        return None
    return 1e3 * max(flops / ceilings[dtype]["per_second"], moved / ceilings["bytes"]["per_second"])


def compiled(name, sizes, dtype):
    """PyTorch's compiled time, which is the same beside all rungs."""
    times, why = peer_times(name, sizes, dtype, compiled=True)
    free()
    if times is None:
        raise LeftOut(why)
    return {"op": name, "rung": None, "shape": shape_of(name, sizes), "dtype": dtype,
            "compile_ms": median(times)}


@cache
def peer_times(name, sizes, dtype, compiled=False):
    """(PyTorch's milliseconds, "") or (None, why there are none)"""
    import torch

    from gpu import peers
    torch.backends.cudnn.benchmark = True                 # let it try out its algorithms
    try:
        peer = (peers.TO_COMPILE if compiled else peers.PEERS)[name]
        calls = [peers.given(peer, tensors(name, sizes, dtype)) for _ in range(CALLS)]
        if compiled:
            torch.compiler.reset()                        # it compiles a function only so often
            calls = [torch.compile(call, dynamic=False, fullgraph=True, backend=BACKEND)
                     for call in calls]
        clock().times(calls, 2)
        return clock().times(calls, REPEATS), ""
    except Exception as error:
        return None, f"PyTorch: {type(error).__name__}: {str(error).splitlines()[0]}"[:300]


@cache
def clock():
    return Clock()


def tensors(name, sizes, dtype):
    """A peer's arguments: random numbers on the GPU; gamma and beta are the same for all images."""
    import torch

    from gpu import peers
    wanted = signature(peers.PEERS[name]).parameters

    def make(argument, shape):
        x = torch.randn(shape[-1:] if argument in ("gamma", "beta") else shape,
                        device=peers.device())
        x = suitable(argument, x)
        return x.to(getattr(torch, type_of(argument, dtype)))
    return {key: a for key, a in made(name, sizes, make).items() if key in wanted}


def on_gpu(name, sizes, dtype):
    """Ours, drawn by PyTorch as well, as CuPy's arrays with memory of their own."""
    import cupy
    import torch
    from tinydiff_kernels.gpu.arrays import bfloat16

    from gpu import peers

    def make(argument, shape):
        x = cupy.asarray(torch.randn(shape, device=peers.device()))
        x = suitable(argument, x)
        kind = type_of(argument, dtype)
        return x.astype(bfloat16() if kind == "bfloat16" else kind)
    return made(name, sizes, make)


def free():
    import cupy
    import torch
    cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()
