"""gradcheck finds what is wrong with a gradient, and nothing wrong with a right one."""

import numpy as np
import pytest

from tinydiff.autograd import gradcheck, log, op

WRONG = {
    "twice too large":    lambda x: lambda dy: (dy * 4 * x,),
    "of the wrong sign":  lambda x: lambda dy: (-dy * 2 * x,),
    "wrong in one entry": lambda x: lambda dy: (dy * 2 * x * (np.arange(x.size) != 2),),
    "forgotten":          lambda x: lambda dy: (np.zeros_like(x),),
    "not a number":       lambda x: lambda dy: (dy * 2 * x * np.nan,),
}


@pytest.mark.parametrize("name", WRONG)
def test_gradcheck_catches_a_gradient_that_is(name):
    square = op(lambda x: (x * x, WRONG[name](x)))
    assert not gradcheck(square, np.array([1.0, -2.0, 0.5])) < 0.1
    right = op(lambda x: (x * x, lambda dy: (dy * 2 * x,)))
    assert gradcheck(right, np.array([1.0, -2.0, 0.5])) < 1e-8


def test_gradcheck_catches_an_argument_without_a_gradient():
    assert gradcheck(lambda x, y: x * y.detach(), np.array([1.0, 2.0]), np.array([3.0, 4.0])) > 0.5


def test_gradcheck_leaves_its_arguments_alone():
    x = np.array([1, 2])                                  # and takes whole numbers, as float64
    assert gradcheck(lambda x: x * x, x) < 1e-8
    np.testing.assert_array_equal(x, [1, 2])


def test_a_lost_number_is_no_agreement():
    with np.errstate(invalid="ignore"):
        assert gradcheck(log, -np.ones(3)) == float("inf")
