"""What recording an op and playing it back costs: µs per op on 16 numbers.

The numbers are so few that arithmetic takes no time worth the name. The graph is a chain of 3,000
ops of three kinds, x + y, x · 1.01 and tanh x; the answer is the median of 15 rounds.
"""

import json
import statistics
from time import perf_counter

import numpy as np
from machine import machine

from tinydiff.autograd import Tensor, tanh

LINKS, OPS_A_LINK, ROUNDS = 1000, 3, 15


def round_trip(y):
    """Seconds to record the chain and to play it back."""
    x = Tensor(np.full(16, 0.1, np.float32), requires_grad=True)
    start = perf_counter()
    for _ in range(LINKS):
        x = tanh((x + y) * 1.01)
    recorded = perf_counter()
    x.backward(np.ones(16, np.float32))
    return recorded - start, perf_counter() - recorded


def numpy_alone(y):
    """Seconds for the same forward arithmetic on arrays."""
    x = np.full(16, 0.1, np.float32)
    start = perf_counter()
    for _ in range(LINKS):
        x = np.tanh((x + y) * 1.01)
    return perf_counter() - start


def main():
    y = Tensor(np.full(16, 0.01, np.float32), requires_grad=True)
    round_trip(y)                                         # warm
    rounds = [(*round_trip(y), numpy_alone(y.data)) for _ in range(ROUNDS)]
    record, play, alone = (1e6 * statistics.median(column) / (LINKS * OPS_A_LINK)
                           for column in zip(*rounds))
    print(json.dumps({"benchmark": "autograd overhead", "unit": "µs per op",
                      "recorded_and_played_back": round(record + play, 2),
                      "recorded": round(record, 2), "played_back": round(play, 2),
                      "numpy_forward_alone": round(alone, 2), "machine": machine()},
                     ensure_ascii=False))


if __name__ == "__main__":
    main()
