"""Text read by a published encoder, kept as it is, in place of one that learns along.

[text] encoder = "FOLDER" of a CLIP, BERT or T5 with its tokenizer, or of a diffusers pipeline;
"none": nobody reads, and pictures are learned without their captions.
"""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from tinydiff.autograd import Tensor
from tinydiff.backend import alongside, to_host
from tinydiff.checkpoint import tuples
from tinydiff.models import TextToImage, Tokenizer, UNet, UNetConfig
from tinydiff.models.text_encoder import TextEncoder, TextEncoderConfig
from tinydiff.parallel import one_blas_thread
from tinydiff.pretrained import load_model, load_tokenizer

NOBODY = "none"


def model_of(recipe, dataset, C):
    """The model of a recipe for x0 of C channels, yet to learn.  ValueError as of its parts."""
    text, rng = asdict(recipe.text), np.random.default_rng(recipe.train.seed)
    unet = replace(recipe.model, **recipe.upscale.channels(C), context_width=text["width"],
                   learned_variance=recipe.diffusion.loss != "simple")
    if text["encoder"] == NOBODY:
        return Unprompted(unet, rng=rng)
    if folder := text.pop("encoder"):
        return FrozenText(folder, text["length"], unet_config=unet, rng=rng)
    corpus = dataset.corpus()
    tokenizer = Tokenizer.learn(corpus, text["vocabulary"], text["length"])
    tokenizer.encode(corpus)                              # refuses what is too long before it costs
    own = TextEncoderConfig(**text | {"vocabulary": tokenizer.size})
    return TextToImage(tokenizer, own, unet, rng=rng)


def kind_of_model(config):
    """The class of a model with this `config()`."""
    return FrozenText if "reader" in config else TextToImage if "text" in config else Unprompted


class Unprompted(TextToImage):
    """A U-Net that hears nothing, as in DDPM."""

    tokenizer = None

    def __init__(self, unet_config, *, rng):
        self.unet = UNet(replace(unet_config, context_width=None), rng=rng)

    def text_encoder(self, texts):
        return None

    def read(self, text, *, cut=True):
        return np.zeros((0, 0), np.float32)

    def contexts(self, texts):
        return np.zeros((len(texts), 0, 0), np.float32)

    def config(self):
        return {"unet": asdict(self.unet.config)}

    @classmethod
    def from_config(cls, config, *, rng):
        return cls(UNetConfig(**tuples(config["unet"])), rng=rng)


class FrozenText(TextToImage):
    """A U-Net that hears a published encoder's last states: (x_t, t, states (N, L, D)) -> as it.

    No gradient reaches the encoder; a checkpoint knows its folder and sha256 alone. As their own
    pipelines do, CLIP reads its padding along, up to its own length; BERT and T5 do not see it,
    and zeros stand there, up to `length`. FileNotFoundError for what is missing in the folder,
    ValueError for what does not fit, and for another encoder than the one of a sha256.
    """

    def __init__(self, folder, length, sha256=None, *, unet_config, rng):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"text.encoder = {folder!r}: there is no such folder; expected "
                                    "one with a CLIP, BERT or T5 and its tokenizer")
        part = lambda name: home if (home := Path(folder, name)).is_dir() else folder
        encoder, words = load_model(part("text_encoder")), load_tokenizer(part("tokenizer"))
        self.tokenizer, self.own = words, isinstance(words, Tokenizer)       # as `export` writes it
        self.fill = self.own or words.fill
        length, c = words.length if self.fill else length, encoder.config
        known = isinstance(encoder, TextEncoder) and (c.vocabulary, c.length or length)
        if not known or words.size > known[0] or length > known[1]:
            raise ValueError(f"text.encoder = {folder!r}: expected a text encoder for at least the "
                             f"{words.size} ids of its tokenizer and {length} tokens a text, got "
                             f"{known or type(encoder).__name__}")
        digest = hashlib.sha256()
        for name, p in sorted(encoder.parameters().items()):
            digest.update(name.encode() + p.data.tobytes())
        self.reader = {"folder": folder, "length": length, "sha256": digest.hexdigest()}
        if sha256 not in (None, self.reader["sha256"]):
            raise ValueError(f"text.encoder = {folder!r}: another text encoder is in this folder "
                             "than the one that was trained with; put that one back")
        self.encode = lambda *of: to_host(encoder.encode(*of)[0])     # functions: no parameter is
        self.carry = lambda device: encoder.to(device)                # found in them
        self.unet = UNet(replace(unet_config, context_width=c.width), rng=rng)

    def to(self, device):
        self.carry(device)
        return super().to(device)

    def text_encoder(self, said):                         # all is said by `read`
        return Tensor(alongside(said, self.unet.home))

    @one_blas_thread()
    def read(self, text, *, cut=True):
        """What the encoder says of a text (L, D); one that is too long is cut."""
        limit = {"cut": cut} if self.own else {"length": self.reader["length"]}
        ids = self.tokenizer.encode([text], **limit)                  # (1, L)
        seen = np.ones_like(ids) if self.fill else ids != self.tokenizer.pad
        return (self.encode(ids, seen) * seen[:, :, None].astype(np.float32))[0]

    def config(self):
        return {"reader": self.reader, "unet": asdict(self.unet.config)}

    @classmethod
    def from_config(cls, config, *, rng):
        return cls(**config["reader"], unet_config=UNetConfig(**tuples(config["unet"])), rng=rng)
