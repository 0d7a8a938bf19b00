"""When a number is lost, first_bad names the layer that lost it."""

import numpy as np
import pytest

from tinydiff.autograd import Tensor, log, mse
from tinydiff.autograd.blame import first_bad
from tinydiff.kernels import use
from tinydiff.models import UNet, UNetConfig


@pytest.fixture
def unet(rng):
    return UNet(UNetConfig.tiny(), rng=rng)


def loss_of(unet, x=0.5):
    x = np.full((1, 4, 4, 1), x, np.float32)
    with np.errstate(all="ignore"):                       # numbers are lost on purpose
        return mse(unet(x, np.array([5])), np.ones_like(x))


@pytest.mark.parametrize("name", ["conv_in.w", "middle1.attention.self_attention.k.b",
                                  "norm_out.shift"])
def test_weights_that_are_not_numbers_are_named(unet, name):
    unet.parameters()[name].data.flat[0] = np.nan
    assert first_bad(loss_of(unet), unet.parameters()) == f"the weights {name}"


def test_an_op_that_overflows_is_named_with_its_weights(unet):
    unet.middle1.res.conv1.w.data[...] = 3e38
    unet.middle1.res.norm1.scale.data[...] = 1e3
    with use(conv2d="im2col"):
        assert first_bad(loss_of(unet), unet.parameters()) == "conv2d with middle1.res.conv1.w"
    assert first_bad(loss_of(unet), unet.parameters()).endswith("middle1.res.conv1.w")


def test_an_op_without_weights_is_named_alone():
    x = Tensor(np.array([0.0, 1.0]), requires_grad=True)
    with np.errstate(divide="ignore"):
        assert first_bad(log(x) * 2.0, {"x": x}) == "log with x"
        assert first_bad(log(x + 0.0) * 2.0, {"x": x}) == "log"


def test_without_a_loss_of_numbers_the_loss_itself_is_named(unet):
    assert first_bad(loss_of(unet), unet.parameters()) == "the loss itself"
