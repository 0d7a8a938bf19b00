"""Scenes of one to three coloured shapes: what may stand where, and what is held out.

Lengths are in units of the picture's side, x to the right and y down from its top left corner.
Objects never touch, any two stand in one clear relation, and one alone lies clearly in one of
nine places, so that what a caption says is plainly true or plainly false.
"""

from collections import namedtuple
from itertools import combinations, count, product, starmap

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
COLOURS = {"red": (220, 30, 40), "green": (30, 160, 60), "blue": (30, 80, 230),
           "yellow": (255, 235, 60), "purple": (160, 30, 190), "orange": (255, 130, 0)}
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
RADII = {"small": (3.2 / 32, 4 / 32), "large": (5.2 / 32, 6.4 / 32)}
PLACES = (("in the top left", "at the top", "in the top right"),
          ("on the left", "in the middle", "on the right"),
          ("in the bottom left", "at the bottom", "in the bottom right"))
OBJECTS = (1,) * 9 + (2,) * 8 + (3,) * 3        # of 20 scenes
BORDER = 1 / 32                 # from an object to the picture's edge, at least
GAP = 2 / 32                    # between the bounding squares of two objects, at least
CLEAR = 3 / 32                  # between |dx| and |dy| of two centres, at least
INSIDE = 1.25 / 32              # from the centre of an object alone to its third's edges, at least

SPLITS = ("train", "unseen")    # "train" never shows what is held out, "unseen" always shows some
HELD_PAIRS = {("purple", "circle"), ("orange", "square"),
              ("yellow", "triangle"), ("red", "diamond")}
HELD_RELATIONS = {("triangle", "left of", "square"), ("square", "right of", "triangle"),
                  ("diamond", "above", "circle"), ("circle", "below", "diamond"),
                  ("cross", "right of", "diamond"), ("diamond", "left of", "cross")}


# all there is in a picture: a name of BACKGROUNDS, and a tuple of one to three Things
Scene = namedtuple("Scene", "background objects")
# three names and three floats: `radius` is half the side of the bounding square around (x, y)
Thing = namedtuple("Thing", "shape colour size x y radius")


class Dice:
    """Quick choices by the numbers of a numpy Generator."""

    def __init__(self, rng):
        self.numbers = (u for _ in count() for u in rng.random(64).tolist())

    def between(self, low, high):
        return low + (high - low) * next(self.numbers)

    def choose(self, options):
        return options[int(next(self.numbers) * len(options))]


def relation(a, b):
    """The r for which "a r b" holds: left of, where b lies further right than higher or lower."""
    dx, dy = b.x - a.x, b.y - a.y
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def place(thing):
    """The words for where an object lies: its third from the top and from the left."""
    return PLACES[int(3 * thing.y)][int(3 * thing.x)]


def held_out(objects, relations):
    """Is a colour and shape, or a relation (i, r, j), among them that "train" never shows?"""
    return (any((o.colour, o.shape) in HELD_PAIRS for o in objects)
            or any((objects[i].shape, r, objects[j].shape) in HELD_RELATIONS
                   for i, r, j in relations))


def random_scene(dice, split="train", objects=None):
    """A scene with so many objects (None: see OBJECTS), of three one large at most, by rejection.

    ValueError for another split or number of objects.
    """
    if split not in SPLITS or objects not in (None, 1, 2, 3):
        raise ValueError(f"shapes: expected the split {' or '.join(SPLITS)} and 1 to 3 objects, "
                         f"got {split!r} and {objects}")
    n = objects or dice.choose(OBJECTS)
    background = dice.choose(tuple(BACKGROUNDS))
    sizes = dice.choose([s for s in product(RADII, repeat=n) if n < 3 or s.count("large") < 2])
    while True:
        things = tuple(_random_thing(dice, size, 3 if n == 1 else 1) for size in sizes)
        if all(starmap(_apart, combinations(things, 2))):
            related = [(i, relation(things[i], things[j]), j)
                       for i, j in combinations(range(n), 2)]
            if held_out(things, related) == (split == "unseen"):
                return Scene(background, things)


def _random_thing(dice, size, parts):
    """Anywhere, or clearly in one of parts × parts places."""
    radius = dice.between(*RADII[size])
    x, y = (dice.between(max(BORDER + radius, k / parts + INSIDE),
                         min(1 - BORDER - radius, (k + 1) / parts - INSIDE))
            for k in (dice.choose(range(parts)), dice.choose(range(parts))))
    return Thing(dice.choose(SHAPES), dice.choose(tuple(COLOURS)), size, x, y, radius)


def _apart(a, b):
    """Do two objects keep their distance, stand in a clear relation and differ?"""
    dx, dy = abs(a.x - b.x), abs(a.y - b.y)
    return (max(dx, dy) >= a.radius + b.radius + GAP and abs(dx - dy) >= CLEAR
            and a[:2] != b[:2])
