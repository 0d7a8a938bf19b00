"""Rung 3, winograd2: the same results with 2.25 times fewer multiplications.

Since rung 2: a 2 × 2 tile of results of a 3 × 3 convolution takes 16 products, not 36, once its
4 × 4 inputs and the weights are transformed (winograd.py); the transforms only add. Prediction: up
to 2.25 times faster where C and O are large, less where the transforms weigh. Rounding grows a
little: errors up to 4 times those of plain arithmetic.
"""

from .rung2_numba import SEAM as SEAM
from .winograd_rung import functions

(forward, grad_input, grad_weight,
 fused, fused_grad_input, fused_grad_weight) = functions(2)
