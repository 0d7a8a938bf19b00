"""Captioned scenes drawn on the fly: what is there is in scenes.py, its words in scene_words.py."""

from dataclasses import dataclass

import numpy as np

from tinydiff.data.scene_words import plainest, varied
from tinydiff.data.scenes import BACKGROUNDS, COLOURS, SPLITS, Dice, held_out, random_scene

SIDES = {"shapes": 32, "shapes64": 64}
ARM = 0.38                          # half the width of a cross's arm, in radii

# signed distance of the point (x, y) from a shape of radius r around the origin; < 0 is inside
DISTANCE = {
    "circle":   lambda x, y, r: np.sqrt(x * x + y * y) - r,
    "square":   lambda x, y, r: np.maximum(abs(x), abs(y)) - r,
    "diamond":  lambda x, y, r: (abs(x) + abs(y) - r) / 2**0.5,
    "triangle": lambda x, y, r: np.maximum(y - r, (2 * abs(x) - y - r) / 5**0.5),
    "cross":    lambda x, y, r: np.maximum(np.minimum(abs(x), abs(y)) - ARM * r,
                                           np.maximum(abs(x), abs(y)) - r)}


def masks(scenes, side):
    """What each object of N scenes covers of each pixel -> float32 (N, 3, side, side) in [0, 1]:
    ½ − its outline's signed distance from the pixel's centre; 0 for objects there are not.
    """
    cover = np.zeros((len(scenes), 3, side, side), np.float32)
    pixels = np.arange(side, dtype=np.float32) + np.float32(0.5)
    for shape, distance in DISTANCE.items():
        table = [(n, k, thing.x, thing.y, thing.radius) for n, scene in enumerate(scenes)
                 for k, thing in enumerate(scene.objects) if thing.shape == shape]
        if table:
            n, k, *circle = np.array(table).T
            x, y, r = side * np.array(circle, np.float32)[:, :, None, None]         # (m, 1, 1)
            d = distance(pixels - x, pixels[:, None] - y, r)                # (m, side, side)
            cover[n.astype(int), k.astype(int)] = np.clip(np.float32(0.5) - d, 0, 1)
    return cover


def draw(scenes, side):
    """The pictures of N scenes -> uint8 (N, side, side, 3)."""
    ground = np.array([BACKGROUNDS[scene.background] for scene in scenes], np.float32)
    paint = np.zeros((len(scenes), 3, 3), np.float32)
    for n, scene in enumerate(scenes):
        paint[n, :len(scene.objects)] = [COLOURS[thing.colour] for thing in scene.objects]
    cover = masks(scenes, side).reshape(len(scenes), 3, -1)                 # (N, 3, side²)
    x = cover.swapaxes(1, 2) @ (paint - ground[:, None]) + ground[:, None]  # (N, side², 3)
    return x.round().astype(np.uint8).reshape(-1, side, side, 3)


@dataclass(frozen=True)
class World:
    """A data source without end: random scenes of a split, in pictures of a shape (H, H, 3)."""

    shape: tuple[int, int, int]
    split: str

    count, source = None, "scenes of coloured shapes, drawn on the fly"
    prompts = ("a red circle above a blue square", "a green triangle", "an orange circle",
               "a small yellow square on black", "a large purple cross in the top left on white",
               "a blue diamond left of a red square", "a green square right of a yellow circle",
               "a purple square below a green circle", "a small blue circle at the bottom",
               "an orange triangle above a large blue cross on grey")

    def corpus(self):
        """Four thousand captions with every wording, always the same -> list of str."""
        dice = Dice(np.random.default_rng(0))
        return [varied(random_scene(dice, self.split), dice)[0] for _ in range(4000)]

    def batch(self, count, step, seed, plain, rng, simple=0.0):
        """Pictures uint8 (count, side, side, 3) and captions, list of str, drawn from `rng`.

        The nearer `simple` is to 1, the more are lessons in words, with little else to see: one
        object and its place, then two and their relation in plain words. Who is shown all there
        is from the start hardly ever learns "left of".
        """
        dice = Dice(rng)
        levels = [sum(dice.between(0, 1) >= simple for _ in range(2)) if simple else 2
                  for _ in range(count)]
        scenes = [random_scene(dice, self.split, (1, 2, None)[level]) for level in levels]
        texts = [varied(scene, dice, ("plain",)) if level == 0 else
                 plainest(scene) if level == 1 or dice.between(0, 1) < plain else
                 varied(scene, dice) for scene, level in zip(scenes, levels)]
        return draw(scenes, self.shape[0]), [text for text, _ in texts]

    def ask(self, rng, objects, split):
        """A prompt for so many objects, and the Claim its pictures must satisfy -> (str, Claim).

        Half are in plain words, relations are always told; "unseen" names what is held out.
        """
        dice = Dice(rng)
        while True:
            scene = random_scene(dice, split, objects)
            text, claim = dice.choose((plainest(scene), varied(scene, dice)))
            told = objects == 1 or claim.relations
            if told and held_out(claim.objects, claim.relations) == (split == "unseen"):
                return text, claim


def read(name, split):
    """The World "shapes" (32 × 32) or "shapes64", "train" or "unseen"; else ValueError."""
    if name not in SIDES or split not in SPLITS:
        raise ValueError(f"expected {' or '.join(SIDES)} and the split {' or '.join(SPLITS)}, "
                         f"got {name!r} and {split!r}")
    return World((SIDES[name], SIDES[name], 3), split)
