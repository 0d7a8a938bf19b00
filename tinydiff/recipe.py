"""A recipe: all that decides what a training run gives, as frozen dataclasses and as TOML."""

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from math import inf, isfinite
from pathlib import Path

import numpy as np

from tinydiff import criterion
from tinydiff.data import check_name
from tinydiff.diffusion import Schedule, min_snr, p2, samplers, spacing, unweighted
from tinydiff.models import TextEncoderConfig, UNetConfig

SHIPPED  = Path(__file__).parent / "recipes"
WEIGHTS  = {"unweighted": unweighted, "min_snr": min_snr, "p2": p2}
LOSSES   = {"simple": criterion.simple, "hybrid": criterion.hybrid, "vlb": criterion.vlb}
SAMPLERS = {name: getattr(samplers, name) for name in (
    "ddim ddpm euler euler_ancestral heun edm dpmpp_1s dpmpp_2m dpmpp_2m_sde dpmpp_3m pndm unipc "
    "lcm flow_euler flow_heun").split()}
SPACINGS = {name: getattr(spacing, name) for name in (
    "trailing linspace leading quadratic karras").split()}
OWN_SPACING = {"heun": "karras", "edm": "karras", "pndm": "karras"}    # they walk in σ
KINDS    = {bool: "true or false", int: "a whole number from {}", float: "a number",
            str: "a word", tuple: "a list of whole numbers from {}"}
FOLLOWS  = {"channels": 1, "context_width": None, "classes": None,      # from data, text
            "learned_variance": False}                                 # and from diffusion.loss
MAY_BE_ZERO = {"attend", "depth", "frequency_shift", "middle", "sample_every", "seed", "t_first",
               "transformer", "warmup"}


@dataclass(frozen=True)
class DataTable:
    """[data]: which pictures."""

    name:  str  = "digits"       # a data set of tinydiff.data
    split: str  = "train"        # its part
    flip:  bool = False          # mirror every other picture, left to right

    def __post_init__(self):
        check_name(self.name)


@dataclass(frozen=True)
class DiffusionTable:
    """[diffusion]: how they drown in noise."""

    schedule: str  = "cosine"     # a constructor of Schedule: linear, cosine, karras, flow, …
    T:        int  = 1000         # steps of the chain
    zero_snr: bool = False        # bent to end without signal; then predict v or x0
    loss:     str  = "simple"     # or hybrid or vlb, which learn the variance too (iDDPM)
    weight:   str  = "unweighted" # of the simple loss at each t: unweighted, min_snr or p2

    def __post_init__(self):
        nearest(self.loss, LOSSES, "loss")
        nearest(self.weight, WEIGHTS, "weight of the loss")
        if self.loss == "vlb" and self.weight != "unweighted":
            raise ValueError(f"recipe: diffusion.weight = {self.weight} changes the simple loss, "
                             "but diffusion.loss = vlb has none; leave it out")


@dataclass(frozen=True)
class TrainTable:
    """[train]: how the network learns to undo it."""

    steps:        int   = 600    # optimizer steps in all
    batch:        int   = 64     # images a step
    lr:           float = 2e-3   # largest learning rate, reached after `warmup` steps
    warmup:       int   = 50     # steps; then half a cosine down to 0
    clip:         float = 1.0    # largest norm of the gradient
    decay:        float = 0.0    # weight decay
    ema:          float = 0.99   # decay of the running mean of the weights, which is what is kept
    plain:        float = 0.5    # share of captions in their first, plainest wording
    drop:         float = 0.1    # share of captions left out, for guidance
    seed:         int   = 0      # of everything random in the run
    save_every:   int   = 500    # steps between checkpoints
    sample_every: int   = 0      # steps between previews in samples/; 0: none

    def __post_init__(self):
        for name, fits, wanted in (("lr",    0 < self.lr < inf,      "above 0 and finite"),
                                   ("clip",  self.clip > 0,          "above 0"),
                                   ("decay", 0 <= self.decay < inf,  "of at least 0 and finite"),
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


@dataclass(frozen=True)
class Recipe:
    """One table a part. What of [model] follows from data and text is left out."""

    data:      DataTable         = field(default_factory=DataTable)
    text:      TextEncoderConfig = field(default_factory=TextEncoderConfig)
    model:     UNetConfig        = field(default_factory=UNetConfig)
    diffusion: DiffusionTable    = field(default_factory=DiffusionTable)
    train:     TrainTable        = field(default_factory=TrainTable)
    sample:    SampleTable       = field(default_factory=SampleTable)

    def __post_init__(self):
        schedule = self.schedule()
        walk(schedule, self.sample.sampler, self.sample.steps, self.sample.spacing)
        if self.model.predicts == "eps" and schedule.signal(schedule.T) == 0:
            raise ValueError("recipe: the schedule ends without signal, where eps says nothing "
                             'about x0; set model.predicts to "v" or "x0"')
        for key, default in FOLLOWS.items():
            if getattr(self.model, key) != default:
                source = "diffusion.loss" if key == "learned_variance" else "data and text"
                raise ValueError(f"recipe: model.{key} follows from {source}; leave it out")

    @classmethod
    def parse(cls, text):
        """From the text of a TOML file, undoing `toml`; what it leaves out keeps its default."""
        return cls().change(tomllib.loads(text))

    def change(self, tables):
        """The same recipe with other values, {table: {key: value}}.

        Raises ValueError for an unknown table or key, naming the nearest, for a value of another
        type, and for values that do not fit together.
        """
        changed = {}
        for name, values in tables.items():
            nearest(name, asdict(self), "table")
            if not isinstance(values, dict):
                raise ValueError(f"recipe: expected a table [{name}], got {name} = {values!r}")
            table = getattr(self, name)
            kinds = {f.name: int if f.default is None else type(f.default) for f in fields(table)}
            for key, value in values.items():
                nearest(key, kinds, f"key in [{name}]")
                values = {**values, key: typed(f"{name}.{key}", value, kinds[key])}
            changed[name] = replace(table, **values)
        return replace(self, **changed)

    def set(self, path, value):
        """The same recipe with one other value: recipe.set("train.steps", 100)."""
        table, _, key = path.partition(".")
        return self.change({table: {key: value}})

    def override(self, settings):
        """The same recipe after a list of "table.key=value", as `--set` takes them."""
        tables = {}
        for setting in settings:
            path, equals, text = setting.partition("=")
            table, dot, key = path.strip().partition(".")
            if not equals or not dot:
                raise ValueError(f"--set {setting}: expected table.key=value, "
                                 "as in train.steps=100")
            try:
                value = tomllib.loads(f"x = {text}")["x"]
            except tomllib.TOMLDecodeError:
                value = text                              # a bare word is a string
            tables.setdefault(table, {})[key] = value
        return self.change(tables)

    def settings(self):
        """{"table.key": value}: every value there is."""
        return {f"{table}.{key}": value for table, values in asdict(self).items()
                for key, value in values.items()}

    def toml(self):
        """The recipe as a TOML file: what `parse` reads."""
        return "\n".join(
            f"[{table}]\n" + "".join(f"{key} = {toml_value(value)}\n"
                                     for key, value in values.items()
                                     if key not in FOLLOWS and value is not None)
            for table, values in asdict(self).items())

    def schedule(self):
        """The noise schedule that [diffusion] names."""
        schedule = Schedule.named(self.diffusion.schedule, T=self.diffusion.T)
        return schedule.zero_terminal_snr() if self.diffusion.zero_snr else schedule


def shipped():
    """The names of the recipes that come with tinydiff."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load_recipe(name):
    """A Recipe from a TOML file, or by the name of a shipped one.

    Raises FileNotFoundError naming the nearest shipped one, ValueError for a file that is none.
    """
    path = SHIPPED / f"{name}.toml" if name in shipped() else Path(name)
    if not path.is_file():
        guess = get_close_matches(str(name), shipped(), n=1, cutoff=0)
        raise FileNotFoundError(f"no recipe {str(name)!r}: expected a TOML file or one of "
                                f"{', '.join(shipped())}; did you mean {guess[0]!r}?")
    try:
        return Recipe.parse(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None


def walk(schedule, sampler, steps, spaced):
    """The nodes of so many steps.  ValueError where the sampler cannot walk them."""
    spaced = OWN_SPACING.get(sampler, "trailing") if spaced == "own" else spaced
    times = SPACINGS[spaced](schedule, steps)
    SAMPLERS[sampler](None, np.zeros((1, 1)), schedule, timesteps=times)   # refused when called
    return times


def nearest(name, known, what):
    """Raise ValueError unless `name` is known, with the nearest name that is."""
    if name not in known:
        guess = get_close_matches(name, known, n=1, cutoff=0)
        raise ValueError(f"there is no {what} called {name!r}; did you mean {guess[0]!r}? "
                         f"There are {', '.join(sorted(known))}")


def typed(path, value, kind):
    """`value` as the type of the field's default; ValueError where it is of another."""
    least = 0 if path.partition(".")[2] in MAY_BE_ZERO else 1
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    whole = {int: [value], tuple: value}.get(kind, [])
    if type(value) is not kind or any(type(n) is not int or n < least for n in whole):
        raise ValueError(f"recipe: {path} expects {KINDS[kind].format(least)}, got {value!r}")
    return value


def toml_value(value):
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (bool, str)) else repr(value)
