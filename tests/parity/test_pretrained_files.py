"""Files that diffusers, transformers and safetensors write are read number for number."""

import json

import numpy as np
import pytest

from tinydiff.checkpoint import write
from tinydiff.pretrained.tensors import open_tensors

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
from peers import randomise, saved  # noqa: E402

DTYPES = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}     # error of rounding to it


@pytest.fixture(scope="module")
def unet():
    """A U-Net of diffusers, (8, 16) channels."""
    return randomise(diffusers.UNet2DModel(
        block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D")), seed=1)


@pytest.fixture(scope="module")
def clip():
    """A text encoder of transformers, 16 wide."""
    return randomise(transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=9)), seed=2)


def equal(tensors, module):
    """Key for key and number for number."""
    expected = module.state_dict()
    assert sorted(tensors) == sorted(expected)
    for key, tensor in expected.items():
        np.testing.assert_array_equal(tensors.read(key), tensor.float().numpy(), err_msg=key)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_u_net_is_read_number_for_number(unet, tmp_path, dtype):
    model = diffusers.UNet2DModel.from_config(unet.config).to(getattr(torch, dtype))
    model.load_state_dict(unet.state_dict())
    tensors = open_tensors(saved(model, tmp_path), "diffusion_pytorch_model")
    equal(tensors, model)
    exact = unet.state_dict()["conv_in.weight"].numpy()
    error = abs(tensors.read("conv_in.weight") - exact) / abs(exact)
    assert error.max() <= DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_text_encoder_is_read_number_for_number(clip, tmp_path, dtype):
    model = transformers.CLIPTextModel(clip.config).to(getattr(torch, dtype))
    model.load_state_dict(clip.state_dict())
    equal(open_tensors(saved(model, tmp_path), "model"), model)


def test_shards_of_a_u_net_are_read_as_one(unet, tmp_path):
    tensors = open_tensors(saved(unet, tmp_path, max_shard_size="20KB"), "diffusion_pytorch_model")
    assert tensors.file.name == "diffusion_pytorch_model.safetensors.index.json"
    assert len({entry.file for entry in tensors.values()}) > 3
    equal(tensors, unet)


def test_shards_of_a_text_encoder_are_read_as_one(clip, tmp_path):
    tensors = open_tensors(saved(clip, tmp_path, max_shard_size="4KB"), "model")
    assert len({entry.file for entry in tensors.values()}) > 1
    equal(tensors, clip)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["whole", "sharded"])
def test_a_variant_is_read_where_there_is_no_other(unet, tmp_path, options):
    folder = saved(unet, tmp_path, variant="fp16", **options)
    tensors = open_tensors(folder, "diffusion_pytorch_model")
    assert ".fp16" in tensors.file.name
    equal(tensors, unet)


def test_a_pickled_model_is_refused(unet, tmp_path):
    unet.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin is not safetensors"):
        open_tensors(tmp_path, "diffusion_pytorch_model")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32",
                                   "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"])
def test_every_dtype_of_plain_numbers_is_read(tmp_path, dtype):
    tensor = torch.tensor([[0, 1, 2]]).to(getattr(torch, dtype))
    safetensors_torch.save_file({"a": tensor}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(open_tensors(tmp_path, "model").read("a"), tensor.float().numpy())


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "complex64"])
def test_other_dtypes_are_refused_by_name(tmp_path, dtype):
    tensor = torch.ones(2, 2).to(getattr(torch, dtype))
    safetensors_torch.save_file({"a": tensor}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"a has the unknown dtype '[FC]"):
        open_tensors(tmp_path, "model")


def test_the_library_reads_what_is_written_for_it(unet, tmp_path):
    arrays = {key: tensor.numpy() for key, tensor in unet.state_dict().items()}
    write(tmp_path / "diffusion_pytorch_model.safetensors", arrays, {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(dict(unet.config)))
    peer = diffusers.UNet2DModel.from_pretrained(tmp_path)
    for key, tensor in unet.state_dict().items():
        assert torch.equal(peer.state_dict()[key], tensor), key


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1), (2, 3, 4, 5, 6)])
def test_odd_shapes_are_read_as_the_library_writes_them(tmp_path, shape):
    tensor = torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(shape)
    safetensors_torch.save_file({"a": tensor, "b": torch.ones(2)}, tmp_path / "model.safetensors")
    read = open_tensors(tmp_path, "model").read("a")
    assert read.shape == shape
    np.testing.assert_array_equal(read, tensor.numpy())
