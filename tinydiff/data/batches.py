"""Which images a training step sees."""

from functools import lru_cache

import numpy as np


def batch_indices(n, batch, step, seed):
    """The indices int64 (batch,) of step 0, 1, 2 …, a pure function of its arguments.

    The steps walk through an endless row of epochs, each a fresh permutation of 0…n−1, so every
    image comes exactly once an epoch, also when `batch` does not divide `n`.
    """
    if n < 1 or batch < 1 or step < 0:
        raise ValueError("batch_indices: expected n ≥ 1, batch ≥ 1 and step ≥ 0, "
                         f"got n = {n}, batch = {batch}, step = {step}")
    first, last = step * batch // n, (step * batch + batch - 1) // n
    row = np.concatenate([_epoch(n, epoch, seed) for epoch in range(first, last + 1)])
    start = step * batch - first * n
    return row[start:start + batch]


def captioned(images, said, count, step, seed, plain, rng):
    """Pictures uint8 (count, H, W, C) of step 0, 1, 2 …, and a caption of each.

    said(i) are all captions of picture i; `plain` is the share that is told the first; rng picks.
    """
    index = batch_indices(len(images), count, step, seed)
    first = rng.random(count) < plain
    texts = [said(i) for i in index]
    return images[index], [all_of_it[0 if plainly else rng.integers(len(all_of_it))]
                           for all_of_it, plainly in zip(texts, first, strict=True)]


@lru_cache(maxsize=2)
def _epoch(n, epoch, seed):
    return np.random.default_rng([seed, epoch]).permutation(n)
