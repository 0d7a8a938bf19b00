"""tinydiff imports quietly, and on NumPy alone."""

import subprocess
import sys
from pathlib import Path

TINYDIFF = Path(__file__).resolve().parents[1] / "tinydiff"
MODULES = sorted(".".join(("tinydiff", *path.relative_to(TINYDIFF).with_suffix("").parts))
                 for path in TINYDIFF.rglob("*.py") if path.stem != "__main__")

QUIET = """
import os, sys, threading
import numpy

def threads():
    native = os.listdir("/proc/self/task") if os.path.exists("/proc/self/task") else ()
    return threading.active_count(), len(native)

loaded, running = set(sys.modules), threads()
import tinydiff
roots = {name.split(".")[0] for name in set(sys.modules) - loaded} - sys.stdlib_module_names
assert roots <= {"numpy", "tinydiff", "tinydiff_kernels"}, f"import tinydiff loads {roots}"
assert threads() == running, "import tinydiff starts a thread"
"""

NUMPY_ALONE = f"""
import importlib, sys

class Blocked:
    def find_spec(name, path=None, target=None):
        ours = {{"numpy", "tinydiff", "tinydiff_kernels"}}
        if name.split(".")[0] not in ours | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"blocked for this test: {{name}}", name=name)

sys.meta_path.insert(0, Blocked)
for module in {MODULES}:
    importlib.import_module(module)
"""


def run(code):
    """Run `code` in a fresh interpreter, where warnings are errors; return what it printed."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_import_prints_nothing_starts_no_thread_and_loads_no_other_library():
    assert run(QUIET) == ""


def test_every_module_imports_when_only_numpy_is_installed():
    assert run(NUMPY_ALONE) == ""


def test_the_block_itself_blocks():
    code = NUMPY_ALONE.replace(str(MODULES), "['pytest']")
    assert "blocked for this test: pytest" in subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
