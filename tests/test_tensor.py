"""Tensor and backward: gradients arrive once, add up, and the graph behind them dies."""

import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from tinydiff import autograd as ag
from tinydiff.autograd import Tensor, no_grad, op
from tinydiff.optim import Flat


def leaf(data, dtype=np.float64):
    return Tensor(np.array(data, dtype), requires_grad=True)


def test_a_chain_of_five_thousand_ops_is_played_back():
    x = y = leaf(2.0)
    for _ in range(5000):
        y = y * 1.0001
    y.backward()
    np.testing.assert_allclose(x.grad, 1.0001**5000, rtol=1e-11)


def test_a_ladder_of_sixty_diamonds_takes_sixty_steps():
    x = y = leaf(1.0)
    for _ in range(60):
        y = y + y                                         # 2⁶⁰ paths lead from y to x
    y.backward()
    assert x.grad == 2.0**60


def test_an_uneven_diamond_waits_for_its_longer_side():
    x = leaf(5.0)
    h = x * 3
    (h * ((h + 1) * 2)).backward()                        # 2h² + 2h, h = 3x
    assert x.grad == 3 * (4 * 15 + 2)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 40))
def test_any_graph_of_sums_and_products_agrees_with_forward_differentiation(seed, size):
    rng = np.random.default_rng(seed)
    x = leaf(rng.uniform(0.5, 1.0))
    tensors, duals = [x], [(x.data, 1.0)]                 # the same graph on pairs (value, slope)
    for _ in range(size):
        i, j = rng.integers(len(tensors), size=2)
        (a, da), (b, db) = duals[i], duals[j]
        if rng.random() < 0.5:
            tensors.append((tensors[i] + tensors[j]) * 0.5)
            duals.append(((a + b) / 2, (da + db) / 2))
        else:
            tensors.append(tensors[i] * tensors[j])
            duals.append((a * b, da * b + a * db))
    with np.errstate(under="ignore"):                     # 0.5 squared again and again
        tensors[-1].backward()
    np.testing.assert_allclose(x.grad, duals[-1][1], rtol=1e-10)


@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3),
       seed=st.integers(0, 99))
def test_broadcasting_is_undone(shapes, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(shape) for shape in shapes.input_shapes)
    dy = rng.standard_normal(shapes.result_shape)
    x, y = leaf(a), leaf(b)
    (x * y).backward(dy)
    for tensor, other in ((x, b), (y, a)):
        expected = np.zeros(tensor.data.size)
        came_from = np.arange(tensor.data.size).reshape(tensor.shape)
        np.add.at(expected, np.broadcast_to(came_from, dy.shape), dy * other)
        assert tensor.grad.shape == tensor.shape
        np.testing.assert_allclose(tensor.grad.ravel(), expected, atol=1e-13)


def test_a_constant_gets_no_gradient():
    x, constant = leaf(2.0), Tensor(np.array(3.0))
    (x * constant).backward()
    assert x.grad == 3.0
    assert constant.grad is None


def test_backward_of_a_leaf_is_its_own_seed():
    x = leaf([1.0, 2.0])
    x.backward([3.0, 4.0])
    np.testing.assert_array_equal(x.grad, [3.0, 4.0])


def test_several_numbers_need_a_seed_gradient_of_their_shape(rng):
    A, x = rng.standard_normal((3, 4)), leaf(rng.standard_normal((4, 1)))
    y = Tensor(A) @ x
    with pytest.raises(ValueError, match=r"shape \(3, 1\) needs dy"):
        y.backward()
    with pytest.raises(ValueError, match=r"dy has shape \(3,\), the Tensor has \(3, 1\)"):
        y.backward(np.ones(3))
    dy = rng.standard_normal((3, 1))
    y.backward(dy)                                        # the refusals left the graph whole
    np.testing.assert_allclose(x.grad, A.T @ dy)


def test_the_seed_may_be_a_tensor_and_takes_the_dtype_of_the_result():
    x = leaf([1.0, 2.0], np.float32)
    (x * 2).backward(Tensor(np.array([1.0, 10.0])))
    np.testing.assert_array_equal(x.grad, np.array([2, 20], np.float32))
    assert x.grad.dtype == np.float32


def test_a_second_backward_is_a_clear_error():
    x = leaf(2.0)
    y = x * x
    y.backward()
    with pytest.raises(RuntimeError, match="played back and freed; compute it again"):
        y.backward()
    assert x.grad == 4.0


def test_a_second_backward_through_a_shared_part_is_refused_before_anything_is_added():
    x, fresh = leaf(2.0), leaf(1.0)
    shared = x * x
    first, second = shared * 3, (shared + fresh) * 5
    first.backward()
    with pytest.raises(RuntimeError, match="played back and freed"):
        second.backward()
    assert x.grad == 12.0
    assert fresh.grad is None


def test_what_depends_on_no_parameter_cannot_be_played_back():
    with pytest.raises(RuntimeError, match="nothing that requires a gradient"):
        (Tensor(np.array(1.0)) * 2).backward()


def test_backward_frees_the_graph():
    x = leaf([1.0, 2.0])
    h = ag.exp(x)
    inside = weakref.ref(h.data)
    y = ag.log(h).sum()
    del h
    assert inside() is not None                           # log's vjp needs it
    y.backward()
    assert inside() is None
    np.testing.assert_allclose(x.grad, 1.0)


def test_backward_frees_an_array_as_soon_as_it_has_passed():
    seen = []

    @op
    def watch(x):
        def vjp(dy):
            seen.append(later())
            return (dy,)
        return x.copy(), vjp

    x = leaf([1.0, 2.0])
    h = ag.exp(watch(x))
    later = weakref.ref(h.data)
    y = ag.log(h).sum()
    del h
    y.backward()
    assert seen == [None]                                 # gone before the first op's turn


def test_no_grad_records_nothing_and_ends_with_its_block():
    x = leaf(3.0)
    with no_grad():
        with no_grad():
            assert not (x * 2).requires_grad
        assert not (x * 2).requires_grad                  # the inner block ended, not the outer
    assert (x * 2).requires_grad
    with pytest.raises(ZeroDivisionError), no_grad():
        1 / 0
    assert (x * 2).requires_grad


def test_no_grad_in_one_thread_leaves_the_others_recording():
    x, inside, done = leaf(3.0), threading.Event(), threading.Event()
    recorded = []

    def sampler():
        with no_grad():
            inside.set()
            done.wait(10)
            recorded.append((x * 2).requires_grad)

    thread = threading.Thread(target=sampler)
    thread.start()
    assert inside.wait(10)
    recorded.append((x * 2).requires_grad)
    done.set()
    thread.join()
    assert recorded == [True, False]


def test_detach_keeps_the_numbers_and_forgets_the_way():
    x = leaf(3.0)
    y = x * x
    (y.detach() * x).backward()                           # d(9x)/dx, not d(x³)/dx
    assert x.grad == 9.0
    assert y.detach().data is y.data


def test_gradients_of_two_graphs_add_up():
    x = leaf(3.0)
    (x * x).backward()
    (x * 5).backward()
    assert x.grad == 6.0 + 5.0


def test_gradients_are_added_in_place_into_a_flat_buffer(rng):
    w, b = leaf(rng.standard_normal((2, 3))), leaf(rng.standard_normal(3))
    flat = Flat({"w": w, "b": b})
    view = w.grad
    for _ in range(2):
        (w * 2 + b).backward(np.ones((2, 3)))
    assert w.grad is view
    np.testing.assert_array_equal(flat.grad, [4.0] * 6 + [4.0] * 3)


def test_two_gradients_that_are_one_array_are_not_corrupted_in_place():
    x, y, dy = leaf([1.0, 2.0]), leaf([3.0, 4.0]), np.ones(2)
    (x + y).backward(dy)                                  # both gradients are dy itself
    (x * 10).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [11.0, 11.0])
    np.testing.assert_array_equal(y.grad, [1.0, 1.0])
    np.testing.assert_array_equal(dy, [1.0, 1.0])
    z = leaf([1.0, 2.0])
    (z + z + z).backward(dy)
    np.testing.assert_array_equal(z.grad, [3.0, 3.0])
    np.testing.assert_array_equal(dy, [1.0, 1.0])


def test_a_broadcast_gradient_is_stored_as_an_array_of_its_own():
    x = leaf(np.zeros((2, 3)))
    x.sum().backward()
    x.grad[0, 0] = 7.0                                    # not a view of one number
    np.testing.assert_array_equal(x.grad, [[7, 1, 1], [1, 1, 1]])


OPERATORS = [lambda x: x + 2.0, lambda x: 2.0 + x, lambda x: x - 2.0, lambda x: 2.0 - x,
             lambda x: x * 3, lambda x: 3 * x, lambda x: x / 2.0, lambda x: 2.0 / x,
             lambda x: -x, lambda x: x**2, lambda x: x**-0.5]


@pytest.mark.parametrize("shape", [(), (2, 3)])
@pytest.mark.parametrize("f", OPERATORS)
def test_python_numbers_keep_float32(f, shape):
    x = leaf(np.full(shape, 1.5), np.float32)
    y = f(x)
    np.testing.assert_allclose(y.data, f(np.full(shape, 1.5)), rtol=1e-6)
    y.backward(np.ones(shape))
    assert y.dtype == x.grad.dtype == np.float32


def test_a_gradient_has_the_dtype_of_its_parameter():
    x = leaf([1.0, 2.0], np.float32)
    (x * np.array([1.0, 2.0])).backward(np.ones(2))       # a float64 constant in between
    assert x.grad.dtype == np.float32


@pytest.mark.parametrize("f", [np.add, np.subtract, np.multiply, np.divide, np.matmul])
def test_an_array_and_a_tensor_make_a_tensor_in_either_order(f, rng):
    a, b = rng.uniform(1, 2, (2, 3, 3))
    infix = {np.add: lambda x, y: x + y, np.subtract: lambda x, y: x - y,
             np.multiply: lambda x, y: x * y, np.divide: lambda x, y: x / y,
             np.matmul: lambda x, y: x @ y}[f]
    for y in (infix(a, leaf(b)), infix(leaf(a), b)):
        assert type(y) is Tensor
        assert y.requires_grad
        np.testing.assert_array_equal(y.data, f(a, b))


def test_a_numpy_number_and_a_tensor_make_a_tensor():
    y = np.float32(2) * leaf([1.0, 2.0], np.float32)
    assert type(y) is Tensor
    np.testing.assert_array_equal(y.data, [2.0, 4.0])


def test_a_tensor_given_as_an_option_is_refused():
    x, target = leaf([1.0, 2.0]), Tensor(np.zeros(2))
    with pytest.raises(TypeError, match="position"):
        ag.mse(x, target=target)
    with pytest.raises(TypeError, match="got a Tensor"):
        Tensor(x)


def test_a_vjp_that_forgets_an_argument_is_an_error():
    @op
    def forgetful(x, y):
        return x * y, lambda dy: (dy * y,)

    with pytest.raises(ValueError, match="shorter"):
        forgetful(leaf(1.0), leaf(2.0)).backward()
