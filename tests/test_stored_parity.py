"""What diffusers and transformers answered, once stored by tools/store_parity.py, is answered too.

Weights are random and small; the numbers to meet are float64's. No test here needs a peer.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tinydiff import checkpoint
from tinydiff.diffusion.prediction import from_eps, from_v, from_velocity
from tinydiff.pretrained import load, load_scheduler

STORE = Path(__file__).with_name("stored_parity")
MODELS = ["unet-ddpm", "unet-labels", "unet-sd1", "unet-sd2", "vae", "clip", "bert", "t5"]
READS = {"eps": from_eps, "v": from_v, "velocity": from_velocity}
QUIET = 1 / 64                                            # of the weights, so that each eps shows


@pytest.mark.parametrize("volume", ["ordinary", "quiet"])
@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_answers_as_stored(name, volume):
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


@pytest.mark.parametrize("name", ["tokenizer-clip", "tokenizer-bert", "tokenizer-t5"])
def test_a_published_tokenizer_gives_the_ids_stored(name):
    texts, ids = json.loads((STORE / name / "answers.json").read_text(encoding="utf-8"))
    np.testing.assert_array_equal(load(STORE / name).encode(texts), ids)


@pytest.mark.parametrize("folder", sorted(STORE.glob("*Scheduler")), ids=lambda path: path.name)
def test_a_published_scheduler_ends_where_stored(folder):
    given, _ = checkpoint.load(STORE / "schedulers.safetensors")
    expected, config = checkpoint.load(folder / "answers.safetensors")
    scheduler, outputs = load_scheduler(folder), iter(given["outputs"])

    def predict(x_t, t):
        return READS[scheduler.predicts](x_t, next(outputs), *scheduler.schedule.levels(t))

    np.testing.assert_allclose(scheduler.timesteps(config["steps"]), config["told"], atol=1e-3)
    *_, x_0 = scheduler(predict, given["x_T"], steps=config["steps"], noise=iter(given["noise"]))
    assert x_0.dtype == np.float32
    assert abs(x_0 - expected["x_0"]).max() <= 5e-5 * abs(expected["x_0"]).max()


def test_a_published_pipeline_draws_the_picture_stored():
    arrays, options = checkpoint.load(STORE / "pipeline" / "answers.safetensors")
    drawn = load(STORE / "pipeline").generate(options.pop("prompts"), **options)
    assert drawn.dtype == np.uint8
    assert drawn.std() > 10
    assert abs(drawn - 255 * arrays["picture"]).max() < 0.6


def test_what_is_stored_is_small():
    assert sum(path.stat().st_size for path in STORE.rglob("*") if path.is_file()) < 3_000_000
