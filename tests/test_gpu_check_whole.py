"""Whole steps, as tools/gpu_check.py races them: on the stand-in for CuPy, in float32 and small."""

import shutil

import numpy as np
import pytest

import gpu_check  # isort: skip
import gpu_check_helpers as fakes
from gpu import clock, whole

from tinydiff.kernels import use
from tinydiff.models import UNetConfig

CONFIG = UNetConfig(channels=3, base=8, mults=(1, 2), blocks=1, groups=4, attend=(1,))


@pytest.fixture
def small(cupy, monkeypatch):
    """A GPU that times events; a small network on small pictures; AdamW's own kernels."""
    pytest.importorskip("greenlet")
    if not shutil.which("g++"):
        pytest.skip("builds kernels with g++")
    monkeypatch.setattr(cupy.cuda, "Event", fakes.Event, raising=False)
    monkeypatch.setattr(cupy.cuda, "get_elapsed_time", fakes.get_elapsed_time, raising=False)
    monkeypatch.setattr(whole, "CONFIG", CONFIG)
    monkeypatch.setattr(whole, "HOW", whole.HOW | {"precision": "float32"})
    monkeypatch.setattr(clock, "STEPS", 3)
    drawn = whole.drawn
    monkeypatch.setattr(whole, "drawn", lambda *told: drawn(*told, side=8))
    with use(optimizer="fused"):
        yield cupy


def test_a_batch_is_one_row_of_training_and_one_of_sampling(small):
    report = {"step": None, "sampler": None, "failed": [], "left_out": []}
    items = dict(whole.items({"quick": True, "seed": 3}))
    for name in "eager, batch 16", "graph, batch 16":
        gpu_check.note(report, "whole", name, {"result": items[name]()})
    assert report["failed"] == []
    for kind in "step", "sampler":
        [row] = report[kind]
        assert row["batch"] == 16
        for who in "eager", "graph":
            assert row[f"{who}_ms"] > 0
            assert row[f"{who}_spread"] >= 0
            assert row[f"{who}_bytes"] >= 0


def test_a_graph_takes_the_same_steps(small):
    weights, batches = whole.started(CONFIG, 5), whole.drawn(CONFIG, 2, 5, 5)
    found = []
    for graph in False, True:
        steps = whole.Steps(CONFIG, weights, device="cuda", graph=graph, **whole.HOW)
        found.append([steps.train(*map(steps.put, one)).item() for one in batches])
        found[-1].append(steps.sample(*map(steps.put, batches[0][:2])).get())
        assert steps.why_not() == []
    assert found[0][:-1] == found[1][:-1]
    np.testing.assert_array_equal(found[0][-1], found[1][-1])
    assert len(set(found[0][:-1])) == 5


def test_what_could_not_be_recorded_is_a_failure_with_its_reason(small, monkeypatch):
    def descend(self, numbers, x_t, t, eps):
        return [x_t * float(x_t.sum())]                   # the host waits for a number

    monkeypatch.setattr(whole.Steps, "descend", descend)
    found = whole.race("graph", 2, seed=0)
    assert found["ok"] is False
    assert "cudaErrorStreamCaptureUnsupported" in found["wrong"][0]


def test_steps_are_timed_between_events_after_some_that_do_not_count(small, monkeypatch):
    done = []

    class Event:
        def record(self):
            self.at = len(done)

        def synchronize(self):
            assert self.at == clock.WARM + 3

    monkeypatch.setattr(small.cuda, "Event", Event)
    monkeypatch.setattr(small.cuda, "get_elapsed_time", lambda a, b: b.at - a.at)
    assert clock.one_by_one(lambda: done.append(0)) == [1, 1, 1]
    assert len(done) == clock.WARM + 3


def test_every_batch_is_raced_by_all_four_and_the_largest_is_compiled_first():
    names = [name for name, _ in whole.items({"quick": False, "seed": 0})]
    assert names[0] == "first losses"
    assert set(names[1:]) == {f"{who}, batch {batch}" for batch in (128, 16, 1)
                              for who in ("graph", "eager", "torch", "compiled")}
    assert names[-3:] == ["compiled, batch 128", "compiled, batch 16", "compiled, batch 1"]


def test_the_network_is_ddpms_and_starts_with_no_layer_silent():
    weights = whole.started(whole.CONFIG, 1)
    assert sum(a.size for a in weights.values()) == 35_746_307
    assert all(a.any() for a in weights.values())
