"""What a training will cost: FLOPs by hand, straight lines on costs made up, a child that fails."""

import json
import subprocess

import numpy as np
import pytest
from story_helpers import TINY, few_digits, tiny

from tinydiff import data
from tinydiff.autoencoding import AutoencoderTraining
from tinydiff.autograd import Tensor, attention, conv2d, linear, matmul
from tinydiff.evaluation import estimate as module
from tinydiff.evaluation.estimate import (
    calibrate,
    cost_of,
    flops_behind,
    pictures,
    played_back,
    straight,
)
from tinydiff.models import UNet, UNetConfig, autoencoder_for
from tinydiff.models.blocks import ResBlock
from tinydiff.nn import Attention, Conv2d, Linear
from tinydiff.recipe import load_recipe
from tinydiff.tables import DataTable
from tinydiff.train import Training

KEYS = {"parameters", "flops_per_step", "minutes", "peak_rss_mb"}


def random(*shape):
    return Tensor(np.random.default_rng(0).standard_normal(shape, np.float32), requires_grad=True)


@pytest.mark.parametrize(("made", "multiplications"), [
    (lambda: conv2d(random(2, 9, 7, 3), random(3, 3, 3, 5), stride=2, padding=1),
     2 * 5 * 4 * 5 * 27),
    (lambda: linear(random(2, 6, 4), random(7, 3), None, random(2, 6, 3)), 2 * 6 * 3 * 7),
    (lambda: matmul(random(2, 6, 4), random(4, 3)), 2 * 6 * 3 * 4),
    (lambda: matmul(random(5, 6, 4), random(5, 4, 3)), 5 * 6 * 3 * 4),
    (lambda: attention(random(2, 3, 6, 4), random(2, 3, 5, 4), random(2, 3, 5, 8)),
     2 * 3 * (6 * 5 * 4 + 6 * 5 * 8)),
    (lambda: random(3, 4) * random(3, 4) + 1.0, 0)])
def test_the_flops_of_one_op_are_two_for_each_multiplication(made, multiplications):
    assert flops_behind(made()) == 2 * multiplications


def by_hand(N, H, base, c, D, L):
    """The multiplications of a U-Net of one level, one block with attention, and its middle."""
    pixels, emb, window = N * H * H, 4 * base, 9 * base
    res = pixels * window * base * 2 + N * emb * base
    attend = (pixels * base * base * 4 + pixels * H * H * base * 2    # q, k, v, out; q kᵀ and · v
              + pixels * base * base * 2 + N * L * D * base * 2 + pixels * L * base * 2)
    skip = pixels * 2 * base * base                       # going up, from 2 · base channels
    wider = pixels * 9 * base * base                      # and conv1 from as many
    time = N * (base * emb + emb * emb + D * emb)
    ends = pixels * 9 * c * base * 2
    return time + ends + (res + attend) + (res + attend) + res + 2 * (res + attend + skip + wider)


def test_the_flops_of_a_unet_are_those_of_its_formula():
    config = UNetConfig(channels=3, base=8, mults=(1,), blocks=1, attend=(0,), groups=4,
                        context_width=6)
    x, t, context = random(2, 4, 4, 3), np.ones(2, np.float32), random(2, 5, 6)
    said = UNet(config, rng=np.random.default_rng(0))(x, t, context)
    assert flops_behind(said) == 2 * by_hand(2, 4, 8, 3, 6, 5)


def test_the_flops_of_a_step_are_the_sum_over_its_layers(monkeypatch):
    noted = []

    def note(layer, name, multiplications):
        plain = getattr(layer, name)

        def noting(self, *args, **options):
            y = plain(self, *args, **options)
            noted.append(multiplications(self, y.data.size, *args))
            return y
        monkeypatch.setattr(layer, name, noting)

    def window(self, size, *_):                           # every weight, at every place
        return size // self.w.shape[-1] * self.w.data.size

    note(Linear, "__call__", window)
    note(Conv2d, "__call__", window)
    note(Conv2d, "behind", window)
    note(Conv2d, "enlarged", window)
    note(ResBlock, "around", lambda self, size, *_: window(self.skip, size) if self.skip else 0)
    note(Attention, "__call__", lambda self, size, x, context=None, *_:
         2 * size * (x if context is None else context).shape[1])
    training = Training(load_recipe("digits-sd").set("train.batch", 2), data.load("digits"))
    assert played_back(training.step) == 2 * sum(noted) > 1e9


def test_what_is_computed_twice_to_save_memory_counts_once():
    training = [Training(tiny(model={"checkpoint": save}), few_digits()) for save in (False, True)]
    once, again = (played_back(t.step) for t in training)
    assert once == again > 0


def test_flops_grow_with_the_batch_and_counting_leaves_the_op_as_it_was():
    before, counts = Tensor.backward, []
    for batch in (1, 3):
        training = Training(tiny(train={"batch": batch}), few_digits())
        counts.append(played_back(training.step))
    assert counts[1] == 3 * counts[0]
    with pytest.raises(ZeroDivisionError):
        played_back(lambda: 1 / 0)
    assert Tensor.backward is before


# Time and memory of steps whose cost is made up


def made_up(start, slope, base, each, taken):
    """A step of n pictures that takes start + slope · n seconds and base + each · n bytes."""
    def step(n):
        taken.append(n)
        return start + slope * n, max(base + each * m for m in taken)
    return step


@pytest.mark.parametrize("batch", [1, 2, 3, 48, 1000])
def test_a_cost_on_a_straight_line_is_found_whatever_the_batch(batch):
    taken = []
    points = calibrate(made_up(0.02, 0.005, 1e8, 4e6, taken), batch, seconds=2.0)
    assert straight(points, 1, batch) == pytest.approx(0.02 + 0.005 * batch)
    assert straight(points, 2, batch) == pytest.approx(1e8 + 4e6 * max(2, batch), rel=0.05)
    assert sum(0.02 + 0.005 * n for n in taken) < 2.5
    assert (max(taken) >= batch) == (batch <= 48)


def test_the_first_step_of_a_size_which_finds_new_memory_does_not_count():
    times = iter([0.1, 0.1, 0.9, 0.2, 0.4, 0.6])
    points = calibrate(lambda n: (next(times), 1.0), 8, 2.05)
    assert points == [(1, 0.1, 1.0), (2, 0.1, 1.0), (8, pytest.approx(0.4), 1.0)]


def test_a_step_that_outlasts_the_time_is_not_taken_with_more_pictures():
    taken = []
    points = calibrate(made_up(20, 5, 1e9, 4e8, taken), 64, seconds=10.0)
    assert taken == [1, 2]
    assert straight(points, 1, 64) == pytest.approx(20 + 5 * 64)


def test_no_more_pictures_are_tried_than_half_the_memory_holds(monkeypatch):
    monkeypatch.setattr(module, "memory", lambda: 2e9)
    taken = []
    points = calibrate(made_up(0, 1e-3, 2e8, 1e8, taken), 64, seconds=1.0)
    assert max(taken) == 7                                # 0.2 + 8 · 0.1 = 1.0 GB
    assert straight(points, 2, 64) == pytest.approx(2e8 + 64e8)


def test_a_line_that_noise_bent_down_stays_level():
    assert straight([(1, 0.3, 5), (2, 0.2, 5)], 1, 64) == 0.2


def test_the_totals_follow_from_what_the_stages_answer(monkeypatch):
    answers = {"autoencoder": (100, 7, 9e8, [(1, 0.1, 1e8), (2, 0.2, 2e8)]),
               "diffusion":   (200, 5, 1e8, [(2, 0.3, 3e8), (8, 0.6, 4e8)])}
    monkeypatch.setattr(module, "ask", lambda recipe, stage, seconds: answers[stage])
    found = cost_of(tiny(autoencoder={"steps": 600, "batch": 5}, sample={"clip": False}))
    assert found == {
        "parameters": 300, "flops_per_step": 7 * 5 + 5 * 8, "peak_rss_mb": 900,
        "minutes": pytest.approx((600 * 0.5 + 20 * 0.6) / 60), "stages": [
            {"stage": "autoencoder", "parameters": 100, "flops_per_step": 35, "steps": 600,
             "minutes": pytest.approx(5), "peak_rss_mb": 900},
            {"stage": "diffusion", "parameters": 200, "flops_per_step": 40, "steps": 20,
             "minutes": pytest.approx(0.2), "peak_rss_mb": 400}]}
    size = Training(tiny(), data.load("digits")).model.count()        # 20 bytes each, of half
    monkeypatch.setattr(module, "memory", lambda: 40 * 1.2 * size)    # its vocabulary is not full
    cost_of(tiny())
    monkeypatch.setattr(module, "memory", lambda: 40 * 0.9 * size)
    with pytest.raises(ValueError, match="take a smaller model"):
        cost_of(tiny())


# In a process of its own


@pytest.fixture(scope="module")
def found():
    return cost_of(tiny(), seconds=0.5)


def test_an_estimate_has_the_keys_of_the_contract_and_its_totals_are_those_of_its_stages(found):
    assert set(found) == KEYS | {"stages"}
    (row,) = found["stages"]
    assert set(row) == KEYS | {"stage", "steps"}
    assert (row["stage"], row["steps"]) == ("diffusion", 20)
    assert {key: row[key] for key in KEYS} == {key: found[key] for key in KEYS}


def test_parameters_and_flops_are_exact(found):
    training = Training(tiny(), data.load("digits"))
    assert found["parameters"] == training.model.count()
    assert found["flops_per_step"] == 3 * played_back(training.step)


def test_time_and_memory_are_those_of_real_steps(found):
    assert 1e-3 < 60 * found["minutes"] / 20 < 5
    assert 40 < found["peak_rss_mb"] < 2000


def test_memory_does_not_begin_with_that_of_whoever_asks(found):
    held = np.ones(2 * 10**8, np.float32)                 # 800 MB
    assert cost_of(tiny(), seconds=0.1)["peak_rss_mb"] < found["peak_rss_mb"] + 200
    assert held[-1] == 1


def test_both_stages_of_a_latent_recipe_are_tried():
    recipe = tiny(autoencoder={"steps": 30, "batch": 4, "base": 8, "mults": [1, 2], "groups": 4},
                  model={"patch": 1}, sample={"clip": False})
    found = cost_of(recipe, seconds=0.5)
    assert [(row["stage"], row["steps"]) for row in found["stages"]] == [
        ("autoencoder", 30), ("diffusion", 20)]
    dataset, rng = data.load("digits"), np.random.default_rng(0)
    autoencoder = autoencoder_for(recipe.autoencoder.config(1), rng=rng)
    training = Training(recipe, dataset, autoencoder)
    encoding = flops_behind(autoencoder.moments(np.zeros((8, 28, 28, 1), np.float32))[0])
    assert found["stages"][1]["parameters"] == training.model.count()
    assert found["stages"][1]["flops_per_step"] == 3 * played_back(training.step) + encoding


@pytest.mark.parametrize("joins", [0, 25, 75, 100])
def test_the_discriminator_is_tried_as_often_as_it_is_there(monkeypatch, capsys, joins):
    there = []

    def gradient(self, step):
        there.append(self.contested(step))
        return 0.0
    monkeypatch.setattr(AutoencoderTraining, "gradient", gradient)
    monkeypatch.setattr(module, "calibrate", lambda step, *_: [step(2) for _ in range(99)])
    module.answer(tiny(autoencoder={"steps": 100, "adversarial": 1.0, "adversarial_from": joins,
                                    "base": 8}, sample={"clip": False}).toml(), "autoencoder", 1.0)
    assert there[0] == (joins < 100)                      # what is counted has it, if there is any
    assert np.mean(there) == pytest.approx(1 - joins / 100, abs=0.02)


def test_a_child_that_fails_becomes_one_sentence():
    recipe = tiny(data={"name": "./no such folder"})
    with pytest.raises(ValueError, match=r"^estimate: trying the diffusion stage: .*no such fold"):
        cost_of(recipe)


@pytest.mark.parametrize(("code", "says"), [
    ("import os; os._exit(137)", "the system ended it, for want of memory"),
    ("raise MemoryError('Unable to allocate 3 TiB')", "stage: Unable to allocate 3 TiB"),
    ("import time; time.sleep(60)", "no end in 1 s; take a smaller model")])
def test_a_child_that_is_killed_or_never_ends_does_too(monkeypatch, code, says):
    run = subprocess.run
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    monkeypatch.setattr(subprocess, "run", lambda words, **options: run(
        [*words[:-1], code], **options))
    with pytest.raises(ValueError, match=says):
        module.ask(tiny(), "diffusion", 0.5)


def test_a_network_far_too_large_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    recipe = load_recipe("digits-sd").change({"model": {
        "base": 1280, "mults": [1, 2, 4, 4], "blocks": 2, "attend": [0, 1, 2]}})
    with pytest.raises(ValueError, match=r"^estimate: [\d,]{13,} parameters take \d+ GB to train"):
        cost_of(recipe)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_noise_of_the_same_shape_stands_in_for_data_that_is_not_here(monkeypatch, name):
    monkeypatch.setattr(data, "available", lambda: [
        data.Row(name, "train", 70, data.DOWNLOAD, 0)])
    noise = pictures(DataTable(name=name))
    assert (noise.count, noise.shape) == (70, {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}[name])
    shown, said = noise.batch(5, 0, 0, 1.0, np.random.default_rng(0))
    assert shown.std() > 60
    assert set(said) <= set(noise.prompts)


# On the command line


def test_the_command_prints_json_or_a_table_and_what_to_type_next(typed, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cost_of", lambda recipe: {
        "parameters": 1_000, "flops_per_step": 2.5e9, "minutes": recipe.train.steps / 60,
        "peak_rss_mb": 512.4, "stages": [{
            "stage": "diffusion", "parameters": 1_000, "flops_per_step": 2.5e9, "steps": 90,
            "minutes": 1.5, "peak_rss_mb": 512.4}]})
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    asked = "estimate", tmp_path / "tiny.toml", "--set", "train.steps=90"
    code, out, err = typed(*asked)
    assert code == 0
    assert err.startswith("device: cpu")
    assert out.splitlines()[1].split() == "diffusion 1,000 2.5e+09 90 1.5 512 MB".split()
    assert out.splitlines()[2] == (
        f"about 1.5 minutes and 0.51 GB on this machine; go: tinydiff train {tmp_path}/tiny.toml "
        "--set=train.steps=90")
    code, out, _ = typed(*asked, "--json")
    assert code == 0
    assert json.loads(out)["minutes"] == 1.5


@pytest.mark.parametrize("words", [["mnst"], ["mnist", "--set", "train.steps=-1"],
                                   ["mnist", "--set", "model.groups=7"]])
def test_a_bad_recipe_is_one_sentence(typed, words):
    code, out, err = typed("estimate", *words)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("tinydiff: ")
