"""AutoencoderKL of diffusers: its config, and what its weights are called."""

import re
from math import gcd

from tinydiff.models import Autoencoder, AutoencoderConfig
from tinydiff.pretrained.options import Options
from tinydiff.pretrained.unet import NAMES, OLD, attending, undoing
from tinydiff.pretrained.weights import UNSET, Place, fill, renamed

KINDS = ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]  # of blocks: without and with attention


def place(path):
    """Where a parameter of an Autoencoder stands in an AutoencoderKL."""
    half, inner = re.match(r"(encoder\.|decoder\.|)(.*)", path).groups()
    inner = inner.replace("levels", "up" if half == "decoder." else "down")
    return Place(half + renamed(inner, ((r"^(\w*quant)\.", r"\1_conv."), *NAMES)))


def load_autoencoder(theirs, file, tensors):
    """An Autoencoder of a config of theirs, read from `file`, with their tensors.

    Raises ValueError naming file and key for what it cannot be, and as `weights.fill`.
    """
    autoencoder = Autoencoder(read_config(theirs, file), rng=UNSET)
    fill(autoencoder, tensors, place, old=OLD)
    return autoencoder


def read_config(theirs, file):
    """The AutoencoderConfig of a config of theirs, read from `file`.

    Raises ValueError naming file and key for what an Autoencoder cannot be.
    """
    o = Options(theirs, file)
    widths = o.wholes("block_out_channels", (64,))
    down = o.choices("down_block_types", KINDS[:1], KINDS, len(widths))
    o.choice("up_block_types", undoing(KINDS[:1]), undoing(down))
    o.choice("act_fn", "silu", "silu", "swish")
    channels, scale = o.whole("in_channels", 3), o.number("scaling_factor", 0.18215)
    o.choice("out_channels", 3, channels)
    return AutoencoderConfig(
        channels=channels, latent=o.whole("latent_channels", 4), base=widths[0],
        mults=tuple(width / widths[0] for width in widths), attend=attending(down),
        blocks=o.whole("layers_per_block", 1, 64),
        attend_middle=o.flag("mid_block_add_attention", True),
        groups=o.take("norm_num_groups", 32, lambda n: type(n) is int and n > 0
                      and gcd(*widths) % n == 0, f"a divisor of {gcd(*widths)}"),
        quant=o.flag("use_quant_conv", True), post_quant=o.flag("use_post_quant_conv", True),
        scale=o.take("scaling_factor", scale, bool, "a number other than 0"),
        shift=o.number("shift_factor", None) or 0.0)


def write_config(c):
    """config.json of an AutoencoderConfig, in their words."""
    down = [KINDS[level in c.attend] for level in range(len(c.mults))]
    return {"_class_name": "AutoencoderKL", "in_channels": c.channels, "out_channels": c.channels,
            "latent_channels": c.latent, "block_out_channels": list(c.widths),
            "layers_per_block": c.blocks, "down_block_types": down, "up_block_types": undoing(down),
            "norm_num_groups": c.groups, "mid_block_add_attention": c.attend_middle,
            "use_quant_conv": c.quant, "use_post_quant_conv": c.post_quant,
            "scaling_factor": c.scale, "shift_factor": c.shift}
