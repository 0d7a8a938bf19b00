"""How weights start: so that a layer neither swells nor shrinks what passes through it."""

import numpy as np


def uniform(shape, fan_in, *, rng, scale=1.0):
    """Uniform in ±scale·√(3 / fan_in): fan_in unit inputs add up to a variance of scale²."""
    limit = scale * (3 / fan_in) ** 0.5
    return rng.uniform(-limit, limit, shape).astype(np.float32, copy=False)


def normal(shape, *, rng, std=0.02):
    """Normal with standard deviation `std`, for tables of embeddings."""
    return rng.normal(0.0, std, shape).astype(np.float32, copy=False)
