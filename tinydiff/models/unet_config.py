"""The configuration of a U-Net: a frozen dataclass, the networks of the papers, what is refused."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net. Level 0 is the finest; each further level halves height and width.

    blocks, heads, transformer and resample_blocks may be tuples with an entry for each level.
    Raises ValueError where the numbers do not fit together.
    """

    channels:         int = 1           # of the picture: 1 grey, 3 RGB
    base:             int = 32          # channels at level 0
    mults:            tuple = (1, 2)    # channels at each level, as multiples of base
    blocks:           int = 1           # residual blocks a level going down, one more going up
    attend:           tuple = (1,)      # levels with attention; the middle always has it
    emb:              int = 4           # width of the time and text embedding, times base
    adaptive:         bool = False      # the time scales and shifts (ADM), not only shifts (DDPM)
    heads:            int = 1           # heads of each attention
    head_width:       int | None = None # channels of a head, in place of heads; None: heads says
    groups:           int = 8           # of each GroupNorm; divides every width
    patch:            int = 1           # patch × patch pixels become channels before all else
    context_width:    int | None = None # width of the text tokens; None: no text
    classes:          int | None = None # number of class labels; None: none
    predicts:         str = "eps"       # what the output means: "eps", "x0", "v", "velocity", "edm"
    t_first:          int = 1           # the network's name for our t = 1
    learned_variance: bool = False      # C more outputs: where the log-variance lies (iDDPM)
    resample_blocks:  bool = False      # sizes change inside residual blocks, not between (ADM)
    dropout:          float = 0.0       # share of activations zeroed where a call is given rng
    checkpoint:       bool = False      # blocks are computed again in backward, to save memory
    transformer:      int = 0           # blocks of LDM's transformer in place of each attention
    pooled:           bool = True       # the first token of the text joins the time embedding
    cosines_first:    bool = False      # the time's waves are cosines, then sines
    frequency_shift:  int = 0           # of the waves: longest^(−i / (base/2 − shift))
    eps:              float = 1e-5      # under the root of each GroupNorm outside transformers
    corner:           bool = False      # downsampling pads right and below only, not all around
    attend_up:        tuple | None = None # levels with attention going up; None: those of attend
    resample_up:      tuple | None = None # resample_blocks going up; None: the same as down
    middle:           int = 2           # residual blocks between down and up: 0, 1 or 2
    attend_middle:    bool = True       # attention behind the first of them
    middle_groups:    int | None = None # of that attention's GroupNorm; 0: no norm; None: groups
    outputs:          int | None = None # channels of the result; None: channels, or twice as many
    centre_input:     bool = False      # pixels come in [0, 1] and are stretched to [-1, 1]
    layout:           int = 0           # waves each way by which the text says where; 0: not at all

    @classmethod
    def ddpm_cifar10(cls):
        """DDPM's CIFAR-10 network, 35,746,307 parameters.  DDPM §B"""
        return cls(channels=3, base=128, mults=(1, 2, 2, 2), blocks=2, attend=(1,), groups=32,
                   dropout=0.1)

    @classmethod
    def iddpm_cifar10(cls):
        """Improved DDPM's CIFAR-10 network, 52,546,438 parameters.  iDDPM, its code"""
        return cls(channels=3, base=128, mults=(1, 2, 2, 2), blocks=3, attend=(1, 2), heads=4,
                   groups=32, adaptive=True, learned_variance=True, dropout=0.3)

    @classmethod
    def adm_imagenet64(cls):
        """ADM's network of ImageNet at 64 × 64 pixels, 295,904,454 parameters.  ADM, its code"""
        return cls(channels=3, base=192, mults=(1, 2, 3, 4), blocks=3, attend=(1, 2, 3), groups=32,
                   head_width=64, adaptive=True, classes=1000, learned_variance=True,
                   resample_blocks=True, dropout=0.1)

    @classmethod
    def stable_diffusion(cls):
        """Stable Diffusion 1's network, 859,520,964 parameters.  LDM, its code"""
        return cls(channels=4, base=320, mults=(1, 2, 4, 4), blocks=2, attend=(0, 1, 2), heads=8,
                   groups=32, transformer=1, context_width=768, pooled=False, cosines_first=True,
                   t_first=0)

    @classmethod
    def mnist(cls, context_width=None):
        """Digits on a laptop: 28 × 28 pixels worked on as 14 × 14 patches."""
        return cls(base=32, mults=(1, 2), blocks=1, attend=(1,), patch=2, emb=12, adaptive=True,
                   predicts="v", context_width=context_width)

    @classmethod
    def tiny(cls, context_width=None):
        """About 60,000 parameters with text 64 wide: small enough to check the gradient of each."""
        return cls(base=8, mults=(1, 2), blocks=1, heads=2, groups=4, context_width=context_width)

    @property
    def widths(self):
        """Channels at each level."""
        return tuple(round(self.base * mult) for mult in self.mults)

    def at(self, name, level):
        """What the field `name`, a tuple or not, says of one level."""
        value = getattr(self, name)
        if name == "heads" and self.head_width:
            return max(1, self.widths[level] // self.head_width)
        return value[level] if isinstance(value, tuple) else value

    def __post_init__(self):
        for complaint in self.complaints():
            raise ValueError(f"UNetConfig: {complaint}")

    def complaints(self):
        """Yield a sentence for each thing that does not fit."""
        if self.predicts not in ("eps", "x0", "v", "velocity", "edm"):
            yield f'predicts is "eps", "x0", "v", "velocity" or "edm", not {self.predicts!r}'
        for name in ("channels base mults blocks emb heads groups patch context_width classes "
                     "outputs").split():
            value = getattr(self, name)
            each = value if isinstance(value, (tuple, list)) else (value,)
            if value is not None and min(each, default=0) <= 0:
                yield f"{name} must be at least 1, got {value}"
        levels, attend = len(self.mults), {*self.attend, *(self.attend_up or ())}
        for level in attend:
            if not 0 <= level < levels:
                yield (f"attend names level {level}, but {levels} mults make levels 0 to "
                       f"{levels - 1}")
        for name in ("blocks", "heads", "transformer", "resample_blocks", "resample_up"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                yield f"{name} {value} needs an entry for each of {levels} levels"
        if not 0 <= self.dropout < 1:
            yield f"dropout is a share from 0 to below 1, got {self.dropout}"
        if self.middle not in (0, 1, 2):
            yield f"middle is 0, 1 or 2 blocks, not {self.middle}"
        if self.frequency_shift >= max(self.base // 2, 1):
            yield f"frequency_shift {self.frequency_shift} is half of base {self.base} or more"
        width, heads = self.head_width, self.heads
        if width is not None and (width < 1 or heads != 1):
            yield ("give heads or a head_width of at least 1, "
                   f"got heads={heads} and head_width={width}")
        if self.middle and self.attend_middle:
            attend.add(levels - 1)
        for level, c in enumerate(self.widths):
            parts = width or self.at("heads", level)
            if abs(c - self.base * self.mults[level]) > 1e-6:
                yield f"base {self.base} times mults {self.mults} makes no whole channels"
            if c % self.groups or (level in attend and c % parts):
                heads = f"heads {width} wide" if width else f"{parts} heads"
                yield f"{c} channels cannot be shared out among {self.groups} groups and {heads}"
        if c % (self.middle_groups or 1):
            yield f"{c} channels cannot be shared out among {self.middle_groups} groups"
