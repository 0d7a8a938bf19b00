"""Evaluation draws what it says, judges by what is known to be true, and tells what it cannot."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from story_helpers import randomised, tiny

from tinydiff import data, images, metrics
from tinydiff.data.scene_words import plainest
from tinydiff.data.scenes import Dice, random_scene
from tinydiff.data.shapes import draw
from tinydiff.diffusion import clipped, ideal_predictor, vlb
from tinydiff.evaluation import judging, quality, real
from tinydiff.evaluation.judging import JUDGES, load_judge
from tinydiff.evaluation.quality import bits, copies, drawn, evaluate, gap, how_many, likeness
from tinydiff.evaluation.questions import questions_about
from tinydiff.evaluation.real import Real, real_pictures
from tinydiff.evaluation.summary import table
from tinydiff.models.residual_classifier import ResidualClassifier, ResidualClassifierConfig
from tinydiff.predictor import denoiser
from tinydiff.progress import Silent
from tinydiff.runs import load_run, training_run
from tinydiff.tables import DataTable
from tinydiff.train import Training

KEYS = {"recipe", "n", "prompt_accuracy", "ci95", "frechet", "frechet_ci95", "frechet_extrapolated",
        "frechet_real", "precision", "recall", "coverage", "copies", "guidance_sweep", "loss_gap",
        "nll_bits_per_dim", "nll_note", "judge", "real_pictures", "unseen", "by_kind"}
ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "docs" / "cards"
SHIPPED = sorted({JUDGES[name] for name in JUDGES})


def untrained(name="digits", size=28, **tables):
    """A Run of the tiny recipe before its first step."""
    recipe = tiny(data={"name": str(name), "size": size}, text={"length": 40},
                  sample={"steps": 2}, **tables)
    return training_run(Training(recipe, data.load(str(name), size=size)), "untrained")


@pytest.fixture
def quick(monkeypatch):
    """Fewer real pictures and times, so that a whole evaluation takes a second."""
    for name, value in {"real.LEARNED": 300, "real.SAMPLE": 300, "real.OTHERS": 150,
                        "quality.SAMPLE": 200, "quality.SOME": 4, "quality.STEPS": 3}.items():
        monkeypatch.setattr(f"tinydiff.evaluation.{name}", value)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_judge_is_small_and_says_what_it_learned_from(name):
    path = judging.WEIGHTS / f"judge-{name}.safetensors"
    assert path.stat().st_size <= 3_000_000
    judge = load_judge(name)
    assert 0.84 < judge.accuracy_on_real <= 1
    assert " and reads " in judge.told


def test_the_judge_of_digits_reads_real_ones_as_rightly_as_it_says():
    judge, digits = load_judge("digits"), data.load("digits")     # which it did not learn from
    p = judge.probabilities(digits.images[::7])
    low, high = metrics.wilson(metrics.accuracy(p, digits.labels[::7]), len(p), z=3)
    assert low < judge.accuracy_on_real < high
    assert judge.accuracy_on_real > 0.989
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)


def test_a_judges_probabilities_are_the_softmax_of_a_linear_function_of_its_features():
    judge, pictures = load_judge("digits"), data.load("digits").images[:5]
    decide = judge.network.decide
    e = np.exp(judge.features(pictures) @ decide.w.data + decide.b.data)
    np.testing.assert_allclose(judge.probabilities(pictures), e / e.sum(axis=1, keepdims=True),
                               rtol=1e-4, atol=1e-7)


def test_a_judge_sees_a_picture_twice_as_large_as_the_mean_of_each_four_pixels(rng):
    judge, small = load_judge("shapes"), rng.integers(9, 247, (2, 32, 32, 3), np.uint8)
    around = np.tile([[9, 247], [247, 9]], (32, 32)).astype(np.uint8)[:, :, None]   # −9 or 9
    large = small.repeat(2, axis=1).repeat(2, axis=2) - around
    np.testing.assert_allclose(judge.features(large), judge.features(small), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 30, 30, 3), (2, 64, 32, 3), (2, 32, 32, 1), (2, 16, 16, 3)])
def test_a_judge_refuses_pictures_of_other_sizes(shape):
    with pytest.raises(ValueError, match=r"reads pictures \(32, 32, 3\)"):
        load_judge("shapes").features(np.zeros(shape, np.uint8))


def test_there_is_no_judge_of_what_none_has_learned():
    with pytest.raises(ValueError, match="no judge of 'cats', there is one of digits"):
        load_judge("cats")


def test_a_residual_classifiers_logits_are_a_linear_function_of_its_features(rng):
    config = ResidualClassifierConfig(channels=1, classes=3, widths=(4, 8), groups=2)
    network = ResidualClassifier(config, rng=rng).astype(np.float64)
    for p in network.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape)
    x = rng.uniform(-1, 1, (3, 7, 6, 1))
    features = network.features(x).data
    assert features.shape == (3, 8)
    np.testing.assert_allclose(network(x).data, features @ network.decide.w.data
                               + network.decide.b.data, rtol=1e-12)


def test_real_digits_answer_the_questions_for_them_and_others_do_not():
    digits, asked = data.load("digits"), questions_about("digits", 200)
    labels = np.arange(200) % 10
    right = digits.images[[np.flatnonzero(digits.labels == y)[i] for i, y in enumerate(labels)]]
    answered = asked.answered(right)
    assert asked.prompts[7] == "a handwritten seven"
    assert answered["prompt_accuracy"] >= 0.98
    assert list(answered["by_kind"]) == asked.prompts[:10]
    assert asked.answered(np.roll(right, 1, axis=0))["prompt_accuracy"] < 0.05
    first = asked.answered(right[:13])                            # of the first 13 questions
    assert first["n"] == 13
    assert first["by_kind"][asked.prompts[0]]["n"] == 2


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_a_drawn_scene_answers_the_question_for_it_and_no_other(split):
    asked, dice, known = questions_about("shapes", 120, split), Dice(np.random.default_rng(1)), {}
    for _ in range(400):
        scene = random_scene(dice, split, 1)
        known[plainest(scene)[0]] = scene
    blank = np.full((32, 32, 3), 255, np.uint8)
    told = [prompt in known for prompt in asked.prompts]
    pictures = np.stack([draw([known[prompt]], 32)[0] if here else blank
                         for prompt, here in zip(asked.prompts, told)])
    assert sum(told) > 3
    assert asked.right(pictures).tolist() == told
    assert asked.right(np.roll(pictures, 1, axis=0)).sum() <= 2
    assert [asked.kinds.count(f"{k} object{s}") for k, s in ((1, ""), (2, "s"), (3, "s"))] == \
        [54, 48, 18]


class Echo:
    """A Run whose pictures tell what they were asked with."""

    shape = (1, 1, 3)

    def __init__(self):
        self.asked = []

    def generate(self, prompts, *, n, seed, guidance):
        self.asked.append((seed, guidance))
        return np.array([[[[int(prompt), seed % 251, i]]] for prompt in prompts
                         for i in range(n)], np.uint8)


def test_every_prompt_gets_its_own_picture_also_where_prompts_repeat(rng):
    run, prompts = Echo(), [str(i) for i in rng.integers(30, size=150)]
    pictures = drawn(run, prompts, 1.5, seed=3, progress=Silent())[:, 0, 0]
    assert pictures[:, 0].tolist() == [int(prompt) for prompt in prompts]
    assert len({tuple(row) for row in pictures.tolist()}) == 150     # (prompt, seed, index)
    assert {w for _, w in run.asked} == {1.5}
    assert len({seed for seed, _ in run.asked}) == 8
    again = drawn(Echo(), prompts, seed=4, progress=Silent())[:, 0, 0]
    assert (again[:, 1] != pictures[:, 1]).all()


def test_copies_are_at_no_distance_and_other_real_pictures_at_the_usual_one(rng):
    learned, others = (rng.integers(256, size=(n, 6, 6, 1), dtype=np.uint8) for n in (300, 200))
    known = Real(learned, learned, others, [])
    found = copies(learned[50:90], known)
    assert (found["ratio"], found["closest"], found["among"]) == (0, 0, 300)
    assert 0.5 < found["closest_real"] < 1
    fresh = rng.integers(256, size=(200, 6, 6, 1), dtype=np.uint8)
    assert copies(fresh, known)["ratio"] == pytest.approx(1, abs=0.03)
    expected = np.median(metrics.nearest(fresh, learned)) / np.median(
        metrics.nearest(others, learned))
    assert copies(fresh, known)["ratio"] == expected


def test_likeness_compares_with_all_real_features_but_mixes_with_as_many(rng):
    reference, features = rng.standard_normal((400, 3)), 0.5 * rng.standard_normal((60, 3))
    found = likeness(features, reference, rng)
    assert found["frechet"] == metrics.frechet(features, reference)
    assert found["frechet_ci95"][0] < found["frechet"] < found["frechet_ci95"][1]
    near = reference[:60]
    for name, metric in (("precision", metrics.precision), ("recall", metrics.recall),
                         ("coverage", metrics.coverage)):
        assert found[name] == metric(near, features)
    assert found["precision"] > found["recall"]                   # good, but too alike


def test_the_loss_gap_of_the_ideal_predictor_is_none(rng, monkeypatch):
    run, pictures = untrained(), data.load("digits").images[:50]
    known = ideal_predictor(images.to_float(pictures), run.schedule)
    monkeypatch.setattr(quality, "denoiser", lambda unet, schedule, context: known)
    found = gap(run, Real(pictures, pictures, pictures, []), 0)
    assert found["loss"] == found["bayes"]
    assert found["times"] == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    monkeypatch.undo()
    found = gap(run, Real(pictures, pictures, pictures, []), 0)
    assert (np.array(found["loss"][:-1]) > found["bayes"][:-1]).all()


def test_the_bits_are_the_bound_of_the_network_that_was_told_the_captions():
    run, pictures = untrained(), data.load("digits").images[:6]
    texts = ["a handwritten seven", "a handwritten two"] * 3
    randomised(run.model)                                         # so that the words matter
    found, note = bits(run, Real(pictures, pictures, pictures, texts), 5)
    predict = clipped(denoiser(run.unet, run.schedule, run.contexts(texts)), run.schedule)
    bound = vlb(predict, images.to_float(pictures), run.schedule, steps=50, seed=5).total
    assert found == pytest.approx(bound.mean(), rel=1e-6)
    assert "50 steps of a chain of T = 50, on 6 pictures" in note


def test_latents_have_no_bits_and_their_gap_is_that_of_latents(rng):
    run, pictures = untrained(), data.load("digits").images[:20]
    known = Real(pictures, pictures, pictures, [""] * 20)
    plain = gap(run, known, 0)
    run.autoencoder = SimpleNamespace(latents=lambda x: x[:, :16, :16] * np.float32(0.5))
    assert bits(run, known, 0)[0] is None
    assert "latents" in bits(run, known, 0)[1]
    assert gap(run, known, 0)["bayes"] != plain["bayes"]


def test_the_others_are_pictures_that_the_model_did_not_learn_from(quick, monkeypatch):
    def as_set(pictures):
        return {picture.tobytes() for picture in pictures}

    world, told = real_pictures(DataTable(name="shapes"))
    assert world.learned is world.known
    assert not as_set(world.others) & as_set(world.learned)
    assert "without end" in told
    monkeypatch.setattr(data, "available", lambda: [])            # no other split is here
    halves, told = real_pictures(DataTable(name="digits"))
    assert not as_set(halves.others) & as_set(halves.known)
    assert as_set(halves.others) | as_set(halves.known) == as_set(halves.learned)
    assert len(halves.captions) == len(halves.others) == real.OTHERS
    assert "half of what it learned from" in told


def test_an_untrained_model_answers_by_chance_and_every_number_has_its_place(quick):
    run = untrained()
    found = evaluate(run, n=40)
    assert found.keys() >= KEYS
    low, high = metrics.wilson(0.1, 40, z=3)
    assert low <= found["prompt_accuracy"] <= high
    assert found["frechet"] > 20 * found["frechet_real"]
    assert found["recall"] < 0.1
    assert [turn["guidance"] for turn in found["guidance_sweep"]] == list(quality.GUIDANCES)
    assert {turn["n"] for turn in found["guidance_sweep"]} == {10}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert evaluate(run, n=40) == found                           # the same seed, the same numbers
    assert evaluate(run, n=40, seed=1)["frechet"] != found["frechet"]
    for words in ("prompt accuracy", "a handwritten seven", "95 %", "guidance", "least", "reads"):
        assert words in table(found)


def test_an_untrained_model_of_scenes_draws_nothing_that_was_asked_for(quick, monkeypatch):
    run, counted, guidances, plainly = untrained("shapes"), [], Counter(), Counter()
    generate, drawing = run.generate, quality.bar

    def noted(prompts, *, n, seed, guidance):
        guidances[guidance] += len(prompts) * n
        plainly.update(n * prompts if guidance is None else ())
        return generate(prompts, n=n, seed=seed, guidance=guidance)

    run.generate = noted
    monkeypatch.setattr(quality, "bar", lambda total, **_: counted.append(total) or drawing(total))
    found = evaluate(run, n=40)
    assert found["prompt_accuracy"] == found["unseen"]["prompt_accuracy"] == 0
    assert found["by_kind"].keys() == {"1 object", "2 objects", "3 objects"}
    assert found["unseen"]["n"] == 20
    assert guidances == {None: 40 + 20, **dict.fromkeys(quality.GUIDANCES, 10)}
    assert plainly == Counter(questions_about("shapes", 40).prompts
                              + questions_about("shapes", 20, "unseen").prompts)
    assert counted == [how_many(run, 40)] == [40 + 20 + 60]
    assert "unseen combinations" in table(found)


def test_pictures_of_your_own_have_no_judge_but_all_else(quick, tmp_path, rng):
    for i in range(30):
        images.write_png(tmp_path / f"thing-{i}.png",
                         rng.integers(256, size=(8, 8, 3), dtype=np.uint8))
    run = untrained(tmp_path, size=8)
    found = evaluate(run, n=40)
    assert found["prompt_accuracy"] is found["frechet"] is found["guidance_sweep"] is None
    assert "no judge" in found["judge"]
    assert found["copies"]["ratio"] > 0
    assert found["nll_bits_per_dim"] > 0
    assert len(found["loss_gap"]["loss"]) == 10
    assert how_many(run, 40) == 40
    table(found)


def test_without_the_data_the_judge_still_answers(quick, monkeypatch):
    def offline(*_):
        raise OSError("no network")

    run = untrained()
    monkeypatch.setattr(data, "load", offline)
    found = evaluate(run, n=40)
    assert found["prompt_accuracy"] is not None
    assert found["frechet"] is found["copies"] is found["nll_bits_per_dim"] is None
    assert {turn["recall"] for turn in found["guidance_sweep"]} == {None}
    assert "no network" in found["real_pictures"]
    table(found)


def test_the_shipped_digits_are_recognised_as_asked():
    run, asked = load_run("mnist"), questions_about("mnist", 120)
    pictures = np.concatenate([run.generate(asked.prompts[:10], n=12, seed=5, steps=12)])
    order = np.arange(120).reshape(10, 12).T.ravel()              # one of each prompt after another
    assert asked.answered(pictures[order])["prompt_accuracy"] >= 0.97


def test_eval_prints_a_table_or_nothing_but_json(typed, quick, tmp_path):
    recipe = tiny(data={"name": "digits"}, text={"length": 40}, sample={"steps": 2})
    Training(recipe, data.load("digits")).save(tmp_path / "run" / "checkpoint.safetensors")
    code, out, err = typed("eval", tmp_path / "run", "--n", 40, "--json")
    assert code == 0
    assert json.loads(out).keys() >= KEYS
    assert "expected time" in err
    code, out, _ = typed("eval", tmp_path / "run", "--n", 40, "--seed", 1)
    assert code == 0
    assert out.startswith("run: 40 pictures of seed 1, 2 steps of ddim, guidance 3")


@pytest.mark.parametrize("stored", sorted(CARDS.glob("*.json")), ids=lambda path: path.stem)
def test_a_card_is_the_page_that_its_numbers_make(stored, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from model_card import LARGEST, card, prompts_of
    run, found = load_run(stored.stem), json.loads(stored.read_text(encoding="utf-8"))
    assert found.keys() >= KEYS
    page = card(stored.stem, run, found, prompts_of(run))
    assert stored.with_suffix(".md").read_text(encoding="utf-8") == page
    for picture in CARDS.glob(f"{stored.stem}-*.png"):
        if re.fullmatch(r"-\w+", picture.stem.removeprefix(stored.stem)) is None:
            continue                                      # of mnist-latent, not of mnist
        assert picture.stat().st_size <= LARGEST
        assert f"({picture.name})" in page


@pytest.mark.parametrize(("words", "code", "says"), [
    (("mnist", "--n", 39), 2, "expected at least 40 pictures, got n = 39"),
    (("mnist", "--n", "many"), 2, "expected a whole number from 1"),
    (("minst",), 1, "did you mean 'mnist'"),
    (("nowhere/at/all",), 1, "no run"),
    (("mnist", "--seed", -1), 2, "expected a whole number from 0"),
])
def test_eval_refuses_in_one_sentence(typed, words, code, says):
    found, out, err = typed("eval", *words)
    assert found == code
    assert out == ""
    assert says in err


def test_eval_of_a_model_that_only_enlarges_says_what_to_evaluate():
    run = SimpleNamespace(name="runs/up", recipe=SimpleNamespace(upscale=SimpleNamespace(factor=2)))
    with pytest.raises(ValueError, match=r"runs/up enlarges .* tinydiff eval shapes"):
        quality.refuse(run, 100)


def test_ctrl_c_ends_eval_with_130(typed, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(quality, "evaluate", interrupted)
    code, out, err = typed("eval", "mnist", "--n", 40)
    assert code == 130
    assert out == ""
    assert "interrupted" in err
