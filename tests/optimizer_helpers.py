"""The buffers of a run that has begun, and AdamW's step on them by rungs of CPUs and of GPUs."""

import numpy as np
from tinydiff_kernels.optimizer import LADDER

NAMES = ("data", "grad", "m", "v", "ema")
HOW = dict(lr=2e-3, beta1=0.9, beta2=0.99, eps=1e-8, decay=0.01, step=3, ema_decay=0.999, scale=0.5)


def buffers(n, dtype=np.float32):
    """data, grad, m, v, ema of a run that has begun"""
    rng = np.random.default_rng(n)
    data, grad, m, ema = rng.standard_normal((4, n))
    return [a.astype(np.float32).astype(dtype) for a in (data, grad, m, rng.random(n), ema)]


def moved(idea, state, **how):
    """The buffers after a step, worked on in place."""
    how = {**HOW, "decaying": len(state[0]) // 2, **how}
    assert LADDER[idea].step(*state, **how) is None
    return state


def assert_as_exact_as_plain_arithmetic(idea, n, decaying):
    """Twice the error of rung 0 in float32 is allowed."""
    how = {"decaying": min(n, decaying)}
    right = moved("numpy", buffers(n, np.float64), **how)
    plain = moved("numpy", buffers(n), **how)
    for name, got, rounded, exact in zip(NAMES, moved(idea, buffers(n), **how), plain, right):
        assert got.dtype == np.float32
        allowed = max(2 * np.abs(rounded - exact).max(), 2e-7 * np.abs(exact).max())
        assert np.abs(got - exact).max() <= allowed, name
