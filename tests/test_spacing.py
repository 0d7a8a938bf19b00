"""Which times a sampler visits: exactly as many as asked for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tinydiff.diffusion import Schedule, nodes

SCHEDULE = Schedule.linear()


def test_every_number_of_steps_up_to_a_thousand_is_exactly_that_many():
    for n in range(1, 1001):
        times = nodes(SCHEDULE, steps=n)
        assert len(times) == n + 1
        assert (times[0], times[-1]) == (1000, 0)
        assert all(t > s for t, s in pairwise(times))
    assert nodes(SCHEDULE, steps=1000) == list(range(1000, -1, -1))


@given(T=st.integers(1, 5000), share=st.floats(0, 1))
def test_steps_are_even_to_within_one(T, share):
    n = max(1, round(share * T))
    gaps = -np.diff(nodes(Schedule.cosine(T), steps=n))
    assert len(gaps) == n
    assert gaps.sum() == T
    assert gaps.min() >= 1
    assert np.abs(gaps - T / n).max() <= 1


def test_times_are_plain_python_numbers():
    assert {type(t) for t in nodes(SCHEDULE, steps=np.int64(7))} == {int}
    assert {type(t) for t in nodes(SCHEDULE, timesteps=np.array([900, 3, 0]))} == {int}
    assert {type(t) for t in nodes(SCHEDULE, timesteps=np.float32([900, 3.5]))} == {float}


@pytest.mark.parametrize("timesteps", [[1000, 0], (800, 400.5, 1.25), range(1000, 0, -100)])
def test_given_timesteps_are_kept(timesteps):
    assert nodes(SCHEDULE, timesteps=timesteps) == list(timesteps)


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({}, "exactly one of steps and timesteps"),
    ({"steps": 5, "timesteps": [5, 0]}, "exactly one of steps and timesteps"),
    ({"steps": 0}, "T = 1000, got 0"),
    ({"steps": 1001}, "T = 1000, got 1001"),
    ({"steps": -3}, "T = 1000, got -3"),
    ({"steps": 2.5}, "T = 1000, got 2.5"),
    ({"timesteps": [500]}, r"at least two times, .* got \[500\]"),
    ({"timesteps": []}, "at least two times"),
    ({"timesteps": [500, 500, 0]}, r"fall strictly inside \[0, 1000\]"),
    ({"timesteps": [0, 500]}, r"fall strictly inside \[0, 1000\]"),
    ({"timesteps": [1000.5, 0]}, r"fall strictly inside \[0, 1000\]"),
    ({"timesteps": [10, -1]}, r"fall strictly inside \[0, 1000\]"),
    ({"timesteps": [10, np.nan]}, r"fall strictly inside \[0, 1000\]"),
])
def test_times_that_cannot_be_walked_get_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        nodes(SCHEDULE, **arguments)
