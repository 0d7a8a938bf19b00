"""Rung 7, mma: the convolution as tiles of one large product, gathered on the way.

Since rung 6: tensor cores multiply bf16, sums in float32, as matmul/rung7_mma.py tells. The matrix
of windows, that im2col writes down, exists only as tiles in shared memory: a row of a tile is a
pixel, 64 channels of it under one tap, copied from where they lie. Prediction: 2·K·K'·C·O FLOPs a
pixel as any convolution, at the pace of the product: on an H100 up to 500 TFLOP/s for C, O ≥ 128
where N·H·W ≥ 32,000; every pixel is copied K·K' times, mostly from the L2 cache.

One kernel, three uses: a table says where each tap looks. The gradient for the input looks the
other way and, for a stride of 2, in four phases, so that no zero is multiplied. The gradient for
the weights sums over pixels, in parts that fill the GPU, added in their order. bf16 only; float32
goes to rung 6. Channels that are no multiple of 8 get zeros behind them.
"""

from ..gpu.source import Source
from . import rung6_cuda_tiled
from .gather import functions

code = Source(__file__)
forward, grad_input, grad_weight = functions(code, rung6_cuda_tiled)
