"""What diffusers and transformers answered, once stored by tools/store_parity.py, is answered too.

Weights are random and small; the numbers to meet are float64's. No test here needs a peer.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tinydiff import checkpoint
from tinydiff.diffusion.prediction import from_eps, from_v, from_velocity
from tinydiff.pretrained import load, load_scheduler

STORE = Path(__file__).with_name("stored_parity")
READS = {"eps": from_eps, "v": from_v, "velocity": from_velocity}
QUIET = 1 / 64                                            # of the weights, so that each eps shows


def a_model_answers(name, volume):
    model = load(STORE / name)
    arrays, tolerances = checkpoint.load(STORE / name / "answers.safetensors")
    for path, p in model.parameters().items():
        p.data *= QUIET if volume == "quiet" and not path.endswith(".scale") else 1
    for method in sorted({key.split("/")[1] for key in tolerances}):
        given = {key.split("/")[1]: array for key, array in arrays.items()
                 if key.startswith(f"{method}/")}
        answers = getattr(model, method)(**given)
        for i, y in enumerate(answers if isinstance(answers, tuple) else [answers]):
            key = f"{volume}/{method}/{i}"
            if y is None:                                 # T5 has nothing pooled
                assert key not in arrays
                continue
            assert (y.dtype, y.shape) == (np.float32, arrays[key].shape)
            assert abs(y - arrays[key]).max() <= tolerances[key] * abs(arrays[key]).max()


def a_tokenizer_gives_the_ids(name):
    texts, ids = json.loads((STORE / name / "answers.json").read_text(encoding="utf-8"))
    np.testing.assert_array_equal(load(STORE / name).encode(texts), ids)


def a_scheduler_ends_there(name):
    given, _ = checkpoint.load(STORE / "schedulers.safetensors")
    expected, config = checkpoint.load(STORE / name / "answers.safetensors")
    scheduler, outputs = load_scheduler(STORE / name), iter(given["outputs"])
    steps = config["steps"]

    def predict(x_t, t):
        return READS[scheduler.predicts](x_t, next(outputs), *scheduler.schedule.levels(t))

    np.testing.assert_allclose(scheduler.timesteps(steps), config["told"], atol=1e-3)
    np.testing.assert_allclose(scheduler.start_std(steps), config["std"], rtol=1e-5)
    *_, x_0 = scheduler(predict, given["x_T"], steps=steps, noise=iter(given["noise"]))
    assert x_0.dtype == np.float32
    assert abs(x_0 - expected["x_0"]).max() <= 5e-5 * abs(expected["x_0"]).max()


def a_pipeline_draws_the_picture(name):
    arrays, options = checkpoint.load(STORE / name / "answers.safetensors")
    drawn = load(STORE / name).generate(options.pop("prompts"), **options)
    assert drawn.dtype == np.uint8
    assert drawn.std() > 10
    assert abs(drawn - 255 * arrays["picture"]).max() < 0.6


CASES = {f"{name}/{volume}": partial(a_model_answers, name, volume)
         for name in ("unet-ddpm", "unet-labels", "unet-sd1", "unet-sd2", "vae", "clip", "clip-eos",
                      "bert", "t5") for volume in ("ordinary", "quiet")}
CASES |= {path.name: partial(check, path.name) for pattern, check in {
    "tokenizer-*": a_tokenizer_gives_the_ids, "*Scheduler*": a_scheduler_ends_there,
    "pipeline": a_pipeline_draws_the_picture}.items() for path in sorted(STORE.glob(pattern))}


@pytest.mark.parametrize("case", CASES)
def test_ours_is_what_theirs_was(case):
    CASES[case]()


def test_every_folder_stored_is_a_case_and_all_are_small():
    folders = {path.name for path in STORE.iterdir() if path.is_dir()}
    assert folders == {case.split("/")[0] for case in CASES}
    assert sum(path.stat().st_size for path in STORE.rglob("*") if path.is_file()) < 4_000_000
