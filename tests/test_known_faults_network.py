"""Faults found in other implementations, on the network's side: a test keeps each of them out."""

import numpy as np

from tinydiff.autograd import Tensor
from tinydiff.models import UNet, UNetConfig
from tinydiff.nn import Linear, Module, sinusoids
from tinydiff.optim import EMA, Flat


def test_the_time_embedding_of_a_row_depends_on_its_own_t_and_not_on_its_place():
    """A table sliced by batch size gave row k of a batch the offset k, and t/T on top."""
    t = np.array([700, 3, 700, 42])
    waves = sinusoids(t, 32)
    for row, alone in zip(waves, t):
        np.testing.assert_array_equal(row, sinusoids(np.array([alone]), 32)[0])
    np.testing.assert_array_equal(waves[0], waves[2])
    assert np.abs(waves[0] - waves[3]).max() > 0.5


def test_an_image_is_denoised_alike_alone_and_anywhere_in_a_batch(rng):
    """The same fault, seen from outside: training used row k's offset, sampling always row 0's."""
    unet = UNet(UNetConfig(base=8, heads=2, groups=4), rng=rng).astype(np.float64)
    for p in unet.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape)
    x, t = rng.standard_normal((4, 7, 7, 1)), np.array([700, 3, 999, 42])
    batch = unet.predict(x, t)
    for k in range(4):
        np.testing.assert_allclose(batch[k], unet.predict(x[k:k + 1], t[k])[0], atol=1e-12)
    later = unet.predict(x, np.array([700, 3, 999, 43]))
    np.testing.assert_allclose(later[:3], batch[:3], atol=1e-12)
    assert np.abs(later[3] - batch[3]).max() > 1e-4       # and t is heard at all


def test_ema_averages_parameters_and_nothing_else(rng):
    """Averaged buffers, among them beta and alpha_bar, gave black images."""
    class Network(Module):
        def __init__(self):
            self.alpha_bar = np.linspace(1, 0, 5)         # a table, not a parameter
            self.linear = Linear(2, 3, rng=rng)

    network = Network()
    table, flat = network.alpha_bar.copy(), Flat(network.parameters())
    ema = EMA(flat, decay=0.9)
    flat.data += 1
    ema.update(1)
    assert ema.data.size == network.count() == 9
    assert list(flat.views(ema.data)) == ["linear.w", "linear.b"]
    np.testing.assert_array_equal(network.alpha_bar, table)


def test_ema_has_forgotten_the_random_start_when_it_is_first_looked_at():
    """With a decay of 0.9999 from the first step, 90 % of the average is noise after 1,000."""
    w = Tensor(np.array([1.0]), requires_grad=True)       # the start: all of it is "noise"
    flat = Flat({"w": w})
    ema = EMA(flat, decay=0.9999)
    flat.data[...] = 0.0                                  # what training found
    for step in range(1, 101):
        ema.update(step)
    left = np.prod([(1 + n) / (10 + n) for n in range(1, 101)])
    np.testing.assert_allclose(ema.data, left, rtol=1e-9)
    assert left < 1e-10 < 0.99 < 0.9999**100
