"""y[n, i, j, o] = Σ x[n, i·stride + u − top, j·stride + v − left, c] · w[u, v, c, o]

A rung has three functions on arrays x (N, H, W, C), w (K, K', C, O), dy (N, H', W', O):

    forward(x, w, stride, padding) -> y
    grad_input(dy, w, x_shape, stride, padding) -> dx
    grad_weight(dy, x, w_shape, stride, padding) -> dw

padding is ((top, bottom), (left, right)); H' = (H + top + bottom − K) // stride + 1.
"""

from . import rung0_loops, rung1_im2col

LADDER  = {"loops": rung0_loops, "im2col": rung1_im2col}
DEFAULT = "im2col"
