"""Which times a sampler visits: exactly as many as asked for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tinydiff.diffusion import Schedule, nodes
from tinydiff.diffusion.spacing import karras, leading, linspace, quadratic, trailing

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


# The spacings by name.

@pytest.mark.parametrize("spacing", [trailing, linspace, leading, quadratic, karras])
@pytest.mark.parametrize("T", [1, 2, 77, 1000])
def test_every_number_of_steps_is_walked_or_refused_by_name(spacing, T):
    schedule, refused = Schedule.cosine(T), []
    for n in range(1, T + 1):
        try:
            times = spacing(schedule, n)
        except ValueError as error:
            refused.append((n, str(error).startswith(f"{spacing.__name__}: {n} ")))
            continue
        assert len(times) == n + 1
        assert nodes(schedule, timesteps=times) == times              # they can be walked
        assert times[-1] == 0
    if T == 1000:
        few = {leading: [*range(1, 4), *range(334, 376), *range(501, 750)],
               quadratic: [*range(45, 1001)]}
        assert refused == [(n, True) for n in few.get(spacing, [])]


def test_spacings_are_the_papers_and_the_libraries():
    schedule = Schedule.linear()
    assert trailing(schedule, 7) == [1000, 857, 714, 571, 429, 286, 143, 0]
    assert leading(schedule, 7) == [853, 711, 569, 427, 285, 143, 1, 0]
    assert linspace(schedule, 5) == [1000, 750, 500, 251, 1, 0]
    assert quadratic(schedule, 5) == [1000, 640, 360, 160, 40, 0]
    assert linspace(schedule, 1) == [1000, 0]


@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule.cosine(), Schedule.scaled_linear(),
                                      Schedule.karras(), Schedule.flow()])
def test_karras_spacing_is_even_in_the_seventh_root_of_sigma(schedule):
    times = karras(schedule, 18)
    root = np.array([schedule.sigma(t) for t in times[:-1]]) ** (1 / 7)
    np.testing.assert_allclose(np.diff(root), np.diff(root).mean(), rtol=1e-6)
    assert schedule.sigma(times[0]) == pytest.approx(min(80, schedule.sigma(1000)))
    assert times[-2:] == [1, 0]


def test_karras_spacing_starts_at_T_itself_where_it_can():
    assert karras(Schedule.scaled_linear(), 5)[0] == karras(Schedule.karras(), 5)[0] == 1000
    assert karras(Schedule.scaled_linear(), 1) == [1000, 0]


def test_karras_spacing_of_a_karras_schedule_is_its_own_nodes():
    np.testing.assert_allclose(karras(Schedule.karras(18), 18), np.arange(18, -1, -1), atol=1e-9)


@pytest.mark.parametrize("spacing", [trailing, linspace, leading, quadratic, karras])
@pytest.mark.parametrize("n", [0, -1, 1001, 2.5])
def test_step_counts_a_chain_does_not_have_are_refused(spacing, n):
    with pytest.raises(ValueError, match=rf"from 1 to the schedule's T = 1000, got {n}"):
        spacing(SCHEDULE, n)
