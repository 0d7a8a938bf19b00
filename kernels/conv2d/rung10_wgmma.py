"""Rung 10, wgmma: rungs 7 to 9 once more, by an instruction of four warps.

Since rung 9: mma.sync gives way to wgmma, as matmul/rung8_wgmma.py tells. Where tiles are gathered
both come from shared memory by themselves. The rows of a patch, shifted by a tap, stand where no
descriptor can point; they go through registers, as a, and only the weights are read by the
instruction. Prediction: 1.3 times the pace of rungs 7 and 8 where the products set it, so 550
TFLOP/s of an H100's 800 for 128 → 128 channels at 32 × 32.

Only GPUs of capability 9.0 have it (sm_90a); elsewhere rung 9 does all.
"""

from ..gpu.arrays import has_wgmma
from ..gpu.source import Source
from . import gather, halo, rung9_phase
from .halo import FUSES, SEAM  # noqa: F401
from .rung9_phase import upsampled, upsampled_grad_input, upsampled_grad_weight  # noqa: F401


class gathering:
    """What is no 3 × 3 window, or not bf16."""

    code = Source(__file__)
    forward, grad_input, grad_weight = map(
        staticmethod, gather.functions(code, rung9_phase, has_wgmma))


grad_weight = gathering.grad_weight
forward, grad_input, fused, fused_grad_input, fused_grad_weight = halo.functions(
    gathering.code, gathering, lines=2, can=has_wgmma)
