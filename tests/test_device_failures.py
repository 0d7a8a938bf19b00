"""Too little memory on the GPU, and a GPU that fails: one sentence, and nothing is lost."""

import re
from functools import partial

import pytest
import stand_in_cupy
from story_helpers import TINY, in_training, tiny

from tinydiff import backend, checkpoint, report
from tinydiff.backend import memory_of
from tinydiff.data import load
from tinydiff.generate import Run
from tinydiff.runs import load_run
from tinydiff.train import Training, fit

FAILED = stand_in_cupy.CUDARuntimeError(719, "cudaErrorLaunchFailure: unspecified launch failure")


@pytest.fixture
def recipe(tmp_path):
    """tiny.toml in the folder where commands are typed."""
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    return "tiny.toml"


def needed(pictures):
    """Bytes that a step of the tiny recipe holds on the device, measured without a limit."""
    training = Training(tiny(), load("digits"), device="cuda")
    return memory_of(lambda: report.rehearse(training, pictures) if pictures else None)[0]


@pytest.fixture
def limited(cupy, monkeypatch):
    """A function: from now on the device has so many bytes."""
    monkeypatch.setattr(cupy.stand_in.device, "limit", 1 << 40)
    monkeypatch.setattr(cupy.stand_in.device, "used", 0)
    monkeypatch.setattr(cupy.stand_in.device, "pool", 0)
    return lambda limit: monkeypatch.setattr(cupy.stand_in.device, "limit", limit)


def test_too_large_a_batch_is_told_with_one_that_fits(recipe, typed, limited):
    two, many = needed(2), needed(40)
    each = (many - two) / 38
    limited(int(two + 10.5 * each))                       # room for 12
    words = ("train", recipe, "--out", "run", "--stop-at", "2", "--device", "cuda", "--set")
    code, _, err = typed(*words, "train.batch=40")
    told = re.fullmatch(r"tinydiff: 40 pictures at a time need about (\S+) GB of the GPU's memory, "
                        r"(\S+) GB were free; (\d+) fit, --set train.batch=(\d+); take fewer or "
                        r"smaller pictures\n", err)
    assert code == 1
    assert told, err
    assert float(told[1]) == pytest.approx(many / 1e9, rel=0.1)
    assert float(told[2]) == pytest.approx((two + 10.5 * each) / 1e9, rel=0.1)
    assert told[3] == told[4]
    assert 10 <= int(told[3]) <= 13
    code, _, err = typed("train", recipe, "--out", "other", "--stop-at", "2", "--device", "cuda",
                         "--set", f"train.batch={int(told[3]) - 1}")
    assert code == 0, err
    assert typed(*words[:-2], "cpu", "--set", "train.batch=40")[0] == 0


def test_where_not_even_two_fit_that_is_told(recipe, typed, limited):
    limited((needed(0) + needed(1)) // 2)
    code, _, err = typed("train", recipe, "--out", "run", "--device", "cuda")
    assert code == 1
    assert err == ("tinydiff: the GPU has too little memory for two pictures at a time; take fewer "
                   "or smaller pictures\n")


def test_too_many_pictures_at_a_time_are_told_with_how_many_fit(recipe, typed, limited):
    typed("train", recipe, "--out", "run", "--stop-at", "1", "--device", "cpu")
    words = ("sample", "run", "--prompt", "a handwritten seven", "--n", "60", "--out", "a.npy",
             "--device", "cuda", "--batch")
    run = load_run("run", "cuda")
    asked = run.settings(["a handwritten seven"], n=60)
    limited(memory_of(partial(report.rehearse_drawing, run, asked, 24))[0])
    del run
    code, _, err = typed(*words, "60")
    told = re.search(r"60 pictures at a time need about .* (\d+) fit, --batch (\d+);", err)
    assert code == 1
    assert told, err
    assert 12 <= int(told[1]) <= 24                       # a straight line is not quite the truth
    code, _, err = typed(*words, told[2])
    assert code == 0, err


def failing(training, step, error, torn=False):
    """The training, whose `step` ends in an error; torn: amid the move of its weights."""
    really = training.optimizer.step if torn else training.gradient

    def fail(*args):
        if training.steps_done == step - 1:
            raise error
        return really(*args)

    setattr(*((training.optimizer, "step") if torn else (training, "gradient")), fail)
    return training


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("error", [FAILED, stand_in_cupy.OutOfMemoryError(1 << 30, 0)])
def test_the_steps_before_a_failure_are_saved_unless_weights_were_moving(error, torn, tmp_path):
    training = failing(in_training(), 6, error, torn)
    with pytest.raises(type(error)):
        fit(training, tmp_path, show=False)
    path = tmp_path / "checkpoint.safetensors"
    assert path.exists() != torn
    if not torn:
        assert checkpoint.load(path)[1]["step"] == 5
        again = in_training()
        again.load(path)
        whole = in_training()
        losses = [whole.step() for _ in range(6)]
        assert again.step() == losses[5]


def test_a_gpu_that_fails_ends_the_command_with_the_way_on(recipe, typed, cupy, monkeypatch):
    really = Training.gradient
    monkeypatch.setattr(Training, "gradient",
                        lambda t, step: really(failing(t, 4, FAILED), step) if step < 4 else
                        (_ for _ in ()).throw(FAILED))
    code, _, err = typed("train", recipe, "--out", "run", "--device", "cuda")
    assert code == 1
    assert err.splitlines()[-1] == (
        "tinydiff: the GPU failed (cudaErrorLaunchFailure: unspecified launch failure); the steps "
        "since the last save are lost; go on with: tinydiff train tiny.toml --out run --resume")
    assert checkpoint.load("run/checkpoint.safetensors")[1]["step"] == 3


def test_elsewhere_it_is_told_as_well_and_other_errors_are_not_hidden(recipe, typed, monkeypatch):
    typed("train", recipe, "--out", "run", "--stop-at", "1", "--device", "cpu")

    def fail(*_, **__):
        raise FAILED

    monkeypatch.setattr(Run, "pixels", fail)
    code, _, err = typed("sample", "run", "--prompt", "a", "--device", "cpu")
    assert (code, err.splitlines()[-1]) == (1, f"tinydiff: the GPU failed ({FAILED})")
    monkeypatch.setattr(backend, "of_device", lambda error: False)
    with pytest.raises(RuntimeError, match="launch failure"):
        typed("sample", "run", "--prompt", "a", "--device", "cpu")
