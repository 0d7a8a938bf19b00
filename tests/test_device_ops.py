"""Every op on arrays of the device: the numbers of the host, and not a word to it on the way."""

import numpy as np
import pytest

from tinydiff import autograd as ag
from tinydiff.autograd import Tensor, gradcheck, no_grad, op
from tinydiff.backend import to_device, to_host

NO_OPS = {Tensor, gradcheck, no_grad, op}
IDS = np.array([[2, 0, 2], [1, 3, 2]])
LOOK = np.array([[True, False, True], [True, True, True]])
FUSED = (2, 4, 4, 4), (8,), (8,), (3, 3, 8, 5), (5,), (2, 4, 4, 4), (2, 5), (2, 4, 4, 5)
CASES = {                                                 # op: the shapes it takes, its options
    "add": ([(3, 4), (4,)], {}), "add_to_pixels": ([(2, 3, 2, 4), (2, 4)], {}),
    "cast": ([(3, 4)], {"dtype": np.float32}), "sub": ([(3, 4), (3, 1)], {}),
    "mul": ([(3, 4), (4,)], {}),
    "div": ([(3, 4), (4,)], {}), "neg": ([(3,)], {}), "pow": ([(3,)], {"n": 3}),
    "exp": ([(3,)], {}), "log": ([(3,)], {}), "sqrt": ([(3,)], {}), "sin": ([(3,)], {}),
    "cos": ([(3,)], {}), "tanh": ([(3,)], {}), "sigmoid": ([(3,)], {}), "silu": ([(3, 4)], {}),
    "relu": ([(9,)], {}), "gelu": ([(9,)], {}), "gelu_tanh": ([(9,)], {}),
    "gelu_quick": ([(9,)], {}), "maximum": ([(3, 4), (4,)], {}),
    "clip": ([(9,)], {"low": 0.3, "high": 0.8}), "dropout": ([(4, 5)], {"p": 0.3}),
    "sum": ([(3, 4, 2)], {"axis": (0, -1)}), "mean": ([(3, 4, 2)], {"axis": 1, "keepdims": True}),
    "var": ([(3, 4)], {"axis": 0}), "max": ([(3, 4)], {"axis": 1}), "softmax": ([(3, 4)], {}),
    "logsumexp": ([(3, 4)], {}), "reshape": ([(3, 4)], {"shape": (2, 6)}),
    "transpose": ([(3, 4, 2)], {"axes": (2, 0, -2)}), "getitem": ([(4, 3)], {"index": IDS}),
    "embedding": ([(4, 3)], {"ids": IDS}), "concat": ([(3, 4), (3, 2)], {"axis": -1}),
    "stack": ([(3, 4), (3, 4)], {"axis": 1}), "pad": ([(3, 4)], {"widths": ((1, 0), (2, 3))}),
    "broadcast": ([(3, 1)], {"shape": (2, 3, 4)}), "upsample": ([(2, 2, 2, 3)], {"factor": 3}),
    "matmul": ([(2, 3, 4), (4, 5)], {}), "linear": ([(2, 3, 4), (6, 5), (5,), (2, 3, 2)], {}),
    "conv2d": ([(2, 5, 6, 3), (3, 3, 3, 4), (4,)], {"stride": 2, "padding": 1}),
    "attention": ([(2, 2, 4), (2, 3, 4), (2, 3, 5), (2, 3)], {"mask": LOOK}),
    "layer_norm": ([(2, 3, 4), (4,), (4,)], {}),
    "group_norm": ([(2, 3, 3, 4), (4,), (2, 4)], {"groups": 2}),
    "norm_silu": ([(2, 3, 3, 4), (4,), (2, 4)], {"groups": 2}),
    "conv2d_onto": ([(2, 3, 2, 4), (3, 3, 4, 5), (5,), (2, 5), (2, 3, 2, 5)], {}),
    "upsample_conv2d": ([(2, 3, 2, 4), (3, 3, 4, 5), (5,)], {}),
    "norm_silu_conv2d": (FUSED, {"groups": 4}), "mse": ([(3, 4), (3, 4)], {"weight": np.ones(3)}),
    "cross_entropy": ([(3, 4)], {"labels": np.array([0, 3, 1])}), "recomputed": ([(3, 4)], {}),
}
SPECIAL = {
    "dropout":    lambda x, p: ag.dropout(x, p=p, rng=np.random.default_rng(0)),
    "recomputed": lambda x: ag.recomputed(lambda part: ag.silu(part * part), x)}
COMMON = {                                                # what layers do, by operators and slices
    "numbers beside": ([(3, 4)], lambda x: 1 - 2.0 * x / 3 + x**-0.5 + np.float32(2) * x),
    "slices":         ([(5, 4)], lambda x: x[1:, None, ..., ::2] * x[0, 1]),
    "twice as large": ([(2, 2, 2, 3)], ag.upsample),
    "used twice":     ([(3, 4)], lambda x: x @ x.transpose(1, 0) + (x * x).sum()),
    "two matrices":   ([(2, 3, 4), (2, 4, 3)], lambda x, w: x @ w),
    "no key":         ([(2, 2, 4), (2, 0, 4), (2, 0, 5)], ag.attention),
    "a window as large as the picture": ([(2, 3, 3, 2), (3, 3, 2, 4)], ag.conv2d)}


def gone_through(cupy, function, shapes, options):
    """For the host and for the device: [y, the gradient of each argument]; nothing is counted yet.
    """
    for device in "cpu", "cuda":
        rng = np.random.default_rng(1)
        xs = [Tensor(to_device(rng.uniform(0.2, 1, shape).astype(np.float32), device),
                     requires_grad=True) for shape in shapes]
        given = {key: to_device(value, device) if isinstance(value, np.ndarray) else value
                 for key, value in options.items()}
        cupy.stand_in.clear()
        y = function(*xs, **given)
        y.backward(y * y + 1.0)
        yield [y.data, *(x.grad for x in xs)]


def assert_same(device, host, tolerance=0.0):
    for ours, theirs in zip(device, host, strict=True):
        assert type(ours).__module__ == "cupy"
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_allclose(to_host(ours), theirs, rtol=tolerance, atol=tolerance)


def test_every_op_has_a_case():
    assert CASES.keys() == {name for name in ag.__all__ if getattr(ag, name) not in NO_OPS}


@pytest.mark.parametrize("name", CASES)
def test_an_op_gives_the_numbers_of_the_host_and_never_asks_it(name, cupy):
    function = SPECIAL.get(name, getattr(ag, name))
    host, device = gone_through(cupy, function, *CASES[name])
    assert cupy.stand_in.uploads == cupy.stand_in.downloads == cupy.stand_in.synchronisations == []
    assert_same(device, host, tolerance=1e-6 * (name == "gelu"))      # by a table; by CuPy's erf


@pytest.mark.parametrize("case", COMMON)
def test_common_uses_of_them_too(case, cupy):
    shapes, function = COMMON[case]
    host, device = gone_through(cupy, function, shapes, {})
    assert cupy.stand_in.uploads == cupy.stand_in.downloads == cupy.stand_in.synchronisations == []
    assert_same(device, host)


def test_arrays_of_two_places_do_not_mix(cupy):
    x, y = np.ones(3, np.float32), cupy.asarray(np.ones(3, np.float32))
    for mixed in (lambda: Tensor(x) + Tensor(y), lambda: Tensor(y) * x, lambda: ag.maximum(x, y),
                  lambda: ag.concat(y, x), lambda: ag.linear(y[None], x[:, None])):
        with pytest.raises(TypeError, match="Unsupported type"):
            mixed()


def test_ids_from_the_host_are_checked_before_they_are_sent(cupy):
    table = Tensor(cupy.asarray(np.ones((4, 2), np.float32)))
    assert ag.embedding(table, ids=IDS).shape == (2, 3, 2)
    with pytest.raises(ValueError, match="ids from 0 to 4, the table has rows 0 to 3"):
        ag.embedding(table, ids=np.array([0, 4]))
    with pytest.raises(ValueError, match="labels from 0 to 2, the logits have classes 0 to 1"):
        ag.cross_entropy(table, labels=np.array([0, 1, 2, 0]))


def test_a_gradient_from_the_host_is_sent_and_a_number_on_the_device_can_be_had(cupy):
    x = Tensor(cupy.asarray(np.array([1.0, 2.0], np.float32)), requires_grad=True)
    (x * x).backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(to_host(x.grad), [2, 40])
    assert (x * x).sum().item() == 5.0
