"""Diffusion on plain arrays: no Tensor, no model, only NumPy (or CuPy) and the formulas.

Start with `schedule`, then `prediction`, then `samplers/implicit`; symbols: docs/notation.md.
"""

from tinydiff.diffusion.guidance import clipped, guided, trace
from tinydiff.diffusion.ideal import ideal_predictor
from tinydiff.diffusion.objective import draw, min_snr, unweighted
from tinydiff.diffusion.prediction import PREDICTS, Prediction
from tinydiff.diffusion.samplers import ddim, ddpm, fixed_large, fixed_small, sample
from tinydiff.diffusion.schedule import Schedule
from tinydiff.diffusion.spacing import nodes

__all__ = [
    "PREDICTS", "Prediction", "Schedule", "clipped", "ddim", "ddpm", "draw", "fixed_large",
    "fixed_small", "guided", "ideal_predictor", "min_snr", "nodes", "sample", "trace", "unweighted",
]
