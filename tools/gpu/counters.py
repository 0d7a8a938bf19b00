"""What the GPU's own counters say of the three largest kernels, read by NVIDIA's ncu.

Kept are the numbers that tell how busy the tensor cores and the memory were, and how often accesses
met in one bank of shared memory. The clocks stay as they are.
"""

import csv
import re
import shutil
import time
from functools import partial

from gpu import child, timing
from gpu.child import LeftOut
from gpu.ops import completed, results, rung_of

WHERE    = ("ncu", "/usr/local/cuda/bin/ncu")
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis",
            "MemoryWorkloadAnalysis_Tables")
TELLING  = re.compile(r"pipe_tensor.*pct|dram__bytes.*sum|bank_conflicts.*sum$|time_duration"
                      r"|(sm|dram|lts)__throughput.*pct|registers_per_thread|warps_active.*pct")
LARGEST  = [("conv2d.fused", "fused"), ("conv2d.grad_weight", "grad_weight"),
            ("norm.backward", "gradient_bf16")]           # operation, its kernel


def items(options):
    if options["quick"]:
        return []
    return [(f"{name}: {kernel}", partial(count, name, kernel, options))
            for name, kernel in LARGEST]


def count(name, kernel, options):
    """{counter: its value} of one launch at the operation's first real shape."""
    program = next(filter(None, map(shutil.which, WHERE)), None)
    if program is None:
        raise LeftOut("not available: ncu is not on the PATH")
    idea = "wgmma" if options["capability"] == "90" and name.startswith("conv2d") else ""
    command = [program, "--clock-control", "none", "--kernel-name", kernel, "--launch-count", "1",
               *(word for section in SECTIONS for word in ("--section", section)),
               "--csv", "--page", "raw", *child.PYTHON, "counters", name, idea]
    status, said = child.ended_in_time(command, options["until"] - time.time())
    found = table(said)
    if not found:
        raise LeftOut(f"not available: ncu ended with status {status} and no numbers")
    return {"kernel": kernel, "counters": found}


def table(said):
    """{counter: "value unit"} of ncu's CSV, whose first rows are names, units and values."""
    lines = [line for line in said.splitlines() if line.startswith('"')]
    names, units, values = (list(csv.reader(lines)) + [[]] * 3)[:3]
    return {name: f"{value} {unit}".strip() for name, unit, value in zip(names, units, values)
            if TELLING.search(name)}


def main(name, idea):
    """Life under ncu: one call of the operation's first rung, or of the one that is named."""
    import cupy
    _, idea, sizes, dtype = next(row for row in timing.every_row(False)
                                 if row[0] == name and idea in ("", row[1]))
    rung = rung_of(name, idea)
    results(name, rung, completed(name, rung, timing.on_gpu(name, sizes, dtype)))
    cupy.cuda.Device().synchronize()
