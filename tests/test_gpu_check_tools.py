"""What gpu_check.py reads out of the words of NVIDIA's programs, and what it makes of silence."""

import time

import pytest

import gpu_check  # isort: skip  # noqa: F401  (its package makes the checkout importable)
import gpu_check_helpers as fakes
from gpu import child, counters, sanitizer

OPTIONS = {"backend": "gpu", "capability": "90", "until": 0}


def test_the_sanitizers_words_are_read_without_addresses():
    assert sanitizer.findings(fakes.MEMCHECK) == ["Invalid __global__ write of size 4 bytes",
                                                  "at overrun"]


def test_a_sanitizer_that_is_not_there_is_no_pass(monkeypatch):
    monkeypatch.setattr(sanitizer, "WHERE", ("no-such-program",))
    sanitizer.planted.cache_clear()
    with pytest.raises(child.LeftOut, match="not available"):
        sanitizer.look("memcheck", "C++", OPTIONS | {"until": time.time() + 9})


def test_counters_that_cannot_be_read_are_left_out(monkeypatch):
    asked = "conv2d.fused", "fused", {"capability": "90", "until": time.time() + 9}
    monkeypatch.setattr(counters, "WHERE", ("no-such-program",))
    with pytest.raises(child.LeftOut, match="not on the PATH"):
        counters.count(*asked)
    monkeypatch.setattr(counters, "WHERE", ("false",))    # refuses, as ncu without permission does
    with pytest.raises(child.LeftOut, match="ended with status 1 and no numbers"):
        counters.count(*asked)


@pytest.mark.parametrize(("status", "said", "works"), [
    (9, fakes.MEMCHECK, True), (0, "ERROR SUMMARY: 0 errors", False),
    (1, "========= Error: Device not supported", None)])
def test_the_planted_overrun_tells_whether_the_tool_works(monkeypatch, status, said, works):
    monkeypatch.setattr(sanitizer, "sanitized", lambda *_, until: (status, said))
    sanitizer.planted.cache_clear()
    if works is None:
        with pytest.raises(child.LeftOut, match="Device not supported"):
            sanitizer.planted()
    else:
        assert sanitizer.planted()["ok"] is works
    if works is False:
        with pytest.raises(child.LeftOut, match="prove nothing"):
            sanitizer.look("memcheck", "C++", OPTIONS)
    sanitizer.planted.cache_clear()


@pytest.mark.parametrize(("status", "said", "ok"), [
    (0, "9 calls came through\n========= ERROR SUMMARY: 0 errors", True),
    (0, "9 calls came through\n===== RACECHECK SUMMARY: 0 hazards displayed (0 errors)", True),
    (9, "9 calls came through\n========= ERROR SUMMARY: 2 errors", False),
    (0, "========= ERROR SUMMARY: 0 errors", False), (1, "Traceback", False)])
def test_a_tool_passes_only_what_ran_to_its_end(monkeypatch, status, said, ok):
    monkeypatch.setattr(sanitizer, "planted", lambda: {"ok": True})
    monkeypatch.setattr(sanitizer, "sanitized", lambda *_, until: (status, said))
    assert sanitizer.look("memcheck", "C++", {"capability": "90", "until": 0})["ok"] is ok
