"""y[n, i, j, o] = Σ x[n, i·stride + u − top, j·stride + v − left, c] · w[u, v, c, o]

A rung has three functions on arrays x (N, H, W, C), w (K, K', C, O), dy (N, H', W', O):

    forward(x, w, stride, padding, b=None) -> y, with b (O,) added
    grad_input(dy, w, x_shape, stride, padding) -> dx
    grad_weight(dy, x, w_shape, stride, padding) -> dw

padding is ((top, bottom), (left, right)); H' = (H + top + bottom − K) // stride + 1.

Rungs 2 to 4, and for bf16 8 to 10, have more, for K = 3, stride 1 and the size kept:

    fused(xs, w, *, scale, shift, base, add, keep) -> y   of silu(x·scale + shift), + base + add
    fused_grad_input(dy, w, *, split) -> [dx], or [dx, dskip] where split = C1
    fused_grad_weight(dy, xs, *, scale, shift) -> dw

xs is one input or two side by side, [x (N, H, W, C1), skip (N, H, W, C2)]; scale and shift (N, C),
base (O,) or (N, O), add like y; C1 is a multiple of simd.functions.WIDTH where
there are two. keep says that w will come again, so what is made of it may be kept.
"""

from ..ladder import Ladder

LADDER  = Ladder(__name__, "loops im2col", "numba winograd2 winograd4",
                 "cuda_naive cuda_tiled mma halo phase wgmma")
DEFAULT = "winograd4"
ON_GPU  = "phase"
