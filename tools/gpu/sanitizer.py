"""NVIDIA's compute-sanitizer watches every kernel at small shapes, in a process without PyTorch.

A planted overrun must be found first, or it proves nothing that the tools find no other. Arrays are
the driver's own: in CuPy's pool a neighbour would hide an overrun. Without a GPU, the guards of the
host's emulation must find the overrun.
"""

import re
import shutil
import sys
import time
from functools import cache, partial

import numpy as np

from gpu import cases, child
from gpu.child import LeftOut
from gpu.ops import OPS, completed, draw, in_python, results, rung_of
from gpu.places import Gpu, Host

TOOLS  = ("memcheck", "racecheck", "synccheck", "initcheck")
WHERE  = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer",
          "/usr/local/cuda/compute-sanitizer/compute-sanitizer")
FOUND  = 9                                                # its exit code if it found something
LONG   = 90                                               # seconds that a tool may take
# CuPy and Numba ask the driver for what it may not have, and raise themselves where that matters.
MORE   = {"memcheck": ["--report-api-errors", "no"]}
SAYS   = re.compile(r"^=+ +((?:Invalid|Uninit|Barrier|Error|Warning|Potential|Race|Program hit"
                    r"|Device not|at ).*)$", re.MULTILINE)
VARIES = re.compile(r"\S*/\S*|\+?0x\w+|by thread.*|in block.*")       # folders, addresses, threads


def items(options):
    if options["backend"] == "host":
        return [("planted overrun", partial(cases.planted, Host()))]
    tools, kinds = (TOOLS[:1], ["C++"]) if options["quick"] else (TOOLS, ["C++", "Python"])
    return [("planted overrun", planted),
            *((f"{tool} of kernels in {kind}", partial(look, tool, kind, options))
              for kind in kinds for tool in tools)]


@cache
def planted():
    """Whether memcheck finds it.  LeftOut where the tool does not work on this machine."""
    status, said = sanitized("memcheck", "planted", until=time.time() + LONG)
    if status == FOUND and "Invalid __global__ write" in said:
        return {"ok": True, "found": findings(said)}
    if status == 0:
        return {"ok": False, "found": "nothing"}
    raise LeftOut(f"not available: compute-sanitizer ended with status {status}, "
                  f"{'; '.join(findings(said)) or 'without a word'}")


def look(tool, kind, options):
    """What one tool finds in the kernels of one language."""
    if not planted()["ok"]:
        raise LeftOut("the planted overrun was not found, so this would prove nothing")
    status, said = sanitized(tool, kind, options["capability"], until=options["until"])
    count = re.search(r"(\d+) calls came through", said)
    return {"ok": status == 0 and count is not None and "SUMMARY: 0 " in said, "status": status,
            "calls": int(count[1]) if count else 0, "found": findings(said)}


def sanitized(tool, *words, until):
    """(exit status, what was printed) of `main` below, watched by a tool."""
    program = next(filter(None, map(shutil.which, WHERE)), None)
    if program is None:
        raise LeftOut("not available: compute-sanitizer is not on the PATH")
    status, said = child.ended_in_time(
        [program, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20",
         *MORE.get(tool, []), *child.PYTHON, "sanitizer", *words],
        min(LONG, until - time.time()))
    if status and "planted" not in words:
        print(said[-3000:], file=sys.stderr)
    return status, said


def findings(said):
    """The first of its sentences, each once."""
    found = dict.fromkeys(" ".join(VARIES.sub("", line).split()) for line in SAYS.findall(said))
    return list(found)[:10]


def main(kind, capability=None):
    """Life under the sanitizer: every call of one kind at tiny shapes, and nothing is compared."""
    import cupy
    cupy.cuda.set_allocator(None)                         # the driver's memory, array by array
    place, count = Gpu(), 0
    if kind == "planted":
        cases.overrun(place)
    else:
        for name, idea, dtype in cases.every_rung():
            if in_python(name, idea) == (kind == "Python"):
                count += call(place, name, idea, dtype, capability)
    cupy.cuda.Device().synchronize()
    print(f"{count} calls came through")


def call(place, name, idea, dtype, capability):
    """Call a rung at each tiny shape; return how many there were."""
    count, rung = 0, rung_of(name, idea)
    for sizes in cases.TINY[OPS[name].shapes.__name__]:
        if not cases.why_not(name, idea, sizes, {"backend": "gpu", "capability": capability}):
            drawn = draw(name, sizes, dtype, np.random.default_rng(0))
            arrays = {key: place.put(a) if hasattr(a, "dtype") else a for key, a in drawn.items()}
            results(name, rung, completed(name, rung, arrays))
            count += 1
    return count
