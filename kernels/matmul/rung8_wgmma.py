"""Rung 8, wgmma: one instruction of four warps, which reads its tiles by itself.

Since rung 7: there every warp loads its part of both tiles to registers before it multiplies, b
twice over, and mma.sync reaches some 65 % of what a Hopper GPU's tensor cores can do. wgmma takes
64 × 16 by 16 × 128 from shared memory, whose swizzle it knows, turned or not, while its threads go
on. Prediction: no ldmatrix, so half the traffic on shared memory; 550 to 650 TFLOP/s of 800 on an
H100 for large matrices, 1.3 times rung 7.

Tiles, pipeline and the sum in parts are rung 7's. Only GPUs of capability 9.0 have it (sm_90a);
elsewhere rung 7 multiplies.
"""

from ..gpu.arrays import has_wgmma
from ..gpu.source import Source
from . import rung7_mma
from .products import functions

code = Source(__file__)
forward, grad_input, grad_weight = functions(code, rung7_mma, has_wgmma)
