"""A diffusers folder on the command line and in Python: what it draws, tells and refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tinydiff import __version__, checkpoint, images, pretrained
from tinydiff.pretrained.pipeline import sample_size

FOLDER = Path(__file__).with_name("stored_parity") / "pipeline"
PROMPT = "a small cat"


@pytest.fixture
def folder(tmp_path):
    """A copy of the stored pipeline, to be spoiled."""
    return shutil.copytree(FOLDER, tmp_path / "sd")


@pytest.fixture(scope="module")
def pipe():
    return pretrained.load(FOLDER)


def a_picture(pipe, seed=0):
    H, W, C = pipe.shape
    return np.random.default_rng(seed).integers(0, 256, (H, W, C), np.uint8)


def test_sample_draws_with_a_diffusers_folder_and_tells_how(typed, pipe):
    code, out, err = typed("sample", FOLDER, "--prompt", PROMPT, "--negative", "red", "--steps", 3,
                           "--seed", 4, "--guidance", 2.5, "--out", "a.png")
    assert code == 0
    assert "3/3" in err
    assert re.search(r"device: cpu × \d+ · model: .*pipeline · pictures: 1\n"
                     r"expected time: about \d+:\d\d · output: a\.png\n", out)
    assert out.endswith(f"another: tinydiff sample {FOLDER} --prompt '{PROMPT}' --seed 5\n")
    told = images.read_provenance("a.png")
    assert told == {"tinydiff": __version__, "model": "pipeline", "prompts": [PROMPT], "n": 1,
                    "seed": 4, "sampler": pipe.scheduler.name, "steps": 3, "guidance": 2.5,
                    "negative": "red", "size": list(pipe.shape[:2])}
    drawn = pipe.generate([PROMPT], negative_prompt="red", steps=3, seed=4, guidance=2.5)
    pytest.importorskip("PIL")
    np.testing.assert_array_equal(images.read_image("a.png"), drawn[0])


def test_sample_changes_a_picture_and_paints_in_it(typed, pipe):
    pytest.importorskip("PIL")
    init, mask = a_picture(pipe), np.zeros((*pipe.shape[:2], 1), np.uint8)
    mask[:8, :8] = 255
    images.write_png("init.png", init)
    images.write_png("mask.png", mask)
    ask = ("sample", FOLDER, "--prompt", PROMPT, "--steps", 4, "--init", "init.png")
    assert typed(*ask, "--strength", 0.5, "--out", "a.png")[0] == 0
    drawn = pipe.generate([PROMPT], steps=4, init=init, strength=0.5)
    np.testing.assert_array_equal(images.read_image("a.png"), drawn[0])
    assert images.read_provenance("a.png")["strength"] == 0.5
    assert typed(*ask, "--mask", "mask.png", "--out", "b.png")[0] == 0
    drawn = pipe.generate([PROMPT], steps=4, init=init, mask=mask)
    np.testing.assert_array_equal(images.read_image("b.png"), drawn[0])


def test_a_film_shows_every_latent_decoded(typed, pipe):
    Image = pytest.importorskip("PIL.Image")
    assert typed("sample", FOLDER, "--prompt", PROMPT, "--steps", 3, "--out", "a.webp")[0] == 0
    with Image.open("a.webp") as film:
        assert (film.n_frames, film.size) == (4, pipe.shape[1::-1])


def test_a_picture_does_not_depend_on_its_company(pipe):
    many = [*pipe.denoise([PROMPT, "red"], n=2, steps=3, seed=2, batch=3)][-1]
    one = [*pipe.denoise(["red"], n=2, steps=3, seed=2)][-1]
    np.testing.assert_allclose(many[2:], one, atol=1e-4 * abs(one).max())


def test_size_sampler_and_guidance_can_be_chosen(pipe):
    H, W, _ = pipe.shape
    drawn = pipe.generate([PROMPT], steps=2, height=H + pipe.factor, sampler="dpmpp_2m")
    assert drawn.shape == (1, H + pipe.factor, W, 3)
    alone = [*pipe.denoise([PROMPT], steps=2, guidance=1.0)][-1]
    led = [*pipe.denoise([PROMPT], steps=2, guidance=1.0 + 1e-6)][-1]
    np.testing.assert_allclose(led, alone, atol=1e-3)


@pytest.mark.parametrize(("words", "complaint"), [
    (["--steps", "0"], "from 1"), (["--steps", "1001"], "from 1 to 1000"),
    (["--size", "9x8"], "multiples of"), (["--strength", "0.5"], "needs init"),
    (["--sampler", "PNDM"], "there is no sampler called"), (["--mask", "no.png"], "no.png"),
    (["--init", "no.png"], "no.png"), (["--out", "a.jpg"], "ends in .png"),
])
def test_what_is_typed_wrongly_costs_one_sentence(typed, tmp_path, words, complaint):
    code, out, err = typed("sample", FOLDER, "--prompt", PROMPT, *words)
    assert code in (1, 2)
    assert complaint in err
    assert len([line for line in err.splitlines() if line.startswith("tinydiff")]) <= 1
    assert not list(tmp_path.rglob("*"))
    assert "Traceback" not in err + out


def spoil(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))


def widen(folder, name, rows):
    """Give a tensor of the U-Net or the text encoder another number of rows."""
    for file in folder.glob("*/*.safetensors"):
        arrays, _ = checkpoint.load(file)
        for key in arrays:
            if name in key and (name != "conv_out" or "unet" in str(file)):
                arrays[key] = np.resize(arrays[key], (rows, *arrays[key].shape[1:]))
        checkpoint.write(file, arrays, {"format": "pt"})


@pytest.mark.parametrize(("damage", "complaint"), [
    (lambda f: spoil(f, "model_index.json", _class_name="FluxPipeline"),
     "_class_name FluxPipeline is not supported"),
    (lambda f: spoil(f, "model_index.json", _class_name=None), "_class_name None"),
    (lambda f: spoil(f, "model_index.json", _class_name=["x"]), r"_class_name \['x'\] is not"),
    (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is not what it"),
    (lambda f: shutil.rmtree(f / "scheduler"), "scheduler"),
    (lambda f: shutil.rmtree(f / "unet"), "unet"),
    (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer"),
    (lambda f: spoil(f, "unet/config.json", sample_size="big"), "sample_size big"),
    (lambda f: spoil(f, "unet/config.json", sample_size=[8, 8, 8]), "sample_size"),
    (lambda f: shutil.copytree(FOLDER.parent / "unet-sd1", f / "unet", dirs_exist_ok=True),
     "parts belong to different pipelines|expects"),
    (lambda f: shutil.copytree(FOLDER.parent / "clip", f / "unet", dirs_exist_ok=True),
     "unet"),
    (lambda f: (widen(f, "conv_out", 3), spoil(f, "unet/config.json", out_channels=3)),
     "out_channels of the unet to be 4"),
    (lambda f: (widen(f, "conv_out", 8), spoil(f, "unet/config.json", out_channels=8)),
     "out_channels of the unet to be 4"),
    (lambda f: (widen(f, "token_embedding", 40),
                spoil(f, "text_encoder/config.json", vocab_size=40)), "ids and texts of the token"),
    (lambda f: spoil(f, "tokenizer/tokenizer_config.json", model_max_length=500),
     "ids and texts of the token"),
])
def test_a_spoiled_folder_is_refused_in_one_sentence_that_names_the_file(folder, damage, complaint):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=complaint) as caught:
        pretrained.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("version", "said", "size"), [
    ("0.4.0", 32, 64), ("0.9.0", 32, 32), ("0.31.0.dev0", 32, 32),
    ("9" * 5000, 32, 32), ("0.4.0", 96, 96)])
def test_early_files_said_32_for_64_and_no_version_is_too_long(folder, version, said, size):
    spoil(folder, "unet/config.json", sample_size=said, _diffusers_version=version)
    assert sample_size(folder / "unet" / "config.json", True) == (size, size)
    assert sample_size(folder / "unet" / "config.json", False) == (said, said)


def test_a_pipeline_without_text_refuses_prompts(tmp_path, pipe):
    shutil.copytree(FOLDER.parent / "unet-ddpm", tmp_path / "ddpm")
    shutil.copytree(FOLDER.parent / "DDPMScheduler", tmp_path / "ddpm" / "scheduler")
    (tmp_path / "ddpm" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    ddpm = pretrained.load(tmp_path / "ddpm")
    assert ddpm.generate(n=2, steps=3, height=8, width=12).shape == (2, 8, 12, ddpm.shape[2])
    for asked in {"prompts": ["a cat"]}, {"negative_prompt": "red"}, {"guidance": 3.0}:
        with pytest.raises(ValueError, match="draws without prompts"):
            ddpm.generate(steps=3, **asked)


def test_export_writes_a_folder_that_sample_draws_with(typed, tmp_path):
    code, out, _ = typed("train", "digits-sd", "--stop-at", 1, "--set", "train.batch=2",
                         "--set", "model.base=8", "--set", "model.heads=1", "--out", "run")
    assert code == 0
    code, out, _ = typed("export", "run", "out")
    assert code == 0
    assert out.startswith("wrote out; in diffusers: StableDiffusionPipeline.from_pretrained('out'")
    asked = ("--prompt", "7", "--steps", 5, "--guidance", 3, "--n", 2)
    assert typed("sample", "run", *asked, "--out", "a.npy")[0] == 0
    assert typed("sample", "out", *asked, "--out", "b.npy")[0] == 0
    assert abs(np.load("a.npy").astype(int) - np.load("b.npy")).max() <= 1
    code, _, err = typed("export", "run", "out")
    assert (code, err) == (2, "tinydiff: out exists; name a folder that does not\n")
    code, _, err = typed("export", "mnist", "other")
    assert code == 2
    assert "model.patch = 2" in err
    assert not (tmp_path / "other").exists()
