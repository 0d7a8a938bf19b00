"""The network that benchmarks/cpu_step.py races against is ours, in PyTorch, in both layouts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinydiff.models import UNet, UNetConfig

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CONFIGS = {                                               # configuration, height and width
    "one channel":            (UNetConfig(channels=1, base=8, mults=(1, 2, 2), blocks=2,
                                          attend=(2,), groups=8), 16),
    "RGB, heads, odd sizes":  (UNetConfig(channels=3, base=16, mults=(1, 2), blocks=1,
                                          attend=(0,), heads=2, groups=4), 11),
}
LAYOUTS = ("torch NCHW", "torch channels_last")
TOLERANCE = 1e-4                                          # of the largest number


@pytest.fixture
def torch_unet(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import torch_unet
    return torch_unet


@pytest.fixture(params=CONFIGS)
def racers(request, cpu_step, torch_unet, rng):
    """{name: a racer}, all with the same weights, none of them zero."""
    config, size = CONFIGS[request.param]
    given = dict(zip(("x_t", "t", "eps"), cpu_step.inputs(config, 3, size)), lr=1e-3, decay=0.1)
    ours = cpu_step.Ours(config, **given)
    for p in ours.unet.parameters().values():
        p.data += (0.1 * rng.standard_normal(p.shape)).astype(np.float32)
    state = torch_unet.weights({name: p.data for name, p in ours.unet.parameters().items()})
    found = {"ours": ours}
    for name in LAYOUTS:
        found[name] = torch_unet.Torch(config, **given, layout=torch_unet.LAYOUTS[name], threads=1)
        found[name].unet.load_state_dict(state)
    return found


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@np.errstate(under="ignore")                              # the square of a tiny gradient
def test_both_layouts_predict_and_learn_as_ours_does(racers):
    ours, *others = racers.values()
    drawn = ours.sample()
    losses = [ours.train() for _ in range(3)]
    assert losses[2] < losses[0]
    for other in others:
        assert other.parameters == ours.parameters
        assert_close(drawn, other.sample())
        np.testing.assert_allclose([other.train() for _ in range(3)], losses, rtol=1e-4)
        assert_close(ours.sample(), other.sample())


def test_both_layouts_draw_the_same(racers):
    assert_close(racers["torch NCHW"].sample(), racers["torch channels_last"].sample())


@pytest.mark.parametrize("name", LAYOUTS)
def test_pictures_reach_every_convolution_in_their_own_layout(racers, torch_unet, name):
    layout, seen = torch_unet.LAYOUTS[name], []
    for module in racers[name].unet.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, given, out: seen.extend((given[0], out)))
    racers[name].train()
    assert len(seen) > 20
    for x in seen:
        canonical = torch.empty(x.shape, memory_format=layout)
        assert order(x) == order(canonical)


def order(x):
    """The axes from the longest stride to the shortest: cropping a picture leaves it alone."""
    return sorted(range(x.ndim), key=lambda axis: -x.stride(axis))


@pytest.mark.parametrize(("config", "parameters"), [("mnist-small", 1_623_169),
                                                    ("cifar-ddpm", 35_746_307)])
def test_torch_learns_as_many_numbers(cpu_step, torch_unet, config, parameters):
    with torch.device("meta"):
        unet = torch_unet.UNet(cpu_step.CONFIGS[config][0])
    assert sum(p.numel() for p in unet.parameters()) == parameters


def test_our_initial_weights_name_and_fill_every_one_of_torchs(torch_unet, rng):
    config, _ = CONFIGS["one channel"]
    unet = UNet(config, rng=rng)
    theirs = torch_unet.UNet(config).state_dict()
    ours = torch_unet.weights({name: p.data for name, p in unet.parameters().items()})
    assert list(ours) == list(theirs)
    silent = {name for name, array in ours.items() if not array.any()}
    assert silent >= {name for name, array in theirs.items() if not array.any()}


def test_a_race_reports_all_three_and_the_ratio_of_its_own_numbers():
    options = "--vs torch --json --batch 1 --size 8 --base 8 --steps 2 --threads 1".split()
    run = subprocess.run([sys.executable, str(BENCHMARKS / "cpu_step.py"), *options], text=True,
                         capture_output=True, encoding="utf-8",
                         env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
                              "PYTHONIOENCODING": "utf-8"})
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert list(found["runs"]) == ["ours", *LAYOUTS]
    assert found["machine"]["torch"] == torch.__version__
    for measure in ("step_ms", "sample_step_ms"):
        spread = {name: run[measure] for name, run in found["runs"].items()}
        assert all(0 < s["min"] <= s["median"] <= s["max"] for s in spread.values())
        better = min(spread[name]["median"] for name in LAYOUTS)
        ratio = found["ratios"][measure]["ratio"]
        assert ratio == pytest.approx(spread["ours"]["median"] / better, rel=0.01)
