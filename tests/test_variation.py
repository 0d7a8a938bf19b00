"""Variation: between prompts and seeds, the ends exactly; with latents, and their films."""

from pathlib import Path

import numpy as np
import pytest
from story_helpers import few_digits, in_training, randomised, tiny

from tinydiff import data, images, pretrained
from tinydiff.autoencoding import AutoencoderTraining
from tinydiff.diffusion import ddim, noise
from tinydiff.diffusion.editing import slerp
from tinydiff.runs import load_run, training_run
from tinydiff.train import Training
from tinydiff.upscale import Cascade
from tinydiff.variation import along, between

FIRST, LAST = "a handwritten seven", "the digit 2"
LATENT = dict(autoencoder={"steps": 5, "base": 8, "mults": [1, 2], "groups": 4, "latent": 3},
              model={"patch": 1}, sample={"clip": False})


def lively(training):
    """The training with weights that all matter, as though it had been long."""
    randomised(training.model)
    training.ema.data[...] = training.flat.data
    return training


def in_latents():
    """A Training on latents 4 × 4 of digits 8 × 8."""
    recipe = tiny(**LATENT)
    autoencoder = AutoencoderTraining(recipe, few_digits())
    randomised(autoencoder.model)
    autoencoder.ema.data[...] = autoencoder.flat.data
    return Training(recipe, few_digits(), autoencoder.finished(batches=1))


def upscaler():
    """Enlarges 4 × 4 to 8 × 8."""
    return training_run(lively(in_training(upscale={"factor": 2}, model={"patch": 1})), "upscaler")


def cascade():
    """4 × 4 and then 8 × 8."""
    digits = few_digits()
    less = data.DataSet(digits.images[:, ::2, ::2], digits.labels, digits.classes, "here")
    small = lively(Training(tiny(model={"patch": 1}), less))
    return Cascade(training_run(small, "small"), upscaler(), "both")


RUNS = {"pixels": lambda: training_run(lively(in_training()), "pixels"),
        "latents": lambda: training_run(lively(in_latents()), "latents"),
        "cascade": cascade, "upscaler": upscaler,
        "diffusers": lambda: pretrained.load(
            Path(__file__).with_name("stored_parity") / "pipeline")}


@pytest.fixture(scope="module", params=RUNS)
def run(request):
    return RUNS[request.param]()


@pytest.fixture(scope="module")
def pixels():
    return RUNS["pixels"]()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder of latents."""
    home = tmp_path_factory.mktemp("latents")
    lively(in_latents()).save(home / "checkpoint.safetensors")
    return home


def given(run):
    """What an upscaler cannot do without."""
    small = getattr(run.recipe, "upscale", None) if hasattr(run, "recipe") else None
    init = np.random.default_rng(0).integers(256, size=(4, 4, 1), dtype=np.uint8)
    return {"init": init} if small and small.factor > 1 else {}


def levels_apart(a, b):
    return np.abs(a.astype(int) - b).max()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_ends_are_the_pictures_of_the_two_prompts_and_seeds(run, sampler):
    options = dict(steps=3, sampler=sampler, guidance=2.0, **given(run))
    way = between(run, FIRST, LAST, 4, seed=1, to_seed=5, **options)
    first, last = (run.generate([prompt], seed=seed, **options)
                   for prompt, seed in ((FIRST, 1), (LAST, 5)))
    assert way.shape == (4, *first.shape[1:])
    assert way.dtype == np.uint8
    assert levels_apart(way[:1], first) <= 1              # rounding of products
    assert levels_apart(way[-1:], last) <= 1
    assert levels_apart(first, last) > 1
    assert len(np.unique(way.reshape(4, -1), axis=0)) == 4


def test_without_another_seed_only_what_is_heard_changes(run):
    options = dict(steps=2, guidance=2.0, **given(run))
    way = between(run, FIRST, LAST, 3, seed=7, **options)
    assert levels_apart(way[-1:], run.generate([LAST], seed=7, **options)) <= 1
    back = between(run, FIRST, LAST, 2, seed=7, to_seed=0, **options)
    assert levels_apart(back[-1:], run.generate([LAST], **options)) <= 1
    same = between(run, FIRST, FIRST, 3, seed=7, **options)
    assert levels_apart(same, run.generate([FIRST], seed=7, **options)) <= 1


def test_each_picture_is_drawn_from_noise_on_the_arc_with_words_on_the_straight_line(pixels):
    a, b = (noise.batch(seed, [0], 0, (8, 8, 1)) for seed in (2, 9))
    words = pixels.contexts([FIRST, LAST, ""])
    *_, drawn = along(pixels, LAST, 5, 9).denoise([FIRST], n=5, seed=2, steps=4, guidance=1.5)
    for k, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        heard = (1 - share) * words[:1] + share * words[1:2]
        predict = pixels.guided(pixels.unet, np.float32(heard), words[2:], 1.5)
        _, times, _ = pixels.walk("ddim", 4)
        *_, x0 = ddim(predict, slerp(a, b, share), pixels.schedule, timesteps=times)
        np.testing.assert_allclose(drawn[k], x0[0], atol=1e-4)


def test_all_noise_of_a_sampler_turns_with_the_seed(pixels):
    way, index = along(pixels, LAST, 3, 9), np.arange(3)
    for step in (0, 1):
        a, b = (noise.batch(seed, [0], step, (8, 8, 1), purpose=noise.SAMPLER) for seed in (2, 9))
        turned = way.normal(2, index, step, (8, 8, 1), purpose=noise.SAMPLER)
        np.testing.assert_array_equal(turned[[0, 2]], np.concatenate([a, b]))
        np.testing.assert_allclose(turned[1:2], slerp(a, b, 0.5), atol=1e-6)


def test_the_way_does_not_depend_on_how_many_are_drawn_at_a_time(run):
    options = dict(steps=2, to_seed=5, sampler="ddpm", **given(run))
    together, one_by_one = (between(run, FIRST, LAST, 3, batch=batch, **options)
                            for batch in (8, 1))
    assert levels_apart(together, one_by_one) <= 1


def test_the_run_that_was_asked_stays_as_it_is(run):
    options = dict(steps=2, **given(run))
    before = run.generate([FIRST], n=2, **options)
    between(run, FIRST, LAST, 2, to_seed=1, **options)
    np.testing.assert_array_equal(run.generate([FIRST], n=2, **options), before)


@pytest.mark.parametrize(("asked", "said"), [
    (dict(n=1), "at least 2 pictures on the way, got 1"), (dict(n="8"), "at least 2 pictures"),
    (dict(last=7), "a prompt to end with, got 7"), (dict(to_seed=-1), "to_seed from 0 to"),
    (dict(to_seed=2**64), "to_seed from 0 to"), (dict(to_seed=0.5), "to_seed from 0 to"),
    (dict(first=7), "expected a list of prompts"), (dict(seed=-1), "seed from 0 to"),
    (dict(last="abcdefghijklmnopqrstuvwxyz"), "27 tokens long"), (dict(steps=99), "got 99"),
])
def test_what_leads_nowhere_is_refused(pixels, asked, said):
    with pytest.raises(ValueError, match=said):
        between(pixels, **{"first": FIRST, "last": LAST, "n": 3, **asked})


# On the command line, with latents


def test_a_strip_shows_the_way_and_tells_it(typed, folder):
    pytest.importorskip("PIL")
    code, out, _ = typed("sample", folder, "--prompt", FIRST, "--prompt", LAST, "--between", 5,
                         "--seed", 2, "--to-seed", 3, "--steps", 3, "--out", "a.png")
    assert code == 0
    assert "pictures: 5" in out
    run = load_run(folder)
    strip = images.grid(between(run, FIRST, LAST, 5, seed=2, to_seed=3, steps=3), columns=5)
    assert strip.shape == (8, 5 * 10 - 2, 1)
    np.testing.assert_array_equal(images.read_image("a.png"), strip)
    told = images.read_provenance("a.png")
    assert told == {**run.settings([FIRST, LAST], seed=2, steps=3), "between": 5, "to_seed": 3}
    assert typed("sample", folder, "--prompt", FIRST, "--prompt", LAST, "--between", 2,
                 "--seed", 4, "--out", "a.png")[0] == 0
    assert images.read_provenance("a.png")["to_seed"] == 4


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_a_film_of_the_way_shows_each_finished_picture(typed, folder, name):
    Image = pytest.importorskip("PIL.Image")
    assert typed("sample", folder, "--prompt", FIRST, "--between", 6, "--to-seed", 3,
                 "--out", name)[0] == 0
    with Image.open(name) as film:
        assert (film.n_frames, film.size) == (6, (8, 8))


def test_a_file_of_arrays_holds_the_way(typed, folder):
    ask = ("sample", folder, "--prompt", FIRST, "--prompt", LAST, "--between", 3)
    assert typed(*ask, "--out", "a.npy")[0] == 0
    np.testing.assert_array_equal(np.load("a.npy"), between(load_run(folder), FIRST, LAST, 3))


@pytest.mark.parametrize("words", [
    ["--between", 4], ["--to-seed", 3], ["--prompt", "2", "--to-seed", 3],
    ["--prompt", "2", "--between", 4, "--n", 2], ["--prompt", "2", "--prompt", "3", "--between", 4],
    ["--prompt", "2", "--between", 1], ["--between", 4, "--to-seed", "x"],
    ["--prompt", "2", "--between", 4, "--size", "9x8"],
    ["--prompt", "abcdefghijklmnopqrstuvwxyz", "--between", 4]])
def test_a_way_that_leads_nowhere_is_typed_wrongly(typed, folder, tmp_path, words):
    code, out, err = typed("sample", folder, "--prompt", FIRST, *words, "--out", "a.png")
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert len([line for line in err.splitlines() if line.startswith("tinydiff")]) == 1


def test_with_latents_there_are_other_seeds_other_prompts_and_films(typed, folder):
    Image, run = pytest.importorskip("PIL.Image"), load_run(folder)
    ask = ("sample", folder, "--prompt", FIRST, "--prompt", LAST, "--n", 3, "--steps", 3)
    assert typed(*ask, "--out", "a.npy")[0] == 0
    drawn = np.load("a.npy")
    np.testing.assert_array_equal(drawn, run.generate([FIRST, LAST], n=3, steps=3))
    assert len(np.unique(drawn.reshape(6, -1), axis=0)) == 6
    assert typed(*ask, "--out", "a.webp")[0] == 0
    with Image.open("a.webp") as film:
        assert (film.n_frames, film.size) == (4, (3 * 10 - 2, 2 * 10 - 2))
        film.seek(0)
        seen = np.asarray(film.convert("L"))[:8, :8, None]
    z_T = next(run.denoise([FIRST], steps=3))
    assert z_T.shape == (1, 4, 4, 3)
    np.testing.assert_array_equal(seen, run.pixels(z_T)[0])           # noise, decoded
