"""A training step as one CUDA graph: the same steps, and what changes goes on changing.

On the stand-in for CuPy, whose streams record and whose graphs are launched (stand_in_graph.py).
The noise and AdamW are a GPU's own kernels, stepped through on the CPU; the network's rungs are
NumPy's, each recorded as the kernel that it stands for. The last test records the kernels that a
GPU has for all of it; nobody launches those here.
"""

import shutil

import numpy as np
import pytest
import stand_in_graph
from story_helpers import few_digits, tiny
from tinydiff_kernels.gpu import python, source

from tinydiff import train
from tinydiff.autograd import sqrt, sum as total
from tinydiff.backend import to_host
from tinydiff.diffusion import noise
from tinydiff.kernels import LADDERS, elementwise, use
from tinydiff.replay import WARM
from tinydiff.report import rehearse
from tinydiff.resuming import Diverged
from tinydiff.train import Training

NORMAL, LARGE = noise.of_gpu.normal, elementwise.large    # as they are without the stand-in
WAYS = {
    "clipped, decaying": {"train": {"clip": 0.3, "decay": 0.1}},
    "weighted": {"diffusion": {"weight": "min_snr", "times": "middle"}},
    "edm": {"model": {"predicts": "edm"}, "diffusion": {"schedule": "karras"}},
    "near words, layout": {"text": {"form": "near"}, "model": {"layout": 3, "patch": 1}},
    "upscale": {"upscale": {"factor": 2}}, "checkpoint": {"model": {"checkpoint": True}},
    "far words": {"text": {"form": "t5"}},
    "dropout": {"model": {"dropout": 0.3, "checkpoint": True}},
}

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="builds kernels with g++")


@pytest.fixture
def gpu(cupy, monkeypatch):
    """The stand-in with the noise and the optimizer of a GPU."""
    monkeypatch.setattr(noise.of_gpu, "normal", NORMAL)
    with use(optimizer="fused"):
        yield cupy


def in_training(way="clipped, decaying", device="cuda", whole=True):
    training = Training(tiny(**WAYS[way]), few_digits(), device=device)
    if not whole:
        training.whole_step = lambda step, lr: None
    return training


def graphs(training):
    return [each.graph for each in training.whole_step.replayed.recordings.values()]


def assert_same(training, other, **tolerance):
    for (name, ours), theirs in zip(training.state().items(), other.state().values(), strict=True):
        np.testing.assert_allclose(to_host(ours), to_host(theirs), err_msg=name, **tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_replayed_steps_are_the_steps_themselves(way, gpu):
    """To the bit, but for a scale that is multiplied by on the way and rounded only once."""
    replayed, parts = in_training(way), in_training(way, whole=False)
    rtol = 1e-5 if way.startswith("clipped") else 0
    for _ in range(6):
        np.testing.assert_allclose(replayed.step(), parts.step(), rtol=rtol)
    assert replayed.whole_step.replayed.why_not == ""
    [graph] = graphs(replayed)
    assert graph.launches == 6 - WARM
    with np.errstate(under="ignore"):
        assert_same(replayed, parts, rtol=rtol, atol=0.1 * rtol)


def test_they_are_those_of_the_host(gpu):
    replayed, host = in_training(), in_training(device="cpu")
    with use(optimizer="numpy"):
        expected = [host.step() for _ in range(5)]
    for step in expected:
        np.testing.assert_allclose(replayed.step(), step, rtol=1e-4)
    with np.errstate(under="ignore"):
        assert_same(replayed, host, rtol=1e-4, atol=1e-5)


def test_a_replayed_step_has_the_noise_of_its_address(gpu, monkeypatch):
    training, seen = in_training(), []
    really = training.loss

    def listening(x0, ids, given, numbers, eps, rng):
        seen.append(eps)
        return really(x0, ids, given, numbers, eps, rng)

    training.loss = listening
    for step in range(1, 7):
        training.step()
        expected = noise.batch(training.plan.seed, range(8), step, (8, 8, 1),
                               purpose=noise.TRAIN_EPS)
        np.testing.assert_allclose(to_host(seen[-1]), expected, rtol=1e-6, atol=1e-7)
    assert len(seen) == WARM + 1                          # then nobody is asked any more


def test_the_learning_rate_goes_on_changing(gpu, monkeypatch):
    training = in_training("weighted")
    for _ in range(4):
        training.step()
    monkeypatch.setattr(train, "learning_rate", lambda step, **_: 0.0)
    before = to_host(training.flat.data).copy()
    training.step()
    np.testing.assert_array_equal(to_host(training.flat.data), before)
    monkeypatch.setattr(train, "learning_rate", lambda step, **_: 1e-3)
    training.step()
    assert 1e-4 < np.abs(to_host(training.flat.data) - before).max() < 1e-2


def test_a_run_that_was_saved_amid_replays_goes_on_the_same(gpu, tmp_path):
    whole, first, again = in_training(), in_training(), in_training()
    expected = [whole.step() for _ in range(7)]
    for step in expected[:4]:
        assert first.step() == step
    first.save(tmp_path / "a.safetensors")
    for step in expected[4:]:
        assert first.step() == step
    again.step()                                          # of another beginning, soon forgotten
    again.load(tmp_path / "a.safetensors")
    for step in expected[4:]:
        assert again.step() == step
    assert_same(again, whole, rtol=0, atol=0)


@pytest.mark.parametrize("done", [0, 1, 4])
def test_a_rehearsal_in_between_leaves_no_trace(done, gpu):
    training, undisturbed = in_training(), in_training()
    for step in range(6):
        if step == done:
            rehearse(training)
        assert training.step() == undisturbed.step()


@pytest.mark.parametrize("done", [0, 4])
@pytest.mark.parametrize(("lost", "where", "says"), [
    (np.nan, "unet.conv_in.w", "the loss of step {} is nan, lost at .*conv_in"),
    (1e30, "unet.conv_out.w", "the loss of step {} is inf, lost at mse"),
    (np.inf, "added", "the loss of step {} is inf, lost at add"),     # with a gradient that is not
    (0, "unet.conv_out.b", "the gradient of step {} is nan, lost at unet.conv_out.b")])
def test_a_lost_number_leaves_the_weights_alone_and_is_named(done, lost, where, says, gpu):
    training = in_training()
    places = training.flat.views(training.flat.data) | {"added": gpu.zeros((), np.float32)}
    endanger(training, places["added"])
    for _ in range(done):
        training.step()
    places[where][...] = lost
    before = {name: to_host(array).copy() for name, array in training.state().items()}
    with pytest.raises(Diverged, match=says.format(done + 1)):
        training.step()
    for name, array in training.state().items():
        np.testing.assert_array_equal(to_host(array), before[name], err_msg=name)
    assert not training.torn
    assert training.steps_done == done
    assert len(graphs(training)) == bool(done)


def endanger(training, added):
    """Add a number, and 0 · √(b²) of a bias, whose gradient is lost where the bias is 0."""
    really, b = training.loss, training.model.unet.conv_out.b
    b.data[...] = 1

    def loss(*args):
        value, bits = really(*args)
        return value + total(sqrt(b * b)) * 0.0 + added, bits

    training.loss = loss


def test_only_the_batch_goes_up_and_two_numbers_come_down(gpu):
    training = in_training()
    for _ in range(WARM + 1):
        training.step()
    for _ in range(2):
        gpu.stand_in.clear()
        training.step()
        sent = sorted(shape for _, shape in gpu.stand_in.uploads)
        # no seed of dropout; (seed, step); AdamW's eight and Numbers' four; pictures; captions
        assert sent == [(0,), (2,), *[(8,)] * 5, (8, 8, 8, 1), (8, 20)]
        assert gpu.stand_in.downloads == []
        assert len(gpu.stand_in.synchronisations) == 2


@pytest.mark.parametrize(("way", "optimizer"), [
    ({"diffusion": {"loss": "hybrid", "T": 12}}, "fused"),
    ({"diffusion": {"loss": "vlb"}}, "fused"), ({"train": {"optimizer": "muon"}}, "fused"),
    ({}, "numpy")])
def test_what_the_host_takes_part_in_is_not_even_tried(way, optimizer, gpu):
    training = Training(tiny(**way), few_digits(), device="cuda")
    with use(optimizer=optimizer):
        for _ in range(WARM + 1):
            training.step()
    assert not training.whole_step.replayed.calls


CANNOT = {
    "RuntimeError: 16 bytes came from the host": lambda gpu, eps: gpu.asarray(np.ones(2)),
    "NotImplementedError: calling cuBLAS": lambda gpu, eps: eps[0, :, :, 0] @ eps[0, :, :, 0],
    "CUDARuntimeError: cudaErrorStreamCaptureUnsupported": lambda gpu, eps: float(eps.sum()),
}


@pytest.mark.parametrize("reason", CANNOT)
def test_what_cannot_be_recorded_is_asked_for_as_ever_and_the_reason_is_kept(reason, gpu):
    training, parts = in_training("weighted"), in_training("weighted", whole=False)
    really = training.loss

    def loss(x0, ids, given, numbers, eps, rng):
        CANNOT[reason](gpu, eps)
        return really(x0, ids, given, numbers, eps, rng)

    training.loss = loss
    for _ in range(5):
        assert training.step() == parts.step()
        assert not gpu.cuda.get_current_stream().is_capturing()
    assert training.whole_step.replayed.why_not.startswith(reason)
    assert not graphs(training)
    assert not training.whole_step.replayed.stream.is_capturing()
    gpu.asarray(np.ones(2))                               # and arrays may be sent as before


def test_the_next_batch_is_told_while_the_gpu_works(gpu):
    training, told = in_training(), []
    really = training.told

    def telling(step):
        told.append((step, len(gpu.stand_in.synchronisations)))
        return really(step)

    training.told = telling
    for _ in range(4):
        training.step()
    assert told == [(1, 0), (2, 0), (3, 2), (4, 4), (5, 6)]           # before the two waits of each
    while training.steps_done < training.plan.steps:
        training.step()
    assert [step for step, _ in told] == list(range(1, training.plan.steps + 1))


def test_a_batch_that_is_gone_is_the_next_step_s_error(gpu):
    training, really = in_training(), Training.told

    def told(step):
        if step == 3:
            raise OSError("the folder is gone")
        return really(training, step)

    training.told = told
    for _ in range(2):
        training.step()
    with pytest.raises(OSError, match="the folder is gone"):
        training.step()
    assert (training.steps_done, training.torn) == (2, False)


def test_no_room_for_a_step_leaves_weights_that_can_be_saved(gpu):
    def no_room(*_):
        raise MemoryError("no room")

    training = in_training()
    training.step()
    really, training.loss = training.loss, no_room
    with pytest.raises(MemoryError):
        training.step()
    assert not training.torn
    assert training.steps_done == 1
    training.loss = really
    training.step()


def test_a_training_that_is_dropped_ends_at_once_with_its_graph(gpu):
    training = in_training()
    for _ in range(WARM + 1):
        training.step()
    assert len(gpu.stand_in.stand_in_graph.graphs) == 1
    del training
    assert len(gpu.stand_in.stand_in_graph.graphs) == 0


def unless_recording(launch):
    """A launch that does nothing but be recorded."""
    return lambda *args: stand_in_graph.recording() is None or launch(*args)


MODELS = {"attention": {"patch": 1, "attend": [0, 1]}, "layout": {"patch": 1, "layout": 3},
          "odd": {"base": 20, "groups": 5, "patch": 2, "checkpoint": True}}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpu_has_kernels_of_its_own_for_all_of_a_step(precision, model, gpu, monkeypatch):
    """No rung comes down to NumPy's, whose products CuPy would refuse to record."""
    monkeypatch.setattr(elementwise, "large", LARGE)
    for kind in source.Entry, python.Kernel:              # the calls before keep tables there
        monkeypatch.setattr(kind, "launch", unless_recording(kind.launch))
    training = Training(tiny(model=MODELS[model]), few_digits(), device="cuda")
    if precision == "bf16":
        pytest.importorskip("ml_dtypes")
        training.model.unet.compute_in(precision)
        training.flat.halve()
    monkeypatch.setattr("stand_in_graph.Graph.launch", lambda graph: None)
    with use(**{name: ladder.ON_GPU for name, ladder in LADDERS.items()}):
        for step in range(1, WARM + 2):
            training.whole_step(step, 0.1)
    gpu.stand_in.doors.clear()
    assert training.whole_step.replayed.why_not == ""
    [graph] = graphs(training)
    assert len(graph.nodes) > 100
