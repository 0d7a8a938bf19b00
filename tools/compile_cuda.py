"""Do the GPU's kernels become the machine code they were written for?  python tools/compile_cuda.py

    tools/compile_cuda.py [FILE …]               compare with kernels/gpu/resources.json
    tools/compile_cuda.py --write [FILE …]       write there what is found and right
    FILE, as conv2d/rung7_mma.cu: these alone

Every .cu file and every kernel in Python is compiled for each of its architectures; no GPU is asked
for. It is wrong if a compiler warns; if a kernel uses local memory, that is DRAM; if it lacks an
instruction that it should hold; if it takes over 8 registers more than the table says, or other
shared memory; if the table lacks it, or has what is no more. Comments in the kernel's file say what
is meant (in Python # instead of //):

    // needs: sm_90a                               which architectures, if not sm_80 and sm_90
    // holds: LDG.E.128                            instructions that each of its kernels must have
    // conv3x3 holds: HMMA.16816.F32.BF16 LDSM     that those of this name must have: conv3x3, conv*
    // conv3x3 spills: two blocks on each SM       local memory is meant, and this is why

What is for tensor cores (HMMA, HGMMA) or feeds them (LDSM, LDGSTS, UTMALDG) has to be said.
"""

import argparse
import json
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from tinydiff_kernels.gpu import listing, machine_code
from tinydiff_kernels.gpu.python import Kernel

KERNELS = Path(machine_code.__file__).resolve().parents[1]
TABLE = KERNELS / "gpu" / "resources.json"
MORE = 8                                           # registers that a change may cost
PRECIOUS = ("HGMMA", "HMMA", "UTMALDG", "LDGSTS", "LDSM")
LOCAL = ("LDL", "STL")                             # loads and stores of local memory
TELLING = (*PRECIOUS, "LDG.E.128", "STG.E.128", "FFMA", "SHFL", "MUFU", *LOCAL)


def files():
    """The files with kernels, as the table calls them."""
    found = [*KERNELS.rglob("*.cu"), *(p for p in KERNELS.rglob("*.py") if "\n@kernel(" in read(p))]
    return sorted(path.relative_to(KERNELS).as_posix() for path in found)


def read(path):
    return path.read_text(encoding="utf-8")


def examine(name, arch):
    """({kernel: its resources and instructions}, [what is wrong whatever the table says])"""
    path = KERNELS / name
    if path.suffix == ".cu":
        code, log = machine_code.cubin(path, arch)
        used, texts = listing.resources(log), listing.disassembly(code)
    else:
        used, texts, log = examine_python(path, arch)
    facts = {kernel: {**used[kernel], "instructions": listing.instructions(texts[kernel])}
             for kernel in sorted(used)}
    warnings = [line for line in log.splitlines() if re.search(r"\bwarning\s", line)]
    return facts, warnings + broken(read(path), facts) + unsaid(read(path), facts)


def examine_python(path, arch):
    """(resources, disassemblies, the linker's log) of the kernels in a Python file."""
    module = import_module(".".join(["tinydiff_kernels",
                                     *path.relative_to(KERNELS).with_suffix("").parts]))
    used, texts, logs = {}, {}, []
    for name, kernel in vars(module).items():
        if isinstance(kernel, Kernel) and kernel.function.__module__ == module.__name__:
            code, log = machine_code.python_cubin(kernel, arch)
            used[name], = listing.resources(log).values()
            texts[name] = "\n".join(listing.disassembly(code).values())
            logs.append(log)
    return used, texts, "\n".join(logs)


def promises(source, word):
    """[(the kernels that it is for, what is said)] of the comments `NAME word: …` in a file."""
    return [(name or "*", said.strip()) for name, said in
            re.findall(rf"(?m)^\s*(?://|#) (?:(\S+) )?{word}:(.*)", source)]


def broken(source, facts):
    """What the kernels of a file have or lack against what its comments say."""
    wrong = []
    for pattern, wanted in promises(source, "holds"):
        kernels = [kernel for kernel in facts if fnmatchcase(kernel, pattern)]
        wrong += [f"has no kernel {pattern}, which should hold {wanted}"] * (not kernels)
        wrong += [f"{kernel} holds no {instruction}" for kernel in kernels
                  for instruction in wanted.split() if not count(facts[kernel], instruction)]
    meant = [pattern for pattern, why in promises(source, "spills") if why]
    for kernel, fact in facts.items():
        spilt = fact["spill_stores"] + fact["spill_loads"] + fact["stack"]
        if (spilt or count(fact, *LOCAL)) and not any(fnmatchcase(kernel, p) for p in meant):
            wrong.append(f"{kernel} uses local memory: {fact['spill_stores']} bytes spilt, "
                         f"{fact['spill_loads']} loaded again, a stack of {fact['stack']}")
    return wrong


def unsaid(source, facts):
    """What kernels hold for tensor cores, or to feed them, and their file does not say."""
    said = promises(source, "holds")
    wrong = []
    for kernel, fact in facts.items():
        wanted = " ".join(w for pattern, w in said if fnmatchcase(kernel, pattern))
        held = " ".join(i for i in PRECIOUS if count(fact, i) and i not in wanted)
        if held:
            wrong.append(f"its file does not say: {kernel} holds: {held}")
    return wrong


def count(fact, *instructions):
    """How many instructions of a kernel begin so."""
    return sum(n for name, n in fact["instructions"].items() if name.startswith(instructions))


def changed(facts, recorded):
    """What is worse in the kernels of a file than what the table has recorded, or other."""
    wrong = [f"{kernel} is not in the table" for kernel in sorted(facts.keys() - recorded.keys())]
    wrong += [f"{kernel} is in the table only" for kernel in sorted(recorded.keys() - facts.keys())]
    for kernel in sorted(facts.keys() & recorded.keys()):
        now, then = facts[kernel], recorded[kernel]
        wrong += [f"{kernel}: {what} {now[what]}, the table says {then[what]}" for what in then
                  if now[what] > then[what] + MORE * (what == "registers")
                  or (what == "shared" and now[what] < then[what])]
    return wrong


def work(name):
    """{arch: examine(name, arch)} of one file, in a process of its own."""
    found = {}
    for arch in machine_code.architectures(KERNELS / name):
        try:
            found[arch] = examine(name, arch)
        except machine_code.CompileError as error:
            found[arch] = {}, [str(error)]
    return found


def show(name, arch, facts):
    """The lines of the table that is printed."""
    for kernel, fact in facts.items():
        telling = ", ".join(f"{count(fact, i)} {i}" for i in TELLING if count(fact, i))
        print(f"| {name} | {kernel} | {arch} | {fact['registers']} | {fact['shared']:,} | "
              f"{fact['spill_stores'] + fact['spill_loads']} | {telling} |", flush=True)


def examine_all(names):
    """({file: {arch: {kernel: its resources}}}, {file: what is wrong}), printed as it is found."""
    print("| file | kernel | GPU | registers | shared bytes | spilt bytes | of its instructions |\n"
          "|---|---|---|---|---|---|---|")
    found, wrong = {}, {}
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for name, by_arch in zip(names, pool.map(work, names)):
            found[name] = {}
            for arch, (facts, faults) in by_arch.items():
                show(name, arch, facts)
                wrong[name] = wrong.get(name, []) + [f"{arch}: {fault}" for fault in faults]
                found[name][arch] = {kernel: {what: fact[what] for what in listing.SAID}
                                     for kernel, fact in facts.items()}
    return found, wrong


def compare(found, recorded):
    """What changed in a file: {arch: {kernel: its resources}} as found and as recorded."""
    return [f"{arch}: {fault}" for arch in sorted({*found, *recorded})
            for fault in changed(found.get(arch, {}), recorded.get(arch, {}))]


def versions():
    """The compilers whose work the table is; with others it is not to be compared."""
    nvrtc = machine_code.compiler().nvrtcVersion()[1:]
    return {"nvrtc": ".".join(map(str, nvrtc)), "numba-cuda": version("numba-cuda")}


def words_of(made_by):
    return " and ".join(map(" ".join, made_by.items()))


def write(table):
    """The table, a kernel a line."""
    text = re.sub(r"{[^{}]+}", lambda kernel: "{" + " ".join(kernel[0][1:-1].split()) + "}",
                  json.dumps(table, indent=1))
    TABLE.write_text(text + "\n", encoding="utf-8")


def main(words):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args(words)
    if unknown := set(asked.files) - set(files()):
        parser.error(f"no kernels in {min(unknown)}; there are {', '.join(files())}")
    made_by, table = versions(), json.loads(read(TABLE))
    recorded = table.pop("kernels")

    found, wrong = examine_all(asked.files or files())
    gone = {} if asked.files else {name: {} for name in recorded.keys() - found.keys()}
    if asked.write:
        right = {name: facts for name, facts in found.items() if not wrong[name]}
        kept = {name: recorded[name] for name in recorded if name not in gone and table == made_by}
        write({**made_by, "kernels": dict(sorted({**kept, **right}.items()))})
    elif table == made_by:
        for name, facts in (found | gone).items():
            wrong[name] = wrong.get(name, []) + compare(facts, recorded.get(name, {}))
    print(f"\nBy {words_of(made_by)}: *compiles, not run*.")
    if table != made_by and not asked.write:
        print(f"Not compared: the table is by {words_of(table)}; pip install '.[kernels]'")
    faults = [f"compile_cuda: {name}: {fault}" for name in wrong for fault in wrong[name]]
    print(*faults, sep="\n", file=sys.stderr, end="\n" * bool(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ModuleNotFoundError as error:
        raise SystemExit(f"compile_cuda: {error}") from None
