"""Captions of scenes, and what each claims: all it names is true, what it does not name is free."""

from collections import namedtuple
from itertools import pairwise, permutations

from tinydiff.data.scenes import place, relation

SAID = {"left of": ("left of", "to the left of"), "right of": ("right of", "to the right of"),
        "above": ("above", "over"), "below": ("below", "under")}
FORMS = ("plain", "plain", "turned", "listed", "listed")
FRAMES = ("{}", "{}", "a picture of {}", "there is {}")
GROUNDS = ("", "", " on {}", " on a {} background")


# what a caption says of a scene: these objects (Named) and no others, relations (i, name, j) of
# two of them by their index, and the background or None
Claim = namedtuple("Claim", "objects relations background")


class Named(namedtuple("Named", "colour shape size place", defaults=(None, None))):
    """What a caption says of an object; None is free."""

    def __str__(self):
        words = " ".join(filter(None, (self.size, self.colour, self.shape)))
        return f"{'an' if words[0] == 'o' else 'a'} {words}"        # an orange …


def plainest(scene):
    """The plainest caption of a scene and its Claim: "a red circle above a blue square"."""
    named = tuple(Named(thing.colour, thing.shape) for thing in scene.objects)
    related = _neighbours(scene.objects)
    return _chain(named, [name for _, name, _ in related]), Claim(named, related, None)


def varied(scene, dice, forms=FORMS):
    """One of many captions of a scene and its Claim: "over a red cross, a large blue square".

    Sizes, place, relations and background are named or not, in any order, with synonyms.
    """
    things = dice.choose(list(permutations(scene.objects)))
    form, frame, ground = map(dice.choose, (forms, FRAMES, GROUNDS))
    named = tuple(Named(o.colour, o.shape, dice.choose((None, o.size))) for o in things)
    related = _neighbours(things) if form != "listed" else ()
    said = [dice.choose(SAID[name]) for _, name, _ in related]
    if form == "listed":
        text = " and ".join(", ".join(map(str, named)).rsplit(", ", 1))
    elif len(things) == 1:
        where = place(things[0])
        text = f"{where}, {named[0]}" if form == "turned" else f"{named[0]} {where}"
        named = (named[0]._replace(place=where),)
    elif form == "turned" and len(things) == 2:
        text = f"{said[0]} {named[1]}, {named[0]}"
    else:
        text = _chain(named, said)
    if text.startswith(("a ", "an ")):                      # no "a picture of under a …"
        text = frame.format(text)
    return (text + ground.format(scene.background),
            Claim(named, related, scene.background if ground else None))


def _neighbours(things):
    return tuple((i, relation(a, b), i + 1) for i, (a, b) in enumerate(pairwise(things)))


def _chain(named, said):
    """ "A", "A said B" or "A said B, which is said C"."""
    first, *rest = map(str, named)
    return first + ", which is".join(f" {r} {name}" for r, name in zip(said, rest))
