"""Every op of tinydiff.autograd: its values by another formula, its gradients by differences."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes
from numpy.lib.stride_tricks import sliding_window_view

from tinydiff import autograd as ag
from tinydiff.autograd import Tensor, gradcheck

NOT_OPS = {"Tensor", "gradcheck", "no_grad", "op", "recomputed"}
MASK = np.array([[True, False, True, True], [False] * 4, [True] * 4])     # row 1 may look nowhere
IDS = np.array([[4, 0, 4], [1, 4, 2]])                    # row 4 is taken three times
LABELS = np.array([2, 0, 2])

erf = np.vectorize(math.erf)


@dataclass(frozen=True)
class Case:
    """One call of an op, and what it must give."""

    op: str
    call: Callable                   # Tensors -> Tensor
    formula: Callable                # float64 arrays -> array, written in another way
    shapes: tuple                    # of the arguments
    low: float = -2.0                # the arguments are drawn from [low, high]
    high: float = 2.0

    def arguments(self, dtype=np.float64):
        rng = np.random.default_rng(7)
        return [rng.uniform(self.low, self.high, shape).astype(dtype) for shape in self.shapes]


def softmax(x, axis=-1):
    return np.exp(x) / np.exp(x).sum(axis, keepdims=True)


def attention(q, k, v, mask=None, scale=None, bias=None):
    """One query at a time, over the keys it may look at."""
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    for i in np.ndindex(q.shape[:-1]):
        seen = np.arange(k.shape[-2]) if mask is None else np.flatnonzero(mask[i[-1]])
        if seen.size:
            keys, values = k[i[:-1]][seen], v[i[:-1]][seen]
            lean = np.broadcast_to(0.0 if bias is None else bias, (*q.shape[:-1], k.shape[-2]))
            out[i] = softmax(keys @ q[i] * (scale or q.shape[-1] ** -0.5) + lean[i][seen]) @ values
    return out


def conv2d(x, w, b=0.0, stride=1, padding=((0, 0), (0, 0))):
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    windows = sliding_window_view(padded, w.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nijcuv,uvco->nijo", windows, w) + b


def normalised(x, axis, eps):
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps)


def group_norm(x, scale, shift, groups, eps=1e-5):
    parts = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    return normalised(parts, (1, 3), eps).reshape(x.shape) * scale + shift


def nll(logits):
    return -np.mean([np.log(softmax(row)[label]) for row, label in zip(logits, LABELS)])


def weighted_mse(x, y):
    return np.mean([w * ((a - b) ** 2).mean() for w, a, b in zip([0.5, 2.0, 0.0], x, y)])


def dropped(x):
    """Each number has 16 bits of its own, and goes where they count to less than 0.3 · 2¹⁶."""
    seed, y = int(np.random.default_rng(3).integers(2**63)), x.ravel().copy()
    blocks = np.random.Philox(key=seed, counter=2**256 - 1).random_raw(-(-x.size // 16) * 4)
    for i, word in enumerate(blocks.tolist()):
        for lane in range(4):
            y[4 * i + lane:4 * i + lane + 1] *= (word >> 16 * lane) % 2**16 >= 19661
    return y.reshape(x.shape) / (1 - 19661 / 2**16)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def logistic(x):
    return 1 / (1 + np.exp(-x))


ODD = ((3, 5, 7),)
CASES = [
    Case("add", lambda x, y: x + y, np.add, ((3, 1, 5), (4, 1))),
    Case("sub", lambda x, y: x - y, np.subtract, ((3, 1, 5), (4, 1))),
    Case("sub", lambda x: 1.5 - x, lambda x: 1.5 - x, ODD),
    Case("mul", lambda x, y: x * y, np.multiply, ((3, 1, 5), (4, 1))),
    Case("div", lambda x, y: x / y, np.divide, ((3, 1, 5), (4, 1)), 0.5),
    Case("div", lambda x: 1.5 / x, lambda x: 1.5 / x, ODD, 0.5),
    Case("neg", lambda x: -x, np.negative, ODD),
    Case("pow", lambda x: x**3, lambda x: x * x * x, ODD),
    Case("pow", lambda x: x**0, np.ones_like, ODD),
    Case("pow", lambda x: x**-1.5, lambda x: 1 / (x * np.sqrt(x)), ODD, 0.5),
    Case("exp", ag.exp, np.exp, ODD),
    Case("log", ag.log, np.log, ODD, 0.5),
    Case("sqrt", ag.sqrt, np.sqrt, ODD, 0.5),
    Case("sin", ag.sin, np.sin, ODD),
    Case("cos", ag.cos, np.cos, ODD),
    Case("tanh", ag.tanh, np.tanh, ODD),
    Case("sigmoid", ag.sigmoid, logistic, ODD),
    Case("silu", ag.silu, lambda x: x * logistic(x), ODD),
    Case("relu", ag.relu, lambda x: np.where(x > 0, x, 0), ODD),
    Case("gelu", ag.gelu, lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))), ODD, -7, 7),
    Case("gelu_tanh", ag.gelu_tanh, gelu_tanh, ODD),
    Case("gelu_quick", ag.gelu_quick, lambda x: x * logistic(1.702 * x), ODD),
    Case("maximum", ag.maximum, np.maximum, ((3, 1, 5), (4, 1))),
    Case("maximum", lambda x: ag.maximum(0.5, x), lambda x: np.maximum(0.5, x), ODD),
    Case("clip", lambda x: ag.clip(x, low=-1, high=0.5), lambda x: np.clip(x, -1, 0.5), ODD),
    Case("dropout", lambda x: ag.dropout(x, p=0.3, rng=np.random.default_rng(3)), dropped, ODD),
    Case("sum", ag.sum, lambda x: math.fsum(x.ravel()), ODD),
    Case("mean", lambda x: ag.mean(x, axis=(0, -1)), lambda x: x.mean((0, 2)), ODD),
    Case("var", lambda x: ag.var(x, axis=1), lambda x: np.var(x, 1), ODD),
    Case("max", lambda x: ag.max(x, axis=-1), lambda x: np.sort(x)[..., -1], ODD),
    Case("softmax", ag.softmax, softmax, ODD),
    Case("softmax", lambda x: ag.softmax(x, axis=1), lambda x: softmax(x, 1), ODD),
    Case("logsumexp", ag.logsumexp, lambda x: np.log(np.exp(x).sum(-1)), ODD),
    Case("reshape", lambda x: x.reshape(7, -1), lambda x: x.ravel().reshape(7, 15), ODD),
    Case("transpose", lambda x: x.transpose(2, 0, -2), lambda x: np.einsum("abc->cab", x), ODD),
    Case("getitem", lambda x: x[1:, ::2], lambda x: x[1:, ::2], ODD),
    Case("concat", lambda x, y: ag.concat(x, y, x, axis=1),
         lambda x, y: np.hstack([x, y, x]), ((2, 3, 5), (2, 4, 5))),
    Case("stack", lambda x, y: ag.stack(x, y, axis=1),
         lambda x, y: np.dstack([x, y]).transpose(0, 2, 1), ((3, 5), (3, 5))),
    Case("pad", lambda x: ag.pad(x, widths=((1, 0), (0, 2), (3, 0))),
         lambda x: np.pad(x, ((1, 0), (0, 2), (3, 0))), ODD),
    Case("broadcast", lambda x: ag.broadcast(x, shape=(4, 3, 5)),
         lambda x: x + np.zeros((4, 3, 5)), ((3, 1),)),
    Case("upsample", lambda x: ag.upsample(x, factor=3),
         lambda x: x.repeat(3, axis=1).repeat(3, axis=2), ((2, 3, 5, 3),)),
    Case("embedding", lambda table: ag.embedding(table, ids=IDS),
         lambda table: np.eye(5)[IDS] @ table, ((5, 3),)),
    Case("matmul", lambda x, w: x @ w,
         lambda x, w: np.einsum("abc,cd->abd", x, w), ((3, 5, 7), (7, 2))),
    Case("matmul", lambda x, w: x @ w,
         lambda x, w: np.einsum("abij,bjk->abik", x, w), ((2, 3, 5, 7), (3, 7, 1))),
    Case("conv2d", lambda x, w, b: ag.conv2d(x, w, b, stride=2, padding=1),
         lambda x, w, b: conv2d(x, w, b, 2, ((1, 1), (1, 1))), ((2, 7, 5, 3), (3, 3, 3, 2), (2,))),
    Case("conv2d", lambda x, w: ag.conv2d(x, w, None), conv2d, ((2, 4, 5, 3), (3, 2, 3, 2))),
    Case("attention", ag.attention, attention, ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 3))),
    Case("attention", lambda q, k, v: ag.attention(q, k, v, mask=MASK),
         lambda q, k, v: attention(q, k, v, MASK), ((2, 3, 5), (2, 4, 5), (2, 4, 3))),
    Case("attention", lambda q, k, v, bias: ag.attention(q, k, v, bias, mask=MASK, scale=0.7),
         lambda q, k, v, bias: attention(q, k, v, MASK, 0.7, bias),
         ((2, 2, 3, 5), (2, 2, 4, 5), (2, 2, 4, 3), (2, 3, 4))),      # (h, L, M), one for all N
    Case("group_norm", lambda x, a, b: ag.group_norm(x, a, b, groups=3),
         lambda x, a, b: group_norm(x, a, b, 3), ((2, 3, 5, 6), (6,), (6,))),
    Case("group_norm", lambda x, a, b: ag.group_norm(x, a, b, groups=3),
         lambda x, a, b: group_norm(x, a[:, None, None], b[:, None, None], 3),
         ((2, 3, 5, 6), (2, 6), (2, 6))),                 # each image its own scale and shift
    Case("linear", ag.linear, lambda x, w, b: x @ w + b, ((2, 3, 5), (5, 4), (4,))),
    Case("linear", ag.linear, lambda x, w, b, skip, add:
         np.concatenate([x, skip], -1) @ w + b + add, ((3, 5), (7, 4), (4,), (3, 2), (3, 4))),
    Case("norm_silu_conv2d",
         lambda x, a, b, w, *more: ag.norm_silu_conv2d(x, a, b, w, *more, groups=3),
         lambda x, a, b, w, bias, skip, late, add: conv2d(
             (z := group_norm(np.concatenate([x, skip], -1), a, b, 3)) * logistic(z), w, bias,
             1, ((1, 1), (1, 1))) + late[:, None, None] + add,
         ((2, 3, 5, 4), (6,), (6,), (3, 3, 6, 5), (5,), (2, 3, 5, 2), (2, 5), (2, 3, 5, 5))),
    Case("norm_silu", lambda x, a, b: ag.norm_silu(x, a, b, groups=3),
         lambda x, a, b: (z := group_norm(x, a, b, 3)) * logistic(z), ((2, 3, 5, 6), (6,), (6,))),
    Case("conv2d_onto", ag.conv2d_onto, lambda x, w, b, late, add: conv2d(
        x, w, b, 1, ((1, 1), (1, 1))) + late[:, None, None] + add,
         ((2, 3, 5, 4), (3, 3, 4, 5), (5,), (2, 5), (2, 3, 5, 5))),
    Case("upsample_conv2d", ag.upsample_conv2d, lambda x, w, b: conv2d(
        np.kron(x, np.ones((1, 2, 2, 1))), w, b, 1, ((1, 1), (1, 1))),
         ((2, 3, 2, 4), (3, 3, 4, 5), (5,))),
    Case("add_to_pixels", ag.add_to_pixels, lambda x, late: x + late[:, None, None],
         ((2, 3, 2, 4), (2, 4))),
    Case("cast", lambda x: ag.cast(x, dtype=x.dtype), np.array, ((3, 5),)),
    Case("layer_norm", ag.layer_norm,
         lambda x, a, b: normalised(x, -1, 1e-5) * a + b, ((3, 5, 7), (7,), (7,))),
    Case("mse", ag.mse, lambda x, y: ((x - y) ** 2).sum() / x.size, ((3, 5, 7), (3, 5, 7))),
    Case("mse", lambda x, y: ag.mse(x, y, weight=np.array([0.5, 2.0, 0.0])), weighted_mse,
         ((3, 5, 7), (3, 5, 7))),
    Case("cross_entropy", lambda x: ag.cross_entropy(x, labels=LABELS), nll, ((3, 5),)),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)


def test_every_op_has_a_case():
    assert {case.op for case in CASES} == set(ag.__all__) - NOT_OPS


@each_case
def test_values_agree_with_another_formula(case):
    arrays = case.arguments()
    y = case.call(*map(Tensor, arrays))
    np.testing.assert_allclose(y.data, case.formula(*arrays), rtol=1e-12, atol=1e-13)


@each_case
def test_gradients_agree_with_central_differences(case):
    assert gradcheck(case.call, *case.arguments()) < 1e-7


@each_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(case, dtype):
    tensors = [Tensor(a, requires_grad=True) for a in case.arguments(dtype)]
    y = case.call(*tensors)
    exact = case.formula(*case.arguments())
    np.testing.assert_allclose(y.data, exact, rtol=2e-4, atol=1e-5)
    y.backward(np.ones(y.shape))
    assert {y.dtype, *(x.grad.dtype for x in tensors)} == {np.dtype(dtype)}


@each_case
def test_arguments_keep_their_numbers(case):
    tensors = [Tensor(a, requires_grad=True) for a in case.arguments()]
    y = case.call(*tensors)
    dy = np.ones(y.shape)
    y.backward(dy)
    for x, a in zip(tensors, case.arguments()):
        np.testing.assert_array_equal(x.data, a)
    np.testing.assert_array_equal(dy, 1)


@settings(max_examples=25)
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3),
       f=st.sampled_from([ag.add, ag.sub, ag.mul, ag.div, ag.maximum]))
def test_gradients_of_broadcast_arguments(shapes, f):
    rng = np.random.default_rng(1)
    x, y = (rng.uniform(0.5, 2, shape) for shape in shapes.input_shapes)
    assert gradcheck(f, x, y) < 1e-7


@settings(max_examples=25)
@given(shapes=mutually_broadcastable_shapes(signature="(l,c),(c,o)->(l,o)", max_dims=2, max_side=3))
def test_gradients_of_products_with_broadcast_batches(shapes):
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(shape) for shape in shapes.input_shapes)
    assert gradcheck(ag.matmul, x, w) < 1e-7


@settings(max_examples=40)
@given(data=st.data(), shape=array_shapes(max_dims=4, max_side=3), keepdims=st.booleans(),
       name=st.sampled_from(["sum", "mean", "var", "max", "logsumexp"]))
def test_reductions_over_any_axes(data, shape, keepdims, name):
    axes = st.integers(-len(shape), len(shape) - 1)
    axis = data.draw(st.none() | axes | st.lists(
        axes, min_size=1, max_size=4, unique_by=lambda i: i % len(shape)).map(tuple))
    x = np.random.default_rng(1).permutation(np.linspace(-2, 2, math.prod(shape))).reshape(shape)
    if name == "logsumexp":
        expected = np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))
    else:
        expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
    f = lambda x: getattr(ag, name)(x, axis=axis, keepdims=keepdims)
    y = f(Tensor(x)).data
    np.testing.assert_allclose(y, expected, atol=1e-14)
    assert y.shape == expected.shape
    assert gradcheck(f, x) < 1e-7


INDICES = [0, -1, np.int64(2), slice(1, None, 2), slice(None, None, -1), ..., None, (1, 2),
           (..., 0), (slice(None), None, 3), (None, ..., 1, None), (slice(2), slice(-3, None)),
           [0, 2, 0], np.array([1, 1, 1]), np.array([[0, 2], [2, -1]]),
           (np.array([0, 2, 2]), np.array([4, 1, 1])), (slice(None), np.array([3, 3])),
           (np.array([0, 0]), ..., 1), (0, None, np.array([1, 1])), np.array([True, False, True])]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_getitem_takes_what_numpy_takes_and_gives_gradients_home(index):
    x = np.random.default_rng(0).standard_normal((3, 5, 2))
    np.testing.assert_array_equal(Tensor(x)[index].data, x[index])
    assert gradcheck(lambda x: x[index], x) < 1e-7


PADDINGS = {"none": ((0, 0), (0, 0)), "same": ((1, 1), (1, 1)), "bottom right": ((0, 1), (0, 1)),
            "top": ((2, 0), (0, 0)), "wider than the window": ((1, 3), (5, 0))}


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("K", [1, 2, 3, 5])
@pytest.mark.parametrize("padding", PADDINGS)
def test_conv2d_of_any_stride_padding_and_window(K, padding, stride, rng):
    x, w, b = rng.standard_normal((2, 7, 5, 2)), rng.standard_normal((K, K, 2, 3)), np.ones(3)
    f = lambda x, w, b: ag.conv2d(x, w, b, stride=stride, padding=PADDINGS[padding])
    expected = conv2d(x, w, b, stride, PADDINGS[padding])
    np.testing.assert_allclose(f(x, w, b).data, expected, atol=1e-12)
    assert gradcheck(f, x, w, b) < 1e-7


def test_a_padding_that_is_one_number_goes_all_around(rng):
    x, w = rng.standard_normal((1, 4, 3, 2)), rng.standard_normal((3, 3, 2, 1))
    np.testing.assert_array_equal(ag.conv2d(x, w, padding=2).data,
                                  ag.conv2d(x, w, padding=((2, 2), (2, 2))).data)


def test_a_query_that_may_look_nowhere_gets_zeros_and_sends_no_gradient(rng):
    q, k, v = (Tensor(rng.standard_normal(s), requires_grad=True) for s in ((3, 5), (4, 5), (4, 2)))
    y = ag.attention(q, k, v, mask=MASK)
    y.backward(np.ones(y.shape))
    np.testing.assert_array_equal(y.data[1], 0)
    np.testing.assert_array_equal(q.grad[1], 0)
    assert np.abs(q.grad[0]).min() > 0


@pytest.mark.parametrize("op", [lambda x: ag.gelu(x), lambda x: ag.mul(x, x),
                                lambda x: ag.layer_norm(x, x[0, 0], x[0, 1])],
                         ids=["gelu", "mul", "layer_norm"])
def test_without_a_record_an_op_may_take_another_way_to_the_same_numbers(rng, op):
    x = rng.standard_normal((3, 70, 400)).astype(np.float32)
    with ag.no_grad():
        fast = op(ag.Tensor(x)).data
    slow = op(ag.Tensor(x, requires_grad=True)).data
    assert fast.dtype == slow.dtype == np.float32
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-5)
