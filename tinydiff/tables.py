"""The tables of a recipe, frozen dataclasses with a comment a key."""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from math import inf, isfinite

from tinydiff import criterion
from tinydiff.data import check_name
from tinydiff.diffusion import fixed_large, middle, min_snr, p2, samplers, spacing, unweighted
from tinydiff.models import AutoencoderConfig, TextEncoderConfig
from tinydiff.optim import AdamW, Muon

WEIGHTS  = {"unweighted": unweighted, "min_snr": min_snr, "p2": p2}
LOSSES   = {"simple": criterion.simple, "hybrid": criterion.hybrid, "vlb": criterion.vlb}
TIMES    = {"uniform": lambda schedule: None, "middle": middle}
OPTIMIZERS = {"adamw": AdamW, "muon": Muon}
SAMPLERS = {name: getattr(samplers, name) for name in (
    "ddim ddpm euler euler_ancestral heun edm dpmpp_1s dpmpp_2m dpmpp_2m_sde dpmpp_3m pndm unipc "
    "lcm flow_euler flow_heun").split()}
SAMPLERS["ddpm_large"] = partial(samplers.ddpm, variance=fixed_large)       # as DDPM drew CIFAR-10
SPACINGS = {name: getattr(spacing, name) for name in (
    "trailing linspace leading quadratic karras").split()}


@dataclass(frozen=True)
class DataTable:
    """[data]: which pictures."""

    name:  str  = "digits"       # a data set of tinydiff.data, or a folder or shards of your own
    split: str  = "train"        # its part
    size:  int  = 32             # of your own pictures: cut and shrunk to so many pixels square
    flip:  bool = False          # mirror every other picture, left to right

    def __post_init__(self):
        check_name(self.name)


@dataclass(frozen=True)
class TextTable(TextEncoderConfig):
    """[text]: what reads the captions; but for length, all of it is of our own encoder."""

    encoder: str = ""            # "": ours learns along; the folder of a published one, kept as it
                                 # is; "none": nobody reads, nothing can be asked for


@dataclass(frozen=True)
class AutoencoderTable:
    """[autoencoder]: what makes latents of pictures, trained before all else.  LDM §3.1"""

    steps:       int   = 0          # of its own training; 0: none, pixels themselves are diffused
    batch:       int   = 64         # pictures a step
    lr:          float = 2e-3       # largest learning rate
    warmup:      int   = 50         # steps up to it; then half a cosine down to 0
    ema:         float = 0.99       # decay of the running mean of the weights
    base:        int   = 32         # channels at its finest level
    mults:       tuple = (1, 2, 2)  # as multiples of base; each further level halves each side
    blocks:      int   = 1          # residual blocks a level
    patch:       int   = 1          # so many pixels square are one to all of it
    latent:      int   = 4          # channels of a latent
    groups:      int   = 8          # of each GroupNorm
    codes:       int   = 0          # of a codebook (VQ); 0: latents are normal (KL)
    kl:          float = 1e-6       # weight of the KL divergence from N(0, 1)
    adversarial: float = 0.0        # of the patch discriminator, times the adaptive weight; 0: none
    adversarial_from: int = 0       # the step at which it joins
    save_every:  int   = 500        # steps between checkpoints

    def __post_init__(self):
        for name, fits, wanted in (
                ("lr",          0 < self.lr < inf,           "above 0 and finite"),
                ("ema",         0 <= self.ema < 1,           "from 0 to below 1"),
                ("kl",          0 <= self.kl < inf,          "of at least 0 and finite"),
                ("adversarial", 0 <= self.adversarial < inf, "of at least 0 and finite")):
            if not fits:
                raise ValueError(f"recipe: autoencoder.{name} expects a number {wanted}, "
                                 f"got {getattr(self, name)}")

    def config(self, channels):
        """The AutoencoderConfig for pictures of so many channels."""
        return AutoencoderConfig(channels=channels, latent=self.latent, base=self.base,
                                 mults=self.mults, blocks=self.blocks, patch=self.patch,
                                 groups=self.groups, attend_middle=False, scale=1.0,
                                 codes=self.codes)


@dataclass(frozen=True)
class UpscaleTable:
    """[upscale]: pictures are drawn beside smaller ones, which they enlarge.  CDM §3, LDM §4.4"""

    factor: int   = 1               # how many times wider and higher; 1: nothing is given
    noise:  float = 0.25            # the small one is noised up to this share of T in training
    own:    float = 0.05            # and to this one when drawing

    def __post_init__(self):
        if not 0 <= self.own <= self.noise < 1:
            raise ValueError("recipe: expected 0 ≤ upscale.own ≤ upscale.noise < 1, "
                             f"got {self.own} and {self.noise}")

    def channels(self, C):
        """How many the U-Net takes in and gives out for pictures of C channels."""
        return {"channels": C} if self.factor == 1 else {"channels": 2 * C + 1, "outputs": C}


@dataclass(frozen=True)
class DiffusionTable:
    """[diffusion]: how they drown in noise."""

    schedule: str  = "cosine"     # a constructor of Schedule: linear, cosine, karras, flow, …
    T:        int  = 1000         # steps of the chain
    zero_snr: bool = False        # bent to end without signal; then predict v or x0
    loss:     str  = "simple"     # or hybrid or vlb, which learn the variance too (iDDPM)
    weight:   str  = "unweighted" # of the simple loss at each t: unweighted, min_snr or p2
    times:    str  = "uniform"    # how t is drawn; or middle, more where it is decided what appears

    def __post_init__(self):
        nearest(self.loss, LOSSES, "loss")
        nearest(self.weight, WEIGHTS, "weight of the loss")
        nearest(self.times, TIMES, "way to draw t")
        for key, usual in ("weight", "unweighted"), ("times", "uniform"):
            if self.loss == "vlb" and (value := getattr(self, key)) != usual:
                raise ValueError(f"recipe: diffusion.{key} = {value} changes the simple loss, "
                                 "but diffusion.loss = vlb has none; leave it out")


@dataclass(frozen=True)
class TrainTable:
    """[train]: how the network learns to undo it."""

    steps:        int   = 600    # optimizer steps in all
    batch:        int   = 64     # images a step
    optimizer:    str   = "adamw" # or muon, which moves matrices as a whole
    lr:           float = 2e-3   # largest learning rate, reached after `warmup` steps
    warmup:       int   = 50     # steps; then half a cosine down to 0
    constant:     bool  = False  # no cosine: the learning rate stays where warmup brought it
    precision:    str   = "float32"  # or bf16, for what the network multiplies on a GPU
    clip:         float = 1.0    # largest norm of the gradient
    decay:        float = 0.0    # weight decay
    beta2:        float = 0.99   # of Adam: decay of the running mean of squared gradients
    ema:          float = 0.99   # decay of the running mean of the weights, which is what is kept
    plain:        float = 0.5    # share of captions in their first, plainest wording
    lessons:      int   = 0      # steps in which scenes grow from one object to all there is
    drop:         float = 0.1    # share of captions left out, for guidance
    seed:         int   = 0      # of everything random in the run
    save_every:   int   = 500    # steps between checkpoints
    sample_every: int   = 0      # steps between previews in samples/; 0: none

    def __post_init__(self):
        nearest(self.optimizer, OPTIMIZERS, "optimizer")
        nearest(self.precision, ("float32", "bf16"), "precision")
        for name, fits, wanted in (("lr",    0 < self.lr < inf,      "above 0 and finite"),
                                   ("clip",  self.clip > 0,          "above 0"),
                                   ("decay", 0 <= self.decay < inf,  "of at least 0 and finite"),
                                   ("beta2", 0 <= self.beta2 < 1,    "from 0 to below 1"),
                                   ("ema",   0 <= self.ema < 1,      "from 0 to below 1"),
                                   ("plain", 0 <= self.plain <= 1,   "from 0 to 1"),
                                   ("drop",  0 <= self.drop <= 1,    "from 0 to 1"),
                                   ("seed",  0 <= self.seed < 2**64, "from 0 to below 2⁶⁴")):
            if not fits:
                raise ValueError(f"recipe: train.{name} expects a number {wanted}, "
                                 f"got {getattr(self, name)}")


@dataclass(frozen=True)
class SampleTable:
    """[sample]: how pictures are drawn from it."""

    sampler:  str   = "ddim"     # one of diffusion.samplers
    steps:    int   = 50         # of the sampler
    spacing:  str   = "own"      # of their times: the sampler's own, or one of diffusion.spacing
    guidance: float = 3.0        # w: 1 none, above 1 closer to the prompt
    clip:     bool  = True       # keep the estimate of x0 in [-1, 1]

    def __post_init__(self):
        nearest(self.sampler, SAMPLERS, "sampler")
        nearest(self.spacing, ["own", *SPACINGS], "spacing")
        if not isfinite(self.guidance):
            raise ValueError(f"recipe: sample.guidance expects a finite number, "
                             f"got {self.guidance}")


def nearest(name, known, what):
    """Raise ValueError unless `name` is known, with the nearest name that is."""
    if name not in known:
        guess = get_close_matches(name, known, n=1, cutoff=0)
        raise ValueError(f"there is no {what} called {name!r}; did you mean {guess[0]!r}? "
                         f"There are {', '.join(sorted(known))}")
