"""What tools/gpu_check.py does with PyTorch: its truths are true, its peers do what ours do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gpu_check  # isort: skip  # noqa: E402  (its package makes the checkout importable)
from gpu import calls, cases, exact, ops, peers, timing  # noqa: E402

from tinydiff.autograd import mse  # noqa: E402
from tinydiff.kernels import use  # noqa: E402
from tinydiff.models import UNet, UNetConfig  # noqa: E402
from tinydiff.optim import EMA, AdamW, Flat  # noqa: E402

TESTS = Path(__file__).resolve().parents[1]
TINY = {"conv": (2, 5, 4, 8, 16, 3, 2), "fused": (2, 4, 6, 8, 8, 16, 2),
        "upsampled": (1, 4, 3, 8, 16), "product": (16, 8, 16, 24), "heads": (2, 2, 8, 16, 8, 1),
        "images": (2, 4, 3, 8, 16, 2), "rows": (7, 16), "buffers": (304,), "pixels": (2, 4, 6, 8)}


def sizes_of(name):
    return TINY[ops.OPS[name].shapes.__name__]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(peers, "device", lambda: "cpu")


@pytest.mark.parametrize("name", sorted(peers.PEERS.keys() - peers.NO_TRUTH))
def test_a_peer_computes_the_truth(name, rng):
    arrays = ops.draw(name, sizes_of(name), "float32", rng)
    found, right = peers.by_torch(name, arrays), exact.by_numpy(name, arrays)
    assert 0 < len(found) <= len(right)                   # statistics are ours alone
    for a, b in zip(found, right):
        assert cases.distance(a, b) < 1e-9


def test_every_raced_operation_has_a_peer_and_no_other():
    assert peers.PEERS.keys() == cases.RACED


def test_the_optimizer_for_the_compiler_is_the_eager_one(monkeypatch):
    monkeypatch.setitem(calls.HOW, "step", 1)             # from moments of 0, as the eager begins

    def after(peer):
        torch.manual_seed(0)
        arrays = timing.tensors("optimizer.step", (304,), "float32")
        arrays["m"].zero_()
        arrays["square"].zero_()
        peers.given(peer, arrays)()
        return arrays

    eager, in_words = after(peers.adamw), after(peers.adamw_in_words)
    for key in ("data", "ema", "half"):
        torch.testing.assert_close(eager[key], in_words[key])
        assert not torch.equal(eager[key], timing.tensors("optimizer.step", (304,), "float32")[key])


@pytest.mark.parametrize("name", sorted(peers.PEERS.keys() - timing.NOT_COMPILED))
def test_a_peer_is_compiled_whole_and_once_for_all_of_its_calls(name):
    from torch._dynamo.utils import counters as compilers
    torch.compiler.reset()
    compilers.clear()
    dtype = "bfloat16" if ops.OPS[name].rungs.get("bfloat16") else "float32"
    for _ in range(10):
        torch.manual_seed(0)
        call = peers.given(peers.TO_COMPILE[name], timing.tensors(name, sizes_of(name), dtype))
        quick = torch.compile(call, dynamic=False, fullgraph=True, backend="eager")()
    assert compilers["stats"]["unique_graphs"] == 1
    assert all(torch.isfinite(y).all() for y in quick)


def test_a_failing_peer_is_told_and_leaves_our_time_alone(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "norm.rows", lambda x: 1 / 0)
    timing.peer_times.cache_clear()
    assert timing.peer_times("norm.rows", (7, 16), "float32") == (
        None, "PyTorch: ZeroDivisionError: division by zero")
    timing.peer_times.cache_clear()


def test_the_floor_is_the_larger_of_two_times():
    ceilings = {"bytes": {"per_second": 1e12}, "float32": {"per_second": 1e13}}
    assert timing.floor_ms(1e10, 1e9, "float32", ceilings) == pytest.approx(1.0)
    assert timing.floor_ms(5e10, 1e9, "float32", ceilings) == pytest.approx(5.0)
    assert timing.floor_ms(5e10, 1e9, "bfloat16", ceilings) is None


@pytest.mark.slow
def test_every_stage_runs_to_its_end_on_a_gpu_that_is_none(tmp_path):
    import gpu_check_helpers as fakes
    fakes.programs(tmp_path)
    done = subprocess.run(
        [sys.executable, TESTS / "gpu_check_helpers.py", "check", "--out", tmp_path / "out",
         "--only", *(stage for stage in gpu_check.STAGES if stage != "whole")],
        env=os.environ | {"FAKES": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (tmp_path / "out").glob("*.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["failed"] == []
    assert [line for line in report["left_out"] if not line.startswith("build:")] == []
    assert report["ceilings"].keys() == {"bytes", "bfloat16", "float32"}
    timed = [row for row in report["kernels"] if "ms" in row]
    assert {row["op"] for row in timed} == cases.RACED
    for row in timed:
        assert min(row["ms"], row["torch_ms"], row["gb"], row["floor_ms"]) > 0
        assert "compile_ms" in row or row["op"] in timing.NOT_COMPILED
    assert all(found["ok"] for found in report["sanitizer"].values())
    assert len(report["sanitizer"]) == 5
    assert {found["counters"]["dram__bytes_read.sum"] for found in report["counters"].values()} == {
        "12.5 Mbyte"}


@pytest.fixture
def torch_steps(monkeypatch):
    """tools/gpu/torch_steps.py with few steps, and with weights, batches and our own network."""
    from gpu import clock, torch_steps
    monkeypatch.setattr(clock, "WARM", 1)
    monkeypatch.setattr(clock, "STEPS", 3)
    return torch_steps


@pytest.fixture
def given(rng):
    """(config, our network with no layer silent, three batches)"""
    config = UNetConfig(channels=3, base=32, mults=(1, 2), blocks=1, attend=(1,))
    unet = UNet(config, rng=rng)
    for p in unet.parameters().values():
        p.data += 0.02 * rng.standard_normal(p.shape, np.float32)
    pictures = rng.standard_normal((3, 2, 4, 8, 8, 3), np.float32)
    batches = [(x_t, rng.integers(1, 1001, 4).astype(np.float32), eps) for x_t, eps in pictures]
    return config, unet, batches


def ours(unet, batches, lr):
    """([losses], {path: parameter}, the EMA) of our own steps."""
    flat = Flat(unet.parameters())
    ema = EMA(flat, decay=0.0)
    optimizer, found = AdamW(flat, decay=0.1, ema=ema), []
    for step, (x_t, t, eps) in enumerate(batches, 1):
        loss = mse(unet(x_t, t), eps)
        loss.backward()
        optimizer.step(lr, step)
        found.append(loss.item())
    return found, ema


@pytest.mark.parametrize(("how", "tolerance"), [
    ({"half": False}, 1e-5), ({}, 2e-2), ({"compiled": True, "backend": "aot_eager"}, 2e-2)])
def test_pytorchs_steps_lose_what_ours_lose(torch_steps, given, how, tolerance):
    config, unet, batches = given
    weights = {name: p.data.copy() for name, p in unet.parameters().items()}
    lr = 1e-3
    steps = torch_steps.Steps(config, weights, device="cpu", lr=lr, decay=0.1, ema_decay=0.0, **how)
    theirs, (right, _) = torch_steps.losses(steps, batches), ours(unet, batches, lr)
    np.testing.assert_allclose(theirs, right, rtol=tolerance)


@pytest.mark.parametrize(("precision", "apart"), [("float32", 1e-5), ("bf16", 2e-3)])
def test_the_first_losses_are_pytorchs_from_the_same_start(precision, apart):
    from gpu import whole
    config = UNetConfig(channels=3, base=8, mults=(1, 2), blocks=1, groups=4, attend=(1,))
    with use(optimizer="fused"):
        found = whole.first_losses(7, config, "cpu", steps=3, batch=2, side=8, precision=precision)
    assert found["ok"]
    assert found["losses"]["apart"] < apart
    assert len(set(found["losses"]["ours"])) == 3


def test_the_mean_of_the_weights_follows_them_and_keeps_no_graph(torch_steps, given):
    config, unet, batches = given
    weights = {name: p.data.copy() for name, p in unet.parameters().items()}
    steps = torch_steps.Steps(config, weights, device="cpu", ema_decay=0.75)
    before = [p.detach().clone() for p in steps.parameters]
    torch_steps.losses(steps, batches[:1])
    for mean, old, new in zip(steps.ema, before, steps.parameters):
        torch.testing.assert_close(mean, old + 0.25 * (new.detach() - old))
        assert mean.grad_fn is None


def test_a_long_gradient_is_scaled_down(torch_steps, given):
    config, unet, batches = given
    weights = {name: p.data.copy() for name, p in unet.parameters().items()}
    steps = torch_steps.Steps(config, weights, device="cpu", largest=1e-3)
    torch_steps.losses(steps, batches[:1])
    norm = torch.linalg.vector_norm(torch.cat([p.grad.ravel() for p in steps.parameters]))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_a_race_gives_times_of_both_kinds_of_step_and_its_pictures_are_ours(torch_steps, given):
    config, unet, batches = given
    weights = {name: p.data.copy() for name, p in unet.parameters().items()}
    steps = torch_steps.Steps(config, weights, device="cpu", half=False)
    x_t, t, _ = batches[0]
    eps = steps.sample(steps.put(x_t), steps.put(t)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(eps, unet.predict(x_t, t), atol=2e-4)
    found = torch_steps.raced(steps, *batches[0])
    assert min(found["step_ms"], found["sample_ms"]) > 0
    assert found["step_bytes"] is None
