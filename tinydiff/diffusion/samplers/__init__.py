"""From noise to picture: each sampler is a generator of x_t as t falls, one family a file.

Start with `implicit` (DDIM), then `ancestral` (DDPM); what they share is in `contract`.
"""

from tinydiff.diffusion.samplers.ancestral import ddpm, fixed_large, fixed_small
from tinydiff.diffusion.samplers.contract import sample
from tinydiff.diffusion.samplers.implicit import ddim

__all__ = ["ddim", "ddpm", "fixed_large", "fixed_small", "sample"]
