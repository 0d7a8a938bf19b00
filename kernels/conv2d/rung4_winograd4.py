"""Rung 4, winograd4: 4 × 4 tiles, 4 times fewer multiplications, and the neighbours taken along.

Since rung 3: 36 products make 16 results, not 144. The transforms multiply, no longer only add, so
rounding grows: errors up to 20 times those of plain arithmetic, mostly 3 to 8 times, which training
does not notice. Prediction: up to 4 times fewer FLOPs than rung 2; at C = 32 the transforms cost as
much as the products, from C = 128 on the products rule.
"""

from .rung2_numba import SEAM as SEAM
from .winograd_rung import functions

(forward, grad_input, grad_weight,
 fused, fused_grad_input, fused_grad_weight) = functions(4)
