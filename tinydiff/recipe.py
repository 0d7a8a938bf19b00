"""A recipe: all that decides what a training run gives, as frozen dataclasses and as TOML."""

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from tinydiff.diffusion import Schedule
from tinydiff.models import UNetConfig
from tinydiff.tables import (
    SAMPLERS,
    SPACINGS,
    AutoencoderTable,
    DataTable,
    DiffusionTable,
    SampleTable,
    TextTable,
    TrainTable,
    UpscaleTable,
    nearest,
)

SHIPPED  = Path(__file__).parent / "recipes"
OWN_SPACING = {"heun": "karras", "edm": "karras", "pndm": "karras"}    # they walk in σ
KINDS    = {bool: "true or false", int: "a whole number from {}", float: "a number",
            str: "a word", tuple: "a list of whole numbers from {}"}
FOLLOWS  = {"channels": 1, "outputs": None, "context_width": None, "classes": None,
            "learned_variance": False}                    # from data, text and diffusion.loss
MAY_BE_ZERO = {"attend", "autoencoder.steps", "adversarial_from", "codes", "depth",
               "frequency_shift", "layout", "lessons", "middle", "sample_every", "seed",
               "t_first", "transformer", "warmup"}


@dataclass(frozen=True)
class Recipe:
    """One table a part. What of [model] follows from data and text is left out."""

    data:      DataTable         = field(default_factory=DataTable)
    text:      TextTable         = field(default_factory=TextTable)
    autoencoder: AutoencoderTable = field(default_factory=AutoencoderTable)
    upscale:   UpscaleTable      = field(default_factory=UpscaleTable)
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
        if self.autoencoder.steps and (self.sample.clip or self.upscale.factor > 1):
            raise ValueError("recipe: with an [autoencoder] latents are diffused, which nothing "
                             "keeps in [-1, 1]; set sample.clip = false and leave [upscale] out")
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


def typed(path, value, kind):
    """`value` as the type of the field's default; ValueError where it is of another."""
    least = 0 if {path, path.partition(".")[2]} & MAY_BE_ZERO else 1
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
