"""Machine code is compiled once, in sight, and what is on disk is used only while it is right."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("numba")

from kernel_helpers import ended, start

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
DOUBLE = '''
import numpy as np
from ..simd.functions import WIDTH
from ..simd.tasks import rare_task, task
from ..simd.pool import run
from ..simd.vector import load_part, store_part

@task
def double(item, worker, x):
    y = load_part(x, item, 1)
    store_part(x, item, y + y, 1)

@rare_task
def square(item, worker, x):
    y = load_part(x, item, 1)
    store_part(x, item, y * y, 1)

def result(task):
    x = np.arange(4, dtype=np.float32)
    run(task, len(x), x)
    return x.tolist()
'''
WRONG = """
@task
def wrong(item, worker, x):
    store_part(x, item, 1, "one")
"""
USE = """
import sys
from small.work.double import double, result, square
print(result(square if "square" in sys.argv else double))
assert "numba" not in sys.modules
"""
DOUBLED, SQUARED = "[0.0, 2.0, 4.0, 6.0]\n", "[0.0, 1.0, 4.0, 9.0]\n"
COMMON = 5                                                # tasks: four of the threads, and double


class Place:
    """A small package of kernels and a home for its machine code."""

    def __init__(self, folder):
        self.package, self.home = folder / "small", folder / "home"
        self.source = self.package / "work" / "double.py"

    def start(self, code=USE, *arguments, **environment):
        return start(code, *arguments, path=[self.package.parent],
                     **{"OMP_NUM_THREADS": "2", "XDG_CACHE_HOME": str(self.home), **environment})

    def run(self, code=USE, *arguments, **environment):
        """(what it printed, what it said on stderr)"""
        out, err, status = ended(self.start(code, *arguments, **environment))
        assert status == 0, err
        return out, err

    def files(self):
        """{name: when it was written} of all machine code there is."""
        return {path.name: path.stat().st_mtime_ns for path in self.home.rglob("*.o")}

    def copy(self, folder):
        shutil.copytree(self.package.parent, folder, dirs_exist_ok=True)
        return Place(folder)


def line(total):
    """The one line that is seen while so many tasks are compiled."""
    return "".join(f"\rcompiling kernels, once: {done}/{total}" for done in range(total + 1)) + "\n"


@pytest.fixture(scope="module")
def warmed(tmp_path_factory):
    """(a place that has compiled all, what its first run said)"""
    place = Place(tmp_path_factory.mktemp("warm"))
    shutil.copytree(KERNELS / "simd", place.package / "simd")
    stray = place.package / "work" / ".checkpoints" / "double-checkpoint.py"
    stray.parent.mkdir(parents=True)
    stray.write_text("an editor's own copy")
    for name in ("__init__.py", "memory.py"):
        shutil.copy(KERNELS / name, place.package)
    (place.package / "work" / "__init__.py").touch()
    place.source.write_text(DOUBLE)
    return place, place.run()


@pytest.fixture
def warm(warmed, tmp_path):
    """A copy of that place, to change."""
    return warmed[0].copy(tmp_path)


@pytest.fixture
def cold(warm):
    shutil.rmtree(warm.home)
    return warm


def test_the_first_run_compiles_every_common_task_and_says_so_in_one_line(warmed):
    place, printed = warmed
    assert printed == (DOUBLED, line(COMMON))
    assert len(place.files()) == COMMON


def test_the_next_run_compiles_nothing_says_nothing_and_loads_no_numba(warm):
    before = warm.files()
    assert warm.run() == (DOUBLED, "")
    assert warm.files() == before


def test_a_rare_task_is_compiled_when_needed_alone_even_where_numba_is_off(warm):
    assert warm.run(USE, "square", NUMBA_DISABLE_JIT="1") == (SQUARED, line(1))
    assert warm.run(USE, "square") == (SQUARED, "")


def test_what_is_damaged_is_compiled_again(warm):
    whole, flipped, cut, empty, text = sorted(warm.home.rglob("*.o"))
    code = bytearray(flipped.read_bytes())
    code[-40] ^= 1
    flipped.write_bytes(code)
    cut.write_bytes(cut.read_bytes()[:-1])
    empty.write_bytes(b"")
    text.write_bytes(b"\xff\xfe not machine code\n")
    before = warm.files()
    assert warm.run() == (DOUBLED, line(4))
    assert {name for name, when in warm.files().items() if when == before[name]} == {whole.name}
    assert warm.run() == (DOUBLED, "")


def test_a_changed_source_is_compiled_and_the_old_code_left_alone(warm):
    before = warm.files()
    warm.source.write_text(DOUBLE.replace("y + y", "y + y + y"))
    assert warm.run()[0] == "[0.0, 3.0, 6.0, 9.0]\n"
    assert len(list(warm.home.rglob("*.o"))) == 2 * COMMON
    warm.source.write_text(DOUBLE)
    assert warm.run() == (DOUBLED, "")
    assert len(before) == COMMON


OTHERS = {
    "the same":         "",
    "Numba":            "importlib.metadata.version = lambda name: '1.0' + name[:5]",
    "llvmlite":         "importlib.metadata.version = lambda name: '1.0' + name[-5:]",
    "Python":           "platform.python_version = lambda: '3.99.0'",
    "CPU":              "binding.get_host_cpu_name = lambda: 'z80'",
    "features":         "del binding.get_host_cpu_features; binding.get_host_cpu_features = Fewer",
    "vectors":          "os.environ['TINYDIFF_ISA'] = 'neon'",
    "Numba's CPU":      "os.environ['NUMBA_CPU_NAME'] = 'haswell'",
    "Numba's features": "os.environ['NUMBA_CPU_FEATURES'] = '-avx'",
}


def test_every_fact_that_code_depends_on_names_another_folder(warm):
    code = """if True:
        import importlib.metadata, os, platform, sys
        from llvmlite import binding
        was = binding.get_host_cpu_features()
        class Fewer(dict):
            def get(self, name): return was.get(name)
            def flatten(self): return '+few'
        exec(sys.argv[1])
        from small.simd import cache
        print(cache.key(), end='')
    """
    runs = [warm.start(code, change) for change in OTHERS.values()]
    keys = {fact: ended(run)[0] for fact, run in zip(OTHERS, runs)}
    assert all(re.fullmatch("[0-9a-f]{24}", key) for key in keys.values())
    assert len(set(keys.values())) == len(OTHERS)
    assert {path.parent.name for path in warm.home.rglob("*.o")} == {keys["the same"]}


def test_where_nothing_can_be_kept_it_still_works_and_nothing_is_left_behind(cold, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    cold.home.write_text("a file in the way")
    assert cold.run(TMPDIR=str(temporary)) == (DOUBLED, line(COMMON))
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("trouble", [
    "def home(): raise RuntimeError('no home'); Path.home = home",
    "def mkdir(*_, **__): raise PermissionError; Path.mkdir = mkdir",
    "os.access = lambda path, mode: False"])
def test_a_passing_folder_takes_the_place_of_a_home(cold, trouble, tmp_path):
    code = """if True:
        import os, sys
        from pathlib import Path
        from small.simd import cache
        exec(sys.argv[1])
        assert cache.folder().is_dir()
        print(cache.folder())
    """
    out, _ = cold.run(code, trouble.replace("; ", "\n"), TMPDIR=str(tmp_path), XDG_CACHE_HOME="",
                      HOME=str(tmp_path))
    assert Path(out.strip()).parent == tmp_path
    assert not Path(out.strip()).exists()


def test_two_first_runs_at_once_do_not_disturb_each_other(cold):
    both = [cold.start() for _ in range(2)]
    for process in both:
        assert ended(process)[0] == DOUBLED
    assert cold.run() == (DOUBLED, "")
    assert {path.suffix for path in cold.home.rglob("*") if path.is_file()} == {".o"}


def test_a_task_that_cannot_be_compiled_is_named_in_one_sentence_and_the_others_are(cold):
    cold.source.write_text(DOUBLE + WRONG)
    out, err = cold.run("""if True:
        from small.work.double import double, result, wrong
        try:
            result(wrong)
        except RuntimeError as error:
            print(error)
        print(result(double))
    """)
    said, doubled = out.splitlines()
    assert re.match("kernels: work.double.wrong could not be compiled: TypingError: .*str", said)
    assert doubled + "\n" == DOUBLED
    assert err == line(6).replace("\rcompiling kernels, once: 6/6", "")


def test_a_compiler_that_dies_is_reported(warm):
    build = warm.package / "simd" / "build.py"
    with build.open("a") as source:
        source.write("\ndef main():\n    raise SystemExit(3)\n")
    _, err, status = ended(warm.start())
    assert status == 1
    assert re.fullmatch("RuntimeError: kernels: simd.pool.[a-z_]+ could not be compiled: "
                        "its compiler ended too early", err.splitlines()[-1])


@pytest.mark.skipif(os.name != "posix", reason="a matter of POSIX")
def test_ctrl_c_while_compiling_leaves_no_process_behind(cold):
    process = cold.start("import os; os.setpgid(0, 0)\n" + USE)
    said = b""
    while not said.endswith(b"0/5"):
        said += process.stderr.read(1)
    time.sleep(0.3)                                       # the helpers are on their way
    os.killpg(process.pid, signal.SIGINT)
    _, err, status = ended(process)                       # once all have closed their stderr
    assert status == -signal.SIGINT
    assert (err.count("Traceback"), err.splitlines()[-1]) == (1, "KeyboardInterrupt")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
