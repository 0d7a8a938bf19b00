"""From noise to picture: each sampler is a generator of x_t as t falls, one family a file.

Start with `implicit` (DDIM), then `ancestral` (DDPM), `sigma_space` (Euler, Heun, EDM),
`exponential` (DPM-Solver++); what they share is in `contract`.
"""

from tinydiff.diffusion.samplers.ancestral import ddpm, ddpm_eps_form, fixed_large, fixed_small
from tinydiff.diffusion.samplers.consistency import lcm
from tinydiff.diffusion.samplers.contract import sample
from tinydiff.diffusion.samplers.corrector import unipc
from tinydiff.diffusion.samplers.exponential import dpmpp_1s, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from tinydiff.diffusion.samplers.guided import ddpm_guided
from tinydiff.diffusion.samplers.implicit import ddim
from tinydiff.diffusion.samplers.multistep import pndm
from tinydiff.diffusion.samplers.sigma_space import edm, euler, euler_ancestral, heun
from tinydiff.diffusion.samplers.straight import flow_euler, flow_heun

__all__ = [
    "ddim", "ddpm", "ddpm_eps_form", "ddpm_guided", "dpmpp_1s", "dpmpp_2m", "dpmpp_2m_sde",
    "dpmpp_3m", "edm", "euler", "euler_ancestral", "fixed_large", "fixed_small", "flow_euler",
    "flow_heun", "heun", "lcm", "pndm", "sample", "unipc",
]
