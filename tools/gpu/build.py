"""Every kernel becomes machine code for this GPU: does it take more than resources.json says?

Without a GPU it is made for the newest that a file is meant for. The compilers leave their work in
a cache, so the stages behind this one find it ready.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context

from compile_cuda import KERNELS, TABLE, changed, files, read, versions, words_of
from tinydiff_kernels.gpu import listing, machine_code
from tinydiff_kernels.gpu.python import Kernel


def items(options):
    return [("machine code", lambda: build(options["capability"], options["quick"]))]


def build(capability, quick):
    """{"files": {file: {kernel: its resources}}, "wrong": [what is worse than in the table], …}

    Resources are compared only where the same compilers made the table.
    """
    made_by = versions()                                  # raises where NVRTC is missing
    table = json.loads(read(TABLE))
    recorded = table.pop("kernels")
    names = [name for name in files() if name.endswith(".cu") or not quick]
    jobs = [(name, arch) for name in names if (arch := fitting(name, capability))]
    with ProcessPoolExecutor(min(8, os.cpu_count()), get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(compile_file, *zip(*jobs))))
    wrong = [f"{name}: {said}" for (name, _), (_, said, refused) in found.items() if refused]
    if table == made_by:
        wrong += [f"{name}: {fault}" for (name, arch), (facts, said, _) in found.items()
                  if arch in recorded.get(name, {}) and not said
                  for fault in changed(facts, recorded[name][arch])]
    return {"ok": not wrong, "wrong": wrong, "by": words_of(made_by),
            "compared_with": words_of(table) if table == made_by else None,
            "files": {name: facts for (name, _), (facts, said, _) in found.items() if not said},
            "not_built": {name: said for (name, _), (_, said, refused) in found.items()
                          if said and not refused}}


def fitting(name, capability):
    """The architecture to compile a file for; None where this GPU cannot run it."""
    needs = machine_code.architectures(KERNELS / name)
    if capability is None:
        return needs[-1]
    if needs == machine_code.EVERYWHERE:
        return f"sm_{capability}"
    return next((arch for arch in needs if arch.rstrip("a") == f"sm_{capability}"), None)


def compile_file(name, arch):
    """({kernel: its resources}, why there is none, whether a compiler refused it)"""
    try:
        if name.endswith(".cu"):
            return listing.resources(machine_code.compiled(KERNELS / name, arch)[1]), "", False
        module = import_module(f"tinydiff_kernels.{name.removesuffix('.py').replace('/', '.')}")
        facts = {}
        for key, kernel in vars(module).items():
            if isinstance(kernel, Kernel) and kernel.function.__module__ == module.__name__:
                _, log = machine_code.python_cubin(kernel, arch)
                [facts[key]] = listing.resources(log).values()
        return facts, "", False
    except machine_code.CompileError as error:
        return {}, str(error)[:500].replace(str(KERNELS), "kernels"), True
    except ModuleNotFoundError as error:
        return {}, str(error), False
