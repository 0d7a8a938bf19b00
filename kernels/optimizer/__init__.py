"""One step of AdamW, and of the running mean of its weights, over flat buffers.

    g  = scale · grad                                     (clipping)
    m += (1 − β₁) (g − m)                                 Kingma & Ba, Alg. 1
    v += (1 − β₂) (g² − v)
    data −= lr · decay · data                             Loshchilov & Hutter, Alg. 2
    data −= lr · m̂ / (√v̂ + ε)                             m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ)
    ema  += (1 − ema_decay) (data − ema)
    grad  = 0

A rung has two functions on arrays (n,); everything happens in place:

    step(data, grad, m, v, ema, *, half, lr, beta1, beta2, eps, decay, decaying, step, ema_decay,
         scale)
    norm(grad) -> √Σ grad²

ema may be None. Of data the first `decaying` numbers decay: weights, before biases and scales.
step is t = 1, 2, …. half, if given, is a bf16 array of data's length or less, and becomes a copy of
data's first numbers.
"""

from ..ladder import Ladder

LADDER  = Ladder(__name__, "numpy", "onepass", "cuda_elementwise fused")
DEFAULT = "onepass"
ON_GPU  = "fused"
