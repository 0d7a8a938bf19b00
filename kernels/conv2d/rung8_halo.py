"""Rung 8, halo: each pixel is fetched once, normalized as it passes, and used nine times.

Since rung 7: that one copies a pixel for each tap, and finds it normalized already: GroupNorm and
SiLU have read and written all activations before, and bias, time and residual will again. Here a
patch of 128 pixels with its halo stays in shared memory for all nine taps, 180 copies of a pixel
instead of 1,152; scale, shift and SiLU are applied to it there; base and residual are added, and
mean and variance for the norm that follows are taken, while the sums are still in registers.
Prediction: for each activation two bytes read and two written, against ten and six; the products
run at rung 7's pace or better, less the SiLU's exponentials, of which a block needs 11,500 a slab
against 9.4 million multiply-adds, while another block multiplies.

Only 3 × 3 windows, stride 1, the size kept, bf16; all else is rung 7's. Images of 8 × 8 and 4 × 4
share a patch with others. The gradient for the weights normalizes once more, into memory, and is
rung 7's.
"""

from ..gpu.source import Source
from . import rung7_mma
from .halo import FUSES, SEAM, functions  # noqa: F401
from .rung7_mma import grad_weight  # noqa: F401

code = Source(__file__)
forward, grad_input, fused, fused_grad_input, fused_grad_weight = functions(code, rung7_mma)
