"""Ladders of rungs: files in order, imported late, chosen by `use`, refused in one sentence."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tinydiff_kernels.ladder import Ladder

from tinydiff import autograd as ag, kernels
from tinydiff.kernels import LADDERS, pick, use

FUNCTIONS = {"attention": "forward backward grad_bias", "conv2d": "forward grad_input grad_weight",
             "matmul": "forward grad_input grad_weight", "norm": "measure normalize backward",
             "optimizer": "step norm"}
RUNGS = [(name, idea) for name, module in LADDERS.items() for idea in module.LADDER]
PLAIN = [(name, idea) for name, module in LADDERS.items() for idea in module.LADDER.plain]
COMPILED = [(name, idea) for name, module in LADDERS.items() for idea in module.LADDER.compiled]
each_ladder = pytest.mark.parametrize("name", LADDERS)
DEVICE = [(name, idea) for name, module in LADDERS.items() for idea in module.LADDER.device]
each_rung = pytest.mark.parametrize(
    ("name", "idea"), RUNGS if kernels.can_compile() else PLAIN + DEVICE)


@pytest.fixture
def without_numba(monkeypatch):
    """Go on as where Numba is not installed."""
    monkeypatch.setattr(kernels, "can_compile", lambda: False)
    kernels.rung.cache_clear()
    yield
    kernels.rung.cache_clear()


@each_ladder
def test_a_ladder_is_its_numbered_files_with_the_plain_ones_first(name):
    module = LADDERS[name]
    folder = Path(module.__file__).parent
    files = sorted((path.stem for path in folder.glob("rung*.py")),
                   key=lambda stem: int(re.match(r"rung(\d+)_", stem)[1]))
    assert files == [f"rung{i}_{idea}" for i, idea in enumerate(module.LADDER)]
    plain, compiled, device = module.LADDER.plain, module.LADDER.compiled, module.LADDER.device
    assert plain + compiled + device == list(module.LADDER)
    assert len(module.LADDER) == len(files)
    assert module.LADDER.plain
    assert module.DEFAULT in plain + compiled
    assert not device or module.ON_GPU in device


@each_rung
def test_a_rung_says_its_idea_first_and_has_the_functions_of_its_ladder(name, idea):
    rung, number = LADDERS[name].LADDER[idea], list(LADDERS[name].LADDER).index(idea)
    assert re.match(rf"Rung {number}, {idea}: \w", rung.__doc__)
    assert number == 0 or "Since rung" in rung.__doc__
    for function in FUNCTIONS[name].split():
        assert callable(getattr(rung, function))
        assert f"{function}(" in LADDERS[name].__doc__


def test_a_ladder_is_a_mapping_without_surprises():
    ladder = Ladder("tinydiff_kernels.conv2d", "loops im2col", "numba")
    assert list(ladder) == ["loops", "im2col", "numba"]
    assert ladder["loops"] is LADDERS["conv2d"].LADDER["loops"]
    assert "magic" not in ladder
    with pytest.raises(KeyError, match="magic"):
        ladder["magic"]


ON_NUMPY_ALONE = f"""
import sys

class Blocked:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] not in {{"numpy", "tinydiff", "tinydiff_kernels"}} \\
                | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"blocked for this test: {{name}}", name=name)

sys.meta_path.insert(0, Blocked)
import numpy as np
from tinydiff import autograd as ag, kernels
assert not [module for module in sys.modules if ".rung" in module], "imported before it is needed"
kernels.can_compile = lambda: False
for name in {list(LADDERS)}:
    ladder = kernels.LADDERS[name].LADDER
    assert kernels.pick(name) is ladder[ladder.plain[-1]]
x, w = (ag.Tensor(np.ones((1, n, n, 1), np.float32), requires_grad=True) for n in (5, 3))
y = ag.conv2d(ag.silu(x), w.reshape(3, 3, 1, 1))
y.backward(np.ones_like(y.data))
print(w.grad.sum(), [module for module in sys.modules if "numba" in module])
"""


def test_without_numba_the_plain_rungs_do_all():
    done = subprocess.run([sys.executable, "-W", "error", "-c", ON_NUMPY_ALONE],
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    expected = 81 * float(1 / (1 + np.exp(-1.0)))
    total, names = done.stdout.split(maxsplit=1)
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert names == "[]\n"


def test_use_ends_with_its_block_and_nests():
    default = pick("conv2d")
    ladder = LADDERS["conv2d"].LADDER
    with use(conv2d="loops", norm="numpy"):
        assert pick("conv2d") is ladder["loops"]
        assert pick("norm") is LADDERS["norm"].LADDER["numpy"]
        with use(conv2d="im2col"):
            assert pick("conv2d") is ladder["im2col"]
        with pytest.raises(ZeroDivisionError), use(conv2d="im2col"):
            1 / 0
        assert pick("conv2d") is ladder["loops"]
    assert pick("conv2d") is default


@each_ladder
def test_the_default_runs_where_it_can(name):
    pytest.importorskip("numba")
    assert pick(name) is LADDERS[name].LADDER[LADDERS[name].DEFAULT]


@each_ladder
def test_without_numba_the_last_plain_rung_is_the_default(name, without_numba):
    assert pick(name) is LADDERS[name].LADDER[LADDERS[name].LADDER.plain[-1]]


@pytest.mark.parametrize(("chosen", "message"), [
    ({"conv3d": "loops"}, "no ladder 'conv3d'; there are attention, conv2d, matmul, norm, optim"),
    ({"conv2d": "magic"}, "conv2d has no rung 'magic'; there are loops, im2col, numba, winograd2"),
    ({"norm": "loops"}, "norm has no rung 'loops'; there are numpy, onepass"),
])
def test_use_refuses_what_it_does_not_know(chosen, message):
    before = pick("conv2d")
    with pytest.raises(ValueError, match=message), use(conv2d="loops"), use(**chosen):
        pass
    assert pick("conv2d") is before


@pytest.mark.parametrize(("name", "idea"), COMPILED)
def test_use_refuses_a_compiled_rung_where_there_is_no_numba(name, idea, without_numba):
    message = f"use: the rung '{idea}' of {name} needs Numba; pip install numba"
    with pytest.raises(ValueError, match=message), use(**{name: idea}):
        pass


def of_ones(*shape):
    return ag.Tensor(np.ones(shape, np.float32), requires_grad=True)


OPS = {"attention": lambda of: ag.attention(of(2, 3, 4), of(2, 5, 4), of(2, 5, 4), of(3, 5)),
       "conv2d":    lambda of: ag.conv2d(of(1, 4, 3, 2), of(2, 2, 2, 3), padding=1),
       "matmul":    lambda of: ag.linear(of(5, 2), of(2, 3)),
       "norm":      lambda of: ag.group_norm(of(1, 5, 5, 4), of(4), of(4), groups=2)}


def skip_if_it_cannot_run(name, idea):
    if (name, idea) in COMPILED:
        pytest.importorskip("numba")
    if (name, idea) in DEVICE:
        pytest.importorskip("greenlet")
        if not shutil.which("g++"):
            pytest.skip("needs the compiler g++")


@pytest.mark.parametrize(("name", "idea"), [pair for pair in RUNGS if pair[0] in OPS])
def test_an_op_plays_back_on_the_rung_that_recorded(name, idea, monkeypatch):
    skip_if_it_cannot_run(name, idea)
    calls = []

    class Spy:
        def __init__(self, real):
            self.real = real

        def __getattr__(self, function):
            found = getattr(self.real, function)
            calls.append((self.real, function))
            return found

    pick_really = kernels.rung
    monkeypatch.setattr(kernels, "rung", lambda *address: Spy(pick_really(*address)))
    with use(**{name: idea}):
        y = OPS[name](of_ones)
    y.backward(np.ones_like(y.data))
    rung = LADDERS[name].LADDER[idea]
    assert {real for real, _ in calls} == {rung}
    done = [function for _, function in calls if function != "line"]  # which few rungs have
    assert done == FUNCTIONS[name].split()


def op_and_gradients(name, idea):
    """What an op makes of random numbers on a rung, and their gradients."""
    rng, tensors = np.random.default_rng(0), []

    def of(*shape):
        numbers = rng.standard_normal(shape).astype(np.float32)
        tensors.append(ag.Tensor(numbers, requires_grad=True))
        return tensors[-1]

    with use(**{name: idea}):
        y = OPS[name](of)
        y.backward(np.cos(np.arange(y.data.size, dtype=np.float32)).reshape(y.shape))
    return [y.data, *(tensor.grad for tensor in tensors)]


@pytest.mark.parametrize(("name", "idea"), [pair for pair in DEVICE if pair[0] in OPS])
def test_a_rung_of_a_gpu_in_use_steps_through_arrays_of_numpy(name, idea):
    skip_if_it_cannot_run(name, idea)
    right = op_and_gradients(name, LADDERS[name].LADDER.plain[-1])
    for got, expected in zip(op_and_gradients(name, idea), right, strict=True):
        assert type(got) is np.ndarray
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_without_greenlet_a_rung_of_a_gpu_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "greenlet", None)
    with (pytest.raises(ModuleNotFoundError, match="needs greenlet; pip install greenlet"),
          use(matmul="cuda_shared")):
        OPS["matmul"](of_ones)
