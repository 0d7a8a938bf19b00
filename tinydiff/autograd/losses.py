"""What training makes small: one number for how far a prediction is from its target."""

import numpy as np

from tinydiff.autograd.tensor import op
from tinydiff.backend import alongside, array_module


@op
def mse(x, target, *, weight=None):
    """mean((x − target)²); weight (N,) multiplies each image's own mean.  DDPM Eq. 14

    Raises ValueError where x and target differ in shape, or weight is not one number an image.
    """
    if x.shape != target.shape or (weight is not None and weight.shape != x.shape[:1]):
        given = "" if weight is None else f", weight {weight.shape}"
        raise ValueError(f"mse: x {x.shape}, target {target.shape}{given} do not fit: expected "
                         "x (N, …), target like x, weight (N,)")
    away = x - target
    if weight is None:
        return (away * away).mean(), lambda dy: ((g := dy * away * (2 / away.size)), lambda: -g)
    weight = weight.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    weighted = weight * away

    def vjp(dy):
        g = dy * weighted * (2 / away.size)
        return g, lambda: -g

    return (weighted * away).mean(), vjp


@op
def cross_entropy(logits, *, labels):
    """mean(−log softmax(logits)[label]): logits (N, classes), labels (N,) of integers

    Raises ValueError where the shapes do not fit or a label is no class.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"cross_entropy: logits {logits.shape} and labels {labels.shape} do not "
                         "fit: expected (N, classes) and (N,)")
    if array_module(labels) is np and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(f"cross_entropy: labels from {labels.min()} to {labels.max()}, "
                         f"the logits have classes 0 to {logits.shape[1] - 1}")
    xp, labels = array_module(logits), alongside(labels, logits)
    rows = xp.arange(len(labels))
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))

    def vjp(dy):
        g = xp.exp(log_p)
        g[rows, labels] -= 1
        return (g * (dy / len(labels)),)

    return -log_p[rows, labels].mean(), vjp
