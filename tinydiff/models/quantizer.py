"""Latents from a codebook: each is the nearest of a few vectors, which are learned.

VQ-VAE is van den Oord et al. 1711.00937. The codebook is part of the decoder: what is diffused are
the latents before it.  LDM §3.1
"""

import numpy as np

from tinydiff.autograd import mse, op
from tinydiff.backend import alongside
from tinydiff.models.autoencoder import Autoencoder
from tinydiff.nn import Module
from tinydiff.nn.module import parameter

COMMITMENT = 0.25                                         # β of VQ-VAE Eq. 3
DEAD       = 0.1                                          # chosen so rarely, of a mean of 1


class Codebook(Module):
    """So many vectors, each the running mean of the latents nearest to it.  VQ-VAE App. A.1

    They follow from two running means, parameters that no gradient reaches: how often each is
    chosen (codes,), 1 on average, and the sum of what chose it (codes, width).
    """

    def __init__(self, codes, width, *, rng):
        self.counts = parameter(np.full(codes, DEAD))
        self.sums   = parameter(DEAD * rng.standard_normal((codes, width)))

    def vectors(self, eps=1e-5):
        """The codes, an array (codes, width): sums over Laplace-smoothed counts."""
        n = self.counts.data
        smoothed = (n + eps) / (n.sum() + len(n) * eps) * n.sum()
        return self.sums.data / smoothed[:, None]

    def nearest(self, z):
        """The index of the code with the least ‖z − e‖², VQ-VAE Eq. 1: array z (…, width) -> (…)"""
        e = self.vectors()
        return ((e * e).sum(axis=1) - 2 * (z @ e.T)).argmin(axis=-1)

    def quantised(self, z):
        """The nearest code of each latent: array z (…, width) -> (…, width)"""
        return self.vectors()[self.nearest(z)]

    def update(self, z, rng, decay=0.99):
        """Move each code towards the latents z (N, …, width), an array, that chose it.

        A code that hardly any does starts again from one of them, which rng draws.
        """
        z, n = z.reshape(-1, z.shape[-1]), self.counts.data       # (M, width)
        codes = np.arange(len(n), like=z)
        chosen = (self.nearest(z)[:, None] == codes).astype(z.dtype)      # (M, codes)
        share = (1 - decay) * len(n) / len(z)             # so that counts are 1 on average
        for mean, new in (n, chosen.sum(axis=0)), (self.sums.data, chosen.T @ z):
            mean[...] = decay * mean + share * new        # VQ-VAE Eq. 6, 7
        dead = n < DEAD
        self.sums.data[dead] = z[alongside(rng.integers(len(z), size=int(dead.sum())), z)]
        n[dead] = 1


class VQAutoencoder(Autoencoder):
    """An Autoencoder with a codebook of config.codes vectors before its decoder.

    `moments` are the latents and an empty log-variance; `pictures` and `decode` quantise.
    """

    def __init__(self, config, *, rng):
        super().__init__(config, rng=rng)
        self.codebook = Codebook(config.codes, config.latent, rng=rng)

    def decode(self, z):
        self.check_latents(z)
        return super().decode(self.codebook.quantised(z))

    def bottleneck(self, z, logvar, eps):
        """The codes, and what commits the encoder to them.  VQ-VAE Eq. 3"""
        e = self.codebook.quantised(z.data)
        return straight_through(z, e), COMMITMENT * mse(z, e)


@op
def straight_through(z, e):
    """e, of which z has the gradient, as if it were z.  VQ-VAE §3.2"""
    return e, lambda dy: (dy, None)


def autoencoder_for(config, *, rng):
    """The network that a configuration means: with a codebook, or without."""
    return (VQAutoencoder if config.codes else Autoencoder)(config, rng=rng)
