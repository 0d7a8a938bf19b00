"""x̂ = (x − mean) · rstd in each group of channels of each image, and y = f(x̂ · γ + β).

f is SiLU or nothing. mean and rstd = 1 / √(var + eps) run over the pixels and the C / groups
channels of a group. A rung has five functions:

    measure(xs, groups, eps) -> mean, rstd
    normalize(x, scale, shift, silu) -> y = f(x · scale + shift)
    backward(dys, xs, scale, shift, mean, rstd, silu) -> dxs, dscale, dshift
    rows(x, scale, shift, eps) -> y, each row (…, D) normalized by itself
    rows_backward(dy, x, scale, eps) -> dx, dscale, dshift

x is (N, …, C); xs, dys and dxs are lists of one or two such arrays, whose channels stand one
behind the other as if concatenated: a group may have some in each. mean and rstd are (N, groups),
scale and shift (N, C): for normalize γ · rstd and β − mean · γ · rstd, for backward γ and β. So
dscale and dshift are sums over the pixels of each image. dxs may lie in the memory of dys, which
the caller gives up. Rung 4 also takes bf16 for x, y, dy and dx; the others are float32 then.
docs/derivations/norm.md
"""

from ..ladder import Ladder

LADDER  = Ladder(__name__, "numpy", "onepass", "cuda_twopass cuda_shuffle vector")
DEFAULT = "onepass"
ON_GPU  = "vector"
