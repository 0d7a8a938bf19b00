"""load(folder) finds out what a folder holds, and says in one sentence what it lacks."""

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tinydiff.checkpoint import write
from tinydiff.models import Autoencoder, AutoencoderConfig, TextEncoder, TextEncoderConfig, UNet
from tinydiff.models.unet_config import UNetConfig
from tinydiff.pretrained import text, unet, vae
from tinydiff.pretrained.folders import load, load_model
from tinydiff.pretrained.weights import UNSET, as_theirs

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
U_NET = UNetConfig(channels=3, base=8, mults=(1, 2), groups=4, t_first=0)
DDIM = {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "num_train_timesteps": 1000}


def save_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def saved_unet(folder, rng, **changes):
    """A folder with a small U-Net of random numbers; the U-Net."""
    model = UNet(U_NET, rng=rng)
    model.conv_out.w.data[...] = rng.standard_normal(model.conv_out.w.shape)
    save_json(folder / "config.json", {**unet.write_config(U_NET), **changes})
    write(folder / "diffusion_pytorch_model.safetensors", as_theirs(model, unet.place), {})
    return model


def test_a_u_net_folder_gives_the_u_net(tmp_path, rng):
    model = saved_unet(tmp_path, rng)
    x = rng.standard_normal((1, 6, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(load(tmp_path).predict(x, 7), model.predict(x, 7))
    np.testing.assert_array_equal(load(str(tmp_path)).predict(x, 7), model.predict(x, 7))


def test_an_autoencoder_folder_gives_the_autoencoder(tmp_path, rng):
    config = AutoencoderConfig(base=8, mults=(1, 2), blocks=1, groups=4)
    model = Autoencoder(config, rng=rng)
    save_json(tmp_path / "config.json", vae.write_config(config))
    write(tmp_path / "diffusion_pytorch_model.safetensors", as_theirs(model, vae.place), {})
    z = rng.standard_normal((1, 2, 3, config.latent)).astype(np.float32)
    np.testing.assert_array_equal(load(tmp_path).decode(z), model.decode(z))


@pytest.mark.parametrize("change", [{}, {"architectures": ["CLIPTextModel", "Other"]}])
def test_a_text_encoder_folder_gives_the_text_encoder(tmp_path, rng, change):
    config = replace(TextEncoderConfig.clip(), width=8, heads=2, depth=1, vocabulary=50)
    model = TextEncoder(config, rng=rng)
    save_json(tmp_path / "config.json", {**text.write_config(config), **change})
    write(tmp_path / "model.safetensors", as_theirs(model, partial(text.place, "clip")), {})
    ids = np.array([[1, 5, 49, 49]])
    np.testing.assert_array_equal(load(tmp_path).encode(ids)[0], model.encode(ids)[0])


def test_a_scheduler_folder_gives_the_scheduler(tmp_path):
    save_json(tmp_path / "scheduler_config.json", DDIM)
    assert load(tmp_path).timesteps(4) == [750, 500, 250, 0]


def test_a_model_comes_before_the_tokenizer_in_its_folder(tmp_path, rng):
    saved_unet(tmp_path, rng)
    save_json(tmp_path / "tokenizer.json", {})
    assert isinstance(load(tmp_path), UNet)


def test_what_is_no_folder_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; name a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no model_index\.json, config\.json"):
        load(tmp_path)
    (tmp_path / "v1-5.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"v1-5\.safetensors is a file; name a folder"):
        load(tmp_path / "v1-5.safetensors")


@pytest.mark.parametrize(("config", "words"), [
    ({}, "says None, expected one of UNet2DModel"),
    ({"_class_name": "FluxTransformer2DModel"}, "says FluxTransformer2DModel, expected one of"),
    ({"_class_name": ["UNet2DModel"]}, r"says \['UNet2DModel'\], expected"),
    ({"_class_name": "x\n" * 500}, r"says 'x\\n"),
    ({"architectures": "CLIPTextModel"}, "says None"),
    ({"architectures": []}, "says None"),
    ({"architectures": [{"a": 1}]}, r"says \{'a': 1\}"),
    ({"architectures": ["LlamaForCausalLM"]}, "says LlamaForCausalLM")])
def test_an_unknown_class_is_refused_by_name(tmp_path, config, words):
    save_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match=words) as caught:
        load(tmp_path)
    assert re.match(rf"{tmp_path}/config\.json: [^\n]{{,600}}\Z", str(caught.value))


@pytest.mark.parametrize("name", ["model_index.json", "config.json", "scheduler_config.json"])
@pytest.mark.parametrize(("content", "words"), [
    (LFS, "a Git LFS pointer"), ("", "not what it should be"), ("[]", "holds a list")])
def test_a_damaged_json_file_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} .*{words}"):
        load(tmp_path)


def test_weights_that_are_missing_pointers_or_pickles_are_told_apart(tmp_path, rng):
    saved_unet(tmp_path, rng)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_text(LFS)
    with pytest.raises(ValueError, match=r"model\.safetensors is not .* a Git LFS pointer"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks diffusion_pytorch_model\.safetensors"):
        load(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"\.bin is not safetensors.*save_pretrained"):
        load(tmp_path)


def test_a_configuration_that_describes_another_model_is_refused(tmp_path, rng):
    saved_unet(tmp_path, rng, block_out_channels=[8, 32])
    with pytest.raises(ValueError, match=r"misshapen: .*; take both|take both .*misshapen: "):
        load_model(tmp_path)


def test_a_model_too_large_for_memory_is_refused(tmp_path, rng, monkeypatch):
    saved_unet(tmp_path, rng)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(UNSET.__class__, "uniform", full)
    with pytest.raises(ValueError, match=r"config\.json describes a model too large"):
        load(tmp_path)
