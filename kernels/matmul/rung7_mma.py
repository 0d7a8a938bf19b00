"""Rung 7, mma: tensor cores multiply; copies run ahead of them in a pipeline.

Since rung 6: a warp multiplies 16 × 16 by 16 × 8 numbers in one instruction, mma.sync, of bf16 with
sums in float32. A tile of 128 × 128 results needs 64 FLOPs for each byte it reads, so three stages
of tiles are copied by cp.async while the one that has landed is multiplied. w is read as it lies
for all three products; ldmatrix turns what must be turned. Prediction: on an H100 mma.sync gives at
most some 65 % of what its tensor cores can do, so about 500 TFLOP/s of 800, where the tiles fill
the GPU; 16 times rung 6.

The sum over pixels of grad_weight is cut into parts that fill the GPU, each summed by itself; the
parts are added in their order, so that the result never changes. Only for bf16 arrays; float32 goes
to rung 6. Widths that are no multiples of 8 get columns of zeros.
"""

from ..gpu.source import Source
from . import rung6_cuda_register
from .products import functions

code = Source(__file__)
forward, grad_input, grad_weight = functions(code, rung6_cuda_register)
