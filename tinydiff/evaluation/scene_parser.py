"""Read a scene of shapes back from its pixels: "did it draw what I asked?" has an exact answer.

What stands out from the background falls into blobs. A blob's colour is that of its core; its area
and centroid say where each of the five shapes would lie, and how large; its shape is the one that,
drawn there, comes close, if no other comes nearly as close. All else is unreadable, not guessed.
"""

import math
from itertools import permutations

import numpy as np

from tinydiff.data.scenes import BACKGROUNDS, COLOURS, RADII, Scene, Thing, place, relation
from tinydiff.data.shapes import ARM, DISTANCE

AREA = {"circle": math.pi, "square": 4, "triangle": 2, "diamond": 2,
        "cross": 4 * ARM * (2 - ARM)}               # of radius 1
DROP = {"triangle": 1 / 3}                          # from the centre down to the centroid, in radii

SEEN = 60           # levels of RGB distance from the background to a pixel of an object
NEAR = 58           # and from a colour to one of ours: less than half the way to the next
STAIN = 25          # median distance of all pixels from the background, at most
SPECK = 2 / 32**2   # area of what is too small to be an object, in units of the picture's
DIRT = 4 / 32**2    # area of all specks, at most
CORE = 0.85         # this share of a blob may be outline, blurred into the background
SLACK = 0.5 / 32    # how far a radius may lie outside its size's range, an object over the edge
CLOSE = 0.07        # squared error of the best shape over the square of the object, at most
CLEAR, EVEN = 1.1, 0.002        # that of the second best: CLEAR times as much, and EVEN more


def parse(picture):
    """The Scene in a picture uint8 (H, H, 3), None if unreadable; ValueError for another array."""
    if picture.dtype != np.uint8 or not picture.size or picture.shape != (len(picture),) * 2 + (3,):
        raise ValueError("parse: expected a square picture uint8 (H, H, 3), "
                         f"got {picture.dtype} {picture.shape}")
    p = picture.astype(np.float32)
    ground = np.median(np.concatenate([p[0], p[-1], p[:, 0], p[:, -1]]), axis=0)
    background = _nearest(ground, BACKGROUNDS)
    far = np.linalg.norm(p - ground, axis=2)                # (H, H)
    label = _components(far > SEEN)
    blobs, sizes = np.unique(label[label > 0], return_counts=True)
    specks = sizes <= SPECK * far.size
    if (background is None or np.median(far) > STAIN or not 1 <= (~specks).sum() <= 3
            or sizes[specks].sum() > DIRT * far.size):
        return None
    things = [_thing(p - ground, ground, label == blob, label > 0) for blob in blobs[~specks]]
    return None if None in things else Scene(background, tuple(things))


def satisfies(scene, claim):
    """Is all true of a Scene (or None, unreadable) that a Claim says, and nothing else there?"""
    return (scene is not None and len(scene.objects) == len(claim.objects)
            and claim.background in (None, scene.background)
            and any(all(_is(thing, *named) for thing, named in zip(things, claim.objects))
                    and all(relation(things[i], things[j]) == name
                            for i, name, j in claim.relations)
                    for things in permutations(scene.objects)))


def _is(thing, colour, shape, size, where):
    return ((thing.colour, thing.shape) == (colour, shape)
            and size in (None, thing.size) and where in (None, place(thing)))


def _nearest(colour, palette):
    """The name of the palette's colour within NEAR levels, or None."""
    name = min(palette, key=lambda name: math.dist(colour, palette[name]))
    return name if math.dist(colour, palette[name]) < NEAR else None


def _components(seen):
    """Label pixels that touch at a side alike, 0 for those not seen: (H, W) bool -> (H, W) int."""
    label = np.arange(1, seen.size + 1).reshape(seen.shape) * seen
    while True:
        before = label.copy()
        for a, b in ((label, seen), (label[::-1, ::-1], seen[::-1, ::-1])):
            np.maximum(a[1:], a[:-1] * b[1:], out=a[1:])                # down, then up
            np.maximum(a.T[1:], a.T[:-1] * b.T[1:], out=a.T[1:])        # right, then left
        if (before == label).all():
            return label


def _thing(p, ground, blob, seen):
    """The Thing that fills a blob, or None.  p (H, H, 3) is the picture minus its ground (3,)."""
    H = len(p)
    (top, bottom), (left, right) = (np.flatnonzero(blob.any(axis))[[0, -1]] for axis in (1, 0))
    window = np.s_[max(top - 1, 0):bottom + 2, max(left - 1, 0):right + 2]
    p = np.where((seen & ~blob)[..., None], 0, p)[window]   # (h, w, 3), without its neighbours
    depth = np.where(blob[window], _blurred(np.linalg.norm(p, axis=2)[None], H)[0], 0)
    paint = np.median(p[depth >= np.quantile(depth[depth > 0], CORE)], axis=0)
    colour = _nearest(paint + ground, COLOURS)
    cover = p @ paint / max(paint @ paint, 1)               # (h, w): 1 inside, 0 outside
    area = cover.sum()
    if colour is None or area <= 0:
        return None
    y, x = np.mgrid[:H, :H][:, *window] + 0.5
    x0, y0 = (float((axis * cover).sum() / area) for axis in (x, y))
    radii = [math.sqrt(area / AREA[shape]) for shape in DISTANCE]
    middle = [y0 - DROP.get(shape, 0) * radius for shape, radius in zip(DISTANCE, radii)]
    sharp = np.clip([0.5 - distance(x - x0, y - y1, radius) for distance, y1, radius
                     in zip(DISTANCE.values(), middle, radii)], 0, 1)       # (5, h, w)
    error = np.min([np.square(p - drawn[..., None] * paint).sum((1, 2, 3))
                    for drawn in (sharp, _blurred(sharp, H))], axis=0)
    error = error / (area * paint @ paint)                  # (5,)
    best, second = np.argsort(error)[:2]
    x, y, radius = x0 / H, middle[best] / H, radii[best] / H
    size = [size for size, (low, high) in RADII.items() if low - SLACK < radius < high + SLACK]
    if (not size or error[best] > CLOSE or error[second] < CLEAR * error[best] + EVEN
            or min(x, y, 1 - x, 1 - y) < radius - SLACK):   # cut by the picture's edge
        return None
    return Thing(list(DISTANCE)[best], colour, size[0], x, y, radius)


def _blurred(a, side):
    """a (N, h, w) as if its picture had gone through a blur of 0.7 pixels at side 32."""
    n = round((side / 32)**2)
    a = np.pad(a, ((0, 0), (n, n), (n, n)))
    for _ in range(2 * n):                                  # down, across, down, …
        a = (a[:, :-2] + 2 * a[:, 1:-1] + a[:, 2:]).swapaxes(1, 2) / 4
    return a
