"""Winograd's convolution F(m × m), m = 2 or 4: 3 × 3 windows, stride 1, any size and channels.

    Y = Aᵀ [ Σ_c (G g Gᵀ) ⊙ (Bᵀ d B) ] A        for every m × m tile of results

A thread takes a block of tiles: it loads the piece of image they need (plane.py), transforms it
(V), multiplies each of the (m + 2)² positions as a matrix (tiles, C) · (C, panel of O), and
transforms back (M), adding bias and residual as it writes (finish.py). V stays in its cache.

Where tiles are few and weights large, it is the weights that a thread takes: V of all tiles is made
first (`inputs`), and then a block of tiles stays while the weights pass by, transformed in L2 a few
channels at a time (`passing`). So weights are read once, and nothing made of them is ever written.

The gradient of the input is the same convolution of dy, with the weights turned around; that of
the weights stands in winograd_gradient.py.
"""

from ..simd.functions import WIDTH, at
from ..simd.product import PANEL, part, rows_times_panel
from ..simd.squares import square
from ..simd.tasks import Task
from ..simd.transforms import TRANSFORMS
from ..simd.vector import load, load_part, prefetch, same, splat, store_part
from .finish import put
from .plane import fill

CHANNELS = 32                                             # whose transformed weights are in L2


def input_transform(m):
    """The function that transforms rows of tiles, for tiles of m × m."""
    side, into = m + 2, TRANSFORMS[m]["input"]

    def transform_in(plane, columns, channels, strips, wide, V, V_row, V_step, t):
        """V[:, t …] = Bᵀ d B of `strips` rows of `wide` tiles; the number of the next tile."""
        for s in range(strips):
            for q in range(wide):
                d = at(plane, (s * m * columns + q * m) * channels)
                for c in range(0, channels, WIDTH):
                    into(at(d, c), columns * channels, channels,
                         at(V, t * V_row + c), side * V_step, V_step)
                t += 1
        return t

    return transform_in


def tasks(m):
    """{name: Task} for tiles of m × m."""
    side, positions = m + 2, (m + 2)**2
    out, out_add, weigh = (TRANSFORMS[m][name] for name in ("output", "residual", "weight"))
    transform_in = input_transform(m)

    def weights(item, worker, w, row, col, c_step, o_step, C, O, U, seen, each, scratch):
        """U (panels, positions, C, PANEL) = G g Gᵀ; an item is `each` blocks of WIDTH channels.

        seen, where given, is a copy of w as it was when U was made: what is the same is left alone,
        what is not is copied.
        """
        taps = at(scratch, worker * 10 * WIDTH * WIDTH)   # (9, channels, WIDTH)
        blocks = (C + WIDTH - 1) // WIDTH
        panels = (O + PANEL - 1) // PANEL
        step = C * PANEL + 16                             # from position to position
        for block in range(item * each, min((item + 1) * each, panels * blocks)):
            j, first = block // blocks, block % blocks * WIDTH
            channels = min(WIDTH, C - first)
            if seen == 0 or changed(w, seen, first, channels, j * PANEL, C, O):
                weigh_block(w, row, col, c_step, o_step, C, O,
                            at(U, j * positions * step + first * PANEL), step, seen, j, first,
                            channels, taps)

    def weigh_block(w, row, col, c_step, o_step, C, O, U, step, seen, j, first, channels, taps):
        """U (positions, channels, PANEL), positions `step` apart, of panel j of some channels"""
        for o in range(0, PANEL, WIDTH):
            n = min(max(O - j * PANEL - o, 0), WIDTH)
            g = at(w, first * c_step + (j * PANEL + o) * o_step)
            straight = o_step == 1 and n == WIDTH and seen == 0       # as it lies will do
            if not straight:
                for i in range(9):
                    square(at(g, i // 3 * row + i % 3 * col), c_step, o_step, channels, n,
                           at(taps, i * WIDTH * WIDTH), at(taps, 9 * WIDTH * WIDTH))
            for c in range(channels):
                if straight:
                    for i in range(9):
                        prefetch(g, i // 3 * row + i % 3 * col + (WIDTH + c) * c_step)
                    weigh(at(g, c * c_step), row, col, at(U, c * PANEL + o), side * step, step)
                else:
                    weigh(at(taps, c * WIDTH), 3 * WIDTH * WIDTH, WIDTH * WIDTH,
                          at(U, c * PANEL + o), side * step, step)
                if seen:
                    for i in range(9):
                        store_part(seen, (i * C + first + c) * O + j * PANEL + o,
                                   load(taps, (i * WIDTH + c) * WIDTH), n)

    def forward(item, worker, x, skip, C1, C2, scale, shift, U, base, add, y, y2, O1, O,
                N, H, W, high, bands, units, groups, T, scratch, size):
        """`units` bands, each `high` rows of tiles of one image, for one of `groups` of panels."""
        C = C1 + C2
        wide, deep = (W + m - 1) // m, (H + m - 1) // m   # tiles across and down
        columns = wide * m + 2
        V_row = (C + 15) // 16 * 16 + 16                  # rows that share no cache set
        V_step, M_step = T * V_row + 16, T * PANEL + 16
        tile = at(scratch, worker * size)
        plane = at(tile, m * m * PANEL)
        V = at(plane, (high * m + 2) * columns * C + 16)
        M = at(V, positions * V_step)
        first = item // groups * units
        last = min(first + units, N * bands)
        panels = (O + PANEL - 1) // PANEL
        each = (panels + groups - 1) // groups
        t = 0
        for unit in range(first, last):
            strips = min(high, deep - unit % bands * high)
            fill(plane, C, x, skip, C1, C2, 0, scale, shift, unit // bands,
                 unit % bands * high * m - 1, -1, strips * m + 2, columns, H, W)
            t = transform_in(plane, columns, C, strips, wide, V, V_row, V_step, t)
        for j in range(item % groups * each, min(item % groups * each + each, panels)):
            for p in range(positions):
                rows_times_panel(at(V, p * V_step), V_row,
                                 at(U, (j * positions + p) * (C * PANEL + 16)),
                                 at(M, p * M_step), t, C, O - j * PANEL)
            i = 0
            for unit in range(first, last):
                for s in range(min(high, deep - unit % bands * high)):
                    for q in range(wide):
                        for o in range(0, min(PANEL, O - j * PANEL), WIDTH):
                            finish(at(M, i * PANEL + o), M_step, tile, y, y2, O1, O, base, add,
                                   unit // bands, (unit % bands * high + s) * m, q * m, H, W,
                                   j * PANEL + o)
                        i += 1

    def inputs(item, worker, x, skip, C1, C2, scale, shift, V, V_step, N, H, W, high, bands,
               scratch, size):
        """V (C blocks, positions, tiles, CHANNELS) = Bᵀ d B; an item is a band's block of C."""
        C = C1 + C2
        wide, deep = (W + m - 1) // m, (H + m - 1) // m   # tiles across and down
        blocks = (C + CHANNELS - 1) // CHANNELS
        n, band, first = item // blocks // bands, item // blocks % bands, item % blocks * CHANNELS
        strips, channels = min(high, deep - band * high), min(CHANNELS, C - first)
        plane = at(scratch, worker * size)
        fill(plane, channels, x, skip, C1, C2, first, scale, shift, n, band * high * m - 1, -1,
             strips * m + 2, wide * m + 2, H, W)
        transform_in(plane, wide * m + 2, channels, strips, wide,
                     at(V, item % blocks * positions * V_step), CHANNELS, V_step,
                     (n * deep + band * high) * wide)

    def passing(item, worker, w, row, col, c_step, o_step, V, V_step, C, base, add, y, y2, O1, O,
                N, H, W, T, each, scratch, size):
        """T tiles stay, and the weights of `each` panels, transformed in L2, pass by."""
        wide, deep = (W + m - 1) // m, (H + m - 1) // m
        across = ((O + PANEL - 1) // PANEL + each - 1) // each
        first, j = item // across * T, item % across * each
        n, panels = min(T, N * deep * wide - first), min(each, (O + PANEL - 1) // PANEL - j)
        U_step, M_step = CHANNELS * PANEL + 16, T * PANEL + 16
        tile = at(scratch, worker * size)
        taps = at(tile, m * m * PANEL)
        U = at(taps, 10 * WIDTH * WIDTH)                  # (positions, CHANNELS, PANEL)
        M = at(U, positions * U_step)                     # (panels, positions, T, PANEL)
        for c in range(0, C, CHANNELS):
            here = at(V, c // CHANNELS * positions * V_step + first * CHANNELS)
            channels = min(CHANNELS, C - c)
            for i in range(panels):
                for k in range(0, channels, WIDTH):
                    weigh_block(w, row, col, c_step, o_step, C, O, at(U, k * PANEL), U_step, 0,
                                j + i, c + k, min(WIDTH, channels - k), taps)
                for p in range(positions):
                    part(at(here, p * V_step), CHANNELS, 1, at(U, p * U_step), PANEL,
                         at(M, (i * positions + p) * M_step), PANEL, n, channels,
                         O - (j + i) * PANEL, c > 0)
        for i in range(panels):
            for t in range(first, first + n):
                for o in range(0, min(PANEL, O - (j + i) * PANEL), WIDTH):
                    finish(at(M, i * positions * M_step + (t - first) * PANEL + o), M_step, tile,
                           y, y2, O1, O, base, add, t // (deep * wide), t // wide % deep * m,
                           t % wide * m, H, W, (j + i) * PANEL + o)

    def finish(M, M_step, tile, y, y2, O1, O, base, add, n, top, left, H, W, channel):
        """Transform a tile's vector back, straight to where it belongs if all of it does."""
        target, width, c = y, O1, channel
        if channel >= O1:
            target, width, c = y2, O - O1, channel - O1
        bias = splat(0.0)
        if base:
            bias = load(base, n * ((O + PANEL - 1) // PANEL * PANEL) + channel)
        pixel = (n * H + top) * W + left
        if top + m > H or left + m > W or c + WIDTH > width or (add and width < O):
            out(M, side * M_step, M_step, tile, m * WIDTH, WIDTH, bias)
            for r in range(min(m, H - top)):
                for q in range(min(m, W - left)):
                    put(load(tile, (r * m + q) * WIDTH), y, y2, O1, O, 0, add, n,
                        pixel + r * W + q, channel)
        elif add:
            out_add(M, side * M_step, M_step, at(target, pixel * width + c), W * width, width,
                    bias, at(add, pixel * O + channel))
        else:
            out(M, side * M_step, M_step, at(target, pixel * width + c), W * width, width, bias)

    return {f.__name__: Task(f, common=m == 4, name=f"winograd{m}.{f.__name__}")
            for f in (weights, forward, inputs, passing)}


def changed(w, seen, first, channels, o, C, O):
    """Whether some channels of one panel are in w (3, 3, C, O) no longer what they were."""
    for i in range(9 * channels):
        row = (i // channels * C + first + i % channels) * O
        for k in range(o, min(o + PANEL, O), WIDTH):
            lanes = min(WIDTH, O - k)
            if same(load_part(w, row + k, lanes), load_part(seen, row + k, lanes)) == 0:
                return True
    return False


TASKS = {m: tasks(m) for m in (2, 4)}
