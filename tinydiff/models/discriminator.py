"""The opponent of the autoencoder: it learns to tell its pictures from real ones.  LDM App. G"""

import numpy as np

from tinydiff.autograd import mean, relu, silu
from tinydiff.nn import Conv2d, Module


class Discriminator(Module):
    """How real each patch of a picture looks: x (N, H, W, channels) -> (N, ⌈H/4⌉, ⌈W/4⌉, 1).

    A score sees 15 × 15 pixels, so that it judges texture and edges and never the whole (Isola et
    al. 1611.07004); real ones shall score above 1, others below −1.
    """

    def __init__(self, channels, *, rng, width=32):
        self.conv1 = Conv2d(channels, width, 3, stride=2, rng=rng)
        self.conv2 = Conv2d(width, 2 * width, 3, stride=2, rng=rng)
        self.conv3 = Conv2d(2 * width, 1, 3, rng=rng)

    def __call__(self, x):
        return self.conv3(silu(self.conv2(silu(self.conv1(x)))))


def hinge(real, fake):
    """½ mean max(0, 1 − D(x)) + ½ mean max(0, 1 + D(x̂)), which the discriminator makes small.

    real and fake are its scores D, Tensors (…).  Lim & Ye 1705.02894
    """
    return 0.5 * (mean(relu(1 - real)) + mean(relu(1 + fake)))


def adaptive_weight(of_rec, of_adv):
    """λ = ‖∇ L_rec‖ / (‖∇ L_adv‖ + 10⁻⁴), at most 10⁴, of gradients of the decoder's last layer.

    With it the discriminator pulls as hard as the reconstruction.  Esser et al. 2012.09841 Eq. 7
    """
    return min(float(np.linalg.norm(of_rec) / (np.linalg.norm(of_adv) + 1e-4)), 1e4)
