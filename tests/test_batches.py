"""Batches: every image once an epoch, in an order that depends on the seed and nothing else."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tinydiff.data import batch_indices


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 4), st.integers(0, 2**64 - 1))
def test_every_epoch_holds_every_index_once_whatever_the_batch(n, batch, epochs, seed):
    steps = -(-n * epochs // batch)
    row = np.concatenate([batch_indices(n, batch, step, seed) for step in range(steps)] or [[]])
    assert len(row) == steps * batch
    for epoch in range(epochs):
        assert sorted(row[epoch * n:(epoch + 1) * n]) == list(range(n))


def test_a_batch_depends_on_nothing_that_came_before():
    late = batch_indices(1000, 64, 500, 7)
    for step in (0, 3, 499):
        batch_indices(1000, 64, step, 8)
    np.testing.assert_array_equal(batch_indices(1000, 64, 500, 7), late)


def test_the_order_is_the_same_for_every_batch_size():
    small = np.concatenate([batch_indices(100, 10, step, 3) for step in range(35)])
    large = np.concatenate([batch_indices(100, 35, step, 3) for step in range(10)])
    np.testing.assert_array_equal(small, large)


def test_another_seed_and_another_epoch_are_another_order():
    orders = [tuple(batch_indices(50, 50, step, seed)) for step in range(3) for seed in range(3)]
    assert len(set(orders)) == 9


def test_changing_a_batch_does_not_change_the_next_call():
    first = batch_indices(10, 10, 0, 0)
    expected = first.copy()
    first[:] = -1
    np.testing.assert_array_equal(batch_indices(10, 10, 0, 0), expected)


@pytest.mark.parametrize(("n", "batch", "step"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_batches_of_nothing_are_refused(n, batch, step):
    with pytest.raises(ValueError, match="expected n ≥ 1, batch ≥ 1 and step ≥ 0"):
        batch_indices(n, batch, step, 0)
