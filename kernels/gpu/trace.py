r"""Which thread touched which element when: drawn, and counted as a GPU's memory sees it.

    trace = record(kernel, grid, block, x, y)             # NumPy arrays
    print(as_text(coalescing(trace)), as_text(bank_conflicts(trace)), sep="\n")
    draw(trace, "x")

The lanes of a warp ask together. Global memory answers in sectors of 32 bytes, four to a segment;
shared memory has 32 banks, each of which gives one word of 4 bytes at a time. Every array is taken
to begin where a segment begins. What lanes do at the same line, for the k-th time since the last
barrier, counts as together.
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from .simulator import launch
from .vocabulary import WARP
from .watched import as_tuple

SECTOR, SEGMENT, WORD, BANKS = 32, 128, 4, 32             # bytes, bytes, bytes, and how many
STEPS, LABELLED = 11, 256                                 # at most: steps drawn, elements numbered


class Coalescing(NamedTuple):
    """How warps ask for global memory at one line; sectors and segments are means."""

    line: int
    array: str
    kind: str
    accesses: int                                         # of warps
    sectors: float
    segments: float
    used: float                                           # of the bytes moved, the part asked for


class Conflicts(NamedTuple):
    """How many words a bank of shared memory must give until a warp at one line has its own."""

    line: int
    array: str
    kind: str
    accesses: int                                         # of warps
    ways: int                                             # in the worst access; 1 is no conflict
    mean: float


def record(kernel, grid, block, *args, **options):
    """Run a kernel on NumPy arrays -> Trace; options: order and races, as launch has them."""
    traces = []
    launch(kernel, grid, block, *args, trace=traces, **options)
    return traces[0]


def coalescing(trace):
    """A row for each line, array and kind of access to global memory."""
    rows = []
    for what, accesses in warp_accesses(trace, "global").items():
        size = trace.arrays[what[1]].itemsize
        sectors  = [count_touched(starts, SECTOR) for starts in accesses]
        segments = [count_touched(starts, SEGMENT) for starts in accesses]
        asked = size * sum(len(set(starts)) for starts in accesses)                # bytes
        rows.append(Coalescing(*what, len(accesses), np.mean(sectors).item(),
                               np.mean(segments).item(), asked / (SECTOR * sum(sectors))))
    return rows


def bank_conflicts(trace):
    """A row for each line, array and kind of access to shared memory."""
    rows = []
    for what, accesses in warp_accesses(trace, "shared").items():
        ways = [busiest_bank(starts) for starts in accesses]
        rows.append(Conflicts(*what, len(accesses), max(ways), np.mean(ways).item()))
    return rows


def warp_accesses(trace, space):
    """{(line, array, kind): for each access of a warp, the bytes at which its lanes begin}"""
    found, times = {}, Counter()
    for event in trace.events:
        layout = trace.arrays[event.array]
        if layout.space == space:
            what, phase = (event.line, event.array, event.kind), event.step[0]
            lane = event.block, event.thread, phase, what
            times[lane] += 1
            access = event.block, number(event.thread, trace) // WARP, phase, times[lane]
            start = position(event.index, layout.shape) * layout.itemsize
            found.setdefault(what, {}).setdefault(access, []).append(start)
    return {what: list(found[what].values()) for what in sorted(found)}


def count_touched(starts, unit):
    """How many units of so many bytes hold the elements that begin at these bytes."""
    return len({start // unit for start in starts})


def busiest_bank(starts):
    """The most words that one bank gives; a word that several lanes want, it gives once.

    Of an element of several words the first stands for all: the others lie in the banks beside it.
    """
    words = {start // WORD for start in starts}
    return max(Counter(word % BANKS for word in words).values())


def position(index, shape):
    return int(np.ravel_multi_index(as_tuple(index), shape))


def number(thread, trace):
    """Of a thread in its block: 32 that follow each other are a warp."""
    x, y, z = thread
    return x + trace.block[0] * (y + trace.block[1] * z)


def as_text(rows):
    """Rows of one kind as an aligned table."""
    if not rows:
        return "no accesses"
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
             for row in (rows[0]._fields, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def draw(trace, array):
    """A matplotlib Figure of what one block, the first that touched it, did to an array.

    First which thread touched an element first, and in which step; then step by step. Below stands
    what all blocks' accesses cost. An array of one dimension is laid out in rows of 32.
    """
    from matplotlib.figure import Figure

    events = [event for event in trace.events if event.array == array]
    if not events:
        touched = ", ".join(sorted({event.array for event in trace.events}))
        raise ValueError(f"draw: expected an array that was touched ({touched}), got {array!r}")
    events = [event for event in events if event.block == events[0].block]
    steps = sorted({event.step for event in events})
    rows = min(len(steps), STEPS) // 4 + 1
    fig = Figure((10, 0.8 + 2.2 * rows), dpi=72, layout="constrained")
    fig.suptitle(f"{trace.kernel}: {array}, {len(steps)} steps")
    overview, *axes = fig.subplots(rows, 4, squeeze=False).ravel()
    show_overview(overview, trace, events, steps)
    for ax, step in zip(axes, steps):
        show_step(ax, trace, [event for event in events if event.step == step], steps)
    for ax in axes[len(steps):]:
        ax.remove()
    fig.colorbar(overview.images[0], ax=[overview, *axes[:len(steps)]], label="thread")
    count = coalescing if trace.arrays[array].space == "global" else bank_conflicts
    table = as_text([row for row in count(trace) if row.array == array])
    fig.supxlabel(table, x=0.02, ha="left", family="monospace", size=8)
    return fig


def show_overview(ax, trace, events, steps):
    who, when = first_touch(trace, events, steps)
    show(ax, who, trace, "who first, in which step")
    if who.size <= LABELLED:
        for (row, column), step in np.ndenumerate(when):
            if step >= 0:
                ax.text(column, row, step, ha="center", va="center", size=6)


def show_step(ax, trace, events, steps):
    who, _ = first_touch(trace, events, steps)
    kinds = " and ".join(sorted({event.kind for event in events}))
    lines = " and ".join(str(line) for line in sorted({event.line for event in events}))
    show(ax, who, trace, f"{steps.index(events[0].step)}: {kinds}, line {lines}")


def first_touch(trace, events, steps):
    """Pictures (rows, columns) of the thread that touched an element first, and of its step."""
    shape = trace.arrays[events[0].array].shape
    columns = shape[-1] if len(shape) > 1 else WARP
    who = np.full(-(-math.prod(shape) // columns) * columns, np.nan)
    when = np.full(who.size, -1)
    for event in sorted(events, key=lambda e: (e.step, number(e.thread, trace)), reverse=True):
        at = position(event.index, shape)
        who[at], when[at] = number(event.thread, trace), steps.index(event.step)
    return who.reshape(-1, columns), when.reshape(-1, columns)


def show(ax, picture, trace, title):
    ax.imshow(picture, cmap="turbo", vmin=0, vmax=max(1, math.prod(trace.block) - 1),
              aspect="auto", interpolation="nearest")
    ax.set_title(title, size=8)
    ax.tick_params(labelsize=6)
    ax.locator_params(integer=True)
