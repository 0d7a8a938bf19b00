"""The gradient of the weights of Winograd's convolution F(m × m).

    dg = Gᵀ [ Σ_tiles (Bᵀ d B) ⊙ (A dy Aᵀ) ] G

A thread takes a block of input and of output channels and goes through the tiles: V = Bᵀ d B and
D = A dy Aᵀ of a few dozen, then for each of the (m + 2)² positions the product Vᵀ D, added up. The
sums stay in its cache. Where there are few channels, the tiles are split as well, by the shapes
alone, and the splits added in order.
"""

from ..simd.functions import WIDTH, at, zero
from ..simd.product import PANEL, outer
from ..simd.tasks import Task
from ..simd.transforms import TRANSFORMS
from ..simd.vector import load, load_part, store, store_part
from .plane import fill
from .winograd import input_transform


def tasks(m):
    """{name: Task} for tiles of m × m."""
    side, positions = m + 2, (m + 2)**2
    spread, gather = TRANSFORMS[m]["gradient"], TRANSFORMS[m]["dweight"]
    transform_in = input_transform(m)

    def products(item, worker, x, skip, C1, C2, scale, shift, dy, O, dU, dw, c_block, o_block,
                 splits, N, H, W, high, bands, T, scratch, size):
        """One block of dU (splits, C blocks, O blocks, positions, c_block, o_block) an item.

        With a single split the block never leaves the thread: it becomes its part of dw at once.
        """
        C = C1 + C2
        o_blocks = (O + o_block - 1) // o_block
        split = item // ((C + c_block - 1) // c_block * o_blocks)
        c = item // o_blocks % ((C + c_block - 1) // c_block) * c_block
        o = item % o_blocks * o_block
        channels, panels = min(c_block, C - c), (min(o_block, O - o) + PANEL - 1) // PANEL
        wide, deep = (W + m - 1) // m, (H + m - 1) // m
        columns = wide * m + 2
        V_row = (c_block + 15) // 16 * 16 + 16
        V_step, D_step = T * V_row + 16, T * PANEL + 16
        tile = at(scratch, worker * size)
        plane = at(tile, m * m * WIDTH)
        V = at(plane, (high * m + 2) * columns * c_block + 16)
        D = at(V, positions * V_step)
        step = c_block * o_block                          # from position to position
        sums = at(D, positions * panels * D_step)
        if splits > 1:
            sums = at(dU, item * positions * step)
        each = (N * bands + splits - 1) // splits
        last = min((split + 1) * each, N * bands)
        if split * each >= last:                          # no tile for this split
            zero(sums, positions * step)
        t, begun = 0, False
        for unit in range(split * each, last):
            n, top = unit // bands, unit % bands * high
            strips = min(high, deep - top)
            fill(plane, channels, x, skip, C1, C2, c, scale, shift, n, top * m - 1, -1,
                 strips * m + 2, columns, H, W)
            transform_dy(dy, O, o, panels, n, top, strips, wide, H, W, tile, D, D_step, t)
            t = transform_in(plane, columns, channels, strips, wide, V, V_row, V_step, t)
            if t + high * wide > T or unit == last - 1:
                for p in range(positions):
                    for j in range(panels):
                        outer(at(V, p * V_step), V_row, at(D, (p * panels + j) * D_step), PANEL,
                              at(sums, p * step + j * PANEL), o_block, channels, t,
                              O - o - j * PANEL, begun)
                t, begun = 0, True
        if splits == 1:
            for i in range(channels):
                for k in range(0, min(o_block, O - o), WIDTH):
                    fold(at(sums, i * o_block + k), step, 1, 0, V, at(dw, (c + i) * O + o + k),
                         C * O, min(WIDTH, O - o - k))

    def transform_dy(dy, O, o, panels, n, top, strips, wide, H, W, tile, D, D_step, t):
        """D (positions, panels, t …, PANEL) = A dy Aᵀ; zeros beyond the image and beyond O"""
        for s in range(strips):
            for q in range(wide):
                i, k = (top + s) * m, q * m
                corner = at(dy, ((n * H + i) * W + k) * O + o)
                for c in range(0, panels * PANEL, WIDTH):
                    target = at(D, c // PANEL * D_step + t * PANEL + c % PANEL)
                    step = panels * D_step
                    if i + m <= H and k + m <= W and o + c + WIDTH <= O:
                        spread(at(corner, c), W * O, O, target, side * step, step)
                    else:
                        n_lanes = min(max(O - o - c, 0), WIDTH)
                        for r in range(m):
                            for v in range(m):
                                inside = n_lanes if i + r < H and k + v < W else 0
                                store(tile, (r * m + v) * WIDTH,
                                      load_part(corner, (r * W + v) * O + c, inside))
                        spread(tile, m * WIDTH, WIDTH, target, side * step, step)
                t += 1

    def fold(sums, step, splits, split_step, scratch, dw, tap_step, lanes):
        """One vector of dw = Gᵀ Σ_splits dU G;  positions are `step` apart, taps `tap_step`"""
        taps = at(scratch, positions * WIDTH)
        for p in range(positions):
            value = load(sums, p * step)
            for s in range(1, splits):
                value = value + load(sums, s * split_step + p * step)
            store(scratch, p * WIDTH, value)
        gather(scratch, side * WIDTH, WIDTH, taps, 3 * WIDTH, WIDTH)
        for i in range(9):
            store_part(dw, i * tap_step, load(taps, i * WIDTH), lanes)

    def collect(item, worker, dU, dw, C, O, c_block, o_block, splits, scratch):
        """dw (3, 3, C, O) from dU; an item is one input channel."""
        o_blocks, c_blocks = (O + o_block - 1) // o_block, (C + c_block - 1) // c_block
        step = c_block * o_block                          # from position to position
        for o in range(0, O, WIDTH):
            place = item // c_block * o_blocks + o // o_block
            fold(at(dU, place * positions * step + item % c_block * o_block + o % o_block), step,
                 splits, c_blocks * o_blocks * positions * step,
                 at(scratch, worker * (positions + 9) * WIDTH), at(dw, item * O + o), C * O,
                 min(WIDTH, O - o))

    return {f.__name__: Task(f, common=m == 4, name=f"winograd{m}.{f.__name__}")
            for f in (products, collect)}


TASKS = {m: tasks(m) for m in (2, 4)}
