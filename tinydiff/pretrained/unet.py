"""UNet2DModel and UNet2DConditionModel of diffusers: configs, and what their weights are called."""

from functools import partial

from tinydiff.models import UNet, UNetConfig
from tinydiff.pretrained.options import Options
from tinydiff.pretrained.weights import UNSET, Place, fill, renamed

TEXT    = "UNet2DConditionModel"                          # the other is UNet2DModel
KINDS   = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
MIDDLES = {"UNetMidBlock2DCrossAttn": (2, True), "UNetMidBlock2D": (1, False), None: (0, False)}
SIMPLE  = {                                               # theirs: ours, default, what it may be
    "norm_num_groups": ("groups", 32, Options.whole), "norm_eps": ("eps", 1e-5, Options.positive),
    "flip_sin_to_cos": ("cosines_first", True, Options.flag),
    "freq_shift": ("frequency_shift", 0, Options.number),
    "center_input_sample": ("centre_input", False, Options.flag),
    "num_class_embeds": ("classes", None, Options.maybe)}
FIXED   = {"time_embedding_type": "positional", "mid_block_scale_factor": 1,
           "class_embed_type": None}
FIXED_WITH_TEXT = FIXED | dict.fromkeys(
    ("encoder_hid_dim", "encoder_hid_dim_type", "addition_embed_type", "num_attention_heads",
     "reverse_transformer_layers_per_block", "time_embedding_act_fn", "timestep_post_act",
     "time_cond_proj_dim")) | dict.fromkeys(
    ("dual_cross_attention", "only_cross_attention", "class_embeddings_concat"), False) | {
    "attention_type": "default", "conv_in_kernel": 3, "conv_out_kernel": 3}

NAMES = (                                                 # ours, theirs
    (r"^time\.linear", "time_embedding.linear_"), (r"^norm_out", "conv_norm_out"),
    (r"^(label|pooled)\.", "class_embedding."),
    (r"^middle1\.(res|attention)", r"mid_block.\1.0"), (r"^middle2\.res", "mid_block.res.1"),
    (r"^(down|up)\.(\d+)\.resize\.(res\.)?", r"\1_blocks.\2.\1samplers.0."),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.(res|attention)", r"\1_blocks.\2.\4.\3"),
    (r"\.res\.(\d+)", r".resnets.\1"), (r"\.skip\.", ".conv_shortcut."),
    (r"\.(shift|scale)\.", ".time_emb_proj."),
    (r"\.attention\.(\d+)\.norm1", r".attentions.\1.group_norm"),
    (r"\.attention\.(\d+)(\.self_attention)?", r".attentions.\1"),
    (r"\.blocks", ".transformer_blocks"),
    (r"\.self_attention", ".attn1"), (r"\.cross_attention", ".attn2"),
    (r"\.mlp\.(value|gate)", ".ff.net.0.proj"), (r"\.mlp\.out", ".ff.net.2"),
    (r"\.([qkv])\.", r".to_\1."), (r"\.out\.", ".to_out.0."),
    (r"\.(w|scale|table)$", ".weight"), (r"\.(b|shift)$", ".bias"),
)
OLD = tuple((rf"(\.attentions\..*)\.{was}\.", rf"\1.{now}.") for was, now in (   # until 2022
    ("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")))


def place(path, *, linear=False):
    """Where a parameter of a UNet stands in theirs.

    linear: matrices lead into and out of transformers, not 1 × 1 convolutions (SD 2).
    """
    second = ".mlp.gate." in path or ".shift." in path    # behind value, or behind scale if any
    window = not linear and path.endswith((".proj_in.w", ".proj_out.w"))
    return Place(renamed(path, NAMES), int(second), window)


def load_unet(theirs, file, tensors):
    """A UNet of a config of theirs, read from `file`, with their tensors.

    Raises ValueError naming file and key for what a UNet cannot be, and as `weights.fill`.
    """
    c, linear = read_config(theirs, file), theirs.get("use_linear_projection", False)
    modules = sum(c.at("blocks", i) * (1 + c.at("transformer", i)) for i in range(len(c.mults)))
    largest = max((n for entry in tensors.values() for n in entry.shape), default=0)
    if modules > len(tensors) or max(c.widths) > largest:             # do not even try to build it
        raise ValueError(f"{file} describes a larger network than {tensors.file} holds")
    unet = UNet(c, rng=UNSET)
    fill(unet, tensors, partial(place, linear=linear), old=OLD)
    return unet


def read_config(theirs, file):
    """The UNetConfig of a config of theirs, read from `file`; its times count from 0.

    Raises ValueError naming file and key for what a UNet cannot be.
    """
    o, text = Options(theirs, file), theirs.get("_class_name") == TEXT
    for key, value in (FIXED_WITH_TEXT if text else FIXED).items():
        o.choice(key, value, value)
    o.choice("act_fn", "silu", "silu", "swish")
    known = ["DownBlock2D", "CrossAttnDownBlock2D"] if text else KINDS
    own = [known[level < 3 if text else level > 0] for level in range(4)]    # of their class
    widths = o.wholes("block_out_channels",
                      (320, 640, 1280, 1280) if text else (224, 448, 672, 896))
    down = o.choices("down_block_types", own, known, len(widths))
    up = o.choices("up_block_types", undoing(own), undoing(known), len(widths))[::-1]
    o.take("freq_shift", o.number("freq_shift", 0), lambda n: n < max(widths[0] // 2, 1),
           f"less than half of block_out_channels[0], {widths[0]}")
    channels, outputs = (o.whole(key, 4 if text else 3) for key in ("in_channels", "out_channels"))
    adaptive = o.choice("resnet_time_scale_shift", "default", "default", "scale_shift") != "default"
    config = dict(
        channels=channels, base=widths[0], mults=tuple(width / widths[0] for width in widths),
        learned_variance=outputs == 2 * channels, adaptive=adaptive, pooled=False, t_first=0,
        outputs=None if outputs in (channels, 2 * channels) else outputs,
        emb=(o.maybe("time_embedding_dim", None) or 4 * widths[0]) / widths[0],
        corner=o.choice("downsample_padding", 1, 0, 1) == 0,
        attend=attending(down), attend_up=attending(up),
        **{ours: read(o, key, default) for key, (ours, default, read) in SIMPLE.items()},
        **(with_text if text else without_text)(o, down, up, adaptive))
    try:
        return UNetConfig(**config)
    except ValueError as error:
        raise ValueError(f"{file}: {str(error).removeprefix('UNetConfig: ')}") from None


def with_text(o, down, up, adaptive):
    """What a UNet2DConditionModel alone can say."""
    levels = len(down)
    width = o.each("cross_attention_dim", 1280, levels)
    if isinstance(width, tuple):                          # one text, so one width
        o.choice("cross_attention_dim", None, [width[0]] * levels)
    middle = MIDDLES[o.choice("mid_block_type", "UNetMidBlock2DCrossAttn", *MIDDLES)]
    o.flag("use_linear_projection", False)
    return dict(
        blocks=o.each("layers_per_block", 2, levels, 16), middle=middle[0], attend_middle=middle[1],
        heads=o.each("attention_head_dim", 8, levels),    # a misnomer that diffusers keeps
        transformer=o.each("transformer_layers_per_block", 1, levels, 16),
        context_width=width[0] if isinstance(width, tuple) else width)


def without_text(o, down, up, adaptive):
    """What a UNet2DModel alone can say."""
    middle = o.choice("mid_block_type", "UNetMidBlock2D", "UNetMidBlock2D", None)
    return dict(
        blocks=o.whole("layers_per_block", 2, 16), head_width=o.maybe("attention_head_dim", 8),
        middle=2 if middle else 0, attend_middle=o.flag("add_attention", True),
        # their middle attention has no norm where the time scales, unless told how many groups
        middle_groups=o.maybe("attn_norm_num_groups", None) or (0 if adaptive else None),
        resample_blocks=inside(down, o.choice("downsample_type", "conv", "conv", "resnet")),
        resample_up=inside(up, o.choice("upsample_type", "conv", "conv", "resnet")))


def write_config(c):
    """config.json of a UNetConfig, as diffusers would write it.

    Raises ValueError naming the key of [model] that diffusers cannot express.
    """
    text = c.context_width is not None
    at = lambda name: [c.at(name, level) for level in range(len(c.mults))]
    up = c.attend if c.attend_up is None else c.attend_up
    shrunk, depths = at("resample_blocks"), at("transformer")
    grown = shrunk if c.resample_up is None else at("resample_up")
    refuse(c, text, depths, shrunk + grown)
    middles = None, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn" if text else "UNetMidBlock2D"
    theirs = {key: getattr(c, ours) for key, (ours, *_) in SIMPLE.items()} | {
        "_class_name": TEXT if text else "UNet2DModel", "act_fn": "silu", "in_channels": c.channels,
        "out_channels": c.outputs or c.channels * (2 if c.learned_variance else 1),
        "block_out_channels": list(c.widths), "mid_block_type": middles[c.middle],
        "down_block_types": kinds(c.attend, text, shrunk),
        "up_block_types": undoing(kinds(up, text, grown)),
        "resnet_time_scale_shift": "scale_shift" if c.adaptive else "default",
        "time_embedding_dim": round(c.emb * c.base), "downsample_padding": 0 if c.corner else 1}
    if text:
        return theirs | {
            "cross_attention_dim": c.context_width, "layers_per_block": at("blocks"),
            "attention_head_dim": at("heads"), "transformer_layers_per_block": depths}
    return theirs | {
        "layers_per_block": c.blocks, "attention_head_dim": c.head_width,
        "add_attention": c.attend_middle,
        "attn_norm_num_groups": (c.groups if c.middle_groups is None else c.middle_groups) or None,
        "downsample_type": "resnet" if any(shrunk[level] for level in c.attend) else "conv",
        "upsample_type": "resnet" if any(grown[level] for level in up) else "conv"}


def refuse(c, text, depths, inside):
    """Refuse a UNetConfig that has no words in diffusers, by the key of [model]."""
    for key, possible, wanted in (
            ("patch", c.patch == 1, 1),
            ("layout", c.layout == 0, 0),
            ("middle", c.middle != 1 or (text and not c.attend_middle), 2),
            ("attend_middle", not text or c.middle < 2 or c.attend_middle, "true"),
            ("middle_groups", text or c.adaptive or c.middle_groups != 0, c.groups),
            ("transformer", all(depths) if text else not any(depths), int(text)),
            ("resample_blocks", not (text and any(inside)), "false"),
            ("heads", text or c.heads == 1, "1, and head_width in its place"),
            ("blocks", text or type(c.blocks) is int, "one number for all levels"),
            ("pooled", not (text and c.pooled), "false")):
        if not possible:
            raise ValueError(f"export: diffusers has no word for model.{key} = {getattr(c, key)}; "
                             f"train with model.{key} = {wanted}")


def kinds(attend, text, resample):
    """The names of the blocks on the way down; `inside` and `attending` are the way back."""
    return ["Cross" * text + KINDS[1] if level in attend else KINDS[2 * inside]
            for level, inside in enumerate(resample)]


def undoing(kinds):
    """The names of the blocks that undo those, in their order: up for down, decoder for encoder."""
    return [kind.replace("Down", "Up").replace("Encoder", "Decoder") for kind in kinds[::-1]]


def attending(kinds):
    """The levels with attention."""
    return tuple(level for level, kind in enumerate(kinds) if "Attn" in kind)


def inside(kinds, resample):
    """For each level, whether the size changes inside a residual block."""
    return tuple("Resnet" in kind or ("Attn" in kind and resample == "resnet") for kind in kinds)
