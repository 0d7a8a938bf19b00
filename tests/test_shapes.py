"""The world of shapes: pictures against brute force, captions against the scene, and no leaks."""

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from tinydiff.data import shapes
from tinydiff.data.scene_words import Claim, Named, plainest, varied
from tinydiff.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_PAIRS,
    HELD_RELATIONS,
    PLACES,
    RADII,
    SHAPES,
    Dice,
    Scene,
    Thing,
    random_scene,
)

TOLD = {"left of": "left of", "to the left of": "left of", "right of": "right of",
        "to the right of": "right of", "above": "above", "over": "above",
        "below": "below", "under": "below"}
REL = "|".join(sorted(TOLD, key=len, reverse=True))
THING = rf"an? (?:small |large )?(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
WHERE = "|".join(place for row in PLACES for place in row)


def scenes_of(n, split="train", seed=0, objects=None):
    dice = Dice(np.random.default_rng(seed))
    return [random_scene(dice, split, objects) for _ in range(n)]


def holds(name, a, b):
    """Is a left of b, and so on: from the words of the rule alone."""
    right, down = b.x - a.x, b.y - a.y
    return {"left of": right > abs(down), "right of": -right > abs(down),
            "above": down > abs(right), "below": -down > abs(right)}[name]


def third(thing):
    row = ["top", "", "bottom"][(thing.y > 1 / 3) + (thing.y > 2 / 3)]
    column = ["left", "", "right"][(thing.x > 1 / 3) + (thing.x > 2 / 3)]
    return {row, column} - {""} or {"middle"}


def read_words(text):
    """A reader of captions that shares nothing with their writer: text -> (Claim, first words)."""
    text = re.sub(rf"^(a picture of|there is) (?={THING})", "", text)
    ground = re.search(r" on (?:a )?(white|black|grey)(?: background)?$", text)
    text = text[:ground.start()] if ground else text
    named = [Named(*re.search(r"(\w+) (\w+)$", phrase).groups(),
                   *re.findall("small|large", phrase)) for phrase in re.findall(THING, text)]
    said = [TOLD[words] for words in re.findall(rf"(?<!\w)({REL})(?= an? )", text)]
    where = re.search(rf"(?:^|(?<= ))({WHERE})(?=, a|$)", text)
    if where:
        named = [named[0]._replace(place=where[1])]
    if re.match(f"(?:{REL}) an? ", text):                   # under a blue square, a red circle
        named.reverse()
    left = re.sub(rf"{THING}|{REL}|{WHERE}|which is|and|[, ]", "", text)
    assert not left, f"words that nothing explains: {left!r}"
    return Claim(tuple(named), tuple((i, name, i + 1) for i, name in enumerate(said)),
                 ground and ground[1])


def is_true(claim, scene):
    """Does some order of the scene's objects make all true that the claim says?"""
    todo = [()]
    for named in claim.objects:
        todo = [(*order, i) for order in todo for i, thing in enumerate(scene.objects)
                if i not in order and (thing.colour, thing.shape) == (named.colour, named.shape)
                and named.size in (None, thing.size)
                and (named.place is None
                     or third(thing) == set(re.findall("top|bottom|left|right|middle",
                                                       named.place)))]
    return (len(claim.objects) == len(scene.objects)
            and claim.background in (None, scene.background)
            and any(all(holds(name, scene.objects[order[i]], scene.objects[order[j]])
                        for i, name, j in claim.relations) for order in todo))


INSIDE = {"circle": lambda x, y: x**2 + y**2 < 1,
          "square": lambda x, y: (abs(x) < 1) & (abs(y) < 1),
          "diamond": lambda x, y: abs(x) + abs(y) < 1,
          "triangle": lambda x, y: (y < 1) & (abs(x) < (y + 1) / 2),
          "cross": lambda x, y: ((abs(x) < 0.38) & (abs(y) < 1)) | ((abs(y) < 0.38) & (abs(x) < 1))}


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_the_covered_share_of_every_pixel(shape, side, rng):
    for size, (low, high) in RADII.items():
        x, y, r = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6), rng.uniform(low, high)
        scene = Scene("white", (Thing(shape, "red", size, x, y, r),))
        cover = shapes.masks([scene], side)
        fine = (np.arange(16 * side) + 0.5) / (16 * side)
        brute = INSIDE[shape]((fine[None] - x) / r, (fine[:, None] - y) / r)
        brute = brute.reshape(side, 16, side, 16).mean((1, 3))
        padded = np.pad(brute, 1, mode="edge")
        around = np.array([padded[i:i + side, j:j + side] for i in range(3) for j in range(3)])
        assert cover.shape == (1, 3, side, side)
        assert not cover[0, 1:].any()
        np.testing.assert_array_equal(cover[0, 0][around.min(0) == 1], 1)
        np.testing.assert_array_equal(cover[0, 0][around.max(0) == 0], 0)
        assert abs(cover[0, 0] - brute).max() < 0.35        # at the tip of a triangle
        assert cover.sum() == pytest.approx(brute.sum(), rel=0.06)


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_are_signed_distances(shape):
    y, x = np.mgrid[-1.5:1.5:0.0101, -1.5:1.5:0.0101]
    d = shapes.DISTANCE[shape](x, y, 1.0)
    np.testing.assert_array_equal(d < 0, INSIDE[shape](x, y))
    slope = np.hypot(*np.gradient(d, 0.0101))               # 1 but where two edges meet
    assert np.median(slope) == pytest.approx(1, abs=1e-3)


def test_a_covered_pixel_has_the_objects_colour_and_a_free_one_the_backgrounds():
    for scene in scenes_of(60):
        picture, cover = shapes.draw([scene], 32)[0], shapes.masks([scene], 32)[0]
        for thing, mask in zip(scene.objects, cover):
            assert (mask == 1).any()
            assert (picture[mask == 1] == COLOURS[thing.colour]).all()
        assert (picture[cover.sum(0) == 0] == BACKGROUNDS[scene.background]).all()
        assert (np.count_nonzero(cover, axis=0) <= 1).all()     # no pixel belongs to two


def test_the_large_picture_shrunk_is_the_small_one():
    scenes = scenes_of(100)
    small, large = shapes.draw(scenes, 32).astype(float), shapes.draw(scenes, 64).astype(float)
    shrunk = large.reshape(100, 32, 2, 32, 2, 3).mean((2, 4))
    assert abs(shrunk - small).mean() < 1
    assert abs(shrunk - small).max() < 90


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_scenes_keep_their_margins(split):
    for scene in scenes_of(1000, split):
        for a in scene.objects:
            low, high = RADII[a.size]
            assert low <= a.radius <= high
            assert a.radius + 0.999 / 32 <= min(a.x, a.y, 1 - a.x, 1 - a.y)
            if len(scene.objects) == 1:
                assert min(abs(v - line) for v in (a.x, a.y) for line in (1 / 3, 2 / 3)) > 1.2 / 32
        for a, b in combinations(scene.objects, 2):
            dx, dy = abs(a.x - b.x), abs(a.y - b.y)
            assert max(dx, dy) - a.radius - b.radius >= 1.999 / 32
            assert abs(dx - dy) >= 2.999 / 32
            assert (a.colour, a.shape) != (b.colour, b.shape)


def test_scenes_are_as_varied_as_they_say():
    scenes = scenes_of(4000)
    count = Counter(len(scene.objects) for scene in scenes)
    assert [count[n] / 4000 for n in (1, 2, 3)] == pytest.approx([0.45, 0.40, 0.15], abs=0.03)
    alone = [scene.objects[0] for scene in scenes if len(scene.objects) == 1]
    assert min(Counter(frozenset(third(thing)) for thing in alone).values()) > len(alone) / 9 * 0.75
    two = Counter(tuple(thing.size for thing in scene.objects) for scene in scenes
                  if len(scene.objects) == 2)
    assert len(two) == 4
    assert min(two.values()) > count[2] / 4 * 0.85
    assert len(Counter(scene.background for scene in scenes)) == 3
    pairs = Counter((a.colour, a.shape) for scene in scenes for a in scene.objects)
    assert len(pairs) == 30 - len(HELD_PAIRS)


def shows_what_is_held_out(scene):
    return (any((a.colour, a.shape) in HELD_PAIRS for a in scene.objects)
            or any(holds(name, a, b) and (a.shape, b.shape) == (first, second)
                   for a in scene.objects for b in scene.objects if a is not b
                   for first, name, second in HELD_RELATIONS))


def test_the_split_never_leaks():
    assert not any(map(shows_what_is_held_out, scenes_of(10_000)))
    assert all(map(shows_what_is_held_out, scenes_of(2_000, "unseen")))


def test_what_is_held_out_is_told_from_both_sides_and_leaves_every_word_to_be_learned():
    turned = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert HELD_RELATIONS == {(c, turned[name], a) for a, name, c in HELD_RELATIONS}
    assert len({colour for colour, _ in HELD_PAIRS}) == len({shape for _, shape in HELD_PAIRS}) == 4


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_captions_are_true_and_their_claims_say_the_same(split, rng):
    dice = Dice(rng)
    for scene in scenes_of(1500, split):
        for text, claim in (plainest(scene), varied(scene, dice)):
            assert read_words(text) == claim, text
            assert is_true(claim, scene), text


def test_captions_of_another_scene_are_mostly_false(rng):
    dice = Dice(rng)
    scenes = scenes_of(400)
    claims = [varied(scene, dice)[1] for scene in scenes]
    assert np.mean([is_true(claim, scene) for claim, scene in zip(claims, scenes[1:])]) < 0.05


def test_the_plainest_captions_read_as_promised():
    def thing(shape, colour, x, y):
        return Thing(shape, colour, "small", x, y, 0.11)

    circle, square = thing("circle", "red", 0.3, 0.2), thing("square", "blue", 0.3, 0.7)
    triangle = thing("triangle", "orange", 0.7, 0.6)
    said = [plainest(Scene("white", objects))[0]
            for objects in ((circle,), (circle, square), (circle, square, triangle))]
    assert said == ["a red circle", "a red circle above a blue square",
                    "a red circle above a blue square, which is left of an orange triangle"]


def test_a_batch_is_a_function_of_its_generator_and_stays_what_it_was():
    world = shapes.read("shapes", "train")
    x, texts = world.batch(8, 0, 0, 0.5, np.random.default_rng([7, 0]))
    again, same = world.batch(8, 0, 0, 0.5, np.random.default_rng([7, 0]))
    other, _ = world.batch(8, 1, 0, 0.5, np.random.default_rng([7, 1]))
    assert x.shape == (8, *world.shape) == (8, 32, 32, 3)
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, again)
    assert texts == same
    assert (x != other).any()
    assert texts[:5] == [                                   # what shipped models learned from
        "a red triangle right of a yellow diamond",
        "there is a purple triangle on a black background",
        "a red cross left of a yellow diamond, which is below a red triangle",
        "a green circle left of a blue cross",
        "a picture of a small green cross in the bottom right on a grey background"]


@pytest.mark.parametrize("simple", [1.0, 0.5, 0.2, 0.0])
def test_lessons_are_of_one_object_and_its_place_then_of_two_and_their_relation(simple):
    world = shapes.read("shapes", "train")
    x, texts = world.batch(1200, 0, 0, 1.0, np.random.default_rng(1), simple)
    place = sum(re.fullmatch(f"(a picture of |there is )?{THING} ({WHERE})( on .*)?", text)
                is not None for text in texts)
    objects = np.bincount([len(re.findall(THING, text)) for text in texts], minlength=4)[1:]
    lessons, rest = [simple**2, 2 * simple * (1 - simple), 0], (1 - simple)**2
    expected = np.add(lessons, rest * np.array([9, 8, 3]) / 20)
    assert abs(place / 1200 - simple**2) < 0.05           # all else is told in plain words
    np.testing.assert_allclose(objects / 1200, expected, atol=0.05)
    assert len(x) == 1200


def test_the_share_of_plain_captions_is_as_asked():
    world = shapes.read("shapes", "train")
    plain = r"a \w+ \w+( \w+ (of )?an? \w+ \w+(, which is \w+ (of )?an? \w+ \w+)?)?"
    _, texts = world.batch(300, 0, 0, 1.0, np.random.default_rng(1))
    assert all(re.fullmatch(plain.replace("a ", "an? ", 1), text) for text in texts)
    _, texts = world.batch(300, 0, 0, 0.0, np.random.default_rng(1))
    assert sum("small" in text or "large" in text for text in texts) > 120


def test_the_corpus_has_every_word_and_is_always_the_same():
    corpus = shapes.read("shapes", "train").corpus()
    assert corpus == shapes.read("shapes64", "train").corpus()
    assert len(corpus) == 4000
    words = {word for text in corpus for word in re.findall(r"\w+", text)}
    assert words >= {*COLOURS, *SHAPES, *BACKGROUNDS, *RADII, *" ".join(TOLD).split(),
                     *re.findall(r"\w+", WHERE), *"a an picture there is which and on".split()}


def test_the_prompts_ask_for_what_training_shows():
    world = shapes.read("shapes64", "train")
    assert world.shape == (64, 64, 3)
    assert world.count is None
    assert len(world.prompts) == 10
    assert world.prompts[0] == "a red circle above a blue square"
    for text in world.prompts:
        claim = read_words(text)
        assert not HELD_PAIRS & {(o.colour, o.shape) for o in claim.objects}
        assert not HELD_RELATIONS & {(claim.objects[i].shape, name, claim.objects[j].shape)
                                     for i, name, j in claim.relations}


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_ask_claims_what_it_asks_and_names_what_is_held_out(objects, rng):
    world = shapes.read("shapes", "train")
    for split in ("train", "unseen"):
        for _ in range(100):
            text, claim = world.ask(rng, objects, split)
            assert read_words(text) == claim
            assert len(claim.objects) == objects
            assert len(claim.relations) == objects - 1
            named = (HELD_PAIRS & {(o.colour, o.shape) for o in claim.objects}
                     or HELD_RELATIONS & {(claim.objects[i].shape, name, claim.objects[j].shape)
                                          for i, name, j in claim.relations})
            assert bool(named) == (split == "unseen")


def test_other_names_splits_and_numbers_are_refused(rng):
    with pytest.raises(ValueError, match="'shapes' and 'test'"):
        shapes.read("shapes", "test")
    with pytest.raises(ValueError, match="'circles' and 'train'"):
        shapes.read("circles", "train")
    for objects, split in ((0, "train"), (4, "train"), (1, "test")):
        with pytest.raises(ValueError, match="1 to 3 objects"):
            shapes.read("shapes", "train").ask(rng, objects, split)
