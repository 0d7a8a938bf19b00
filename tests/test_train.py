"""Training: resumed, interrupted, killed or diverged, a run is one well-defined thing."""

import re
import signal
import sys
import time

import numpy as np
import pytest
from story_helpers import answer, few_digits, finished, in_training, randomised, tiny, tinydiff

from tinydiff import checkpoint, data, images, train
from tinydiff.data import batch_indices
from tinydiff.diffusion import objective
from tinydiff.files import append
from tinydiff.kernels import LADDERS, use
from tinydiff.optim import clip_grad, learning_rate
from tinydiff.report import preview, rehearse
from tinydiff.runs import load_run, training_run
from tinydiff.train import COLUMNS, Diverged, Training, fit, keep_rows


def run(folder, *, stop_at=None, resume=False, **tables):
    """Train the tiny recipe in `folder`; what `fit` returned."""
    training = in_training(**tables)
    if resume:
        training.load(folder / "checkpoint.safetensors")
    return fit(training, folder, stop_at=stop_at, show=False)


def weights(folder):
    return (folder / "checkpoint.safetensors").read_bytes()


def rows(folder, *, timed=True):
    """The lines of metrics.csv as lists of text, without the two columns that a clock wrote."""
    lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    return [line.split(",")[:None if timed else 4] for line in lines]


def test_ten_steps_and_ten_more_give_the_bytes_of_twenty(tmp_path):
    assert run(tmp_path / "whole") == "done"
    assert run(tmp_path / "parts", stop_at=10) == "stopped"
    half = checkpoint.load(tmp_path / "parts" / "checkpoint.safetensors")[1]
    assert half["step"] == 10
    assert run(tmp_path / "parts", resume=True) == "done"
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert rows(tmp_path / "parts", timed=False) == rows(tmp_path / "whole", timed=False)


def test_lessons_grow_from_simple_scenes_to_all_there_is(monkeypatch):
    training = Training(tiny(train={"lessons": 4}, data={"name": "shapes"}, text={"length": 40}),
                        data.load("shapes"))
    shares, whole = [], type(training.dataset).batch
    monkeypatch.setattr(type(training.dataset), "batch", lambda world, *given, **lesson: (
        shares.append(lesson.get("simple", 0.0)), whole(world, *given, **lesson))[1])
    for step in range(1, 6):
        training.batch(step)
    assert shares == [0.75, 0.5, 0.25, 0.0, 0.0]


def test_pictures_that_are_given_have_no_simple_ones():
    with pytest.raises(ValueError, match=r"train\.lessons: only scenes drawn on the fly"):
        in_training(train={"lessons": 4})


def test_a_resumed_optimizer_goes_on_with_its_means_and_its_plan(tmp_path):
    run(tmp_path, stop_at=10)
    resumed, fresh = in_training(), in_training()
    resumed.load(tmp_path / "checkpoint.safetensors")
    for _ in range(10):
        fresh.step()
    for name, array in fresh.state().items():
        np.testing.assert_array_equal(resumed.state()[name], array, err_msg=name)
    assert resumed.step() == fresh.step()


@pytest.mark.parametrize("tables", [
    {"diffusion": {"loss": "hybrid", "T": 12}, "sample": {"sampler": "ddpm"}},
    {"diffusion": {"loss": "vlb", "T": 1}, "sample": {"steps": 1}},    # draws t by its past losses
    {"model": {"dropout": 0.5, "predicts": "edm"}, "diffusion": {"schedule": "karras", "T": 9}},
    {"model": {"predicts": "velocity", "checkpoint": True}, "sample": {"sampler": "flow_heun"},
     "diffusion": {"schedule": "flow"}},
])
def test_every_way_to_train_goes_on_exactly_where_it_stopped(tables, tmp_path):
    whole = in_training(**tables)
    losses = [whole.step() for _ in range(14)]
    run(tmp_path, stop_at=9, **tables)
    resumed = in_training(**tables)
    resumed.load(tmp_path / "checkpoint.safetensors")
    rehearse(resumed)                                     # which leaves no trace
    assert [resumed.step() for _ in range(5)] == losses[9:]
    for name, array in whole.state().items():
        np.testing.assert_array_equal(resumed.state()[name], array, err_msg=name)
    picture = training_run(resumed, "now").generate(["7"], seed=3)
    assert (training_run(whole, "now").generate(["7"], seed=3) == picture).all()


def test_the_bound_draws_t_by_the_losses_it_has_seen():
    training = in_training(diffusion={"loss": "vlb", "T": 2}, sample={"steps": 2})
    for _ in range(8):
        training.step()
    losses = training.moments.state["losses"]
    assert training.moments.state["counts"].sum() == 8 * 8
    root = (losses**2).mean(1) ** 0.5                     # iDDPM Eq. 18
    np.testing.assert_allclose(training.moments.probabilities(),
                               0.999 * root / root.sum() + 0.0005)


def test_a_network_that_counts_from_zero_is_told_zero_for_the_first_time():
    heard = []
    training = in_training(model={"t_first": 0})
    training.model.unet = Listening(training.model.unet, heard)
    training.gradient(1)
    seen = objective.draw(training.schedule, training.batch(1)[0], "v", seed=0, step=1).t
    np.testing.assert_array_equal(heard, seen - 1)


class Listening:
    """A U-Net that writes down the times it is told."""

    def __init__(self, unet, heard):
        self.unet, self.heard, self.config = unet, heard, unet.config

    def __call__(self, x_t, t, *args, **options):
        self.heard.extend(t)
        return self.unet(x_t, t, *args, **options)


def test_previews_and_rehearsals_leave_no_trace_in_the_weights(tmp_path):
    run(tmp_path / "plain")
    watched = in_training(train={"sample_every": 6})
    before = watched.flat.data.copy()
    rehearse(watched)
    np.testing.assert_array_equal(watched.flat.data, before)
    fit(watched, tmp_path / "watched", preview=preview, show=False)
    plain = checkpoint.load(tmp_path / "plain" / "checkpoint.safetensors")[0]
    for name, array in watched.state().items():
        np.testing.assert_array_equal(array, plain[name], err_msg=name)
    assert sorted(path.name for path in (tmp_path / "watched" / "samples").iterdir()) == [
        "step-000006.png", "step-000012.png", "step-000018.png"]


def test_a_preview_shows_each_class_also_on_a_chain_shorter_than_its_steps(tmp_path):
    pytest.importorskip("PIL")
    training = in_training(diffusion={"T": 8})
    preview(training, tmp_path / "a.png")
    prompts = [data.captions("digits", label)[0] for label in range(10)]
    expected = training_run(training, "now").generate(prompts, steps=8)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), images.grid(expected))


DIGEST = """
import hashlib, sys
from story_helpers import few_digits, tiny
from tinydiff.train import Training
training = Training(tiny(train={"batch": int(sys.argv[1])},
                         model={"patch": 1, "base": 32}), few_digits())
for _ in range(2):
    training.step()
print(hashlib.sha256(training.flat.data).hexdigest())
"""


@pytest.mark.parametrize("batch", [3, 64])
def test_the_number_of_cores_changes_no_bit(batch):
    assert answer(DIGEST, batch, threads=1) == answer(DIGEST, batch, threads=4)


@pytest.mark.slow
def test_the_loss_falls_along_the_same_curve_on_the_rungs_of_numpy():
    def curve(**rungs):
        training = in_training(train={"batch": 16, "steps": 200}, model={"patch": 1, "base": 16})
        with use(**rungs):
            return [training.step()[0] for _ in range(200)]

    plain = {name: ladder.LADDER.plain[-1] for name, ladder in LADDERS.items()}
    np.testing.assert_allclose(curve(), curve(**plain), rtol=1e-4)


def test_the_gradient_is_that_of_the_loss(rng):
    training = in_training()
    randomised(training.model)
    start = training.flat.data.copy()
    training.gradient(3)
    g = training.flat.grad.astype(np.float64)
    direction = g / np.linalg.norm(g) + rng.standard_normal(g.shape) / g.size**0.5

    def loss(h):
        training.flat.data[...] = start + h * direction
        return training.gradient(3)

    h = 1e-3
    assert (loss(h) - loss(-h)) / (2 * h) == pytest.approx(g @ direction, rel=1e-2)


def test_the_gradient_of_a_step_does_not_depend_on_what_came_before():
    training = in_training()
    training.gradient(5)
    first = training.flat.grad.copy()
    training.gradient(6)
    training.gradient(5)
    np.testing.assert_array_equal(training.flat.grad, first)


def test_one_picture_is_learned_by_heart():
    learning = {"steps": 80, "batch": 16, "lr": 1e-2, "drop": 0.0}
    training = Training(tiny(train=learning, model={"patch": 1}), few_digits(1))
    losses = [training.step()[0] for _ in range(80)]
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])


@pytest.mark.parametrize(("table", "key", "value"), [
    ("train", "lr", 0.5), ("train", "steps", 21), ("data", "flip", True), ("model", "base", 16),
    ("text", "width", 32), ("sample", "guidance", 1.0), ("model", "mults", (1, 3))])
def test_resuming_another_recipe_names_the_key_that_differs(tmp_path, table, key, value):
    run(tmp_path, stop_at=1)
    other = in_training(**{table: {key: value}})
    before = other.flat.data.copy()
    says = rf"trained with {table}\.{key} = .*says {re.escape(str(value))}"
    with pytest.raises(ValueError, match=says):
        other.load(tmp_path / "checkpoint.safetensors")
    np.testing.assert_array_equal(other.flat.data, before)


def rewrite(path, change):
    """Save the checkpoint again after change(arrays, config)."""
    arrays, config = checkpoint.load(path)
    change(arrays, config)
    checkpoint.save(path, arrays, config)


def test_a_recipe_with_fewer_lines_stands_for_its_defaults(tmp_path):
    def forget(line):
        return lambda _, config: config.update(recipe=config["recipe"].replace(line + "\n", ""))

    run(tmp_path, stop_at=1)
    path = tmp_path / "checkpoint.safetensors"
    rewrite(path, forget("clip = 1.0"))
    in_training().load(path)
    rewrite(path, forget("warmup = 5"))
    with pytest.raises(ValueError, match=r"train\.warmup = 50, the recipe now says 5"):
        in_training().load(path)


def test_a_recipe_with_a_line_too_many_is_refused(tmp_path):
    run(tmp_path, stop_at=1)
    path = tmp_path / "checkpoint.safetensors"
    rewrite(path, lambda _, config: config.update(
        recipe=config["recipe"].replace("[train]", "[train]\nmomentum = 0.9")))
    with pytest.raises(ValueError, match=r"no key in \[train\] called 'momentum'"):
        in_training().load(path)


def test_weights_of_another_network_are_refused_before_any_is_taken(tmp_path):
    run(tmp_path, stop_at=1)
    path = tmp_path / "checkpoint.safetensors"
    rewrite(path, lambda arrays, _: arrays.update({"ema/unet.conv_in.b": np.zeros(9, np.float32)}))
    training = in_training()
    before = training.flat.data.copy()
    with pytest.raises(ValueError, match="other weights than its recipe makes"):
        training.load(path)
    np.testing.assert_array_equal(training.flat.data, before)


def test_weights_without_a_training_cannot_be_resumed(tmp_path):
    checkpoint.save(tmp_path / "w.safetensors", {}, {"model": {}})
    with pytest.raises(ValueError, match="no training to go on with"):
        in_training().load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("layer", ["unet.conv_in.w", "unet.up.0.blocks.1.res.conv2.b",
                                   "text_encoder.position.table"])
def test_a_lost_number_stops_the_step_and_names_step_and_layer(layer):
    training = in_training()
    randomised(training.model)
    training.steps_done = 4
    training.flat.parameters[layer].data.flat[0] = np.nan
    before = training.flat.data.copy()
    with pytest.raises(Diverged, match=rf"the loss of step 5 is nan, lost at .*{re.escape(layer)}"):
        training.step()
    np.testing.assert_array_equal(training.flat.data, before)
    assert training.steps_done == 4


@pytest.mark.parametrize(("bad", "says"), [(np.nan, "nan"), (np.inf, "inf"), (1e30, "inf")])
def test_a_gradient_that_is_no_number_stops_the_step_and_names_the_layer(bad, says, monkeypatch):
    training = in_training()
    flat = training.flat
    before = flat.data.copy()

    def gradient(step):
        flat.grad[...] = 1
        flat.views(flat.grad)["unet.middle1.res.conv1.w"].flat[3] = bad
        return 1.0

    monkeypatch.setattr(training, "gradient", gradient)
    says = rf"gradient of step 1 is {says}, lost at unet\.middle1\.res\.conv1\.w"
    with pytest.raises(Diverged, match=says):
        training.step()
    np.testing.assert_array_equal(flat.data, before)


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path):
    with pytest.raises(Diverged, match=r"smaller train\.lr"):
        run(tmp_path, train={"lr": 1e12, "warmup": 0, "save_every": 1})
    arrays, config = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert config["step"] == len(rows(tmp_path)) - 1 >= 1
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.safetensors", "config.toml", "metrics.csv"}


def test_weights_that_a_step_spoilt_are_not_saved(tmp_path):
    with pytest.raises(Diverged, match=r"^step 1 lost a number in model/\S+; .*smaller train\.lr"):
        run(tmp_path, train={"lr": 1e39, "warmup": 1, "save_every": 1})
    assert not (tmp_path / "checkpoint.safetensors").exists()
    training = in_training()
    training.save(tmp_path / "checkpoint.safetensors")
    before = weights(tmp_path)
    for kind in ("model", "ema", "adam_m", "adam_v"):
        spoilt = in_training()
        spoilt.state()[f"{kind}/unet.conv_in.w"].flat[5] = np.inf
        with pytest.raises(Diverged, match=f"step 0 lost a number in {kind}/unet.conv_in.w"):
            spoilt.save(tmp_path / "checkpoint.safetensors")
    assert weights(tmp_path) == before


def test_a_loss_that_overflows_after_all_layers_names_the_largest_weights():
    training = in_training()
    training.flat.parameters["unet.conv_out.b"].data[0] = 1e30        # finite until it is squared
    says = r"the loss of step 1 is inf, lost at \w+, with the largest weights in unet\.conv_out\.b"
    with pytest.raises(Diverged, match=says):
        training.step()


@pytest.mark.parametrize("room", [True, False])
def test_a_full_disk_in_metrics_is_named_and_the_steps_are_saved_if_they_can_be(
        tmp_path, monkeypatch, room):
    training = in_training()
    save = training.save

    def full(path, row):
        if training.steps_done == 9:
            raise OSError(28, "No space left on device", str(path))
        append(path, row)

    def save_if_there_is_room(path):
        if not room and training.steps_done == 9:
            raise OSError(28, "No space left on device", str(path))
        save(path)

    monkeypatch.setattr(train, "append", full)
    monkeypatch.setattr(training, "save", save_if_there_is_room)
    with pytest.raises(OSError, match="No space left") as caught:
        fit(training, tmp_path, show=False)
    assert caught.value.filename == str(tmp_path / "metrics.csv")
    saved = checkpoint.load(tmp_path / "checkpoint.safetensors")[1]["step"]
    assert saved == (9 if room else 7)
    assert [row[0] for row in rows(tmp_path)[1:]] == [str(step) for step in range(1, 9)]


def test_metrics_follow_the_contract(tmp_path):
    run(tmp_path, stop_at=10)
    run(tmp_path, resume=True)
    header, *lines = rows(tmp_path)
    assert ",".join(header) == COLUMNS == "step,loss,lr,grad_norm,images_per_s,seconds"
    table = np.array(lines, float)
    np.testing.assert_array_equal(table[:, 0], np.arange(1, 21))
    plan = [learning_rate(step, lr=2e-3, warmup=5, steps=20) for step in range(1, 21)]
    np.testing.assert_allclose(table[:, 2], plan, rtol=1e-5)
    assert (np.diff(table[:, 5]) >= 0).all()               # also across the pause
    fresh = in_training()
    for row in table:
        loss, _, norm = fresh.step()
        np.testing.assert_allclose(row[[1, 3]], [loss, norm], atol=1e-4)


def test_rows_beyond_the_checkpoint_and_a_row_cut_short_are_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    good = [f"{step},0.5,0.002,1.2,300.0,{step / 10:.2f}" for step in range(1, 13)]
    path.write_text("\n".join([COLUMNS, *good, "1"]), encoding="utf-8")      # "13,0.5,…" began so
    assert keep_rows(path, 10) == 1.0
    assert path.read_text(encoding="utf-8").splitlines() == [COLUMNS, *good[:10]]
    assert keep_rows(path, 0) == 0.0
    assert path.read_bytes() == COLUMNS.encode() + b"\n"


def test_every_row_is_in_the_file_before_its_step_is_saved(tmp_path, monkeypatch):
    training, seen = in_training(), []
    save = training.save
    monkeypatch.setattr(training, "save", lambda path: (
        seen.append((training.steps_done, len(rows(tmp_path)) - 1)), save(path)))
    fit(training, tmp_path, show=False)
    assert seen == [(7, 7), (14, 14), (20, 20)]


def test_the_running_mean_is_stored_and_is_what_draws(tmp_path):
    training = in_training(train={"ema": 0.9})
    mean = training.flat.data.astype(np.float64)
    for step in range(1, 8):
        training.step()
        decay = min(0.9, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * training.flat.data
    path = tmp_path / "checkpoint.safetensors"
    training.save(path)
    drawn_from = load_run(tmp_path).model.parameters()
    for name, view in training.flat.views(mean).items():
        np.testing.assert_allclose(drawn_from[name].data, view, atol=1e-6, err_msg=name)


def test_captions_fit_their_pictures_and_are_dropped_at_the_rate_asked_for():
    training = Training(tiny(train={"drop": 0.3, "batch": 200}), few_digits())
    decode = training.model.tokenizer.decode
    dropped = 0
    for step in range(1, 21):
        labels = few_digits().labels[batch_indices(64, 200, step - 1, seed=0)]
        for label, ids in zip(labels, training.batch(step)[1]):
            text = decode(ids)
            dropped += text == ""
            assert text == "" or text in data.captions("digits", label)
    assert dropped / 4000 == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_no_caption_or_every_caption_can_be_dropped(drop):
    training = in_training(train={"drop": drop})
    decoded = [training.model.tokenizer.decode(ids) for ids in training.batch(1)[1]]
    assert {text == "" for text in decoded} == {bool(drop)}


def test_flipping_mirrors_about_half_of_the_pictures():
    batch = 400
    straight, flipped = (Training(tiny(train={"batch": batch}, data={"flip": flip}), few_digits())
                         for flip in (False, True))
    x0, y0 = straight.batch(1)[0], flipped.batch(1)[0]
    index = batch_indices(64, batch, 0, seed=0)
    np.testing.assert_array_equal(x0, images.to_float(few_digits().images[index]))
    same = (y0 == x0).all(axis=(1, 2, 3))
    mirrored = (y0 == x0[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | mirrored).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=4 * 0.5 / batch**0.5 + 0.05)


def test_the_norm_in_the_report_is_that_before_clipping():
    training = in_training(train={"clip": 1e-3})
    training.gradient(1)
    expected = float(np.linalg.norm(training.flat.grad.astype(np.float64)))
    assert clip_grad(training.flat, 1e-3) == pytest.approx(expected, rel=1e-5)
    training = in_training(train={"clip": 1e-3})
    assert training.step()[2] == pytest.approx(expected, rel=1e-5)


def pressing(training, times):
    """Make Ctrl-C come `times` times during step 9."""
    step = training.step

    def interrupted():
        if training.steps_done == 8:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return step()

    training.step = interrupted
    return training


def test_the_first_ctrl_c_ends_the_step_and_saves_it(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    assert fit(pressing(in_training(), 1), tmp_path, show=False) == "interrupted"
    assert checkpoint.load(tmp_path / "checkpoint.safetensors")[1]["step"] == 9
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_second_ctrl_c_ends_everything_at_once(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(pressing(in_training(), 2), tmp_path, show=False)
    assert checkpoint.load(tmp_path / "checkpoint.safetensors")[1]["step"] == 7   # as saved before
    assert signal.getsignal(signal.SIGINT) is handler


def when(path, step, process):
    """Wait until metrics.csv tells of `step`."""
    until = time.monotonic() + 60
    while not (path.exists() and f"\n{step}," in path.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("blow", ["SIGINT", "SIGKILL"])
def test_a_process_that_is_stopped_goes_on_to_the_same_bytes(tmp_path, blow):
    recipe = tiny(train={"steps": 60}, sample={"steps": 2})
    (tmp_path / "tiny.toml").write_text(recipe.toml(), encoding="utf-8")
    training = Training(recipe, data.load("digits"))
    fit(training, tmp_path / "whole", show=False)

    out = tmp_path / "out"
    process = tinydiff("train", tmp_path / "tiny.toml", "--out", out)
    when(out / "metrics.csv", 9, process)
    process.send_signal(getattr(signal, blow))
    code, said, _ = finished(process)
    steps = checkpoint.load(out / "checkpoint.safetensors")[1]["step"]
    if blow == "SIGINT":
        assert code == 130
        assert f"--out {out} --resume" in said
        assert 9 <= steps < 60
    code, _, err = finished(tinydiff("train", tmp_path / "tiny.toml", "--out", out, "--resume"))
    assert code == 0, err
    assert weights(out) == weights(tmp_path / "whole")
    assert rows(out, timed=False) == rows(tmp_path / "whole", timed=False)
