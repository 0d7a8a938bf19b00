"""y = x w + b + add: every row of x by one matrix.

A rung has three functions on arrays x (P, C), w (C, O), b (O,), add (P, O), dy (P, O):

    forward(x, w, b=None, add=None) -> y (P, O)
    grad_input(dy, w, split=None) -> dx = dy wᵀ           (P, C)
    grad_weight(x, dy) -> dw = xᵀ dy                      (C, O)

x may be two arrays in a list, (P, C1) and (P, C2), which stand side by side without a copy;
grad_input with split = C1 gives two such.
"""

from ..ladder import Ladder

LADDER  = Ladder(__name__, "loops blas", "simd",
                 "cuda_naive cuda_coalesced cuda_shared cuda_register mma wgmma")
DEFAULT = "simd"
ON_GPU  = "mma"
