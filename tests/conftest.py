"""Every test runs strictly: floating-point faults raise, and BLAS keeps to one thread."""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")       # read once, when NumPy is first imported

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

np.seterr(all="raise")      # a test that expects underflow says so: np.errstate(under="ignore")

settings.register_profile("tinydiff", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tinydiff")


@pytest.fixture
def rng():
    """A generator that starts the same in every test."""
    return np.random.default_rng(0)
