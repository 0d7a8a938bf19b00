"""The direct convolution, any K, stride and size: im2col in the thread's cache, then micro-kernels.

A thread lays the windows of a few dozen pixels out as rows (columns), right where the
multiplication will read them; the big matrix of rung 1 never exists.
"""

from ..simd.functions import WIDTH, at, copy, zero
from ..simd.product import PANEL, ROWS, outer, rows_times_panel
from ..simd.squares import square
from ..simd.tasks import task
from ..simd.vector import load, load_part, store, store_part
from .finish import put
from .plane import fill


@task
def panels(item, worker, w, row, col, c_step, o_step, L, C, O, packed, depth, scratch):
    """packed (panels, depth, PANEL) = w (K, L, C, O) as K·L·C rows; an item is one tap and panel.

    row, col, c_step and o_step are w's strides in floats; depth = K·L·C.
    """
    block = at(scratch, worker * 2 * WIDTH * WIDTH)
    j, i = item // (depth // C), item % (depth // C)
    for first in range(0, C, WIDTH):
        channels = min(WIDTH, C - first)
        for o in range(0, PANEL, WIDTH):
            square(at(w, i // L * row + i % L * col + first * c_step + (j * PANEL + o) * o_step),
                   c_step, o_step, channels, min(max(O - j * PANEL - o, 0), WIDTH),
                   block, at(block, WIDTH * WIDTH))
            for c in range(channels):
                store(packed, (j * depth + i * C + first + c) * PANEL + o, load(block, c * WIDTH))


def lay_out(plane, columns, C, K, L, stride, rows, wide, windows, step):
    """windows (rows · wide, step) = the K × L × C inputs of each pixel"""
    for r in range(rows):
        for q in range(wide):
            for u in range(K):
                copy(at(plane, ((r * stride + u) * columns + q * stride) * C),
                     at(windows, (r * wide + q) * step + u * L * C), L * C)


@task
def forward(item, worker, x, skip, C1, C2, scale, shift, packed, base, add, y, y2, O1, O,
            N, H, W, K, L, stride, top, left, deep, wide, high, bands, units, T, scratch, size):
    """`units` bands, each of `high` rows of `wide` results of one image."""
    C = C1 + C2
    columns, depth = (wide - 1) * stride + L, K * L * C
    step = (depth + 15) // 16 * 16 + 16                   # rows that share no cache set
    windows = at(scratch, worker * size)
    result = at(windows, T * step)
    plane = at(result, T * PANEL)
    first, last = item * units, min((item + 1) * units, N * bands)
    t = 0
    for unit in range(first, last):
        begin = unit % bands * high
        rows = min(high, deep - begin)
        fill(plane, C, x, skip, C1, C2, 0, scale, shift, unit // bands, begin * stride - top, -left,
             (rows - 1) * stride + K, columns, H, W)
        lay_out(plane, columns, C, K, L, stride, rows, wide, at(windows, t * step), step)
        t += rows * wide
    for j in range((O + PANEL - 1) // PANEL):
        rows_times_panel(windows, step, at(packed, j * depth * PANEL), result, t, depth,
                         O - j * PANEL)
        t = 0
        for unit in range(first, last):
            begin = unit % bands * high
            for i in range(min(high, deep - begin) * wide):
                pixel = (unit // bands * deep + begin) * wide + i
                for o in range(0, min(PANEL, O - j * PANEL), WIDTH):
                    put(load(result, t * PANEL + o), y, y2, O1, O, base, add, unit // bands,
                        pixel, j * PANEL + o)
                t += 1


@task
def products(item, worker, x, skip, C1, C2, scale, shift, dy, O, sums, splits,
             N, H, W, K, L, stride, top, left, deep, wide, high, bands, T, scratch, size):
    """sums (splits, panels, K·L·C up to ROWS, PANEL) = windowsᵀ dy; an item is a (split, panel)"""
    C = C1 + C2
    columns, depth = (wide - 1) * stride + L, K * L * C
    step = (depth + 15) // 16 * 16 + 16
    count = (O + PANEL - 1) // PANEL
    split, j = item // count, item % count
    windows = at(scratch, worker * size)
    part = at(windows, T * step)
    plane = at(part, T * PANEL)
    tall = (depth + ROWS - 1) // ROWS * ROWS
    mine = at(sums, item * tall * PANEL)
    zero(mine, tall * PANEL)
    each = (N * bands + splits - 1) // splits
    last = min((split + 1) * each, N * bands)
    t = 0
    for unit in range(split * each, last):
        n, begin = unit // bands, unit % bands * high
        rows = min(high, deep - begin)
        fill(plane, C, x, skip, C1, C2, 0, scale, shift, n, begin * stride - top, -left,
             (rows - 1) * stride + K, columns, H, W)
        lay_out(plane, columns, C, K, L, stride, rows, wide, at(windows, t * step), step)
        for i in range(rows * wide):
            pixel = at(dy, ((n * deep + begin) * wide + i) * O + j * PANEL)
            for o in range(0, PANEL, WIDTH):
                lanes = min(max(O - j * PANEL - o, 0), WIDTH)
                store(part, (t + i) * PANEL + o, load_part(pixel, o, lanes))
        t += rows * wide
        if t + high * wide > T or unit == last - 1:
            outer(windows, step, part, PANEL, mine, PANEL, depth, t, O - j * PANEL, True)
            t = 0


@task
def collect(item, worker, sums, dw, depth, O, splits):
    """dw (K·L·C, O) = Σ_splits sums; an item is one row"""
    tall = (depth + ROWS - 1) // ROWS * ROWS
    count = (O + PANEL - 1) // PANEL
    for o in range(0, O, WIDTH):
        here = at(sums, (o // PANEL * tall + item) * PANEL + o % PANEL)
        value = load(here, 0)
        for s in range(1, splits):
            value = value + load(here, s * count * tall * PANEL)
        store_part(dw, item * O + o, value, min(WIDTH, O - o))
