"""Machine code kept on disk: compiled once by Numba, loaded ever after by LLVM alone.

The folder's name is a digest of all that the code depends on: the sources of every kernel, the
versions of Numba, llvmlite and Python, the CPU and its features. Whatever changes, the name
changes, and what is stale is never looked at. Each file carries a digest of itself.
"""

import atexit
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from pkgutil import walk_packages

from . import isa
from .tasks import TASKS

PACKAGE = Path(__file__).resolve().parents[1]
_lock = threading.RLock()


_refused = {}                                             # {task that cannot be compiled: why}


def load(task):
    """The address of the task's machine code; compiles it, and all its like, if need be."""
    with _lock:
        path = folder() / f"{task.name}.o"
        symbol, code = read(path)
        if code is None and task.name not in _refused:
            if task.common:
                import_kernels()
            wanted = [t for t in TASKS.values() if alike(t, task)]
            _refused.update(compile_all([t for t in wanted if missing(t)]))
            symbol, code = read(path)
        if code is None:
            why = _refused.get(task.name, "its compiler ended too early")
            raise RuntimeError(f"kernels: {task.name} could not be compiled: {why}")
        return link(symbol, code)


def alike(one, other):
    """Whether who needs one will need the other: both are common, or both rare and neighbours."""
    near = one.function.__module__ == other.function.__module__
    return (one.common and other.common) or (near and not (one.common or other.common))


def missing(task):
    return task.name not in _refused and read(folder() / f"{task.name}.o")[1] is None


def forget():
    """After a fork nobody may be left to open the lock; and a passing folder is the parent's."""
    global _lock
    _lock = threading.RLock()
    atexit.unregister(remove)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


def import_kernels():
    """Import every module of the package, so that TASKS holds all there are."""
    for module in walk_packages([str(PACKAGE)], __name__.partition(".")[0] + "."):
        import_module(module.name)


_engines = []                                             # machine code lives as long as these


def link(symbol, code):
    """The address of `symbol` in an object file; each in a linker of its own: names may recur."""
    from llvmlite import binding
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return engine.get_function_address(symbol)


def read(path):
    """(symbol, machine code) from a file, or (None, None) where it is missing or damaged."""
    try:
        head, _, code = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None, None
    symbol, _, digest = head.decode(errors="replace").partition(" ")
    if hashlib.sha256(code).hexdigest() != digest:
        return None, None
    return symbol, code


def write(path, symbol, code):
    """The code's file, with a digest of it."""
    replace(path, f"{symbol} {hashlib.sha256(code).hexdigest()}\n".encode() + code)


def replace(path, content):
    """Write a file, whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


@cache
def folder():
    """Where this machine's code for these sources lies."""
    return kept("kernels", key())


def kept(kind, *names):
    """The user's folder for a kind of machine code; a passing one where none can be written."""
    try:
        path = Path(home(), "tinydiff", kind, *names)
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(path, os.W_OK):
            return path
    except (OSError, RuntimeError):                       # a file in the way; a user without a home
        pass
    passing = tempfile.mkdtemp(prefix=f"tinydiff-{kind}-")
    atexit.register(remove, passing)
    return Path(passing)


def remove(path):
    shutil.rmtree(path, ignore_errors=True)


def home():
    """The user's folder for what can be made again."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home())
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def key():
    """The digest of all that machine code depends on."""
    from llvmlite import binding
    digest = hashlib.sha256()
    for source in sources():
        digest.update(source)
    for fact in (version("numba"), version("llvmlite"), platform.python_version(),
                 binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(),
                 isa.host(), os.environ.get("NUMBA_CPU_NAME"),
                 os.environ.get("NUMBA_CPU_FEATURES")):
        digest.update(repr(fact).encode())
    return digest.hexdigest()[:24]


def sources():
    """Every file of the package but those for a GPU, which say so as they import."""
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_bytes()
        if path.parent.name != "gpu" and b"from ..gpu" not in source:
            yield source


def compile_all(tasks):
    """Compile tasks in processes of their own, as many as there are threads, and say so.

    {name: why not} of those that could not be.
    """
    from .pool import threads
    start = f"import sys; sys.path[:] = {sys.path!r}; from {__package__}.build import main; main()"
    answers, told = os.pipe()
    helpers = [subprocess.Popen([sys.executable, "-c", start, folder(), *(t.name for t in hand)],
                                stdin=subprocess.DEVNULL, stdout=told,
                                env=os.environ | {"NUMBA_DISABLE_JIT": "0",
                                                  "PYTHONIOENCODING": "utf-8"})
               for hand in hands(tasks, threads())]
    os.close(told)
    refused, done = {}, 0
    try:
        show(done, len(tasks))
        with open(answers, encoding="utf-8") as lines:
            for line in lines:                            # one a kernel, from whichever helper
                name, _, why = line.rstrip().partition(" ")
                if why:
                    refused[name] = why
                else:
                    done += 1
                    show(done, len(tasks))
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()
        print(file=sys.stderr, flush=True)
    return refused


def hands(tasks, count):
    """Tasks dealt to `count` helpers, the longest first, back and forth."""
    tasks = sorted(tasks, key=lambda task: -len(task.function.__code__.co_code))
    return [tasks[i::2 * count] + tasks[2 * count - 1 - i::2 * count]
            for i in range(min(count, len(tasks)))]


def show(done, total):
    """One line on stderr, written over until all is done."""
    print(f"\rcompiling kernels, once: {done}/{total}", end="", file=sys.stderr, flush=True)
