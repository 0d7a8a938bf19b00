"""Diffusion on plain arrays: no Tensor, no model, only NumPy (or CuPy) and the formulas.

Start with `schedule`, then `prediction`, then `samplers/implicit`; symbols: docs/notation.md.
"""

from tinydiff.diffusion.editing import image_to_image, inpainted, invert, repaint, slerp
from tinydiff.diffusion.guidance import (
    classifier_guided,
    clipped,
    composed,
    guided,
    guided_rescaled,
    trace,
    within,
)
from tinydiff.diffusion.ideal import Mixture, ideal_predictor, loss_gap
from tinydiff.diffusion.likelihood import ode_log_likelihood, rate_distortion, vlb
from tinydiff.diffusion.objective import SecondMoments, draw, middle, min_snr, p2, unweighted
from tinydiff.diffusion.prediction import PREDICTS, Prediction
from tinydiff.diffusion.samplers import (
    ddim,
    ddpm,
    ddpm_guided,
    dpmpp_1s,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    edm,
    euler,
    euler_ancestral,
    fixed_large,
    fixed_small,
    flow_euler,
    flow_heun,
    heun,
    lcm,
    pndm,
    sample,
    unipc,
)
from tinydiff.diffusion.schedule import Schedule
from tinydiff.diffusion.spacing import karras, leading, linspace, nodes, quadratic, trailing

__all__ = [
    "PREDICTS", "Mixture", "Prediction", "Schedule", "SecondMoments", "classifier_guided",
    "clipped", "composed", "ddim", "ddpm", "ddpm_guided", "dpmpp_1s", "dpmpp_2m", "dpmpp_2m_sde",
    "dpmpp_3m", "draw", "edm", "euler", "euler_ancestral", "fixed_large", "fixed_small",
    "flow_euler", "flow_heun", "guided", "guided_rescaled", "heun", "ideal_predictor",
    "image_to_image", "inpainted", "invert", "karras", "lcm", "leading", "linspace", "loss_gap",
    "middle", "min_snr", "nodes", "ode_log_likelihood", "p2", "pndm", "quadratic",
    "rate_distortion", "repaint", "sample", "slerp", "trace", "trailing", "unipc", "unweighted",
    "vlb", "within",
]
