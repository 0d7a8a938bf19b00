"""Are the kernels right on this GPU, and how fast?  python3 tools/gpu_check.py --out DIR

    --backend host        without a GPU: the kernels run thread by thread on the CPU
    --quick               few shapes, and few of everything
    --only STAGE …        some of the stages; --list names them and says what they do
    --budget SECONDS      for all stages; each has its share, and leaves what it does not need
    --seed N              of the random arrays; without it a fresh one, which is printed

It runs from a checkout and needs NumPy, CuPy, PyTorch and Numba; nothing has to be installed. Its
report, DIR/DATE-DEVICE.json, is written anew after every item, so a run that is killed still tells
what it found. A table is printed at the end, and benchmarks/gpu_page.py makes pages of the report.
Exit status 0: all is right; 1: something is not; 77: there is no GPU. What was left out, for lack
of time or of a tool, is named, and counts as no proof.

Every stage is a module of tools/gpu/ and runs in a process of its own. The GPU's clocks, power and
settings are left as they are.
"""

import argparse
import json
import re
import secrets
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from gpu import TOOLS, child
from gpu.table import show

from tinydiff.files import write_atomically


class Stage(NamedTuple):
    module: str
    share: int                            # of the budget: about its seconds, if all run
    patience: int                         # the seconds that one item may take
    does: str


STAGES = {
    "facts":       Stage("gpu.facts", 5, 60, "the GPU's name and clocks, versions, the commit"),
    "ceilings":    Stage("gpu.ceilings", 10, 60, "a large copy, large products: what it can do"),
    "build":       Stage("gpu.build", 30, 240, "every kernel as machine code; its registers and "
                                               "spills beside those of the table"),
    "correctness": Stage("gpu.cases", 100, 60, "every rung at ragged and real shapes, between red "
                                               "zones, twice"),
    "sanitizer":   Stage("gpu.sanitizer", 110, 120, "compute-sanitizer's four tools, and a planted "
                                                    "overrun"),
    "timing":      Stage("gpu.timing", 110, 90, "every rung at a U-Net's shapes, beside PyTorch, "
                                                "eager and compiled"),
    "whole":       Stage("gpu.whole", 130, 300, "whole steps of training and sampling, beside "
                                                "PyTorch"),
    "counters":    Stage("gpu.counters", 30, 60, "ncu on the three largest kernels"),
}
TIMED = {"ceilings", "timing", "whole", "counters"}      # an emulation has no speed to measure
SLOWLY = 5                               # how much more patience an emulation needs
NO_GPU = 77
FACTS  = 60                              # seconds for what must be known, whatever the budget


def main(words=None):
    asked = options(words)
    if asked.list:
        print(*(f"{name:12} {stage.share:4} s  {stage.does}" for name, stage in STAGES.items()),
              sep="\n")
        return 0
    print(f"seed {asked.seed}, backend {asked.backend}", flush=True)
    report = {"meta": {"seed": asked.seed, "quick": asked.quick}, "ceilings": {}, "kernels": [],
              "sanitizer": {}, "step": None, "sampler": None, "left_out": [], "failed": []}
    end = time.time() + asked.budget
    chosen = [name for name in STAGES if name == "facts" or name in (asked.only or STAGES)]
    if asked.backend == "host":
        report["left_out"] = [f"{name}: an emulation has no speed to measure"
                              for name in chosen if name in TIMED]
        chosen = [name for name in chosen if name not in TIMED]
    with compiling_ahead("whole" in chosen) as turn:
        for place, name in enumerate(chosen):
            turn(name)
            shares = [STAGES[other].share for other in chosen[place:]]
            share = max(0, end - time.time()) * shares[0] / sum(shares)
            run(name, asked, report, time.time() + (share if place else FACTS))
            if reason := report["meta"].get("no_gpu"):
                print(f"no GPU: {reason}")
                return NO_GPU
            if "device" not in report["meta"]:            # without its name there is no report
                report["failed"].append("facts: nothing is known of this machine")
                break
    show(report)
    return 1 if report["failed"] else 0


@contextmanager
def compiling_ahead(wanted):
    """Have PyTorch compile the whole steps beside other stages, if wanted: minutes of a CPU's work.

    Yields a function to be told each stage before it runs: the work begins with the build, and ends
    before time is measured.
    """
    started = []

    def turn(stage):
        if stage in TIMED:
            stop()
        elif wanted and stage == "build":
            started.append(subprocess.Popen(
                [*child.PYTHON, "whole"], cwd=TOOLS, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, process_group=0))

    def stop():
        for process in started:
            child.end(process)
            process.wait()
        started.clear()

    try:
        yield turn
    finally:
        stop()


def options(words):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), metavar="DIR")
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS")
    parser.add_argument("--backend", choices=["gpu", "host"], default="gpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--list", action="store_true")
    return parser.parse_args(words)


def run(name, asked, report, until):
    """One stage: each item goes into the report, and the report to disk."""
    begin, stage = time.time(), STAGES[name]
    given = {"backend": asked.backend, "quick": asked.quick, "seed": asked.seed,
             "capability": report["meta"].get("capability"), "ceilings": report["ceilings"]}
    if find_spec(stage.module) is None:
        report["left_out"].append(f"{name}: tools/{stage.module.replace('.', '/')}.py is missing")
    else:
        patience = stage.patience * (SLOWLY if asked.backend == "host" else 1)
        for item, found in child.run(stage.module, given, until, patience):
            note(report, name, item, found)
            save(report, asked.out)
    save(report, asked.out)
    print(f"{name:12} {time.time() - begin:5.0f} s", flush=True)


def note(report, stage, item, found):
    """Put an item's result where it belongs, or say why there is none, or what is wrong."""
    if "left_out" in found:
        report["left_out"].append(f"{stage}: {item}: {found['left_out']}")
    elif "error" in found:
        report["failed"].append(f"{stage}: {item}: {found['error']}")
        if stage in WITHOUT_RESULT:
            WITHOUT_RESULT[stage](report, item)
    else:
        result = found["result"]
        if result.get("ok") is False:
            report["failed"].append(f"{stage}: {item}: {why(result)}")
        PUT[stage](report, item, result)


def why(result):
    """What is not ok, in a few words."""
    if "err" in result:
        return (f"error {result['err']}, allowed {result['tol']}"
                + ", and two runs differ" * (not result["bit_equal"]))
    return "; ".join(result.get("wrong") or [f"found {result.get('found')}"])


def put_kernel(report, item, result):
    """Add to the row of one rung at one shape: correctness and timing share it.

    A result without a rung, PyTorch's compiled time, belongs to all rungs at its shape.
    """
    if "op" not in result:
        report["meta"][item] = result                     # the planted overrun
        return
    rows = [row for row in report["kernels"] if all(
        row[key] == result[key] for key in ("op", "shape", "dtype"))
        and result["rung"] in (None, row["rung"])]
    if not rows and result["rung"]:
        rows = [{"op": result["op"], "rung": result["rung"]} | resources(report, result)]
        report["kernels"] += rows
    for row in rows:
        row |= {key: value for key, value in result.items() if value is not None}


def put_build(report, item, result):
    report["build"] = result
    for reason in dict.fromkeys(result["not_built"].values()):
        files = [file for file, why in result["not_built"].items() if why == reason]
        report["left_out"].append(f"build: {len(files)} files, as {files[0]}: {reason}")


def put_broken(report, item):
    """A case that gave no result is a row as well, or its kernels might pass for right."""
    if "=" in item:                                       # a case: it has sizes in its name
        op, rung, *shape, dtype = item.split()
        put_kernel(report, item, {"op": op, "rung": rung, "shape": " ".join(shape),
                                  "dtype": dtype, "ok": False, "bit_equal": False,
                                  "launched": []})


def put_steps(report, item, result):
    """Add to the row of a batch in `step` and in `sampler`; what is neither stands beside them."""
    for kind, found in result.items():
        if kind in ("step", "sampler"):
            rows = {row["batch"]: row for row in report[kind] or []}
            rows[found["batch"]] = rows.get(found["batch"], {}) | found
            report[kind] = list(rows.values())
        elif kind not in ("ok", "wrong"):
            report[kind] = found


def resources(report, result):
    """Of the largest kernel in the rung's file: registers, spilt bytes, bytes of shared memory"""
    folder = result["op"].split(".")[0]
    found = [kernel for file, kernels in report.get("build", {}).get("files", {}).items()
             if re.fullmatch(rf"{folder}/(rung\d+_)?{result['rung']}\.\w+", file)
             for kernel in kernels.values()]
    most = lambda *what: max((sum(kernel[w] for w in what) for kernel in found), default=None)
    return {"regs": most("registers"), "spill": most("spill_stores", "spill_loads"),
            "smem": most("shared")}


PUT = {
    "facts":       lambda report, item, result: report["meta"].update(result),
    "ceilings":    lambda report, item, result: report["ceilings"].update({item: result}),
    "build":       put_build,
    "correctness": put_kernel,
    "sanitizer":   lambda report, item, result: report["sanitizer"].update({item: result}),
    "timing":      put_kernel,
    "whole":       put_steps,
    "counters":    lambda report, item, result: report.setdefault("counters", {}).update(
        {item: result}),
}

WITHOUT_RESULT = {
    "correctness": put_broken,
    "sanitizer":   lambda report, item: report["sanitizer"].update({item: {"ok": False}}),
}


def save(report, folder):
    """As DATE-DEVICE.json, once both are known."""
    if "device" in report["meta"]:
        device = re.sub(r"\W+", "-", report["meta"]["device"]).lower()
        path = folder / f"{report['meta']['date']}-{device}.json"
        write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False).encode())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))           # and the stage's process ends
    sys.exit(main())
