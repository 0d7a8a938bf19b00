"""y = softmax(q kᵀ · scale) v: each query's mix of the values.  docs/derivations/attention.md

A rung has two functions on arrays q (…, L, d), k (…, M, d), v (…, M, e):

    forward(q, k, v, mask, scale) -> y (…, L, e), log_sum (…, L)
    backward(dy, q, k, v, mask, scale, y, log_sum) -> dq, dk, dv

mask is None or, broadcastable to (…, L, M), True where a query may look. log_sum is log Σ eˢ over
the scores s of a query: all that backward needs to find its weights again, p = e^(s − log_sum).
A query that may look nowhere has log_sum −∞; it gets zeros and sends no gradient. Leading axes are
equal, or broadcast; then the gradients have the broadcast ones.
"""

from ..ladder import Ladder

LADDER  = Ladder(__name__, "plain", "online")
DEFAULT = "online"
