"""A small convolutional classifier: the independent judge of what a picture shows."""

from dataclasses import dataclass

import numpy as np

from tinydiff import images
from tinydiff.autograd import cross_entropy, no_grad, silu, softmax
from tinydiff.backend import alongside
from tinydiff.nn import Conv2d, Linear, Module
from tinydiff.optim import AdamW, Flat, learning_rate


@dataclass(frozen=True)
class ClassifierConfig:
    """The shape of a Classifier."""

    size:     int = 28                    # height and width of a picture, pixels
    channels: int = 1                     # of a picture: 1 grey, 3 RGB
    classes:  int = 10                    # what can be told apart
    widths:   tuple = (16, 32, 64)        # channels behind each halving: 28 -> 14 -> 7 -> 4 pixels
    features: int = 64                    # numbers that describe a picture, just before the logits


class Classifier(Module):
    """x (N, size, size, channels) in [-1, 1] -> logits (N, classes).

    Raises ValueError for pictures of another size.
    """

    def __init__(self, config, *, rng):
        self.config = config
        side, c, self.convs = config.size, config.channels, []
        for width in config.widths:
            self.convs.append(Conv2d(c, width, 3, stride=2, rng=rng))
            side, c = (side + 1) // 2, width
        self.describe = Linear(side * side * c, config.features, rng=rng)
        self.decide = Linear(config.features, config.classes, rng=rng, scale=0.0)

    def __call__(self, x):
        return self.decide(self.features(x))

    def features(self, x):
        """What the logits are a linear function of: (N, size, size, channels) -> (N, features)."""
        c, shape = self.config, tuple(x.shape)
        if len(shape) != 4 or shape[1:] != (c.size, c.size, c.channels):
            raise ValueError(f"Classifier: expected x (N, {c.size}, {c.size}, {c.channels}), "
                             f"got {shape}")
        for conv in self.convs:
            x = silu(conv(x))                             # half the height and width
        return silu(self.describe(x.reshape(len(x), -1)))

    def predict(self, x):
        """The probability of each class, on arrays: x (N, …) in [-1, 1] -> (N, classes)."""
        return in_batches(lambda part: softmax(self(part)), x)


def in_batches(network, x, batch=500):
    """network(x) on arrays, `batch` pictures at a time, remembering nothing."""
    with no_grad():
        return np.concatenate([network(x[i:i + batch]).data for i in range(0, len(x), batch)])


def fit(classifier, pictures, labels, *, steps, rng, batch=100, lr=3e-3, shift=2):
    """Teach a Classifier uint8 pictures (N, H, W, C) and their labels (N,); return its last loss.

    Every picture is moved by up to `shift` pixels each way, so that where a digit stands does not
    matter.
    """
    flat = Flat(classifier.parameters())
    optimizer = AdamW(flat, beta2=0.999, decay=0.01)
    for step in range(1, steps + 1):
        index = rng.integers(len(pictures), size=batch)
        x = images.to_float(alongside(moved(pictures[index], shift, rng=rng), flat.data))
        loss = cross_entropy(classifier(x), labels=labels[index])
        loss.backward()
        optimizer.step(learning_rate(step, lr=lr, warmup=steps // 20, steps=steps), step)
    return loss.item()


def moved(pictures, shift, *, rng):
    """Each picture (N, H, W, C) moved by its own whole pixels in ±shift; zeros come in behind."""
    N, H, W, _ = pictures.shape
    wide = np.pad(pictures, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    top, left = rng.integers(2 * shift + 1, size=(2, N, 1))
    rows, columns = top + np.arange(H), left + np.arange(W)           # (N, H), (N, W)
    return wide[np.arange(N)[:, None, None], rows[:, :, None], columns[:, None, :]]
