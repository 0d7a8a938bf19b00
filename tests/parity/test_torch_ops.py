"""Ops equal PyTorch's, values and gradients, with the same arguments."""

import numpy as np
import pytest

from tinydiff import autograd as ag
from tinydiff.nn import sinusoids

torch = pytest.importorskip("torch")
F = torch.nn.functional

MASK = np.array([[True, False, True, True], [False, True, False, False], [True] * 4])
LABELS = np.array([2, 0, 2])


def channels_first(f):
    """A torch function of (N, C, H, W), called with (N, H, W, C)."""
    return lambda x, *rest: f(x.permute(0, 3, 1, 2), *rest).permute(0, 2, 3, 1)


def torch_conv2d(stride, top, bottom, left, right):
    return channels_first(lambda x, w, b: F.conv2d(
        F.pad(x, (left, right, top, bottom)), w.permute(3, 2, 0, 1), b, stride))


X = (2, 5, 7, 6)
CASES = {       # name: (ours, torch's, shapes of the arguments)
    "silu":       (ag.silu, F.silu, [X]),
    "sigmoid":    (ag.sigmoid, torch.sigmoid, [X]),
    "tanh":       (ag.tanh, torch.tanh, [X]),
    "relu":       (ag.relu, F.relu, [X]),
    "gelu":       (ag.gelu, F.gelu, [X]),
    "gelu_tanh":  (ag.gelu_tanh, lambda x: F.gelu(x, approximate="tanh"), [X]),
    "gelu_quick": (ag.gelu_quick, lambda x: x * torch.sigmoid(1.702 * x), [X]),
    "softmax":    (ag.softmax, lambda x: F.softmax(x, dim=-1), [X]),
    "logsumexp":  (ag.logsumexp, lambda x: torch.logsumexp(x, dim=-1), [X]),
    "var":        (lambda x: ag.var(x, axis=1), lambda x: x.var(dim=1, correction=0), [X]),
    "matmul":     (ag.matmul, torch.matmul, [(2, 1, 3, 5), (4, 5, 2)]),
    "upsample":   (lambda x: ag.upsample(x, factor=3),
                   channels_first(lambda x: F.interpolate(x, scale_factor=3)), [X]),
    "layer_norm": (ag.layer_norm, lambda x, a, b: F.layer_norm(x, (6,), a, b), [X, (6,), (6,)]),
    "group_norm": (lambda x, a, b: ag.group_norm(x, a, b, groups=3),
                   channels_first(lambda x, a, b: F.group_norm(x, 3, a, b)), [X, (6,), (6,)]),
    "conv2d 3 x 3": (lambda x, w, b: ag.conv2d(x, w, b, padding=1),
                     torch_conv2d(1, 1, 1, 1, 1), [X, (3, 3, 6, 4), (4,)]),
    "conv2d 1 x 1": (ag.conv2d, torch_conv2d(1, 0, 0, 0, 0), [X, (1, 1, 6, 4), (4,)]),
    "conv2d halved, one-sided":
        (lambda x, w, b: ag.conv2d(x, w, b, stride=2, padding=((0, 1), (0, 1))),
         torch_conv2d(2, 0, 1, 0, 1), [X, (3, 3, 6, 4), (4,)]),
    "conv2d 2 x 5, stride 3":
        (lambda x, w, b: ag.conv2d(x, w, b, stride=3, padding=((2, 0), (1, 3))),
         torch_conv2d(3, 2, 0, 1, 3), [X, (2, 5, 6, 4), (4,)]),
    "attention":  (ag.attention, F.scaled_dot_product_attention,
                   [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)]),
    "attention, masked":
        (lambda q, k, v: ag.attention(q, k, v, mask=MASK),
         lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.tensor(MASK)),
         [(2, 3, 5), (2, 4, 5), (2, 4, 5)]),
    "embedding":  (lambda table: ag.embedding(table, ids=LABELS),
                   lambda table: F.embedding(torch.tensor(LABELS), table), [(5, 3)]),
    "mse":        (ag.mse, F.mse_loss, [X, X]),
    "cross_entropy": (lambda x: ag.cross_entropy(x, labels=LABELS),
                      lambda x: F.cross_entropy(x, torch.tensor(LABELS)), [(3, 5)]),
}
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}   # of the largest number of the array


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_an_op_equals_torchs(name, dtype, rng):
    ours, theirs, shapes = CASES[name]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    tensors = [ag.Tensor(a, requires_grad=True) for a in arrays]
    torches = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = ours(*tensors)
    z = theirs(*torches)
    dy = rng.standard_normal(y.shape).astype(dtype)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    pairs = [(y.data, z.detach()), *((a.grad, b.grad) for a, b in zip(tensors, torches))]
    for a, b in pairs:
        scale = max(1.0, float(b.abs().max()))
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=TOLERANCE[dtype] * scale)


def test_sinusoids_are_those_of_a_torch_implementation():
    t = torch.tensor([0.0, 1, 500, 1000])
    rate = torch.exp(-np.log(10_000) * torch.arange(16) / 16)
    expected = torch.cat([torch.sin(t[:, None] * rate), torch.cos(t[:, None] * rate)], dim=1)
    np.testing.assert_allclose(sinusoids(t.numpy(), 32), expected.numpy(), atol=1e-4)
