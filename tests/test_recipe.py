"""Recipes: what is written comes back, what is mistyped is named with what was meant."""

import tomllib
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, strategies as st
from story_helpers import TINY, few_digits, tiny

from tinydiff.models import UNet, UNetConfig
from tinydiff.recipe import (
    Recipe,
    SampleTable,
    TrainTable,
    load_recipe,
    shipped,
    toml_value,
    walk,
)
from tinydiff.train import Training, fit

whole = st.integers(1, 10**6)
part = st.floats(0, 1, exclude_max=True)
positive = st.floats(1e-300, 1e300)

RECIPES = st.fixed_dictionaries({}, optional={
    "data": st.fixed_dictionaries({}, optional={
        "name": st.sampled_from(["digits", "mnist", "cifar10"]), "flip": st.booleans(),
        "split": st.text(st.characters(exclude_categories=["Cc", "Cs"]))}),
    "text": st.fixed_dictionaries({}, optional={"width": whole, "depth": st.integers(0, 9)}),
    "model": st.fixed_dictionaries({}, optional={
        "mults": st.lists(whole, min_size=2).map(tuple),
        "attend": st.lists(st.integers(0, 1)).map(tuple),
        "predicts": st.sampled_from(["eps", "x0", "v"]), "t_first": st.integers(0, 1)}),
    "diffusion": st.fixed_dictionaries({}, optional={
        "schedule": st.sampled_from(["linear", "cosine", "scaled_linear"]),
        "weight": st.sampled_from(["unweighted", "min_snr"]), "T": st.integers(50, 2000)}),
    "train": st.fixed_dictionaries({}, optional={
        "steps": whole, "lr": positive, "clip": positive, "decay": positive, "ema": part,
        "drop": part, "seed": st.integers(0, 2**64 - 1), "warmup": st.integers(0)}),
    "sample": st.fixed_dictionaries({}, optional={
        "sampler": st.sampled_from(["ddim", "ddpm"]), "steps": st.integers(1, 50),
        "guidance": st.floats(-1e300, 1e300), "clip": st.booleans()})})


@given(RECIPES)
def test_a_recipe_comes_back_from_its_toml(tables):
    recipe = Recipe().change(tables)
    assert Recipe.parse(recipe.toml()) == recipe
    for table, values in tables.items():
        for key, value in values.items():
            assert getattr(getattr(recipe, table), key) == value
            assert recipe.settings()[f"{table}.{key}"] == value


@given(RECIPES)
def test_what_is_typed_with_set_is_what_a_file_says(tables):
    typed = [f"{table}.{key}={toml_value(value)}" for table, values in tables.items()
             for key, value in values.items()]
    assert Recipe().override(typed) == Recipe().change(tables)


@pytest.mark.parametrize("text", ['a "quoted" \\ word', "tab\tand\nline", "Ünïcödé 七", "'single'"])
def test_words_survive_their_quotes_and_escapes(text):
    assert tomllib.loads(f"x = {toml_value(text)}")["x"] == text


def test_a_bare_word_and_a_whole_number_are_understood():
    recipe = Recipe().override(["model.predicts=v", "train.lr=1", " train.steps = 7",
                                "model.mults=[1, 2, 3]", "data.flip=true", "train.decay=1e-2"])
    assert (recipe.model.predicts, recipe.train.lr, recipe.train.steps) == ("v", 1.0, 7)
    assert (recipe.model.mults, recipe.data.flip, recipe.train.decay) == ((1, 2, 3), True, 0.01)
    assert type(recipe.train.lr) is float


def test_of_two_settings_of_one_key_the_last_holds():
    assert Recipe().override(["train.steps=1", "train.steps=2"]).train.steps == 2


def test_values_that_fit_only_together_are_taken_together():
    recipe = Recipe().override(["model.base=12", "model.groups=4", "train.batch=2",
                                "train.warmup=2", "diffusion.T=30", "sample.steps=30"])
    assert (recipe.model.base, recipe.train.batch, recipe.sample.steps) == (12, 2, 30)
    text = "[train]\nbatch = 1\n[diffusion]\nT = 30\n[sample]\nsteps = 9"
    assert Recipe.parse(text).train.batch == 1


@pytest.mark.parametrize(("setting", "says"), [
    ("train.step=9",            r"no key in \[train\] called 'step'; did you mean 'steps'"),
    ("trian.steps=9",           "no table called 'trian'; did you mean 'train'"),
    ("train.steps",             "expected table.key=value, as in train.steps=100"),
    ("steps=9",                 "expected table.key=value"),
    ("train.steps=many",        "train.steps expects a whole number from 1, got 'many'"),
    ("train.steps=0",           "train.steps expects a whole number from 1, got 0"),
    ("train.steps=1.5",         "expects a whole number from 1, got 1.5"),
    ("train.steps=true",        "expects a whole number from 1, got True"),
    ("train.lr=",               "train.lr expects a number, got ''"),
    ("train.lr=0",              "train.lr expects a number above 0 and finite, got 0.0"),
    ("train.lr=nan",            "train.lr expects a number above 0 and finite, got nan"),
    ("train.lr=inf",            "train.lr expects a number above 0 and finite, got inf"),
    ("train.decay=inf",         "train.decay expects a number of at least 0 and finite, got inf"),
    ("sample.guidance=nan",     "sample.guidance expects a finite number, got nan"),
    ("sample.guidance=-inf",    "sample.guidance expects a finite number, got -inf"),
    ("train.drop=1.1",          "train.drop expects a number from 0 to 1, got 1.1"),
    ("train.ema=1",             "train.ema expects a number from 0 to below 1"),
    ("train.seed=-1",           "train.seed expects a whole number from 0, got -1"),
    ("data.flip=1",             "data.flip expects true or false, got 1"),
    ("data.name=mnits",         "no data set 'mnits'; did you mean 'mnist'"),
    ("model.mults=[1, 2.5]",    r"a list of whole numbers from 1, got \(1, 2.5\)"),
    ("model.mults=2",           "a list of whole numbers from 1, got 2"),
    ("model.base=12",           "12 channels cannot be shared out among 8 groups"),
    ("model.predicts=noise",    'predicts is "eps", "x0", "v", "velocity" or "edm"'),
    ("model.channels=3",        "model.channels follows from data and text; leave it out"),
    ("model.classes=10",        "model.classes follows from data and text"),
    ("diffusion.schedule=cos",  "no schedule is called 'cos', did you mean 'cosine'"),
    ("diffusion.weight=minsnr", "no weight of the loss called 'minsnr'; did you mean 'min_snr'"),
    ("diffusion.loss=hybird",   "no loss called 'hybird'; did you mean 'hybrid'"),
    ("diffusion.zero_snr=1",    "diffusion.zero_snr expects true or false, got 1"),
    ("sample.spacing=karas",    "no spacing called 'karas'; did you mean 'karras'"),
    ("model.learned_variance=true", "model.learned_variance follows from diffusion.loss"),
    ("diffusion.schedule=flow", "ends without signal, where eps says nothing about x0"),
    ("diffusion.zero_snr=true", "ends without signal, where eps says nothing about x0"),
    ("sample.sampler=flow_heun", r"flow samplers need signal \+ noise = 1"),
    ("diffusion.T=20",          "from 1 to the schedule's T = 20, got 50"),
    ("sample.sampler=dpm",      r"no sampler called 'dpm'; did you mean 'ddpm'\? There are ddim, "),
    ("sample.steps=2000",       "from 1 to the schedule's T = 1000, got 2000")])
def test_a_mistake_is_named_in_one_sentence(setting, says):
    with pytest.raises(ValueError, match=says) as caught:
        Recipe().override([setting])
    assert "\n" not in str(caught.value)


def test_a_file_with_an_unknown_or_a_missing_table_is_refused():
    with pytest.raises(ValueError, match="no table called 'trian'"):
        Recipe.parse("[trian]")
    with pytest.raises(ValueError, match=r"expected a table \[train\], got train = 3"):
        Recipe.parse("train = 3")


def test_changing_a_recipe_leaves_the_first_as_it_was():
    recipe = tiny()
    assert recipe.set("train.lr", 0.5).train == TrainTable(**{**asdict(recipe.train), "lr": 0.5})
    assert recipe == Recipe.parse(TINY)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_builds_its_network_and_comes_back(name):
    recipe = load_recipe(name)
    assert Recipe.parse(recipe.toml()) == recipe
    config = UNetConfig(**{**asdict(recipe.model), "context_width": recipe.text.width})
    assert UNet(config, rng=np.random.default_rng(0)).count() > 10_000
    assert recipe.schedule().T == recipe.diffusion.T


def test_the_demo_is_shipped_and_needs_no_network():
    assert "demo" in shipped()
    assert load_recipe("demo").data.name == "digits"


def test_the_config_of_a_run_reloads_equal(tmp_path):
    recipe = tiny(train={"steps": 1}, model={"attend": [0, 1]})
    fit(Training(recipe, few_digits()), tmp_path, show=False)
    assert load_recipe(tmp_path / "config.toml") == recipe


def test_a_recipe_that_does_not_exist_is_told_with_the_nearest(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no recipe 'dmeo'.*did you mean 'demo'"):
        load_recipe("dmeo")
    with pytest.raises(FileNotFoundError, match="expected a TOML file or one of"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("content", [b"[train", b"\xff\xfe\x00", b"[train]\nlr = 1\nlr = 2"])
def test_a_file_that_is_not_toml_is_named(tmp_path, content):
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.toml is not a TOML file"):
        load_recipe(tmp_path / "a.toml")


def test_the_recipe_says_nothing_of_what_follows_from_the_data():
    assert "channels" not in tiny().toml()
    assert Recipe.parse("[model]\nchannels = 1") == Recipe()       # as older checkpoints say
    assert SampleTable() == Recipe().sample


def test_parts_that_do_not_go_together_are_refused_together():
    flow = ["diffusion.schedule=flow", "model.predicts=velocity"]
    assert Recipe().override([*flow, "sample.sampler=flow_heun"]).schedule().name == "flow"
    with pytest.raises(ValueError, match="divides by signal, and schedule flow has none"):
        Recipe().override([*flow, "sample.sampler=euler"])
    with pytest.raises(ValueError, match="leading: 3 strides"):
        Recipe().override(["sample.spacing=leading", "sample.steps=3"])
    times = walk(Recipe().override(flow).schedule(), "heun", 9, "own")
    with pytest.raises(ValueError, match=r"min_snr changes the simple loss, but .* vlb has none"):
        Recipe().override(["diffusion.loss=vlb", "diffusion.weight=min_snr"])
    assert times[0] == pytest.approx(1000 * 80 / 81)              # where sigma is 80
    bent = Recipe().override(["diffusion.zero_snr=true", "model.predicts=v"]).schedule()
    assert bent.signal(1000) == 0
