"""Winograd on the host's side: who takes which tiles, and where the transformed weights stay.

Blocks are cut so that what a thread holds fits in its cache, and, where sums are split, by the
shapes alone: so no result depends on the number of threads.
"""

import weakref

from ..door import given, sides, up, whole_panels
from ..memory import empty
from ..simd.functions import WIDTH
from ..simd.pool import run, threads
from ..simd.product import PANEL, ROWS
from . import winograd_gradient
from .winograd import CHANNELS, TASKS

TILES = 48                                                # a block of them; more would leave L2
SMALL = 1 << 11                                           # C·O of weights one thread transforms
LARGE, FEW = 1 << 15, 128                                 # C·O, tiles: nothing is kept of weights
KEPT  = 1 << 16                                           # C·O of the largest U that is: 9.4 MB
PARTS = 8                                                 # a sum over all tiles is cut into so many


def convolve(m, xs, U, O, *, scale=None, shift=None, base=None, add=None, split=None):
    """[y (N, H, W, O)] from xs, one or two inputs, and transformed weights.

    scale, shift (N, C): y is of silu(x · scale + shift). base, (O,) or (N, O), and add, like y,
    are added. split = O1: two arrays instead, of O1 and of O − O1 channels.
    """
    x, skip, C1, C2 = sides(xs)
    N, H, W, _ = x.shape
    y = [empty((N, H, W, width)) for width in ([split, O - split] if split else [O])]
    wide, positions = -(-W // m), (m + 2)**2
    each, groups = shares(N * -(-H // m) * wide, up(O, PANEL) // PANEL)
    high, count = bands(m, H, W, each)
    units = max(1, each // (high * wide))
    T = up(units * high * wide, ROWS)
    size = up(m * m * PANEL + piece(m, high, wide, C1 + C2)
              + positions * (T * (up(C1 + C2, 16) + 16 + PANEL) + 32), 16)
    run(TASKS[m]["forward"], -(-N * count // units) * groups, x, skip, C1, C2, given(scale),
        given(shift), U, given(whole_panels(base, N, O)), given(add), y[0], y[-1], split or O,
        O, N, H, W, high, count, units, groups, T, empty(threads() * size), size)
    return y


def shares(tiles, panels):
    """(tiles a block, groups of panels): the same number of blocks for every thread.

    Few tiles are first shared out by panels, so that the weights are read once, not by everyone.
    """
    groups = min(panels, max(1, threads() * TILES // max(1, tiles)))
    blocks = up(-(-tiles * groups // TILES), threads())
    return max(ROWS, -(-tiles * groups // max(1, blocks))), groups


def passed_by(m, xs, w, *, turned=False, scale=None, shift=None, base=None, add=None, split=None):
    """The same for few tiles and large weights w: their transforms are never written to memory.

    First all tiles are transformed, V; then every thread takes some of them, and some panels.
    """
    x, skip, C1, C2 = sides(xs)
    w = given(w)
    start, strides, C, O = taken(w, turned)
    N, H, W, _ = x.shape
    m = m if number(m, x) >= ROWS else 2
    count, positions, panels = number(m, x), (m + 2)**2, up(O, PANEL) // PANEL
    y = [empty((N, H, W, width)) for width in ([split, O - split] if split else [O])]
    V_step = up(count, ROWS) * CHANNELS + 16
    V = empty((-(-C // CHANNELS) * positions, V_step))
    V[:, count * CHANNELS:] = 0                           # not empty: denormals would be slow
    high, parts = bands(m, H, W, 32)
    size = up(piece(m, high, -(-W // m), CHANNELS), 16)
    run(TASKS[m]["inputs"], N * parts * -(-C // CHANNELS), x, skip, C1, C2, given(scale),
        given(shift), V, V_step, N, H, W, high, parts, empty(threads() * size), size)
    T = up(min(count, 64), ROWS)
    blocks = -(-count // T)
    each = max(1, min(blocks * panels // (4 * threads()), 128 // T))      # panels of an item
    size = up(m * m * PANEL + 10 * WIDTH**2 + positions * (CHANNELS * PANEL + 16)
              + each * positions * (T * PANEL + 16), 16)
    run(TASKS[m]["passing"], blocks * -(-panels // each), start, *strides, V, V_step, C,
        given(whole_panels(base, N, O)), given(add), y[0], y[-1], split or O, O, N, H, W, T, each,
        empty(threads() * size), size)
    return y


def passes(m, x, w):
    """Whether few tiles meet large weights: then what is made of w costs more than it saves."""
    return 0 < number(m, x) <= FEW and w.shape[2] * w.shape[3] >= LARGE


def number(m, x):
    """The tiles of all images."""
    return len(x) * -(-x.shape[1] // m) * -(-x.shape[2] // m)


def weight_gradient(m, xs, dy, *, scale=None, shift=None):
    """dw (3, 3, C, O) for the convolution of xs, or of silu(x · scale + shift)."""
    x, skip, C1, C2 = sides(xs)
    N, H, W, O = dy.shape
    C = C1 + C2
    c_block = up(min(C, 32), ROWS)
    o_block = up(min(O, 128 if C >= 8 * 32 else 64), PANEL)           # eight blocks, or more
    blocks = -(-C // c_block) * -(-O // o_block)
    most = 32 if o_block > 64 else TILES
    high, count = bands(m, H, W, most)
    splits = max(1, min(PARTS // blocks, N * count))
    wide, positions = -(-W // m), (m + 2)**2
    T = max(most, high * wide)
    size = up(m * m * WIDTH + piece(m, high, wide, c_block)
              + positions * (T * (up(c_block, 16) + 16 + o_block) + 16 + 16 * o_block
                             + c_block * o_block), 16)
    dw = empty((3, 3, C, O))
    dU = empty((splits * blocks * positions * c_block * o_block,)) if splits > 1 else None
    run(winograd_gradient.TASKS[m]["products"], splits * blocks, x, skip, C1, C2, given(scale),
        given(shift), dy, O, given(dU), dw, c_block, o_block, splits, N, H, W, high, count, T,
        empty(threads() * size), size)
    if splits > 1:
        run(winograd_gradient.TASKS[m]["collect"], C, dU, dw, C, O, c_block, o_block, splits,
            empty(threads() * (positions + 9) * WIDTH))
    return dw


def bands(m, H, W, most):
    """(rows of tiles a band, bands an image): at most `most` tiles a band where that can be."""
    deep, wide = -(-H // m), -(-W // m)
    count = -(-deep // max(1, min(deep, most // wide)))
    return -(-deep // count), count                       # all bands of nearly the same height


def piece(m, high, wide, C):
    """The floats of a piece of image that `high` rows of `wide` tiles need, border included."""
    return (high * m + 2) * (wide * m + 2) * C + 16


def transformed(m, w, *, turned=False):
    """U for the weights w (3, 3, C, O), or for w turned around with C and O exchanged."""
    w = given(w)
    start, strides, C, O = taken(w, turned)
    U = empty((up(O, PANEL) // PANEL, (m + 2)**2, C * PANEL + 16))
    transform(m, start, strides, C, O, U, 0)
    return U


def taken(w, turned):
    """(w, its strides in floats, C, O), or w turned around, with C and O exchanged."""
    _, _, C, O = w.shape
    if turned:                                            # from the last tap backwards
        return w.ctypes.data + 4 * 8 * C * O, (-3 * C * O, -C * O, 1, O), O, C
    return w, (3 * C * O, C * O, O, 1), C, O


def transform(m, w, strides, C, O, U, seen):
    blocks = len(U) * -(-C // WIDTH)
    each = blocks if C * O <= SMALL else 1
    run(TASKS[m]["weights"], -(-blocks // each), w, *strides, C, O, U, seen, each,
        empty((threads(), 10, WIDTH, WIDTH)))


_kept = {}                                                # {(m, id of w): (w weakly, copy of w, U)}


def kept(m, w):
    """transformed(m, w), remembered from call to call; what changed in w is transformed anew."""
    w = given(w)
    place = m, id(w)
    if place not in _kept:
        U = transformed(m, w)
        _kept[place] = weakref.ref(w, lambda _: _kept.pop(place, None)), w.copy(), U
        return U
    _, seen, U = _kept[place]
    _, _, C, O = w.shape
    transform(m, w, (3 * C * O, C * O, O, 1), C, O, U, seen)
    return U
