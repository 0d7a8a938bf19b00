"""What a convolution learned of its output in passing, for the norm that comes next.

    remember(y, moments, counts)                          recall(y) -> (moments, counts) or None

moments (N, tiles, C, 2) are the mean, and the sum of squares around it, of each channel over a tile
of an image; counts (tiles,) are its pixels. They are forgotten with y.
"""

from weakref import ref

_known = {}                                               # {id of y: (reference, moments, counts)}


def remember(y, moments, counts):
    key = id(y)
    _known[key] = ref(y, lambda _: _known.pop(key, None)), moments, counts


def recall(y):
    reference, *found = _known.get(id(y), (lambda: None, None))
    return found if reference() is y else None
