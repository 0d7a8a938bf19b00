"""TextToImage: the parts that are trained together, under one roof."""

from dataclasses import asdict

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

    def __call__(self, x_t, t, ids, *, rng=None):         # x_t (N, H, W, C), t (N,), ids (N, L)
        return self.unet(x_t, t, self.text_encoder(ids), rng=rng)

    def config(self):
        """All that `from_config` needs to build the same model again, as plain dicts and lists."""
        return {"tokenizer": {"merges": [list(pair) for pair in self.tokenizer.merges],
                              "length": self.tokenizer.length},
                "text": asdict(self.text_encoder.config),
                "unet": asdict(self.unet.config)}

    @classmethod
    def from_config(cls, config, *, rng):
        unet = {k: tuple(v) if isinstance(v, list) else v for k, v in config["unet"].items()}
        return cls(Tokenizer(**config["tokenizer"]), TextEncoderConfig(**config["text"]),
                   UNetConfig(**unet), rng=rng)
