"""AutoencoderKL of diffusers and ours: the same weights, the same pictures and latents."""

import json

import numpy as np
import pytest

from tinydiff import checkpoint, pretrained
from tinydiff.models import Autoencoder, AutoencoderConfig
from tinydiff.pretrained import vae
from tinydiff.pretrained.tensors import read_json
from tinydiff.pretrained.weights import UNSET, as_theirs

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("safetensors")
import peers  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

DOWN, UP = ["DownEncoderBlock2D"] * 3, ["UpDecoderBlock2D"] * 3
THREE = dict(block_out_channels=[16, 32, 32], down_block_types=DOWN, up_block_types=UP,
             norm_num_groups=8, layers_per_block=2)
CASES = {
    "as Stable Diffusion's": THREE,
    "without matrices": THREE | dict(use_quant_conv=False, use_post_quant_conv=False,
                                     latent_channels=16, shift_factor=0.1),
    "without attention": THREE | dict(mid_block_add_attention=False, layers_per_block=1),
    "grey, odd widths": THREE | dict(block_out_channels=[24, 40, 56], in_channels=1,
                                     out_channels=1, act_fn="swish"),
    "attention at two levels": THREE | dict(
        down_block_types=[DOWN[0], "AttnDownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "AttnUpDecoderBlock2D", UP[0]]),
    "the class's own, one level": {},
}


def theirs(autoencoder, x, z):
    """[mean, logvar, picture] of theirs, channels last."""
    dtype = autoencoder.dtype
    with torch.no_grad():
        q = autoencoder.encode(peers.channels_first(x).to(dtype)).latent_dist
        picture = autoencoder.decode(peers.channels_first(z).to(dtype)).sample
    return [peers.channels_last(y) for y in (q.mean, q.logvar, picture)]


def assert_equal(ours, peer):
    """Ours equal theirs, in float64, on pictures and latents that are not square."""
    x = peers.lopsided((2, 24, 16, ours.config.channels), 1)
    z = peers.lopsided((2, 5, 7, ours.config.latent), 2)
    single, double = theirs(peer, x, z), theirs(peers.in_float64(peer), x, z)
    for y, rough, exact in zip((*ours.encode(x), ours.decode(z)), single, double, strict=True):
        assert y.dtype == np.float32
        assert peers.worst(y, exact) <= peers.tolerance(rough, exact)


@pytest.mark.parametrize("quiet", [1, 0.02], ids=["ordinary", "quiet"])
@pytest.mark.parametrize("case", CASES)
def test_an_autoencoder_equals_theirs(case, quiet, tmp_path):
    peer = peers.randomise(diffusers.AutoencoderKL(**CASES[case]), 5, quiet)
    assert_equal(pretrained.load(peers.saved(peer, tmp_path)), peer)


@pytest.mark.parametrize("said", [[], ["use_quant_conv", "use_post_quant_conv", "shift_factor",
                                       "mid_block_add_attention", "latents_mean", "latents_std",
                                       "force_upcast", "_diffusers_version"]],
                         ids=["today's config", "the config of 2022"])
def test_weights_under_their_names_of_2022_are_the_same(said, tmp_path):
    peer = peers.randomise(diffusers.AutoencoderKL(**THREE), 6)
    file = peers.saved(peer, tmp_path) / "diffusion_pytorch_model.safetensors"
    save_file({vae_of_2022(key): tensor for key, tensor in load_file(file).items()}, file)
    config = {key: value for key, value in read_json(tmp_path / "config.json").items()
              if key not in said}
    assert vae.read_config(config, "config.json").attend_middle
    assert_equal(vae.load_autoencoder(config, "config.json", pretrained.tensors.open_tensors(
        tmp_path, "diffusion_pytorch_model")), peer)


def vae_of_2022(key):
    """What diffusers 0.2 called a weight."""
    if ".attentions." in key:
        for today, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"),
                            ("to_out.0", "proj_attn")):
            key = key.replace(today, then)
    return key


OURS = [AutoencoderConfig(base=16, mults=(1, 1.5), groups=4, blocks=1, attend=(1,), latent=3,
                          quant=False, scale=2.0), AutoencoderConfig.laptop()]


@pytest.mark.parametrize("config", OURS, ids=["small", "laptop"])
def test_theirs_made_of_ours_equals_ours(config, tmp_path, rng):
    ours = Autoencoder(config, rng=rng)
    for p in ours.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape, dtype=np.float32)
    checkpoint.write(tmp_path / "diffusion_pytorch_model.safetensors",
                     as_theirs(ours, vae.place), {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(vae.write_config(config)))
    peer = diffusers.AutoencoderKL.from_pretrained(tmp_path).eval()
    assert peer.config.scaling_factor == config.scale
    assert_equal(ours, peer)
    again = pretrained.load(tmp_path)
    assert again.config == config
    for name, p in ours.parameters().items():
        np.testing.assert_array_equal(again.parameters()[name].data, p.data)


def test_stable_diffusions_config_makes_a_network_of_its_size_and_names():
    published = {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
        "out_channels": 3, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"] * 4}
    config = vae.read_config(published, "config.json")
    assert config == AutoencoderConfig.stable_diffusion()
    ours = Autoencoder(config, rng=UNSET)
    assert ours.count() == 83_653_863
    with torch.device("meta"):
        peer = diffusers.AutoencoderKL.from_config(published)
    shapes = {key: array.shape for key, array in as_theirs(ours, vae.place).items()}
    assert shapes == {key: tuple(p.shape) for key, p in peer.state_dict().items()}
