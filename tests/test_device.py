"""The device's door: who may pass, what is said where there is no GPU, and when it fails."""

import builtins
import inspect
import json
import re
import shutil

import numpy as np
import pytest
import stand_in_cupy
from story_helpers import TINY

from tinydiff import kernels
from tinydiff.autograd import Tensor
from tinydiff.backend import (
    alongside,
    array_module,
    device_for,
    normal_cdf,
    to_device,
    to_host,
    wait_for,
    why_no_gpu,
)
from tinydiff.diffusion import noise
from tinydiff.kernels import LADDERS, pick, use

NORMAL = noise.of_gpu.normal                              # the kernel itself
FAILED = stand_in_cupy.CUDARuntimeError(719, "cudaErrorLaunchFailure: unspecified launch failure")


def without_cupy(monkeypatch, error):
    """Let `import cupy` fail."""
    really = builtins.__import__

    def importing(name, *args):
        if name == "cupy":
            raise error
        return really(name, *args)

    monkeypatch.setattr(builtins, "__import__", importing)


# The door


def test_an_array_goes_there_and_back_unchanged(cupy, rng):
    x = rng.standard_normal((2, 3)).astype(np.float32)
    there = to_device(x, "cuda")
    assert array_module(there) is array_module(Tensor(there)) is cupy
    assert array_module(x) is array_module(Tensor(x)) is array_module(1.0) is np
    np.testing.assert_array_equal(to_host(there), x)
    assert to_device(there, "cuda") is alongside(there, there) is there
    assert to_host(x) is to_device(x, "cpu") is alongside(x, x) is x
    assert array_module(alongside(x, Tensor(there))) is cupy
    assert array_module(alongside(there, x)) is np
    assert len(cupy.stand_in.uploads) == len(cupy.stand_in.downloads) == 2
    wait_for(x)
    assert not cupy.stand_in.synchronisations
    wait_for(there)
    assert cupy.stand_in.synchronisations


def test_the_normal_distribution_is_known_there_too(cupy):
    x = np.array([-3.0, -0.5, 0.0, 2.0])
    np.testing.assert_allclose(to_host(normal_cdf(cupy.asarray(x))), normal_cdf(x), rtol=1e-14)


@pytest.mark.skipif(not shutil.which("g++"), reason="builds the kernel for the host with g++")
@pytest.mark.parametrize("images", [range(2, 5), [0, 3, 0], np.array([1, 2])])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_device_makes_the_noise_that_the_host_makes(images, dtype, cupy, monkeypatch):
    monkeypatch.setattr(noise.of_gpu, "normal", NORMAL)
    cupy.stand_in.clear()
    ours = noise.batch(7, images, 3, (5, 3, 1), dtype, like=cupy.empty(1))
    assert all(shape == (3,) for _, shape in cupy.stand_in.uploads)   # addresses, if they jump
    assert ours.dtype == dtype
    theirs = noise.batch(7, images, 3, (5, 3, 1), dtype)
    np.testing.assert_allclose(to_host(ours), theirs, rtol=4 * np.finfo(dtype).eps, atol=1e-15)
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 2⁶⁴ − 1, got -1"):
        noise.batch(-1, images, 3, (2,), dtype, like=ours)


@pytest.mark.parametrize("device", ["gpu", "cuda:1", None])
def test_other_devices_are_refused(device):
    with pytest.raises(ValueError, match='device: expected "auto", "cpu" or "cuda", got'):
        to_device(np.ones(2), device)


def test_auto_is_the_gpu_where_it_can_be_used(cupy, monkeypatch):
    assert [device_for(asked) for asked in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
    monkeypatch.setattr(cupy.stand_in.device, "count", 0)
    assert [device_for(asked) for asked in ("auto", "cpu")] == ["cpu", "cpu"]


def test_the_stand_in_has_nothing_that_cupy_has_not():
    cupy = pytest.importorskip("cupy")
    assert cupy.__version__.startswith("14.")
    for name in stand_in_cupy.UFUNCS:
        assert callable(getattr(cupy, name)), name
    for name, keywords in stand_in_cupy.FUNCTIONS.items():
        function = getattr(cupy, name)
        takes = inspect.signature(function).parameters if keywords else {"options": None}
        assert {*keywords.split()} <= {*takes} or {"options", "kwargs"} & {*takes}, name
    for name, keywords in stand_in_cupy.METHODS.items():
        told = getattr(cupy.ndarray, name).__doc__ or ""
        assert all(re.search(rf"\b{keyword}\b", told) for keyword in keywords.split()), name


# No GPU


REASONS = {"no driver": ({"driver": 0}, "there is no NVIDIA driver"),
           "too old a driver": ({"driver": 11040}, "the NVIDIA driver is made for CUDA 11.4, and "
                                "CuPy for 13.0: install a newer driver"),
           "no device": ({"count": 0}, "there is no NVIDIA GPU"),
           "too old a device": ({"capability": "75"}, "NVIDIA Stand-in has compute capability 7.5, "
                                "and the kernels need 8.0")}


@pytest.mark.parametrize("case", REASONS)
def test_why_there_is_no_gpu_is_told_in_one_sentence(case, cupy, monkeypatch, typed):
    state, reason = REASONS[case]
    for name, value in state.items():
        monkeypatch.setattr(cupy.stand_in.device, name, value)
    assert why_no_gpu() == reason
    with pytest.raises(ValueError, match=re.escape(reason) + "; use --device cpu"):
        to_device(np.ones(2), "cuda")
    assert json.loads(typed("info", "--json")[1])["gpu"] == reason


@pytest.mark.parametrize(("error", "reason"), [
    (ModuleNotFoundError("No module named 'cupy'", name="cupy"), "CuPy is not installed; pip "
     "install 'tinydiff[cuda13]'"),
    (ImportError("\nCuPy is broken\n\nlibcudart.so.13 is missing\n"),
     "CuPy cannot be imported (libcudart.so.13 is missing)")])
def test_without_cupy_that_is_the_reason(error, reason, monkeypatch, typed):
    without_cupy(monkeypatch, error)
    assert why_no_gpu() == reason
    assert device_for("auto") == "cpu"
    assert reason in typed("info")[1]


def test_another_refusal_of_the_driver_is_handed_on(cupy, monkeypatch):
    def refuse():
        raise FAILED
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", refuse)
    assert why_no_gpu() == f"the NVIDIA driver refuses ({FAILED})"


def test_a_gpu_that_can_be_used_is_named(cupy, typed):
    assert why_no_gpu() == ""
    assert "NVIDIA Stand-in has compute capability 9.0" in typed("info")[1]


# Rungs


def test_arrays_of_the_device_take_its_rungs(cupy, monkeypatch):
    x, there = np.ones(2), cupy.asarray(np.ones(2))
    kernels._chosen.clear()          # the fixture puts its own back
    monkeypatch.setattr(kernels, "rung", kernels.rung.__wrapped__)
    norm = LADDERS["norm"]
    monkeypatch.delattr(norm, "ON_GPU", raising=False)
    assert pick("norm", there) is norm.LADDER["numpy"]    # where there is none, the last plain one
    monkeypatch.setattr(norm, "ON_GPU", "onepass", raising=False)
    monkeypatch.setattr(norm.LADDER, "device", ["onepass"])
    assert pick("norm", None, there) is norm.LADDER["onepass"]
    with use(norm="numpy"):
        assert pick("norm", there) is pick("norm", x) is norm.LADDER["numpy"]


@pytest.mark.parametrize(("name", "idea"), [("conv2d", "loops"), ("conv2d", "numba"),
                                            ("norm", "onepass"), ("attention", "online")])
def test_a_rung_of_the_cpu_refuses_arrays_of_the_device(name, idea, cupy):
    if idea != "loops":
        pytest.importorskip("numba")
    there, plain = cupy.asarray(np.ones(2)), LADDERS[name].LADDER.plain[-1]
    with use(**{name: idea}):
        assert pick(name, np.ones(2)) is LADDERS[name].LADDER[idea]
        says = f"use: the rung '{idea}' of {name} runs on the CPU and the arrays are on the GPU"
        with pytest.raises(ValueError, match=f"{says}; take one of {plain}"):
            pick(name, there)


# The command line


@pytest.fixture
def recipe(tmp_path):
    """tiny.toml in the folder where commands are typed."""
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    return "tiny.toml"


def test_train_and_sample_say_where_they_work(recipe, typed, cupy):
    code, out, _ = typed("train", recipe, "--out", "run", "--stop-at", "2", "--device", "cuda")
    assert code == 0
    assert "device: cuda (NVIDIA Stand-in has compute capability 9.0) · data: embedded" in out
    code, out, _ = typed("train", recipe, "--out", "run", "--stop-at", "3", "--resume",
                         "--device", "cpu")
    assert code == 0
    assert re.search(r"device: cpu × \d+ · data", out)
    asked = ("sample", "run", "--prompt", "a handwritten seven", "--out")
    code, out, _ = typed(*asked, "there.npy")             # auto
    assert code == 0
    assert "device: cuda (NVIDIA Stand-in" in out
    code, out, _ = typed(*asked, "here.npy", "--device", "cpu")
    assert re.search(r"device: cpu × \d+ · model", out)
    np.testing.assert_allclose(np.load("there.npy").astype(int), np.load("here.npy"), atol=1)


@pytest.mark.slow
def test_eval_judges_what_the_device_drew(recipe, typed, cupy):
    typed("train", recipe, "--out", "run", "--stop-at", "2", "--device", "cpu")
    found = [json.loads(typed("eval", "run", "--n", "40", "--json", "--device", device)[1])
             for device in ("cpu", "cuda")]
    assert found[0].keys() == found[1].keys()
    assert found[1]["prompt_accuracy"] == pytest.approx(found[0]["prompt_accuracy"], abs=0.05)
    assert found[1]["nll_bits_per_dim"] == pytest.approx(found[0]["nll_bits_per_dim"], rel=1e-4)
    losses = [each["loss_gap"]["loss"] for each in found]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


@pytest.mark.parametrize("command", [("train", "tiny.toml"), ("sample", "mnist", "--prompt", "a"),
                                     ("eval", "mnist")])
def test_a_device_that_is_not_there_is_typed_wrongly(command, recipe, typed, cupy, monkeypatch):
    monkeypatch.setattr(cupy.stand_in.device, "driver", 0)
    code, _, err = typed(*command, "--device", "cuda")
    assert code == 2
    assert err == "tinydiff: --device cuda: there is no NVIDIA driver; use --device cpu\n"
