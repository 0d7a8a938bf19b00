"""Benchmarks put into pages what they measured, compare fairly, and the judge is not fooled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinydiff import data
from tinydiff.autograd import Tensor

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
MARKS = "<!-- speed:begin -->{}<!-- speed:end -->"


@pytest.fixture
def replace_block(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from pages import replace_block
    return replace_block


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import digit_quality
    return digit_quality


def test_only_the_text_between_the_marks_changes(tmp_path, replace_block):
    page = tmp_path / "page.md"
    page.write_bytes(("# Speed\r\n" + MARKS.format("\nold\n") + "\r\nend µ").encode())
    for _ in range(2):                                    # doing it again changes nothing
        assert replace_block(page, "speed", "new\n")
        assert page.read_bytes() == ("# Speed\r\n" + MARKS.format("\nnew\n") + "\r\nend µ").encode()


def test_a_page_without_the_marks_is_left_alone(tmp_path, replace_block):
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    assert not replace_block(page, "speed", "new")
    assert not replace_block(tmp_path / "missing.md", "speed", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
    assert page.read_text() == "nothing here"


@pytest.mark.parametrize("text", ["<!-- speed:begin -->", "<!-- speed:end --><!-- speed:begin -->",
                                  MARKS + MARKS])
def test_marks_that_do_not_pair_up_are_refused_and_the_page_stays(tmp_path, replace_block, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="mend the page"):
        replace_block(page, "speed", "new")
    assert page.read_text() == text


class Reader:
    """A judge without weights: reads the digit from the first pixel, describes by eight others."""

    def predict(self, x):
        return np.eye(10)[np.rint((x[:, 0, 0, 0] + 1) * 127.5).astype(int)]

    def features(self, x):
        return Tensor(x[:, 1, :8, 0])


def pictures(rng, n):
    """n pictures of noise, n/10 of each class, with the class written into the first pixel."""
    x = rng.integers(256, size=(n, 8, 8, 1)).astype(np.uint8)
    x[:, 0, 0, 0] = np.repeat(np.arange(10), n // 10)
    return x


@pytest.fixture
def judge(quality, rng):
    splits = [data.DataSet(pictures(rng, 4000), np.repeat(np.arange(10), 400), tuple("0123456789"),
                           "made up") for _ in range(2)]
    return quality.Judge(Reader(), *splits)


def test_pictures_like_the_real_ones_pass(quality, judge, rng):
    found = quality.measure(pictures(rng, 1000), judge)
    assert found["recognised"] == 1
    assert found["ci95"][0] < 1 == found["ci95"][1]
    assert 0.5 < found["nearest"] <= 1
    assert 0.5 < found["frechet_ratio"] < 2


def test_a_wrong_digit_counts_against_the_class_that_was_asked_for(quality, judge, rng):
    drawn = pictures(rng, 100)
    drawn[30:33, 0, 0, 0] = 8                             # three of ten threes are eights
    found = quality.measure(drawn, judge)
    assert found["recognised"] == 0.97
    assert found["recognised_by_digit"] == [1, 1, 1, 0.7, 1, 1, 1, 1, 1, 1]


def test_two_equal_pictures_of_one_digit_are_found(quality, judge, rng):
    drawn = pictures(rng, 100)
    drawn[57] = drawn[52]
    found = quality.measure(drawn, judge)
    assert found["nearest"] == 0 == found["nearest_by_digit"][5]
    assert min(found["nearest_by_digit"][:5]) > 0.5


def test_pictures_of_less_variety_are_farther_than_real_ones(quality, judge, rng):
    drawn = pictures(rng, 1000)
    drawn[:, 1] = drawn[:, 1] // 2 + 64                   # half the contrast of what is described
    assert quality.measure(drawn, judge)["frechet_ratio"] > 4


def test_the_table_has_a_row_for_each_run_and_number_of_pictures(quality, judge, rng):
    found = [quality.measure(pictures(rng, n), judge) for n in (20, 100)]
    text = quality.table({"runs": {"mnist": found}, "machine": quality.machine(), "judge": {
        "accuracy": 0.9912, "learned_from": 60_000, "held_out": 10_000}})
    assert [line.split("|")[2].strip() for line in text.splitlines()[2:4]] == ["20", "100"]
    assert "99.12% of 10,000" in text
    assert "`python benchmarks/digit_quality.py --n 20 100`" in text


def run_cpu_step(*options):
    return subprocess.run([sys.executable, str(BENCHMARKS / "cpu_step.py"), *options], text=True,
                          capture_output=True, encoding="utf-8",
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
                               "PYTHONIOENCODING": "utf-8"})


def test_a_step_is_timed_in_milliseconds_and_memory_counted_in_millions_of_bytes():
    run = run_cpu_step("--json", "--batch", "2", "--size", "9", "--base", "8", "--steps", "1",
                       "--threads", "1")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert list(found) == ["step_ms", "sample_step_ms", "peak_rss_mb"]
    assert 0.1 < found["sample_step_ms"] < found["step_ms"] < 10_000
    assert 20 < found["peak_rss_mb"] < 2_000


@pytest.mark.parametrize(("options", "named"), [
    ("--batch 0", "--batch"), ("--threads two", "--threads"), ("--steps -1", "--steps"),
    ("--config imagenet", "--config"), ("--base 12", "12 channels"), ("--fast", "--fast")])
def test_a_wrong_option_is_one_sentence_and_exit_2(cpu_step, monkeypatch, capsys, options, named):
    monkeypatch.setattr(sys, "argv", ["cpu_step.py", *options.split()])
    with pytest.raises(SystemExit) as left:
        cpu_step.main()
    printed = capsys.readouterr()
    assert left.value.code == 2
    assert printed.out == ""
    assert named in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(("name", "batch", "parameters"), [("mnist-small", 64, 1_623_169),
                                                           ("cifar-ddpm", 16, 35_746_307)])
def test_the_timed_networks_are_the_published_ones(cpu_step, rng, name, batch, parameters):
    config, pictures = cpu_step.CONFIGS[name]
    assert pictures == batch
    assert cpu_step.UNet(config, rng=rng).count() == parameters


def test_ours_is_compared_with_the_better_layout_in_each_measure(cpu_step):
    ratios = cpu_step.compare({
        "ours":                {"step_ms": [2.0, 3.0, 9.0], "train_peak_mb": 60.0},
        "torch NCHW":          {"step_ms": [4.0, 6.0, 5.0], "train_peak_mb": 100.0},
        "torch channels_last": {"step_ms": [8.0, 7.0, 4.0], "train_peak_mb": 80.0}})
    assert ratios == {
        "step_ms": {"over": "torch NCHW", "ratio": 3 / 5, "by_round": 1 / 2},
        "train_peak_mb": {"over": "torch channels_last", "ratio": 60 / 80, "by_round": 60 / 80}}


def test_a_racer_that_dies_ends_the_race_with_its_name(cpu_step):
    with pytest.raises(SystemExit, match="torch of old ended with status 1"):
        cpu_step.race(["torch of old"], ["train"], {"network": {}, "batch": 1, "size": 8,
                                                    "threads": 1}, steps=1)
