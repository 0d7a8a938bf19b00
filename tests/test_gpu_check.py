"""tools/gpu_check.py finds what is wrong, goes on, and calls nothing right that has not run.

What it does with PyTorch is tested in tests/parity/test_gpu_check_torch.py.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import gpu_check  # isort: skip  (its package makes the checkout importable)
import compile_cuda
import gpu_check_helpers as fakes
from gpu import cases, child, counters, places, table
from tinydiff_kernels.gpu.source import Source

ROOT = Path(__file__).resolve().parents[1]
needs_emulators = pytest.mark.skipif(
    not shutil.which("g++") or not all(map(find_spec, ("greenlet", "ml_dtypes"))),
    reason="kernels are stepped through with g++, greenlet and ml_dtypes")
OPTIONS = {"backend": "host", "quick": True, "seed": 1, "capability": None, "ceilings": {}}


def check(*words, script="tools/gpu_check.py", **more):
    """(exit status, what was printed) of a whole run, by default on the host."""
    done = subprocess.run([sys.executable, ROOT / script, *map(str, words)], text=True,
                          capture_output=True, check=False, cwd=ROOT, timeout=240,
                          env=os.environ | more)
    return done.returncode, done.stdout + done.stderr


def report_in(folder):
    [path] = folder.glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def on_host(tmp_path_factory):
    """(exit status, what was printed, report, seconds of a core) of a quick run without a GPU."""
    folder, before = tmp_path_factory.mktemp("host"), os.times()
    status, said = check("--backend", "host", "--quick", "--seed", 7, "--out", folder)
    worked = sum(os.times()[2:4]) - sum(before[2:4])      # by all that it started
    return status, said, report_in(folder), worked


@pytest.mark.slow
@needs_emulators
class TestQuickRunOnTheHost:

    def test_everything_is_right_within_ninety_seconds_of_two_cores(self, on_host):
        status, said, report, seconds = on_host
        assert status == 0, said
        assert 1 < seconds < 2 * 90
        assert report["failed"] == []
        assert report["meta"]["planted overrun"]["ok"]
        assert report["sanitizer"]["planted overrun"]["ok"]

    def test_every_rung_of_every_operation_has_a_row_with_what_it_launched(self, on_host):
        rows = on_host[2]["kernels"]
        assert {(row["op"], row["rung"], row["dtype"]) for row in rows} == {*cases.every_rung()}
        for row in rows:
            assert row["ok"]
            assert row["bit_equal"]
            assert row["launched"]

    def test_every_kernel_in_cuda_c_has_a_case(self, on_host):
        launched = {name for row in on_host[2]["kernels"] for name in row["launched"]}
        there = {f"{file} {kernel}" for file in compile_cuda.files() if file.endswith(".cu")
                 for kernel in Source(places.KERNELS / file).kernels}
        assert launched >= there

    def test_the_kernels_whose_counters_are_read_are_launched(self, on_host):
        for op, kernel in counters.LARGEST:
            launched = {name.split()[1] for row in on_host[2]["kernels"] if row["op"] == op
                        for name in row["launched"]}
            assert kernel in launched

    def test_what_needs_a_gpu_is_named_as_left_out(self, on_host):
        left = {line.partition(":")[0] for line in on_host[2]["left_out"]}
        assert {"ceilings", "timing", "whole", "counters"} <= left

    def test_the_report_names_the_seed_and_no_folder_of_the_machine(self, on_host):
        report = on_host[2]
        assert report["meta"]["seed"] == 7
        for text in (str(ROOT), str(Path.home()) + "/", os.uname().nodename):
            assert text not in json.dumps(report)


@pytest.mark.slow
@needs_emulators
def test_the_gpus_path_runs_to_its_end_on_a_gpu_that_is_none(tmp_path):
    fakes.programs(tmp_path)
    status, said = check("check", "--quick", "--only", "correctness", "sanitizer", "--out",
                         tmp_path / "out", script="tests/gpu_check_helpers.py",
                         FAKES=str(tmp_path))
    report = report_in(tmp_path / "out")
    assert status == 0, said
    assert report["meta"]["device"] == "NVIDIA Stand-in"
    assert report["meta"]["as_found"]["driver_version"] == "580.159.04"
    assert {found["ok"] for found in report["sanitizer"].values()} == {True}
    assert report["sanitizer"]["memcheck of kernels in C++"]["calls"] > 20
    assert all(row["ok"] for row in report["kernels"])


def test_without_a_gpu_it_says_why_in_one_sentence_and_exits_with_77(tmp_path):
    from tinydiff.backend import why_no_gpu
    if not why_no_gpu():
        pytest.skip("there is a GPU")
    status, said = check("--out", tmp_path)
    assert status == 77
    assert f"no GPU: {why_no_gpu()}" in said.splitlines()
    assert not list(tmp_path.iterdir())


def test_the_stages_are_listed_with_what_they_do(capsys):
    assert gpu_check.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*gpu_check.STAGES]


STAGE = """
import os, time
from gpu.child import LeftOut

def leave(): raise LeftOut("no such tool")
def fail(): raise ValueError("in /some/folder/of/mine.cu")

def items(options):
    return [("first", lambda: {"n": 1}), ("absent", leave), ("wrong", fail),
            ("hangs", lambda: time.sleep(60)), ("dies", lambda: os._exit(7)),
            ("last", lambda: {"n": 2})]
"""


def test_an_item_that_fails_hangs_or_dies_does_not_stop_the_others(tmp_path, monkeypatch):
    (tmp_path / "planted_stage.py").write_text(STAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = dict(child.run("planted_stage", OPTIONS, time.time() + 60, patience=2))
    assert found == {
        "first": {"result": {"n": 1}}, "absent": {"left_out": "no such tool"},
        "wrong": {"error": "ValueError: in mine.cu"},
        "hangs": {"error": "it took too long and was ended"},
        "dies": {"error": "its process ended with status 7"}, "last": {"result": {"n": 2}}}


def test_what_there_was_no_time_for_is_left_out_by_name(tmp_path, monkeypatch):
    (tmp_path / "planted_stage.py").write_text(STAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [(item, found)] = child.run("planted_stage", OPTIONS, time.time() - 1, patience=20)
    assert item == "first, and the 5 after it"
    assert found == {"left_out": "no time was left"}


def test_a_process_that_lost_its_gpu_ends_and_the_next_one_goes_on(monkeypatch):
    def wrong():
        raise RuntimeError("cudaErrorIllegalAddress")

    said, items = [], [("first", wrong), ("second", dict)]
    options = {"backend": "gpu", "until": time.time() + 9}
    monkeypatch.setitem(sys.modules, "cupy", None)        # no import, as no call on a lost GPU
    status = child.work_through(items, 0, options, lambda **what: said.append(what))
    assert status == child.BROKEN
    assert said == [{"begins": "first", "number": 0},
                    {"item": "first", "error": "RuntimeError: cudaErrorIllegalAddress"}]


def row_of(**changes):
    return {"op": "norm.rows", "rung": "vector", "shape": "P=5 D=6", "dtype": "float32",
            "err": 1e-7, "tol": 1e-5, "bit_equal": True, "ok": True,
            "launched": ["norm/rung4_vector.cu rows_float"]} | changes


CASE = "norm.rows vector P=5 D=6 float32"


@pytest.mark.parametrize(("found", "status"), [
    ({"result": row_of()}, 0), ({"left_out": "no time was left"}, 0),
    ({"result": row_of(ok=False, err=0.5)}, 1), ({"result": row_of(ok=False, err=None)}, 1),
    ({"error": "it took too long and was ended"}, 1)])
def test_the_exit_status_tells_whether_something_failed(tmp_path, monkeypatch, found, status):
    facts = {"result": {"device": "Host", "date": "2026-12-24", "backend": "host"}}
    said = {"gpu.facts": [("facts", facts)],
            "gpu.cases": [(CASE, found), ("its process", {"error": "x"})][:1 + (status and 1)]}
    monkeypatch.setattr(child, "run", lambda module, *_: said[module])
    words = ["--backend", "host", "--only", "correctness", "--out", str(tmp_path)]
    assert gpu_check.main(words) == status
    report = report_in(tmp_path)
    assert bool(report["failed"]) == bool(status)
    assert [row["ok"] for row in report["kernels"]] == [not status] * ("left_out" not in found)


def test_a_run_that_is_killed_leaves_what_it_has_found(tmp_path, monkeypatch):
    def killed(module, *_):
        if module == "gpu.facts":
            yield "facts", {"result": {"device": "Host", "date": "2026-12-24", "backend": "host"}}
        else:
            yield CASE, {"result": row_of()}
            raise KeyboardInterrupt

    monkeypatch.setattr(child, "run", killed)
    with suppress(KeyboardInterrupt):
        gpu_check.main(["--backend", "host", "--only", "correctness", "--out", str(tmp_path)])
    assert report_in(tmp_path)["kernels"][0]["ok"]


class Planted:
    """A rung for rows that is 2 % off, or whose results depend on how often it was called."""

    def __init__(self, what):
        self.what, self.calls = what, 0

    def rows(self, x, scale, shift, eps):
        from tinydiff_kernels.norm import rung0_numpy
        self.calls += 1
        y = rung0_numpy.rows(x, scale, shift, eps)
        y.flat[0] = np.nan if self.what == "nan" else y.flat[0]
        return y * {"wrong": 1.02, "moody": 1 + 1e-6 * self.calls}.get(self.what, 1)


@pytest.mark.parametrize(("what", "ok", "bit_equal"), [
    ("right", True, True), ("wrong", False, True), ("nan", False, True), ("moody", False, False)])
def test_a_planted_rung_is_judged_as_it_is(monkeypatch, what, ok, bit_equal):
    rung = Planted(what)
    monkeypatch.setattr(cases, "rung_of", lambda name, idea: rung)
    row = cases.check(places.Host(), "norm.rows", "vector", (7, 33), "float32", 3, large=False)
    assert (row["ok"], row["bit_equal"]) == (ok, bit_equal)
    json.dumps(row, allow_nan=False)


def test_a_result_of_another_shape_is_infinitely_wrong():
    assert cases.distance(np.ones((2, 3)), np.ones((3, 2))) == np.inf


@pytest.mark.parametrize(("at", "said"), [(32, "wrote 1 bytes behind an array of 32 bytes"),
                                          (-3, "wrote 3 bytes before an array of 32 bytes")])
def test_a_byte_outside_an_array_on_the_gpu_is_noticed(at, said):
    zones = places.RedZones(fakes.MemoryPool())
    inside = zones(32)
    assert (inside.memory == 0xFF).all()
    inside.memset_async(1, 32)
    zones.check()
    (inside + at).memset_async(1, 1)
    with pytest.raises(places.Overrun, match=said):
        zones.check()


def test_rows_of_steps_are_put_together_by_their_batch():
    report = {"step": None, "sampler": None}
    for result in ({"step": {"batch": 16, "torch_ms": 2.0}, "sampler": {"batch": 16, "n": 1}},
                   {"step": {"batch": 1, "torch_ms": 1.0}}, {"ok": True, "losses": [3]},
                   {"step": {"batch": 16, "graph_ms": 1.5}}):
        gpu_check.put_steps(report, "an item", result)
    assert report == {"step": [{"batch": 16, "torch_ms": 2.0, "graph_ms": 1.5},
                               {"batch": 1, "torch_ms": 1.0}],
                      "sampler": [{"batch": 16, "n": 1}], "losses": [3]}


@needs_emulators
def test_a_planted_overrun_is_found_and_one_that_is_not_is_no_pass(monkeypatch):
    assert cases.planted(places.Host())["ok"]
    monkeypatch.setattr(cases, "overrun", lambda place: None)
    assert cases.planted(places.Host()) == {"ok": False, "found": "nothing"}


def test_the_table_shows_what_has_no_number_as_infinitely_wrong(capsys):
    row = row_of(ok=False)
    del row["err"]
    table.print_right([row])
    assert "inf   1 NOT OK" in capsys.readouterr().out


def test_kernels_that_could_not_be_built_are_left_out_with_the_reason():
    report = {"left_out": []}
    built = {"not_built": {"norm/a.py": "no nvJitLink", "norm/b.py": "no nvJitLink"}}
    gpu_check.put_build(report, "machine code", built)
    assert report == {"build": built, "left_out": ["build: 2 files, as norm/a.py: no nvJitLink"]}
