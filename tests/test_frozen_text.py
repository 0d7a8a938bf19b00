"""Training on what a published text encoder says: read as its own pipeline reads, never changed."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from story_helpers import TINY, few_digits, randomised, tiny

from tinydiff import checkpoint, pretrained, train
from tinydiff.autograd import mse
from tinydiff.frozen_text import FrozenText
from tinydiff.models import TextEncoder, UNetConfig
from tinydiff.pretrained.export import export_run
from tinydiff.pretrained.text import place, read_config
from tinydiff.pretrained.weights import as_theirs
from tinydiff.runs import load_run, training_run
from tinydiff.train import Training, fit

STORED = Path(__file__).with_name("stored_parity")
SEVEN, TWO = "a handwritten seven", "the digit 2"
CONFIGS = {
    "clip": {"architectures": ["CLIPTextModel"], "hidden_size": 12, "intermediate_size": 16,
             "max_position_embeddings": 20, "num_attention_heads": 2, "num_hidden_layers": 1},
    "bert": {"architectures": ["BertModel"], "hidden_size": 12, "intermediate_size": 16,
             "max_position_embeddings": 30, "num_attention_heads": 2, "num_hidden_layers": 1},
    "t5": {"architectures": ["T5EncoderModel"], "d_ff": 16, "d_kv": 6, "d_model": 12,
           "num_heads": 2, "num_layers": 1}}
forms = pytest.mark.parametrize("form", CONFIGS)


def published(folder, form="clip", seed=0, **others):
    """A folder with a text encoder of random weights and its tokenizer, as a hub has them."""
    shutil.copytree(STORED / f"tokenizer-{form}", folder, dirs_exist_ok=True)
    theirs = CONFIGS[form] | {"vocab_size": pretrained.load_tokenizer(folder).size} | others
    (folder / "config.json").write_text(json.dumps(theirs), encoding="utf-8")
    encoder = TextEncoder(read_config(theirs, "config.json"), rng=np.random.default_rng(seed))
    checkpoint.write(folder / "model.safetensors",
                     as_theirs(randomised(encoder), partial(place, form)), {"format": "pt"})
    return str(folder)


def in_training(folder, **tables):
    """A Training of the tiny recipe on few digits that hears the encoder in the folder."""
    text = {"encoder": folder, "length": 24, **tables.pop("text", {})}
    return Training(tiny(text=text, **tables), few_digits())


def hearing(folder, length=24):
    """A FrozenText of the folder, with any U-Net."""
    return FrozenText(str(folder), length, unet_config=UNetConfig(base=8, groups=4),
                      rng=np.random.default_rng(0))


def test_clip_is_heard_as_its_own_pipeline_hears_it(tmp_path):
    pipe = pretrained.load(STORED / "pipeline")
    for part in ("text_encoder", "tokenizer"):            # side by side, as a hub has them
        shutil.copytree(STORED / "pipeline" / part, tmp_path, dirs_exist_ok=True)
    for folder in (STORED / "pipeline", tmp_path):
        model = hearing(folder, 7)                        # CLIP has a length of its own
        for text in (SEVEN, "", "a red cat " * 20):
            np.testing.assert_array_equal(model.read(text), pipe.contexts([text])[0])


@pytest.mark.parametrize("form", ["bert", "t5"])
def test_bert_and_t5_do_not_see_their_padding_and_zeros_stand_in_its_place(form, tmp_path):
    model, encoder = hearing(published(tmp_path, form)), pretrained.load_model(tmp_path)
    for text in (SEVEN, ""):
        alone, _ = encoder.encode(model.tokenizer.encode([text]))     # no padding
        heard = model.read(text)
        assert heard.shape == (24, 12)
        np.testing.assert_allclose(heard[:alone.shape[1]], alone[0], atol=1e-5)
        assert not heard[alone.shape[1]:].any()
        assert abs(alone).max() > 0.1
    ids = model.tokenizer.encode(["a red cat " * 20], length=24)
    np.testing.assert_array_equal(model.read("a red cat " * 20), encoder.encode(ids)[0][0])


def test_what_was_trained_here_and_exported_is_heard_as_it_was(tmp_path):
    recipe = tiny(text={"form": "clip"}, model={"patch": 1, "transformer": 1, "pooled": False})
    trained = Training(recipe, few_digits())
    randomised(trained.model)
    trained.ema.data[...] = trained.flat.data
    run = training_run(trained, "run")
    export_run(run, tmp_path / "folder")
    model = hearing(tmp_path / "folder", 5)
    for text in (SEVEN, "", "7"):
        np.testing.assert_allclose(model.read(text), run.contexts([text])[0], atol=1e-6)
    assert model.read("abcdefghijklmnopqrstuvwxyz").shape == (20, 16)         # cut
    with pytest.raises(ValueError, match=r"train without text\.encoder"):
        export_run(training_run(in_training(str(tmp_path / "folder")), "run"), tmp_path / "again")


@forms
def test_the_u_net_learns_from_the_states_and_the_encoder_learns_nothing(form, tmp_path):
    training = in_training(published(tmp_path, form))
    assert {name.partition(".")[0] for name in training.model.parameters()} == {"unet"}
    assert training.model.unet.config.context_width == 12
    before = training.model.contexts([SEVEN])
    for _ in range(3):
        training.step()
    np.testing.assert_array_equal(training.model.contexts([SEVEN]), before)
    assert type(training.model.read(SEVEN)) is np.ndarray             # no way for a gradient
    x0, states = training.batch(1)
    assert states.shape == (8, 20 if form == "clip" else 24, 12)
    x_t, t = np.float32(x0), np.full(8, 3.0, np.float32)
    said = training.model(x_t, t, states)
    np.testing.assert_array_equal(said.data, training.model.unet(x_t, t, states).data)
    mse(said, x0).backward()
    assert training.model.unet.parameters()["conv_in.w"].grad.any()


def test_a_batch_hears_its_captions_and_a_dropped_one_is_the_empty_text(tmp_path):
    folder = published(tmp_path)
    plain = Training(tiny(train={"drop": 0.5}), few_digits())
    training, model = in_training(folder, train={"drop": 0.5}), hearing(folder)
    (x0, ids), (same, states) = plain.batch(1), training.batch(1)
    np.testing.assert_array_equal(x0, same)
    texts = [plain.model.tokenizer.decode(row) for row in ids]
    assert "" in texts
    for text, heard in zip(texts, states, strict=True):
        np.testing.assert_array_equal(heard, model.read(text))


def test_each_caption_is_read_once_and_no_more_are_kept_than_fit(tmp_path, monkeypatch):
    asked, read = [], FrozenText.read
    monkeypatch.setattr(FrozenText, "read", lambda self, text, **cut: asked.append(text)
                        or read(self, text, **cut))
    folder = published(tmp_path)
    training = in_training(folder)
    states = [training.batch(step)[1] for step in range(1, 20)]
    assert len(asked) - len({*asked}) <= 1                # "" was read once to know its size
    monkeypatch.setattr(train, "MEMORY", 3 * states[0][0].nbytes)
    asked.clear()
    short = in_training(folder)
    assert short.ids.cache_info().maxsize == 3
    again = [short.batch(step)[1] for step in range(1, 20)]
    assert len(asked) > 2 * len({*asked})
    np.testing.assert_array_equal(again, states)


@forms
def test_ten_steps_and_ten_more_give_the_bytes_of_twenty(form, tmp_path):
    folder = published(tmp_path / "encoder", form)
    for name, stops in (("whole", [None]), ("parts", [10, None])):
        for stop in stops:
            training = in_training(folder)
            if stop is None and len(stops) > 1:
                training.load(tmp_path / name / "checkpoint.safetensors")
            fit(training, tmp_path / name, stop_at=stop, show=False)
    whole, parts = ((tmp_path / name / "checkpoint.safetensors").read_bytes()
                    for name in ("whole", "parts"))
    assert whole == parts


@forms
def test_a_checkpoint_holds_no_encoder_and_draws_with_the_one_in_the_folder(form, tmp_path):
    training = in_training(published(tmp_path / "encoder", form))
    for _ in range(2):
        training.step()
    training.save(tmp_path / "checkpoint.safetensors")
    arrays, config = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert {name.split("/")[1].partition(".")[0] for name in arrays} == {"unet"}
    assert set(config["model"]["reader"]) == {"folder", "length", "sha256"}
    run, preview = load_run(tmp_path), training_run(training, "now")
    drawn = run.generate([SEVEN, TWO], n=2, steps=3)
    np.testing.assert_array_equal(drawn, preview.generate([SEVEN, TWO], n=2, steps=3))
    assert drawn.shape == (4, 8, 8, 1)


def test_a_run_without_its_encoder_or_with_another_is_refused(tmp_path):
    folder = tmp_path / "encoder"
    training = in_training(published(folder))
    training.save(tmp_path / "checkpoint.safetensors")
    load_run(tmp_path)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"text\.encoder = .* there is no such folder"):
        load_run(tmp_path)
    other = published(folder, seed=1)
    with pytest.raises(ValueError, match="another text encoder is in this folder"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match=r"by another text\.encoder than is in its folder now"):
        in_training(other).load(tmp_path / "checkpoint.safetensors")
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").rename(folder)
    load_run(tmp_path)


@pytest.mark.parametrize(("spoil", "error", "said"), [
    (lambda f: shutil.rmtree(f), FileNotFoundError, "there is no such folder"),
    (lambda f: (f / "config.json").unlink(), FileNotFoundError, r"config\.json is missing"),
    (lambda f: (f / "vocab.json").unlink(), FileNotFoundError, r"vocab\.json is missing"),
    (lambda f: shutil.copytree(STORED / "unet-sd1", f, dirs_exist_ok=True), ValueError,
     "expected a text encoder for at least the 213 ids of its tokenizer .* got UNet"),
    (lambda f: shutil.copytree(STORED / "clip", f, dirs_exist_ok=True), ValueError,
     r"at least the 213 ids of its tokenizer and 20 tokens a text, got \(60, 9\)"),
    (lambda f: (f / "model.safetensors").write_bytes(b"7"), ValueError, r"model\.safetensors"),
])
def test_a_folder_that_cannot_be_heard_is_refused_in_one_sentence(spoil, error, said, tmp_path):
    folder = published(tmp_path / "encoder")
    spoil(tmp_path / "encoder")
    with pytest.raises(error, match=said) as caught:
        in_training(folder)
    assert "\n" not in str(caught.value)


def test_a_text_longer_than_the_encoder_reads_and_ids_it_does_not_know_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"31 tokens a text, got \(130, 30\)"):
        in_training(published(tmp_path, "bert"), text={"length": 31})
    with pytest.raises(ValueError, match=r"at least the 130 ids .* got \(129, 30\)"):
        in_training(published(tmp_path, "bert", vocab_size=129))


def test_any_recipe_hears_another_encoder_from_the_command_line(typed, tmp_path):
    folder = published(tmp_path / "encoder", "t5")
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    words = ("train", "tiny.toml", "--set", f"text.encoder={folder}", "--set", "train.steps=2")
    code, _, err = typed(*words, "--out", "run")
    assert code == 0, err
    assert typed("sample", "run", "--prompt", SEVEN, "--out", "a.npy")[0] == 0
    np.testing.assert_array_equal(np.load("a.npy"), load_run("run").generate([SEVEN]))
    shutil.rmtree(folder)
    code, _, err = typed("sample", "run", "--prompt", SEVEN)
    assert code == 1
    assert err.startswith("tinydiff: text.encoder = ")
    assert err.count("\n") == 1
    code, _, err = typed(*words, "--out", "other")
    assert (code, err.count("\n")) == (2, 1)
