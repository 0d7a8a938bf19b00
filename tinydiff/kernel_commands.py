"""tinydiff kernels list | run | trace | bench: the ladders, rung by rung."""

import json
from pathlib import Path
from statistics import median

import numpy as np
from tinydiff_kernels.gpu import trace
from tinydiff_kernels.gpu.host import Fault
from tinydiff_kernels.gpu.order import stepping

from tinydiff.backend import why_no_gpu
from tinydiff.commands import usage
from tinydiff.kernel_cases import (
    CASES,
    arguments,
    ask,
    distance,
    draw,
    flat,
    retyped,
    timed,
    where,
)
from tinydiff.kernels import LADDERS, can_compile
from tinydiff.tables import nearest

FACTOR = {"winograd2": 4, "winograd4": 20}                # times plain arithmetic's error; else 2
UNIT   = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-8}
LOOPS  = 2**19                                            # terms that rung 0 sums in seconds
ROUNDS = 7                                                # of a benchmark, all rungs turn about


def do_list(args):
    rows = [facts(name, idea) for name, ladder in LADDERS.items() for idea in ladder.LADDER]
    if args.json:
        print(json.dumps(rows))
        return
    for row in rows:
        if row["number"] == 0:
            print(f"\n{row['ladder']}: {LADDERS[row['ladder']].__doc__.splitlines()[0]}")
        idea = row["rung"] + " *" * row["default"]
        line = f"  {row['number']:>2}  {idea:<18}{row['place']:<5}{row['needs']:<19}{marks(row)}"
        print(line.rstrip())
    here = where("cpu" if why_no_gpu() else "cuda")
    print(f"\n* runs there if nothing else is chosen; here: {here}\n"
          "climb: tinydiff kernels run matmul/blas")


def facts(name, idea):
    """What is known of a rung, without importing it."""
    ladder, file = LADDERS[name].LADDER, file_of(name, idea)
    on_gpu = idea in ladder.device
    needs = ("NumPy" if idea in ladder.plain else "Numba" if not on_gpu else
             "CuPy, NVRTC" if file.suffix == ".cu" else "CuPy, numba-cuda")
    row = {"ladder": name, "rung": idea, "number": ladder.ideas.index(idea), "needs": needs,
           "place": "GPU" if on_gpu else "CPU",
           "default": idea in (LADDERS[name].DEFAULT, getattr(LADDERS[name], "ON_GPU", None))}
    if on_gpu:
        key = f"{name}/{file.name}"
        row |= {"compiles": sorted(stored("resources")["kernels"].get(key, {})),
                "host_tested": True, "gpu_verified": stored("verified").get(key)}
    return row


def marks(row):
    """What is proved of a GPU's rung: never one thing for another."""
    if row["place"] == "CPU":
        return ""
    proof = row["gpu_verified"]
    return " · ".join([f"compiles ({', '.join(row['compiles'])})"] * bool(row["compiles"])
                      + ["host-tested", f"GPU-verified {proof['date']}, {proof['device']}" if proof
                         else "not yet GPU-verified"])


def file_of(name, idea):
    """The file of a rung's kernels: CUDA C++, where there is such a one."""
    number = LADDERS[name].LADDER.ideas.index(idea)
    file = Path(LADDERS[name].__file__).with_name(f"rung{number}_{idea}.cu")
    return file if file.exists() else file.with_suffix(".py")


def stored(what):
    return json.loads(Path(trace.__file__).with_name(f"{what}.json").read_text(encoding="utf-8"))


def do_run(args):
    order = args.order or "forward"
    with usage():
        asked = ask(args.rung, args.shape, args.dtype, args.device)
        if args.order and not asked.stepped:
            raise ValueError("--order: expected a GPU's rung that is stepped through on the CPU, "
                             f"got {args.rung}")
    case, ladder, bad = CASES[asked.name], LADDERS[asked.name].LADDER, False
    oracle = ladder.plain[0 if case.terms(*asked.sizes) <= LOOPS else -1]
    print(f"{asked.rung.__doc__.splitlines()[0]}\n{asked}"
          + f", threads in order {order}" * asked.stepped + f"\nagainst {oracle} in float64",
          flush=True)
    arrays = draw(case, asked.sizes, asked.dtype)
    plainly = retyped(arrays, np.float64 if asked.dtype == np.float64 else np.float32)
    for function, (_, call) in case.calls.items():
        exact = flat(call(ladder[oracle], *arguments(call, retyped(arrays, np.float64))))
        plain = flat(call(ladder[ladder.plain[-1]], *arguments(call, plainly)))
        try:
            with stepping(order=order):
                seconds, got = timed(call, asked, arrays)
        except Fault as fault:
            raise ValueError(fault) from None
        error, least = distance(got, exact), UNIT[asked.dtype.name]
        allowed = FACTOR.get(asked.idea, 2) * max(distance(plain, exact), least)
        wrong = not error <= allowed
        bad |= wrong
        print(f"  {function:<18} error {error:.1e}, allowed {allowed:.1e}"
              f"{1e3 * seconds:12,.2f} ms{'  too large' * wrong}", flush=True)
    later = ladder.ideas[ladder.ideas.index(asked.idea) + 1:]
    print(f"climb: tinydiff kernels run {asked.name}/{later[0]}" if later else "this is the top")
    return int(bad)


def do_trace(args):
    with usage():
        asked = ask(args.rung, args.shape, None, "cpu", "whole")
        calls, inside = CASES[asked.name].calls, in_python()
        if args.rung not in inside:
            raise ValueError(f"trace draws what kernels in Python do, not {args.rung}; take one of "
                             f"{', '.join(inside)}")
        function = args.function or next(iter(calls))
        nearest(function, list(calls), "function")
    file = file_of(asked.name, asked.idea).name
    print(f"{asked}\nlines are those of kernels/{asked.name}/{file}", flush=True)
    traces, arrays = [], draw(CASES[asked.name], asked.sizes, asked.dtype)
    with stepping(trace=traces, races=False):
        timed(calls[function][1], asked, arrays)
    drawn = {}                                            # the first kernel that touches an array
    for found in traces:
        touched = {event.array for event in found.events}
        drawn |= {name: found for name in found.arrays if name in touched and name not in drawn}
    with usage():
        array = args.array or next(iter(drawn))
        nearest(array, list(drawn), "array of these kernels")
    for found in traces:
        print(f"\n{found.kernel}: global memory, in sectors of 32 bytes for each access of a warp\n"
              f"{trace.as_text(trace.coalescing(found))}\n\nshared memory, in words from one bank\n"
              f"{trace.as_text(trace.bank_conflicts(found))}")
    out = Path(args.out or f"{asked.name}-{asked.idea}-{array}.png")
    trace.draw(drawn[array], array).savefig(out)
    print(f"\nwrote {out}; others: --array {' | '.join(name for name in drawn if name != array)}")


def in_python():
    """The rungs whose kernels are Python."""
    return [f"{name}/{idea}" for name, module in LADDERS.items() for idea in module.LADDER.device
            if file_of(name, idea).suffix == ".py"]


def do_bench(args):
    with usage():
        nearest(args.ladder, list(LADDERS), "ladder")
        ladder = LADDERS[args.ladder].LADDER
        compiled = ladder.compiled if can_compile() else []
        ideas = (args.rungs.split(",") if args.rungs else
                 ladder.plain[-1:] + compiled + ladder.device)
        every = [ask(f"{args.ladder}/{idea}", args.shape, size="large") for idea in ideas]
    here, case = [asked for asked in every if not asked.stepped], CASES[args.ladder]
    rows = [row for function in case.calls for row in measured(function, case, here)]
    absent = {asked.idea: f"no GPU ({why_no_gpu()})" for asked in every if asked.stepped}
    if args.json:
        print(json.dumps({"timed": rows, "not_timed": absent}))
        return
    for row in rows:
        speed = f"{row['gflops']:,.0f} GFLOP/s" * bool(row["gflops"])
        print(f"{row['function']:<18} {row['rung']:<15} {row['ms']:10,.2f} ms {speed:>14} "
              f"{row['gbytes']:8,.1f} GB/s  {row['shape']} {row['dtype']}, {row['place']}")
    if absent:
        print(f"not timed: {', '.join(absent)}: no GPU ({why_no_gpu()})")


def measured(function, case, here):
    """A row for each of the rungs, all turn about: medians, FLOPs and the bytes of arrays moved."""
    (products, call), times = case.calls[function], {}
    arrays = {asked.dtype: draw(case, asked.sizes, asked.dtype) for asked in here}
    for asked in here * ROUNDS:
        seconds, found = timed(call, asked, arrays[asked.dtype])
        times.setdefault(asked, []).append(seconds)
        moved = sum(np.asarray(a).nbytes for a in (*arguments(call, arrays[asked.dtype]), *found))
    for asked, all_seconds in times.items():
        seconds = median(all_seconds)
        yield {"function": function, "rung": asked.idea, "shape": "×".join(map(str, asked.sizes)),
               "dtype": asked.dtype.name, "place": where(asked.device), "ms": 1e3 * seconds,
               "gflops": 2e-9 * products * case.terms(*asked.sizes) / seconds,
               "gbytes": 1e-9 * moved / seconds}
