"""Every test runs strictly: floating-point faults raise, and BLAS keeps to one thread."""

import os
import sys
from functools import partial
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")       # read once, when NumPy is first imported

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

np.seterr(all="raise")      # a test that expects underflow says so: np.errstate(under="ignore")

sys.path.append(str(Path(__file__).resolve().parents[1] / "notebooks"))     # the bug zoo

settings.register_profile("tinydiff", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tinydiff")


def pytest_configure(config):
    """TINYDIFF_MISTAKE="nats sold as bits" pytest …: every test runs with that mistake."""
    if name := os.environ.get("TINYDIFF_MISTAKE"):
        import bug_zoo

        mistake = bug_zoo.mistake(name)
        mistake.__enter__()
        config.add_cleanup(lambda: mistake.__exit__(None, None, None))


@pytest.fixture
def cpu_step(monkeypatch):
    """benchmarks/cpu_step.py, with its folder on the path for the modules beside it."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import cpu_step
    return cpu_step


@pytest.fixture
def rng():
    """A generator that starts the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in for CuPy, where `import cupy` finds it.

    All devices take NumPy's rungs, also between numbers, and the device's noise is made by the
    host: what is tested is what goes where. A stream that records takes a rung with products for
    the one kernel that it stands for, as CuPy's own products cannot be recorded.
    """
    import stand_in_cupy
    import stand_in_graph
    from tinydiff_kernels.gpu import python, source

    from tinydiff.diffusion import noise
    from tinydiff.kernels import LADDERS, elementwise, pick, use

    def normal(*address, purpose, like):
        return stand_in_cupy.ours(noise.batch(*address, purpose=purpose))

    monkeypatch.setattr(noise.of_gpu, "normal", normal)
    monkeypatch.setattr(elementwise, "large", lambda *arrays, work=16: False)
    for kind in source.Entry, python.Kernel:
        monkeypatch.setattr(kind, "launch", stand_in_graph.as_a_launch(kind.launch))
    for name in ("attention", "conv2d", "matmul"):
        rung = LADDERS[name].LADDER[LADDERS[name].LADDER.plain[-1]]
        in_use = partial(lambda name, rung: pick(name) is rung, name, rung)
        for function in {"forward", "backward", "grad_bias", "grad_input", "grad_weight"} & {
                *vars(rung)}:
            monkeypatch.setattr(rung, function,
                                stand_in_graph.as_a_kernel(getattr(rung, function), in_use))
    for name, module in stand_in_cupy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    stand_in_cupy.clear()
    stand_in_cupy.doors.clear()
    stand_in_graph.graphs.clear()
    with use(**{name: ladder.LADDER.plain[-1] for name, ladder in LADDERS.items()}):
        yield sys.modules["cupy"]
    doors = {"backend.py", "philox.py"}                   # the latter sends addresses of noise
    assert {door for door in stand_in_cupy.doors if "test" not in door} <= doors


@pytest.fixture
def typed(capsys, monkeypatch, tmp_path):
    """A function: type a command in an empty folder -> (exit code, stdout, stderr)."""
    from tinydiff import cli
    monkeypatch.chdir(tmp_path)

    def run(*words):
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:                         # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return run
