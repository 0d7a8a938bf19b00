"""y = softmax(q kᵀ · scale) v: each query's mix of the values.  docs/derivations/attention.md

A rung has three functions on arrays q (…, L, d), k (…, M, d), v (…, M, e):

    forward(q, k, v, mask, scale, bias) -> y (…, L, e), log_sum (…, L)
    backward(dy, q, k, v, mask, scale, y, log_sum, bias) -> dq, dk, dv
    grad_bias(dy, q, k, v, mask, scale, y, log_sum, bias) -> (…, L, M)

mask is None or, broadcastable to (…, L, M), True where a query may look; bias is None or, as
broadcastable, added to the scores. log_sum is log Σ eˢ over
the scores s of a query: all that backward needs to find its weights again, p = e^(s − log_sum).
A query that may look nowhere has log_sum −∞; it gets zeros and sends no gradient. Leading axes are
equal, or broadcast; then the gradients have the broadcast ones. Rung 5 takes bf16, and log_sum
stays float32; the others are float32 then.
"""

from ..ladder import Ladder

LADDER  = Ladder(__name__, "plain", "online", "cuda_naive cuda_online cuda_tiled flash")
DEFAULT = "online"
ON_GPU  = "flash"
