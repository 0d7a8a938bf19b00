"""AdamW, clipping and the learning rate take the steps that PyTorch's take."""

import numpy as np
import pytest

from tinydiff.autograd import Tensor
from tinydiff.optim import AdamW, Flat, clip_grad, learning_rate

torch = pytest.importorskip("torch")

SHAPES = {"w": (3, 4), "b": (4,), "conv.w": (3, 3, 2, 5)}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 2e-6)])
def test_thirty_steps_of_adamw_equal_torchs(dtype, tolerance, rng):
    start = {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    ours = {name: Tensor(a, requires_grad=True) for name, a in start.items()}
    theirs = {name: torch.tensor(a, requires_grad=True) for name, a in start.items()}
    flat = Flat(ours)
    optimizer = AdamW(flat, beta1=0.9, beta2=0.99, eps=1e-8, decay=0.1)
    decaying = [p for p in theirs.values() if p.ndim > 1]     # biases do not
    staying  = [p for p in theirs.values() if p.ndim <= 1]
    reference = torch.optim.AdamW([{"params": decaying, "weight_decay": 0.1},
                                   {"params": staying, "weight_decay": 0.0}],
                                  betas=(0.9, 0.99), eps=1e-8)
    for step in range(1, 31):
        for name, shape in SHAPES.items():
            g = (3 * rng.standard_normal(shape) / step).astype(dtype)
            ours[name].grad += g
            theirs[name].grad = torch.tensor(g)
        lr = learning_rate(step, lr=0.01, warmup=5, steps=30)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        optimizer.step(lr, step)
    for name, p in theirs.items():
        np.testing.assert_allclose(ours[name].data, p.detach().numpy(), rtol=0, atol=tolerance)
        assert np.abs(ours[name].data - start[name]).max() > 0.02


def test_clipping_equals_torchs(rng):
    ours = {name: Tensor(np.zeros(shape), requires_grad=True) for name, shape in SHAPES.items()}
    theirs = {name: torch.zeros(shape, requires_grad=True) for name, shape in SHAPES.items()}
    flat = Flat(ours)
    for name, p in ours.items():
        p.grad += rng.standard_normal(p.shape)
        theirs[name].grad = torch.tensor(p.grad, dtype=torch.float32)
    norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 2.0)
    assert clip_grad(flat, 2.0) == pytest.approx(float(norm), rel=1e-6)
    for name, p in ours.items():
        np.testing.assert_allclose(p.grad, theirs[name].grad.numpy(), rtol=1e-5)


def test_the_cosine_equals_torchs_schedule():
    w = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(1, 51):
        optimizer.step()
        cosine.step()
        assert learning_rate(10 + step, lr=0.2, warmup=10, steps=60) == pytest.approx(
            cosine.get_last_lr()[0], abs=1e-12)
