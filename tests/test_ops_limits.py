"""Ops at their limits: ties, numbers of ten thousand, NaN, and shapes that do not fit."""

import numpy as np
import pytest

from tinydiff import autograd as ag
from tinydiff.autograd import Tensor


def test_equal_numbers_share_the_gradient_of_the_largest():
    x, y = (Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True) for _ in range(2))
    ag.maximum(x, y * np.array([1.0, 2.0, 0.5])).sum().backward()
    np.testing.assert_array_equal(x.grad, [0.5, 0, 1])
    np.testing.assert_array_equal(y.grad, [0.5, 2, 0])
    z = Tensor(np.array([3.0, 1.0, 3.0]), requires_grad=True)
    ag.max(z).backward()
    np.testing.assert_array_equal(z.grad, [0.5, 0, 0.5])


EXTREMES = {
    "sigmoid":    (ag.sigmoid, [0, 0.5, 1], [0, 0.25, 0]),
    "silu":       (ag.silu, [0, 0, 1e4], [0, 0.5, 1]),
    "gelu":       (ag.gelu, [0, 0, 1e4], [0, 0.5, 1]),
    "gelu_tanh":  (ag.gelu_tanh, [0, 0, 1e4], [0, 0.5, 1]),
    "gelu_quick": (ag.gelu_quick, [0, 0, 1e4], [0, 0.5, 1]),
    "tanh":       (ag.tanh, [-1, 0, 1], [0, 1, 0]),
    "softmax":    (lambda x: ag.softmax(x)[2], 1, [0, 0, 0]),
    "logsumexp":  (ag.logsumexp, 1e4, [0, 0, 1]),
    "cross_entropy": (lambda x: ag.cross_entropy(x.reshape(1, 3), labels=np.array([0])), 2e4,
                      [-1, 0, 1]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXTREMES)
def test_nothing_overflows_at_ten_thousand(name, dtype):
    f, value, gradient = EXTREMES[name]
    x = Tensor(np.array([-1e4, 0, 1e4], dtype), requires_grad=True)
    with np.errstate(under="ignore"):                     # e^-10000 is zero, and may be
        y = f(x)
        y.backward(np.ones(y.shape))
    np.testing.assert_allclose(y.data, value)
    np.testing.assert_allclose(x.grad, gradient)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attention_to_a_far_louder_key_returns_its_value(dtype):
    q, k = np.array([[100]], dtype), np.array([[-100], [0], [100]], dtype)
    v = np.array([[1], [2], [3]], dtype)
    np.testing.assert_array_equal(ag.attention(q, k, v).data, [[3]])


def test_gelu_lets_nan_through_to_the_loss():
    x = np.array([np.nan, 0.0])
    np.testing.assert_array_equal(ag.gelu(x).data, x)


def of(*shape):
    return np.ones(shape)


BAD = [
    (lambda: ag.add(of(3), of(4)), r"\(3,\) \(4,\)"),
    (lambda: ag.matmul(of(2, 3), of(4, 5)), r"x \(2, 3\) and w \(4, 5\)"),
    (lambda: ag.matmul(of(3), of(3, 5)), r"x \(3,\) and w \(3, 5\)"),
    (lambda: ag.conv2d(of(1, 5, 5, 3), of(3, 3, 4, 2)), "x has 3 channels, w expects 4"),
    (lambda: ag.conv2d(of(1, 5, 2, 3), of(3, 3, 3, 2)), r"window of 3 does not .* 2 \+ 0 \+ 0"),
    (lambda: ag.conv2d(of(5, 5, 3), of(3, 3, 3, 2)), r"\(5, 5, 3\), \(3, 3, 3, 2\)"),
    (lambda: ag.conv2d(of(1, 5, 5, 0), of(3, 3, 0, 2)), r"w has shape \(3, 3, 0, 2\)"),
    (lambda: ag.conv2d(of(1, 5, 5, 1), of(3, 3, 1, 2), of(3)),
     r"b has shape \(3,\), w has 2 output channels"),
    (lambda: ag.attention(of(2, 3), of(4, 5), of(4, 3)), r"q \(2, 3\), k \(4, 5\)"),
    (lambda: ag.attention(of(2, 3), of(4, 3), of(5, 3)), r"k \(4, 3\), v \(5, 3\)"),
    (lambda: ag.group_norm(of(1, 4, 6), of(6), of(6), groups=4), "6 channels .* 4 groups"),
    (lambda: ag.embedding(of(5, 2), ids=np.array([0, 5])), "0 to 5, .* rows 0 to 4"),
    (lambda: ag.embedding(of(5, 2), ids=np.array([-1])), "-1 to -1, .* rows 0 to 4"),
    (lambda: ag.concat(of(2, 3), of(3, 3)), "size 2 .* size 3"),
    (lambda: ag.mse(of(2, 3), of(2, 1)), r"x \(2, 3\), target \(2, 1\)"),
    (lambda: ag.mse(of(2, 3), of(2, 3), weight=of(1)), r"x \(2, 3\), .* weight \(1,\)"),
    (lambda: ag.cross_entropy(of(2, 3), labels=of(3)), r"logits \(2, 3\) and labels \(3,\)"),
    (lambda: ag.cross_entropy(of(1, 3), labels=np.array([3])), "3 to 3, .* classes 0 to 2"),
    (lambda: ag.dropout(of(3), p=1, rng=None), "0 ≤ p < 1, got 1"),
]


@pytest.mark.parametrize(("call", "both"), BAD, ids=[both for _, both in BAD])
def test_what_does_not_fit_is_refused_naming_both(call, both):
    with pytest.raises(ValueError, match=both):
        call()


@pytest.mark.parametrize(("call", "error", "says"), [
    (lambda x: ag.stack([x, x]), ValueError, r"write stack\(\*xs\)"),
    (lambda x: ag.concat([x, x]), ValueError, r"write concat\(\*xs\)"),
    (lambda x: ag.mse(of(2, 3), target=x), TypeError, "target= is one"),
    (lambda x: np.asarray(x), TypeError, "its array is x.data"),
    (lambda x: ag.conv2d(of(1, 5, 5, 3), of(3, 3, 3, 2), stride=0), ValueError, "1, got 0"),
    (lambda x: ag.Tensor([1, 2], requires_grad=True), ValueError, "needs floats, got int64"),
])
def test_what_would_go_wrong_in_silence_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call(ag.Tensor(of(2, 3)))


def test_a_mask_of_whole_numbers_keeps_the_dtype():
    q = of(2, 3, 4).astype(np.float32)
    mask = np.tril(np.ones((3, 3), int))
    masked = ag.attention(q, q, q, mask=mask)
    assert masked.dtype == np.float32
    np.testing.assert_array_equal(masked.data, ag.attention(q, q, q, mask=mask > 0).data)


def test_norms_of_no_pictures_are_no_pictures():
    x, c = np.zeros((0, 4, 4, 8), np.float32), np.ones(8, np.float32)
    assert ag.group_norm(x, c, c, groups=2).shape == x.shape


def test_convolution_takes_its_padding_as_a_numpy_number():
    x, w = of(1, 5, 5, 3), of(3, 3, 3, 2)
    np.testing.assert_array_equal(ag.conv2d(x, w, padding=np.int64(1)).data,
                                  ag.conv2d(x, w, padding=1).data)


@pytest.mark.parametrize(("change", "message"), [
    ({"w": (3, 3, 16, 5)},      r"x has 8 channels with skip's, w is \(3, 3, 16, 5\)"),
    ({"w": (5, 5, 8, 5)},       r"expected x \(N, H, W, C\) and w \(3, 3, 8, O\)"),
    ({"b": (4,)},               r"b has shape \(4,\), expected \(5,\)"),
    ({"late": (1, 5)},          r"late has shape \(1, 5\), expected \(2, 5\)"),
    ({"add": (1, 6, 6, 5)},     r"add has shape \(1, 6, 6, 5\), expected \(2, 6, 6, 5\)"),
    ({"skip": (2, 6, 5, 8), "w": (3, 3, 16, 5)}, r"skip has shape \(2, 6, 5, 8\), expected"),
    ({"groups": 3},             "8 channels cannot be shared out among 3 groups"),
])
def test_a_fused_convolution_refuses_shapes_that_do_not_fit(change, message):
    shapes = {"x": (2, 6, 6, 8), "scale": (8,), "shift": (8,), "w": (3, 3, 8, 5), "b": (5,),
              "skip": None, "late": (2, 5), "add": (2, 6, 6, 5)}
    groups = change.pop("groups", 4)
    arrays = [shape and np.zeros(shape, np.float32) for shape in (shapes | change).values()]
    with pytest.raises(ValueError, match=message):
        ag.norm_silu_conv2d(*arrays, groups=groups)
