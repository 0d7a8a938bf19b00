"""TextToImage: the parts that are trained together, under one roof."""

from dataclasses import asdict

import numpy as np

from tinydiff.autograd import concat, no_grad
from tinydiff.checkpoint import tuples
from tinydiff.models.text_encoder import TextEncoder, TextEncoderConfig
from tinydiff.models.tokenizer import Tokenizer
from tinydiff.models.unet import UNet, UNetConfig
from tinydiff.nn import Module


class TextToImage(Module):
    """A tokenizer, a text encoder and a U-Net: (x_t, t, ids) -> the U-Net's prediction."""

    def __init__(self, tokenizer, text_config, unet_config, *, rng):
        self.tokenizer = tokenizer
        self.text_encoder = TextEncoder(text_config, rng=rng)
        self.unet = UNet(unet_config, rng=rng)

    def __call__(self, x_t, t, ids, given=None, *, rng=None):     # x_t (N, H, W, C), ids (N, L)
        """given (N, H, W, G), if not None, is seen beside x_t."""
        x_t = x_t if given is None else concat(x_t, given)
        return self.unet(x_t, t, self.text_encoder(ids), rng=rng)

    def read(self, text, *, cut=False):
        """What `__call__` takes of a text: ids (L,).  ValueError for one too long, unless cut."""
        return self.tokenizer.encode([text], cut=cut)[0]

    def contexts(self, texts):
        """What the U-Net hears of texts, arrays (N, L, D), each read apart: none sways another."""
        with no_grad():
            return np.concatenate([self.text_encoder(self.read(text)[None]).data for text in texts])

    def config(self):
        """All that `from_config` needs to build the same model again, as plain dicts and lists."""
        return {"tokenizer": {"merges": [list(pair) for pair in self.tokenizer.merges],
                              "length": self.tokenizer.length},
                "text": asdict(self.text_encoder.config),
                "unet": asdict(self.unet.config)}

    @classmethod
    def from_config(cls, config, *, rng):
        return cls(Tokenizer(**config["tokenizer"]), TextEncoderConfig(**config["text"]),
                   UNetConfig(**tuples(config["unet"])), rng=rng)
