"""diffusers' U-Nets with random weights, read from their files, equal diffusers in float64."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from peers import (  # noqa: E402
    channels_first,
    channels_last,
    in_float64,
    lopsided,
    randomise,
    saved,
    tolerance,
    worst,
)
from safetensors.torch import load_file, save_file  # noqa: E402

from tinydiff.checkpoint import write  # noqa: E402
from tinydiff.models import UNet, UNetConfig  # noqa: E402
from tinydiff.pretrained.tensors import open_tensors, read_json  # noqa: E402
from tinydiff.pretrained.unet import load_unet, place, read_config, write_config  # noqa: E402
from tinydiff.pretrained.weights import UNSET, as_theirs  # noqa: E402

DDPM = dict(block_out_channels=(16, 24, 24), layers_per_block=1, norm_num_groups=8, norm_eps=1e-6,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), freq_shift=1,
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), downsample_padding=0,
            flip_sin_to_cos=False, attention_head_dim=None)
SD = dict(block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8,
          attention_head_dim=4, cross_attention_dim=12,
          down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
          up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"))
CASES = {
    "DDPM":                 DDPM,
    "class defaults":       dict(block_out_channels=(32, 64, 64, 96), layers_per_block=1),
    "narrower and odd":     DDPM | dict(block_out_channels=(33, 11, 22), norm_num_groups=11,
                                        freq_shift=0.5, layers_per_block=2),
    "labels, scale, shift": DDPM | dict(num_class_embeds=5, resnet_time_scale_shift="scale_shift",
                                        attention_head_dim=8),
    "norm in the middle":   DDPM | dict(resnet_time_scale_shift="scale_shift",
                                        attn_norm_num_groups=4, time_embedding_dim=40),
    "groups in the middle": DDPM | dict(attn_norm_num_groups=3),
    "plain middle":         DDPM | dict(add_attention=False, center_input_sample=True,
                                        in_channels=2, out_channels=5),
    "no middle":            DDPM | dict(mid_block_type=None, out_channels=6, norm_eps=1e-3),
    "resampling inside":    DDPM | dict(
        downsample_type="resnet", upsample_type="resnet",
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D")),
    "up and down differ":   DDPM | dict(
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D"),
        upsample_type="resnet"),
    "SD 1":                 SD,
    "SD 1 defaults":        dict(block_out_channels=(32, 32, 64, 64), layers_per_block=1,
                                 attention_head_dim=4, cross_attention_dim=20),
    "SD 2":                 SD | dict(use_linear_projection=True, attention_head_dim=(2, 4, 8)),
    "transformers of two":  SD | dict(transformer_layers_per_block=(2, 1, 2), freq_shift=1,
                                      layers_per_block=(1, 2, 1), flip_sin_to_cos=False),
    "labels":               SD | dict(num_class_embeds=3, resnet_time_scale_shift="scale_shift",
                                      norm_eps=1e-4, time_embedding_dim=24, in_channels=9),
    "corner":               SD | dict(downsample_padding=0, center_input_sample=True),
    "one block middle":     SD | dict(mid_block_type="UNetMidBlock2D"),
    "no middle, cross":     SD | dict(mid_block_type=None, cross_attention_dim=(12, 12, 12),
                                      down_block_types=("DownBlock2D", "CrossAttnDownBlock2D",
                                                        "CrossAttnDownBlock2D"),
                                      up_block_types=("CrossAttnUpBlock2D", "UpBlock2D",
                                                      "CrossAttnUpBlock2D")),
}


def peer(case, seed=0, quiet=1.0):
    """A network of diffusers with the options of a case."""
    options = CASES[case] if isinstance(case, str) else case
    text = "cross_attention_dim" in options
    kind = diffusers.UNet2DConditionModel if text else diffusers.UNet2DModel
    return randomise(kind(**options), seed, quiet)


def told(unet, H=8, W=16, t=(981, 3), L=5):
    """Our arguments of `predict` for a network of theirs."""
    c, N, context, labels = unet.config, len(t), None, None
    if "cross_attention_dim" in c:
        context = lopsided((N, L, np.ravel(c.cross_attention_dim)[0]), 2)
    if c.num_class_embeds:
        labels = np.arange(N) % c.num_class_embeds + 1
    return dict(x=lopsided((N, H, W, c.in_channels), 1), t=np.asarray(t), context=context,
                class_labels=labels)


def said(unet, x, t, context, class_labels):
    """What theirs answers, in float32 and in float64."""
    answers = []
    for module, dtype in ((unet, torch.float32), (in_float64(unet), torch.float64)):
        given = {}
        if context is not None:
            given["encoder_hidden_states"] = torch.tensor(context, dtype=dtype)
        if class_labels is not None:
            given["class_labels"] = torch.tensor(class_labels)
        with torch.no_grad():
            y = module(channels_first(x).to(dtype), torch.as_tensor(t), **given).sample
        answers.append(channels_last(y))
    return answers


def loaded(folder):
    config = folder / "config.json"
    return load_unet(read_json(config), config, open_tensors(folder, "diffusion_pytorch_model"))


def assert_equal(ours, theirs, **size):
    arguments = told(theirs, **size)
    single, double = said(theirs, **arguments)
    assert worst(ours.predict(**arguments), double) < tolerance(single, double)


@pytest.mark.parametrize("quiet", [1.0, 0.02], ids=["loud", "quiet"])
@pytest.mark.parametrize("case", CASES)
def test_a_network_says_what_it_says_in_diffusers(case, quiet, tmp_path):
    theirs = peer(case, quiet=quiet)
    assert_equal(loaded(saved(theirs, tmp_path)), theirs)


@pytest.mark.parametrize("case", [{}, {"dual_cross_attention": False}, *CASES], ids=str)
def test_keys_that_are_absent_have_their_classes_defaults(case, tmp_path):
    options = CASES[case] if isinstance(case, str) else case
    kind = "UNet2DConditionModel" if "cross_attention" in " ".join(options) else "UNet2DModel"
    with torch.device("meta"):
        getattr(diffusers, kind)(**options).save_config(tmp_path)
    written = read_json(tmp_path / "config.json")
    assert len(written) > 20
    few = {key: value for key, value in written.items() if key in ("_class_name", *options)}
    assert read_config(few, "few") == read_config(written, "written")
    old = {**few, "upcast_attention": True, "sample_size": "any", "_name_or_path": 7}
    assert read_config(old, "keys that change nothing") == read_config(few, "few")


@pytest.mark.parametrize("case", ["SD 1", "SD 1 defaults", "corner"])
@pytest.mark.parametrize(("H", "W"), [(9, 14), (5, 8), (13, 15)])
def test_odd_sizes_come_back_as_diffusers_brings_them_back(case, H, W, tmp_path):
    theirs = peer(case)
    assert_equal(loaded(saved(theirs, tmp_path)), theirs, H=H, W=W, L=1)


@pytest.mark.parametrize("case", ["DDPM", "SD 1"])
def test_times_need_not_be_whole(case, tmp_path):
    theirs = peer(case)
    ours = loaded(saved(theirs, tmp_path))
    assert_equal(ours, theirs, t=(731.28, 0.25))
    arguments = told(theirs, t=(12.5, 12.5))
    np.testing.assert_array_equal(ours.predict(**{**arguments, "t": 12.5}),
                                  ours.predict(**arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["labels, scale, shift", "SD 2"])
def test_half_precision_is_read_as_what_it_says(case, dtype, tmp_path):
    theirs = peer(case).to(dtype)
    assert_equal(loaded(saved(theirs, tmp_path)), theirs.float())


@pytest.mark.parametrize("case", ["labels, scale, shift", "SD 1"])
def test_shards_are_read_as_one(case, tmp_path):
    theirs = peer(case)
    saved(theirs, tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_equal(loaded(tmp_path), theirs)


def test_plain_attention_may_bear_its_names_of_2022(tmp_path):
    theirs = peer("DDPM")
    path = saved(theirs, tmp_path) / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    save_file({re.sub(r"to_([qkv]|out\.0)", lambda name: names[name[0]], key): tensor
               for key, tensor in load_file(path).items()}, path)
    assert_equal(loaded(tmp_path), theirs)


@pytest.mark.parametrize("case", [case for case in CASES])
def test_what_we_write_is_what_diffusers_reads(case, tmp_path):
    ours = loaded(saved(peer(case), tmp_path / "theirs"))
    again = export(ours, tmp_path / "ours")
    assert_equal(ours, again)
    assert_equal(loaded(tmp_path / "ours"), again)


def export(unet, folder):
    """Write a network of ours as diffusers would, and have diffusers read it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(write_config(unet.config)))
    write(folder / "diffusion_pytorch_model.safetensors", as_theirs(unet, place),
          {"format": "pt"})
    return getattr(diffusers, write_config(unet.config)["_class_name"]).from_pretrained(folder)


OWN = {
    "DDPM":   replace(UNetConfig.ddpm_cifar10(), base=16, groups=8),
    "iDDPM":  replace(UNetConfig.iddpm_cifar10(), base=16, groups=8, heads=1, head_width=8),
    "ADM":    replace(UNetConfig.adm_imagenet64(), base=16, groups=8, head_width=16, classes=4),
    "text":   UNetConfig(base=16, mults=(1, 3), heads=2, transformer=1, context_width=12, emb=3,
                         pooled=False),
    "deep":   UNetConfig(channels=3, base=16, transformer=2, context_width=12, pooled=False,
                         attend=(0,), attend_middle=False, middle=1, corner=True),
}


@pytest.mark.parametrize("config", OWN.values(), ids=OWN)
def test_a_network_of_our_own_is_one_of_diffusers(config, tmp_path, rng):
    ours = UNet(config, rng=rng)
    for p in ours.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape)
    theirs = export(ours, tmp_path / "ours")
    arguments = told(theirs)
    single, double = said(theirs, **arguments)
    assert worst(ours.predict(**arguments), double) < tolerance(single, double)


PUBLISHED = {   # the config.json of google/ddpm-cifar10-32 and of Stable Diffusion 1.5's unet/
    35_746_307: {
        "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu",
        "attention_head_dim": None, "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False, "downsample_padding": 0, "flip_sin_to_cos": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
        "norm_eps": 1e-6, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]},
    859_520_964: {
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False, "cross_attention_dim": 768, "downsample_padding": 1,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4,
        "sample_size": 64, "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3},
}


def test_a_config_of_a_larger_network_than_the_file_holds_is_refused(tmp_path):
    theirs = saved(peer("SD 1"), tmp_path) / "config.json"
    for change in (dict(block_out_channels=[16, 32, 16384], attention_head_dim=1),
                   dict(layers_per_block=16, transformer_layers_per_block=16)):
        config = {**read_json(theirs), **change}
        with pytest.raises(ValueError, match="describes a larger network than"):
            load_unet(config, theirs, open_tensors(tmp_path, "diffusion_pytorch_model"))


@pytest.mark.parametrize("count", PUBLISHED)
def test_published_configs_make_networks_of_the_published_sizes(count):
    config = read_config(PUBLISHED[count], "config.json")
    kind = getattr(diffusers, PUBLISHED[count]["_class_name"])
    with torch.device("meta"):
        theirs = kind.from_config(PUBLISHED[count])
    ours = UNet(config, rng=UNSET)
    assert ours.count() == sum(p.numel() for p in theirs.parameters()) == count
    shapes = {key: array.shape for key, array in as_theirs(ours, place).items()}
    assert shapes == {key: tuple(p.shape) for key, p in theirs.state_dict().items()}


@pytest.mark.parametrize(("change", "message"), [
    (dict(act_fn="mish"), "act_fn mish is not supported; expected 'silu' or 'swish'"),
    (dict(downsample_type="fir"), "downsample_type fir .* expected 'conv' or 'resnet'"),
    (dict(time_embedding_type="fourier"), "time_embedding_type fourier .* expected 'positional'"),
    (dict(resnet_time_scale_shift="spatial"), "resnet_time_scale_shift spatial"),
    (dict(mid_block_scale_factor=2), "mid_block_scale_factor 2 .* expected 1"),
    (dict(class_embed_type="timestep"), "class_embed_type timestep .* expected None"),
    (dict(norm_num_groups=7), "16 channels cannot be shared out among 7 groups"),
    (dict(norm_num_groups=None), "norm_num_groups None .* expected a whole number"),
    (dict(attention_head_dim=5), "24 channels .* heads 5 wide"),
    (dict(attn_norm_num_groups=7), "24 channels cannot be shared out among 7 groups"),
    (dict(block_out_channels=[16, 24]), "down_block_types .* expected 2 of DownBlock2D"),
    (dict(block_out_channels="16"), "block_out_channels 16 .* expected whole numbers"),
    (dict(block_out_channels=[16, -24, 24]), "block_out_channels"),
    (dict(block_out_channels=[16, 1 << 40, 24]), "block_out_channels"),
    (dict(block_out_channels=[16, True, 24]), "block_out_channels"),
    (dict(block_out_channels=[]), "block_out_channels"),
    (dict(layers_per_block=10**9), "layers_per_block .* from 1 to 16"),
    (dict(layers_per_block="2"), "layers_per_block 2"),
    (dict(freq_shift=8), r"freq_shift 8 .* less than half of block_out_channels\[0\], 16"),
    (dict(freq_shift="8"), "freq_shift 8 .* expected a number"),
    (dict(freq_shift=10**400), "freq_shift 1000"),
    (dict(norm_eps=None), "norm_eps None .* expected a number above 0"),
    (dict(norm_eps=-1), "norm_eps -1 .* expected a number above 0"),
    (dict(norm_eps=0.0), "norm_eps 0.0 .* expected a number above 0"),
    (dict(norm_eps=float("nan")), "norm_eps nan"),
    (dict(flip_sin_to_cos=1), "flip_sin_to_cos 1 .* expected true or false"),
    (dict(up_block_types=["UpBlock2D", {}, "UpBlock2D"]), "up_block_types .* expected 3 of"),
    (dict(down_block_types=["SkipDownBlock2D"] * 3), "down_block_types .* expected 3 of"),
])
def test_a_config_that_a_unet_cannot_be_is_refused_by_file_and_key(change, message):
    config = {"_class_name": "UNet2DModel", **json.loads(json.dumps(DDPM)), **change}
    with pytest.raises(ValueError, match=f"^unet/config.json: {message}"):
        read_config(config, "unet/config.json")


@pytest.mark.parametrize(("change", "message"), [
    (dict(encoder_hid_dim=9), "encoder_hid_dim 9 is not supported; expected None"),
    (dict(addition_embed_type="text_time"), "addition_embed_type text_time"),
    (dict(only_cross_attention=True), "only_cross_attention True .* expected False"),
    (dict(conv_in_kernel=5), "conv_in_kernel 5 .* expected 3"),
    (dict(attention_head_dim=[2, 4]), r"attention_head_dim \[2, 4\] .* for each of 3 blocks"),
    (dict(attention_head_dim=3), "16 channels .* 3 heads"),
    (dict(transformer_layers_per_block=[[1], 1, 1]), "transformer_layers_per_block"),
    (dict(transformer_layers_per_block=0), "transformer_layers_per_block 0 .* from 1 to 16"),
    (dict(cross_attention_dim=[12, 12, 13]), "cross_attention_dim"),
    (dict(cross_attention_dim=None), "cross_attention_dim None"),
    (dict(class_embed_type="projection"), "class_embed_type projection .* expected None"),
    (dict(mid_block_type="UNetMidBlock2DSimpleCrossAttn"), "mid_block_type"),
    (dict(use_linear_projection="yes"), "use_linear_projection yes .* true or false"),
    (dict(time_cond_proj_dim=256), "time_cond_proj_dim 256"),
])
def test_a_config_with_text_that_a_unet_cannot_be_is_refused(change, message):
    config = {"_class_name": "UNet2DConditionModel", **json.loads(json.dumps(SD)), **change}
    with pytest.raises(ValueError, match=f"^unet/config.json: {message}"):
        read_config(config, "unet/config.json")


TEXT = dict(context_width=8, transformer=1, pooled=False)


@pytest.mark.parametrize(("change", "message"), [
    (dict(patch=2), "patch = 2; train with model.patch = 1"),
    (dict(context_width=8), "transformer = 0; train with model.transformer = 1"),
    (dict(transformer=2), "transformer = 2; train with model.transformer = 0"),
    (TEXT | dict(resample_blocks=True), "resample_blocks = True"),
    (TEXT | dict(pooled=True), "pooled = True; train with model.pooled = false"),
    (TEXT | dict(attend_middle=False), "attend_middle = False"),
    (dict(heads=2), "heads = 2; train with model.heads = 1, and head_width"),
    (dict(middle=1), "middle = 1; train with model.middle = 2"),
    (dict(middle_groups=0), "middle_groups = 0"),
    (dict(blocks=(1, 2)), r"blocks = \(1, 2\)"),
])
def test_what_diffusers_has_no_word_for_is_refused_by_our_name(change, message):
    with pytest.raises(ValueError, match=f"^export: diffusers has no word for model.{message}"):
        write_config(UNetConfig(**change))
