"""The scene parser reads back what was drawn, through noise and blur, and never guesses."""

import numpy as np
import pytest

from tinydiff import data
from tinydiff.data.scene_words import Claim, Named, plainest, varied
from tinydiff.data.scenes import BACKGROUNDS, COLOURS, Dice, Scene, Thing, place, random_scene
from tinydiff.data.shapes import draw, masks
from tinydiff.evaluation.scene_parser import parse, satisfies

SIDES = pytest.mark.parametrize("side", [32, 64])


def scenes_of(n, split="train"):
    dice = Dice(np.random.default_rng(0))
    return [random_scene(dice, split) for _ in range(n)]


def in_order(scene):
    return sorted(scene.objects, key=lambda thing: thing[:3])


def agree(scene, read):
    """Are background, names, relations and places the same?"""
    def facts(scene):
        things = in_order(scene)
        return (scene.background, [thing[:3] for thing in things],
                plainest(scene._replace(objects=things)),
                len(things) == 1 and place(things[0]))
    return read is not None and facts(scene) == facts(read)


def painted(cover, colour=COLOURS["blue"], ground=BACKGROUNDS["white"]):
    """What a share of cover (H, H) in [0, 1] looks like in a colour, on a ground."""
    return (np.array(ground) + cover[..., None] * (np.array(colour) - ground)).astype(np.uint8)


def shape_of(inside, x=16.2, y=15.7, radius=6.0, side=32):
    """The cover (32, 32) of any shape, by 8 × 8 points in each pixel."""
    fine = (np.arange(8 * side) + 0.5) / 8
    points = inside((fine[None] - x) / radius, (fine[:, None] - y) / radius)
    return points.reshape(side, 8, side, 8).mean((1, 3))


@SIDES
@pytest.mark.parametrize("split", ["train", "unseen"])
def test_what_was_drawn_is_read_back_exactly(side, split):
    scenes = scenes_of(300, split)
    for scene, picture in zip(scenes, draw(scenes, side)):
        read = parse(picture)
        assert agree(scene, read)
        for a, b in zip(in_order(scene), in_order(read)):
            np.testing.assert_allclose(a[3:], b[3:], atol=0.35 / 32)


@SIDES
def test_noise_and_colours_a_little_off_do_not_matter(side, rng):
    scenes = scenes_of(150)
    right = []
    for scene, picture in zip(scenes, draw(scenes, side)):
        read = parse((picture + rng.normal(0, 8, picture.shape)).round().clip(0, 255)
                     .astype(np.uint8))
        right.append(agree(scene, read))
        assert read is None or right[-1]                    # never wrong
        cast = rng.uniform(-25, 25, 3)                      # the same for all that is there
        right.append(agree(scene, parse((picture + cast).clip(0, 255).astype(np.uint8))))
    assert np.mean(right) >= 0.99


@SIDES
def test_a_slight_blur_does_not_matter(side):
    scenes = scenes_of(150)
    reads = []
    for picture in draw(scenes, side).astype(float):
        for _ in range(side // 32):                         # 0.5 pixels², then 1 at side 64
            for axis in (0, 1):
                near = np.pad(picture, [(int(i == axis),) * 2 for i in range(3)], mode="edge")
                first, last = (near.take(range(i, i + side), axis) for i in (0, 2))
                picture = (first + 2 * picture + last) / 4
        reads.append(parse(picture.round().astype(np.uint8)))
    assert np.mean([agree(*pair) for pair in zip(scenes, reads)]) >= 0.97


@pytest.mark.parametrize(("name", "dx", "dy"), [("left of", 0.4, 0.1), ("right of", -0.4, -0.1),
                                                ("above", 0.1, 0.4), ("below", -0.1, -0.4)])
def test_each_relation_is_seen_and_its_three_others_are_not(name, dx, dy):
    a = Thing("circle", "red", "small", 0.5 - dx / 2, 0.5 - dy / 2, 0.11)
    b = Thing("square", "blue", "small", 0.5 + dx / 2, 0.5 + dy / 2, 0.11)
    named = (Named("red", "circle"), Named("blue", "square"))
    scene = parse(draw([Scene("grey", (a, b))], 32)[0])
    for said in ("left of", "right of", "above", "below"):
        assert satisfies(scene, Claim(named, ((0, said, 1),), None)) == (said == name)
        assert satisfies(scene, Claim(named[::-1], ((1, said, 0),), None)) == (said == name)


@SIDES
def test_a_picture_satisfies_its_captions_and_hardly_ever_anothers(side, rng):
    scenes, dice = scenes_of(200, "unseen"), Dice(rng)
    reads = [parse(picture) for picture in draw(scenes, side)]
    claims = [varied(scene, dice)[1] for scene in scenes]
    assert all(map(satisfies, reads, claims))
    assert np.mean(list(map(satisfies, reads[1:], claims))) < 0.05


SEEN = Scene("black", (Thing("circle", "red", "small", 0.2, 0.2, 0.11),
                       Thing("circle", "green", "large", 0.6, 0.3, 0.18)))
RED, GREEN = Named("red", "circle"), Named("green", "circle")


@pytest.mark.parametrize(("claim", "true"), [
    (Claim((RED, GREEN), (), None), True),
    (Claim((GREEN, RED), ((1, "left of", 0),), "black"), True),
    (Claim((Named("red", "circle", "small"), Named("green", "circle", "large")), (), None), True),
    (Claim((Named("red", "circle", "large"), GREEN), (), None), False),
    (Claim((Named("red", "square"), GREEN), (), None), False),
    (Claim((Named("green", "circle", "small"), Named("red", "circle", "large")), (), None), False),
    (Claim((RED, RED), (), None), False),
    (Claim((RED,), (), None), False),
    (Claim((RED, GREEN, GREEN), (), None), False),
    (Claim((RED, GREEN), ((0, "above", 1),), None), False),
    (Claim((RED, GREEN), (), "white"), False)])
def test_a_claim_must_be_true_in_all_it_says(claim, true):
    assert satisfies(SEEN, claim) == satisfies(parse(draw([SEEN], 32)[0]), claim) == true
    assert not satisfies(None, claim)


@pytest.mark.parametrize(("x", "y", "where"), [(0.25, 0.25, "in the top left"),
                                               (0.5, 0.8, "at the bottom"),
                                               (0.8, 0.5, "on the right"),
                                               (0.5, 0.5, "in the middle")])
def test_an_object_alone_is_where_it_is(x, y, where):
    scene = parse(draw([Scene("white", (Thing("cross", "blue", "small", x, y, 0.12),))], 32)[0])
    for said in ("in the top left", "at the bottom", "on the right", "in the middle"):
        claim = Claim((Named("blue", "cross", None, said),), (), None)
        assert satisfies(scene, claim) == (said == where)


INSIDE = {"circle": lambda x, y: x**2 + y**2 < 1,
          "square": lambda x, y: (abs(x) < 1) & (abs(y) < 1),
          "diamond": lambda x, y: abs(x) + abs(y) < 1,
          "triangle": lambda x, y: (y < 1) & (abs(x) < (y + 1) / 2),
          "cross": lambda x, y: ((abs(x) < 0.38) & (abs(y) < 1)) | ((abs(y) < 0.38) & (abs(x) < 1))}
UNREADABLE = {
    "nothing":              np.zeros((32, 32)),
    "half a circle":        shape_of(lambda x, y: (x**2 + y**2 < 1) & (y < 0)),
    "two circles in one":   shape_of(lambda x, y: (abs(x) - 0.5)**2 + y**2 < 1),
    "a ring":               shape_of(lambda x, y: abs(x**2 + y**2 - 0.7) < 0.3),
    "a triangle on its tip": shape_of(lambda x, y: INSIDE["triangle"](x, -y)),
    "half a square":        shape_of(lambda x, y: (x < y) & (abs(x) < 1) & (abs(y) < 1)),
    "a long rectangle":     shape_of(lambda x, y: (abs(x) < 1) & (abs(y) < 0.5)),
    "a cross without a foot": shape_of(lambda x, y: INSIDE["cross"](x, y) & (y < 0.4)),
    "neither round nor square": shape_of(lambda x, y: abs(x)**3.5 + abs(y)**3.5 < 1),
    "a size between":       shape_of(INSIDE["circle"], radius=4.6),
    "too large":            shape_of(INSIDE["circle"], radius=9.0),
    "too small":            shape_of(INSIDE["circle"], radius=2.2),
    "cut by the edge":      shape_of(INSIDE["circle"], x=3.0),
    "faded":                shape_of(INSIDE["circle"]) * 0.5,
    "a circle and specks":  np.maximum(shape_of(INSIDE["circle"]),
                                       np.eye(32)[:, ::-1] * (np.arange(32) % 3 == 0)),
    "four circles":         sum(shape_of(INSIDE["circle"], x, y, 3.5)
                                for x in (8, 24) for y in (8, 24))}


@pytest.mark.parametrize("shape", INSIDE)
def test_a_shape_drawn_by_other_means_is_read(shape):
    for size, radius in (("small", 3.5), ("large", 6)):
        thing, = parse(painted(shape_of(INSIDE[shape], radius=radius))).objects
        assert thing[:3] == (shape, "blue", size)
        np.testing.assert_allclose(thing[3:], np.array([16.2, 15.7, radius]) / 32, atol=0.35 / 32)


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_scene_is_unreadable(name):
    assert parse(painted(UNREADABLE[name])) is None


@pytest.mark.parametrize("colour", [(255, 150, 200), (0, 255, 255), (255, 255, 255), (120, 70, 20)])
def test_a_colour_of_no_name_is_unreadable(colour):
    cover = shape_of(INSIDE["circle"])
    assert parse(painted(cover, colour, BACKGROUNDS["black"])) is None
    assert parse(painted(cover, COLOURS["red"], ground=(200, 255, 160))) is None


def test_noise_gradients_blends_and_digits_are_unreadable(rng):
    ramp = np.linspace(0, 255, 32)
    digits = np.pad(data.load("digits").images[:100, ..., 0] / 255, ((0, 0), (2, 2), (2, 2)))
    a, b = draw(scenes_of(2), 32).astype(float)
    pictures = [*rng.integers(0, 256, (50, 32, 32, 3)), rng.normal(128, 40, (32, 32, 3)),
                np.broadcast_to(ramp[:, None, None], (32, 32, 3)), (a + b) / 2,
                *(painted(digit, COLOURS["blue"]) for digit in digits),
                *(painted(digit, (255, 255, 255), (0, 0, 0)) for digit in digits)]
    assert not any(parse(np.clip(p, 0, 255).astype(np.uint8)) for p in pictures)


def test_a_striped_ground_is_unreadable():
    cover = shape_of(INSIDE["circle"])
    stripes = np.where(np.arange(32)[:, None, None] % 2, 255, 215)
    assert parse(painted(cover, ground=BACKGROUNDS["white"])) is not None
    assert parse(np.where(cover[..., None] > 0, painted(cover), stripes).astype(np.uint8)) is None


@SIDES
def test_objects_nearer_than_the_world_puts_them_are_read_until_they_touch(side):
    def two(distance):                                      # a circle between a cross's arms
        return Scene("white", (Thing("cross", "blue", "large", 0.4, 0.4, 0.18),
                               Thing("circle", "red", "small", 0.44 + distance, 0.4 + distance,
                                     0.10)))

    for distance in (0.22, 0.24, 0.26):                     # bounding squares overlap below 0.28
        assert agree(two(distance), parse(draw([two(distance)], side)[0]))
    assert parse(draw([two(0.12)], side)[0]) is None


def test_objects_that_overlap_are_unreadable():
    a, b = (Thing("square", "green", "large", 0.4, 0.5, 0.18),
            Thing("circle", "red", "large", 0.62, 0.55, 0.18))
    for back, front in ((a, b), (b, a), (a, b._replace(colour="green"))):
        below = draw([Scene("white", (back,))], 32)[0].astype(float)
        cover = masks([Scene("white", (front,))], 32)[0, 0][..., None]
        picture = below * (1 - cover) + cover * np.array(COLOURS[front.colour])
        assert parse(picture.astype(np.uint8)) is None


@pytest.mark.parametrize("picture", [np.zeros((32, 32, 1), np.uint8), np.zeros((32, 32, 3)),
                                     np.zeros((32, 16, 3), np.uint8), np.zeros((0, 0, 3), np.uint8),
                                     np.zeros((1, 32, 32, 3), np.uint8)])
def test_other_arrays_are_refused(picture):
    with pytest.raises(ValueError, match=r"expected a square picture uint8 \(H, H, 3\), got"):
        parse(picture)
