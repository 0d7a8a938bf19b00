# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · A GPU block, stepped through without a GPU
#
# A GPU runs a hundred thousand threads at once. Nobody can watch them, and where they go wrong they
# say nothing: a number is wrong, sometimes. Here the same kernels run on the CPU, one thread after
# another, in an order that we choose. What a GPU does at once we see step by step, with the line
# and the thread; and in kernels written in Python, whatever would be wrong in *some* order is found
# in every one. We climb from the smallest kernel to tensor cores and a convolution that normalizes
# on the way.
#
# No GPU is needed, and none is looked for. What is needed: `greenlet` and `ml_dtypes`
# (`pip install -e '.[notebooks,simulator]'`) and the C++ compiler `g++`.
#
# Source read here: [gpu/python.py](../kernels/gpu/python.py),
# [gpu/simulator.py](../kernels/gpu/simulator.py), [gpu/watched.py](../kernels/gpu/watched.py),
# [gpu/trace.py](../kernels/gpu/trace.py), [gpu/device.cuh](../kernels/gpu/device.cuh),
# [gpu/warp.hpp](../kernels/gpu/warp.hpp), [gpu/tiles.cuh](../kernels/gpu/tiles.cuh), the rungs 3 to
# 7 of [matmul](../kernels/matmul/__init__.py), and of [conv2d](../kernels/conv2d/__init__.py)
# [halo.cuh](../kernels/conv2d/halo.cuh) and [rung9_phase.py](../kernels/conv2d/rung9_phase.py)

# %%
import hashlib
import linecache
import os
import re
from collections import Counter
from fractions import Fraction
from inspect import getsource, getsourcelines
from pathlib import Path

import numpy as np
import tinydiff_kernels
from matplotlib.patches import Rectangle
from tinydiff_kernels.conv2d import (
    gather,
    halo,
    rung1_im2col as im2col,
    rung7_mma as gathered,
    rung8_halo,
    rung9_phase as phase,
)
from tinydiff_kernels.gpu.arrays import bfloat16, empty
from tinydiff_kernels.gpu.host import Fault
from tinydiff_kernels.gpu.order import stepping
from tinydiff_kernels.gpu.python import cuda, kernel
from tinydiff_kernels.gpu.source import Source
from tinydiff_kernels.gpu.trace import as_text, bank_conflicts, coalescing, draw, record
from tinydiff_kernels.matmul import (
    products,
    rung3_cuda_naive as naive,
    rung4_cuda_coalesced as coalesced,
    rung5_cuda_shared as shared,
    rung6_cuda_register as register,
    rung7_mma as mma,
)
from tinydiff_kernels.simd.cache import home

from tinydiff import viz

FAST = bool(os.environ.get("TINYDIFF_FAST"))
KERNELS = Path(tinydiff_kernels.__file__).parent
bf16 = bfloat16()
rng = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)

# %% [markdown]
# ## Threads, warps, blocks: who runs when
#
# A *kernel* is a function that many *threads* run, each with another number. Thirty-two threads are
# a *warp*; some warps are a *block*, whose threads may wait for each other and share a little
# memory; the blocks are the *grid*. Whoever launches it says how many: `add[blocks, threads](…)`.
# What stands in the brackets after `@kernel` are the types of its arguments, for the compiler of a
# GPU; given NumPy arrays, it runs here.

# %%
@kernel("float32[::1], float32[::1], float32[::1]")
def add(x, y, total):
    i = cuda.grid(1)                                           # the number of this thread
    if i < x.size:                                             # the last block may have too many
        total[i] = x[i] + y[i]


x, y = normal(100), normal(100)
total = np.empty_like(x)
add[2, 64](x, y, total)
assert (total == x + y).all()

# %% [markdown]
# Who came first? Here a kernel is Python that runs, so it may take notes, which on a GPU it could
# not. This one notes its number, waits at a *barrier* until its whole block has arrived, and notes
# its number again:

# %%
@kernel("int64[::1]")
def sign_in(x):
    notes.append(cuda.grid(1))
    cuda.syncthreads()
    notes.append(cuda.grid(1))


fig = viz.new_figure(9, 2.8)
for ax, order in zip(fig.subplots(1, 3, sharey=True), ("forward", "reverse", 2), strict=True):
    notes = []
    with stepping(order=order):
        sign_in[2, 64](np.zeros(1, np.int64))
    ax.scatter(range(len(notes)), notes, c=np.array(notes) // 32, s=3, cmap="Dark2", vmin=0, vmax=7)
    ax.set(title=f"order = {order!r}", xlabel="turn", yticks=range(0, 129, 32))
    ax.grid(axis="y", alpha=0.5)
fig.axes[0].set_ylabel("thread: a colour for each warp")
fig

# %% [markdown]
# A warp runs as far as it can, then the next; blocks run one after another. A GPU promises nothing
# of the kind, only that nobody passes the barrier before all of his block have come. So a right
# kernel is one that does not care, and "forward", "reverse" and a number, which shuffles, are there
# to try. Here is one that does:

# %%
@kernel("int64[::1]")
def move_down(x):
    i = cuda.grid(1)
    if i + 1 < x.size:
        x[i] = x[i + 1]


for order in ("forward", "reverse", 2):
    x = np.arange(12)
    with stepping(order=order, races=False):                   # do not look for what is wrong
        move_down[1, 12](x)
    print(f"{order!s:<8}", x)

# %% [markdown]
# The first line is right, by luck: whoever tests only that one ships the fault. Therefore the
# simulator looks at accesses, not at results. Two threads touched the same number, one of them
# wrote, and nothing says who comes first. That is a *race*, in whichever order it ran:

# %%
def caught(kernel, grid, block, *args):
    """Print what the simulator says of a launch, and the lines that it names."""
    try:
        kernel[grid, block](*args)
    except Fault as fault:
        _, _, text = str(fault).split(": ", 2)
        print(text)
        file = kernel.function.__code__.co_filename
        for number in sorted(map(int, set(re.findall(r"line (\d+)", text)))):
            print(f"{number:>4} |{linecache.getline(file, number).rstrip()}")
    else:
        print("no fault")


for order in ("forward", "reverse"):
    with stepping(order=order):
        caught(move_down, 1, 12, np.arange(12))

# %% [markdown]
# ## A product: one index exchanged
#
# y = x w, a thread for each result, written as the formula stands: rung 3 of the ladder `matmul`.
# Rung 4 differs from it in which of a thread's two numbers counts rows.

# %%
def name(rung):
    """rung5_cuda_shared -> cuda_shared"""
    return rung.__name__.rpartition(".")[2].partition("_")[2]


for rung in (naive, coalesced):
    print(f"# {name(rung)}\n{getsource(rung.product.function)}")
print(getsource(naive.y_at.function))

# %% [markdown]
# Both do the same arithmetic, to the last bit. But the threads of a warp move in step: they read
# *together*, and what counts is where their 32 numbers lie. Memory answers in *sectors* of 32
# bytes. We let the simulator write down every access, `record`, and draw the first one of the first
# warp; the grey lines part sectors:

# %%
P, C, O = 64, 16 if FAST else 32, 64
LAUNCH = {naive: ((32, 8), (32, 8)), coalesced: ((8, 32), (32, 8)),        # tile, block
          shared: ((16, 16), (16, 16)), register: ((64, 64), (8, 8))}


def arguments(P, C, O):
    """x (P, C), w (C, O) and y, with the nothing in between that stands for skip, b and add."""
    x, w = normal(P, C), normal(C, O)
    none = np.empty((0, 0), np.float32)
    return x, none, w, none.ravel(), none, empty((P, O), np.float32, like=x)


def traced(rung, P, C, O):
    """Every access of a rung's product of x (P, C) and w (C, O)."""
    (tall, wide), block = LAUNCH[rung]
    x, _, w, _, _, y = given = arguments(P, C, O)
    trace = record(rung.product, (P // tall, O // wide), block, *given)
    assert np.allclose(y, x @ w, atol=1e-4)
    return trace


fig = viz.new_figure(9, 3)
for ax, (rung, array) in zip(fig.subplots(1, 4), [(naive, "x"), (naive, "w"), (coalesced, "x"),
                                                  (coalesced, "w")], strict=True):
    trace = traced(rung, 32, 8, 32)
    rows, columns = trace.arrays[array].shape
    touched = np.full((rows, columns), np.nan)
    for event in trace.events:
        first_warp = event.thread[1] == 0 and not any(event.block)
        if first_warp and event.array == array and event.step == (0, array == "w"):
            touched[event.index] = max(event.thread[0], np.nan_to_num(touched[event.index]))
    sectors = len({(i, j // 8) for i, j in np.argwhere(touched >= 0)})
    ax.imshow(touched, cmap="turbo", vmin=0, vmax=31, aspect="auto", extent=(0, columns, rows, 0))
    ax.set(title=f"{name(rung)}: {array}\n{sectors} sector{'s' * (sectors > 1)}", ylabel="row",
           xlabel="column", xticks=range(0, columns + 1, 8), yticks=range(0, rows + 1, rows // 8))
    ax.hlines(range(rows), 0, columns, color="0.8", linewidth=0.5)
    ax.vlines(range(8, columns, 8), 0, rows, color="0.8", linewidth=0.5)
fig

# %% [markdown]
# (Coloured by thread; a number that all read shows the last one.) The warp of rung 3 stands in a
# column of y, so it asks for 32 rows of x, and of each sector uses 4 bytes. The warp of rung 4
# stands in a row: one number of x for all, and 32 neighbours of w, four sectors of which nothing is
# wasted. Over the whole run:

# %%
traces = {rung: traced(rung, P, C, O) for rung in LAUNCH}
for rung, rows in [(rung, coalescing(traces[rung])) for rung in (naive, coalesced)]:
    each = sum(row.sectors for row in rows if row.kind == "read")
    print(f"{name(rung)}: {each:.0f} sectors for the multiply-add of a warp\n{as_text(rows)}\n")

# %% [markdown]
# ## A tile for all of them
#
# Each result still fetches 2 C numbers, although its neighbours fetch the same. A block has some
# memory of its own, *shared* memory: small, near, and seen by all its threads. Rung 5 lets 16 × 16
# threads fetch a tile of each factor together, each thread one number of either, and then all
# multiply from there. So a number should come from afar once for 16 results.

# %%
print(getsource(shared.product.function))

# %%
def global_reads(trace):
    """How many numbers come from global memory, for each result."""
    kinds = Counter((trace.arrays[e.array].space, e.kind) for e in trace.events)
    return kinds["global", "read"] / kinds["global", "write"]


counted = {rung: global_reads(trace) for rung, trace in traces.items()}
print(f"numbers fetched for each result, C = {C}: counted, and 2·C / side of a block's tile")
for rung, side in ((naive, 1), (coalesced, 1), (shared, 16), (register, 64)):
    print(f"  {name(rung):<15}{counted[rung]:5.0f}{2 * C / side:6.0f}")

# %% [markdown]
# The two barriers look alike and guard different things. We take out the one, then the other:

# %%
def without(kernel, remark):
    """A kernel without the line that bears this remark; the others keep their numbers."""
    lines, first = getsourcelines(kernel.function)
    assert sum(remark in line for line in lines) == 1
    lines = ["\n" if remark in line else line for line in lines]
    names = dict(kernel.function.__globals__)
    file = kernel.function.__code__.co_filename
    exec(compile("\n" * (first - 1) + "".join(lines), file, "exec"), names)
    return names[kernel.function.__name__]


for remark in ("both tiles are whole", "nobody needs them any more"):
    print(f"without the barrier “{remark}”:")
    caught(without(shared.product, remark), (2, 2), (16, 16), *arguments(32, 32, 32))

# %% [markdown]
# The first lets readers find what others have yet to write. The second is the one that is
# forgotten: a quick thread begins the next round and writes while a slow one still reads the last.
#
# ## A cage for each fault
#
# Four more things that a GPU lets pass in silence. A *barrier under a branch*: some threads never
# come, and the others wait, for ever or for whom they should not.

# %%
@kernel("float32[::1]")
def parted(x):
    i = cuda.threadIdx.x
    if i < 40:
        x[i] = 1
        cuda.syncthreads()


caught(parted, 1, 64, np.zeros(64, np.float32))

# %% [markdown]
# An index *out of bounds*. Behind the end Python would object by itself. Before the beginning
# Python takes the last number and is content; a GPU reads whatever lies there.

# %%
@kernel("float32[::1], float32[::1], int64")
def shifted(x, y, by):
    i = cuda.grid(1)
    y[i] = x[i + by]


for by in (1, -1):
    caught(shifted, 2, 32, normal(64), np.zeros(64, np.float32), by)

# %% [markdown]
# A read of what *nobody wrote*: shared memory starts out as whatever the last block left in it.
# Here 60 numbers are summed by 64 threads, and four of them have none.

# %%
@kernel("float32[::1], float32[::1]")
def total(x, y):
    part = cuda.shared.array(64, np.float32)
    i = cuda.threadIdx.x
    if i < x.size:
        part[i] = x[i]
    cuda.syncthreads()
    if i == 0:
        sum = np.float32(0)
        for k in range(64):
            sum += part[k]
        y[0] = sum


caught(total, 1, 64, normal(60), np.zeros(1, np.float32))

# %% [markdown]
# And one that gives right numbers, slowly. Shared memory has 32 *banks*, and each hands out one
# word of 4 bytes at a time; neighbours lie in neighbouring banks. A square tile of 32 × 32, read
# along its columns, has all 32 numbers of a warp in one bank, so they come one after the other.
# Rows that are one longer move each row on by a bank:

# %%
@kernel("float32[:,::1], float32[:,::1]")
def turned_32(x, y):
    tile = cuda.shared.array((32, 32), np.float32)
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    tile[i, j] = x[i, j]
    cuda.syncthreads()
    y[i, j] = tile[j, i]


@kernel("float32[:,::1], float32[:,::1]")
def turned_33(x, y):
    tile = cuda.shared.array((32, 33), np.float32)
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    tile[i, j] = x[i, j]
    cuda.syncthreads()
    y[i, j] = tile[j, i]


x, y = normal(32, 32), np.empty((32, 32), np.float32)
fig = viz.new_figure(9, 3.4)
for ax, rotated in zip(fig.subplots(1, 2), (turned_32, turned_33), strict=True):
    trace = record(rotated, 1, (32, 32), x, y)
    assert (y == x.T).all()
    [read] = [row for row in bank_conflicts(trace) if row.kind == "read"]
    rows, columns = trace.arrays["tile"].shape
    ax.imshow(np.arange(rows * columns).reshape(rows, columns) % 32, cmap="twilight", aspect="auto")
    for event in trace.events:                                 # the column of a warp
        if event.kind == "read" and event.array == "tile" and event.thread[1] == 5:
            i, j = event.index
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="lime"))
    ax.set(title=f"{rows} × {columns}, read down a column: {read.ways}-way", xlabel="column",
           ylabel="row")
fig.colorbar(fig.axes[0].images[0], ax=fig.axes, label="bank")
fig

# %% [markdown]
# `draw` makes such a picture of any array: who touched an element first, then each step by itself,
# and below what it cost.

# %%
fig = draw(record(turned_32, 1, (32, 32), x, y), "tile")
fig._repr_png_ = lambda: viz.png(fig)
fig

# %% [markdown]
# ## More results for a thread
#
# Rung 5 has a new bottleneck: for each multiply-add a thread loads two numbers from shared memory.
# The way out is the one of [notebook 12](12_convolution_on_the_cpu.ipynb): keep a block of results
# in registers. Rung 6 gives each thread 8 × 8; 8 numbers of either factor serve 64 multiply-adds.
# What a kernel's text asks for twice the compiler loads once; therefore we count the *different*
# numbers that a thread reads between two barriers:

# %%
def loads(trace):
    """Different numbers that a thread reads from shared memory, for each multiply-add."""
    read = [(e.step[0], e.array, e.index) for e in trace.events
            if trace.arrays[e.array].space == "shared" and e.kind == "read"
            and not any(e.thread) and not any(e.block)]
    return len(set(read)) / (len(read) / 2)


fig = viz.new_figure(8, 3.8)
for ax, rung in zip(fig.subplots(1, 2), (shared, register), strict=True):
    owner = np.full((64, 64), np.nan)
    for event in traces[rung].events:
        if event.array == "y" and not any(event.block):
            owner[event.index] = event.thread[0] + LAUNCH[rung][1][0] * event.thread[1]
    ax.imshow(owner, cmap="turbo")
    for i, j in np.argwhere(owner == 9):
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color="white"))
    ax.set(title=f"{name(rung)}: {loads(traces[rung]):g} loads a multiply-add",
           xticks=range(0, 64, 16), yticks=range(0, 64, 16))
fig.suptitle("the results of one block, coloured by thread; those of thread 9 white", fontsize=11)
fig

# %% [markdown]
# A thread's results lie 8 apart, not side by side: so the threads of a warp read neighbours, from
# different banks, and write whole sectors.
#
# ## Tensor cores: one instruction, thirty-two lanes
#
# From here on kernels are written in CUDA C++, because instructions come into play that have no
# name in Python. The same file is compiled for a GPU by NVIDIA's compiler and for the CPU by g++,
# where `device.cuh` gives each instruction a function that does what the hardware would. The
# threads are fibers, and take turns as before.
#
# A tensor core multiplies for a whole warp: `mma.sync` takes a (16 × 16) and b (16 × 8), of *bf16*,
# floats with a fraction of 7 bits, and adds their product to c (16 × 8), of float32. Each lane
# holds some numbers of each; which ones is in the hardware, and one has to know it. We ask the
# emulator. A small kernel of one warp multiplies, and tells what its lanes held:

# %%
FRAGMENTS = """
#include "device.cuh"

struct alignas(16) Matrices { bf16 a[16][16], b[16][8]; };

// c (16, 8) = a (16, 16) · b (16, 8), and the registers of each lane
KERNEL(32) multiply(const bf16* a, const bf16* b, unsigned* of_a, unsigned* of_b, float* of_c) {
    Matrices& tiles = shared<Matrices>();
    const int lane = threadIdx.x;
    for (int i = lane; i < 16 * 16; i += 32)
        tiles.a[i / 16][i % 16] = a[i];
    for (int i = lane; i < 16 * 8; i += 32)
        tiles.b[i / 8][i % 8] = b[i];
    __syncthreads();
    unsigned ra[4], rb[4];
    float rc[4] = {};
    ldmatrix_x4(ra, &tiles.a[lane % 16][lane / 16 * 8]);
    ldmatrix_x4_trans(rb, &tiles.b[lane % 16][0]);        // the last two are b once more
    mma_bf16(rc, ra, rb[0], rb[1]);
    for (int i = 0; i < 4; i++) {
        of_a[lane * 4 + i] = ra[i];
        of_c[lane * 4 + i] = rc[i];
    }
    for (int i = 0; i < 2; i++)
        of_b[lane * 2 + i] = rb[i];
}
"""


def written(files, main):
    """Kernels of texts in CUDA C++, {file: text}; equal texts are built once."""
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    folder = home() / "tinydiff" / "notebook-13" / digest
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return Source(folder / main)


fragments = written({"fragments.cu": FRAGMENTS}, "fragments.cu")


def held(a, b):
    """What each lane holds of a, b and of c = a b: (32, 8), (32, 4), (32, 4)."""
    of_a, of_b = np.empty((32, 4), np.uint32), np.empty((32, 2), np.uint32)
    of_c = np.empty((32, 4), np.float32)
    fragments.multiply[1, 32](a.astype(bf16), b.astype(bf16), of_a, of_b, of_c)
    return of_a.view(bf16).astype(int), of_b.view(bf16).astype(int), of_c


numbered = np.arange(256).reshape(16, 16), np.arange(128).reshape(16, 8)   # each number its place
of_a, of_b, of_c = held(np.eye(16), numbered[1])                           # so c = 1 · b
of_a, _, _ = held(numbered[0], np.zeros((16, 8)))
a, b = normal(16, 16, dtype=bf16), normal(16, 8, dtype=bf16)
_, _, c = held(a, b)
exact = a.astype(float) @ b.astype(float)
assert np.allclose(c.ravel()[np.argsort(of_c.ravel())].reshape(16, 8), exact, atol=1e-5)

# %% [markdown]
# Bf16 counts up to 256 exactly, so a matrix can hold in each place the number of that place; what a
# lane then holds, tells where it is from. For c the same with a unit matrix, 1 · b = b.

# %%
def show_lanes(ax, of, shape, title, marked=5):
    """A matrix of this shape with the lane that holds each number; one lane's are framed."""
    lanes = np.empty(shape, int)
    for lane, places in enumerate(of.astype(int)):
        lanes[np.unravel_index(places, shape)] = lane
    ax.imshow(lanes, cmap="turbo", alpha=0.5)
    for (i, j), lane in np.ndenumerate(lanes):
        ax.text(j, i, lane, ha="center", va="center", fontsize=6.5)
        if lane == marked:
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, linewidth=2))
    ax.set(title=title, xticks=[], yticks=[])
    viz.bare(ax)


fig = viz.new_figure(5.4, 6.6)
grid = fig.add_gridspec(2, 2, width_ratios=(16, 8))
show_lanes(fig.add_subplot(grid[0, 1]), of_b, (16, 8), "b")
show_lanes(fig.add_subplot(grid[1, 0]), of_a, (16, 16), "a")
show_lanes(fig.add_subplot(grid[1, 1]), of_c, (16, 8), "c")
fig.text(0.05, 0.78, "which lane of the warp\nholds which number;\nthose of lane 5 are framed",
         fontsize=11)
fig

# %% [markdown]
# Four lanes share a row of a and of c, and a column of b. Of a and b a register has two numbers,
# neighbours along the axis that is summed over. No lane by itself could multiply much: the
# instruction is the warp's.
#
# How do tiles in shared memory get into that order? By another instruction of the whole warp,
# `ldmatrix`. Each lane points at a row of eight numbers; the hardware deals them out, two to a
# lane, from four matrices of 8 × 8 at once. Its form `.trans` deals them out down the columns, so a
# matrix that lies the wrong way round is turned on the way, at no cost.

# %%
LOADS = """
#include "tiles.cuh"

struct alignas(16) Lines { bf16 at[32][8]; };

KERNEL(32) load(const bf16* x, unsigned* plain, unsigned* turned) {
    Lines& lines = shared<Lines>();
    const int lane = threadIdx.x;
    for (int i = 0; i < 8; i++)
        lines.at[lane][i] = x[lane * 8 + i];
    __syncthreads();
    unsigned r[4], t[4];
    ldmatrix_x4(r, lines.at[lane]);
    ldmatrix_x4_trans(t, lines.at[lane]);
    for (int i = 0; i < 4; i++) {
        plain[lane * 4 + i] = r[i];
        turned[lane * 4 + i] = t[i];
    }
}

// Where chunk c of row r stands in a tile, in numbers from its beginning
KERNEL(64) places(int* at) {
    at[threadIdx.x] = place(threadIdx.x / 8, threadIdx.x % 8);
}
"""
loading = written({"loads.cu": LOADS}, "loads.cu")
plain, turned = np.empty((32, 4), np.uint32), np.empty((32, 4), np.uint32)
loading.load[1, 32](np.arange(256).astype(bf16), plain, turned)
fig = viz.new_figure(5.4, 2.9)
for ax, registers, title in zip(fig.subplots(1, 2), (plain, turned), ("ldmatrix", "ldmatrix.trans"),
                                strict=True):
    first = registers.view(bf16).astype(int)[:, :2]            # of four registers the first
    show_lanes(ax, first, (8, 8), title)
fig

# %% [markdown]
# The eight rows of a matrix are 16 bytes each, four banks; they come in one go if together they
# meet all 32. A tile of the products here has rows of 64 numbers, 128 bytes: each row begins in
# bank 0 again, and the same chunk of eight rows lies in the same four banks. Longer rows would help
# here too, but they take room, and `wgmma`, the instruction of the rung above, knows no such rows.
# So tiles are *swizzled*: chunk c of row r is stored where chunk c ^ r (exclusive or) would be:

# %%
print(re.search(r"// Where chunk.*?}\n", (KERNELS / "gpu/tiles.cuh").read_text(), re.DOTALL)[0])
at = np.empty(64, np.int32)
loading.places[1, 64](at)
straight = np.arange(64) * 8
fig = viz.new_figure(8.4, 3)
for ax, places, title in zip(fig.subplots(1, 2), (straight, at), ("as it comes", "swizzled"),
                             strict=True):
    row, slot = places // 64, places % 64 // 8                 # of 16 bytes, 4 banks
    assert (row == np.arange(64) // 8).all()
    memory = np.empty((8, 8), int)
    memory[row, slot] = np.arange(64) % 8
    ways = Counter(slot[2::8]).most_common(1)[0][1]            # of chunk 2 of all rows
    ax.imshow(memory == 2, cmap="Greens", vmax=2, aspect="auto")
    for (i, j), chunk in np.ndenumerate(memory):
        ax.text(j, i, chunk, ha="center", va="center", fontsize=9)
    ax.set(title=f"{title}: chunk 2 of eight rows, {ways}-way", ylabel="row", xlabel="banks")
    ax.set_xticks(range(8), [f"{4 * k}–{4 * k + 3}" for k in range(8)], fontsize=8)
fig

# %% [markdown]
# ## A pipeline of three stages
#
# A tensor core is faster than memory. So the next tiles must be on their way while the last are
# multiplied: `cp.async` starts a copy from global to shared memory, and the thread goes on.
# `cp_commit` closes a group of copies; `cp_wait<n>` waits until at most n groups are still under
# way. Here is the loop of every product of the package:

# %%
loop = re.search(r"template <bool a_turned, bool b_turned, class AnySums, class Copy>.*?^}\n",
                 (KERNELS / "gpu/tiles.cuh").read_text(), re.DOTALL | re.MULTILINE)[0]
print(loop)

# %% [markdown]
# It is told what to copy and who sums, so we can give it a clerk who does neither and writes down
# who called:

# %%
CLERK = """
#include "tiles.cuh"

struct Clerk {                                            // stands where the sums belong
    int* notes;                                           // (copy 0 or multiply 1, stage) each
    int count;

    DEVICE void note(int what, const Stage& stage) {
        if (threadIdx.x == 0) {
            notes[2 * count] = what;
            notes[2 * count++ + 1] = &stage - reinterpret_cast<Stage*>(shared_memory());
        }
    }

    template <bool a_turned, bool b_turned>
    DEVICE void add(const Stage& tiles, const Warp&) { note(1, tiles); }
    static DEVICE void before_barrier() {}
};

KERNEL(128) pipeline(int* notes, int steps) {
    Clerk clerk{notes, 0};
    multiply_all<false, false>(clerk, Warp(), steps, [&](Stage& stage, int) {
        clerk.note(0, stage);
    });
}
"""
SHARED, STEPS = products.SHARED, 7                             # bytes, steps
notes = np.full((2 * STEPS, 2), -1, np.int32)
written({"clerk.cu": CLERK}, "clerk.cu").pipeline[1, 128, SHARED](notes, STEPS)
copied, multiplied = (np.flatnonzero(notes[:, 0] == what) for what in (0, 1))
fig = viz.new_figure(7.6, 2)
ax = fig.add_subplot(yticks=range(3), ylabel="stage", xlabel="what a thread does, in this order")
for step, (start, end) in enumerate(zip(copied, multiplied, strict=True)):
    stage = notes[start, 1]
    assert stage == notes[end, 1] == step % 3                  # it multiplies where it was copied
    ax.barh(stage, end - start, 0.7, left=start, color=f"C{step}", alpha=0.35)
    ax.barh(stage, 1, 0.7, left=end, color=f"C{step}")
    ax.text(end + 0.5, stage, step, ha="center", va="center", color="white")
ax.invert_yaxis()
fig

# %% [markdown]
# Pale: a step's tiles are on their way; full: they are multiplied. Two copies are under way as long
# as there is something to copy. The wait before each step asks for the oldest; the barrier behind
# it says that all threads' copies have come, and also that the stage to be filled next is no longer
# read: one barrier, both duties.
#
# What does the emulator make of this? It copies as late as it may, when a wait asks for it; and
# shared memory starts as NaN. So whoever does not wait finds NaN. We change the very same file:

# %%
def changed(path, header, *pairs):
    """The kernels of a .cu with other text in one of its headers, (right, wrong) each."""
    path = KERNELS / path
    files = {file.name: file.read_text(encoding="utf-8")
             for file in (KERNELS / "gpu/tiles.cuh", *path.parent.glob("*.cuh"), path)}
    for right, wrong in pairs:
        assert files[header].count(right) == 1
        files[header] = files[header].replace(right, wrong)
    return written(files, path.name)


def away(y, exact):
    """The root mean square of an error, relative to the truth's."""
    return np.sqrt(np.mean((y.astype(float) - exact) ** 2) / np.mean(exact**2))


x, w = normal(40, 328, dtype=bf16), normal(328, 24, dtype=bf16)            # six steps of 64
exact = x.astype(float) @ w.astype(float)
wait = "cp_wait<STAGES - 2>();"
lines = []
for what, *pair in (("as it is", wait, wait), ("without the wait", wait, ""),
                    ("waiting for one group less", wait, "cp_wait<STAGES - 1>();"),
                    ("without the barrier", "__syncthreads();", "")):
    code = changed("matmul/rung7_mma.cu", "tiles.cuh", pair)
    forward, _, _ = products.functions(code, register)
    y = forward(x, w)
    found = f"{np.isnan(y).mean():.0%} NaN" if np.isnan(y).any() else f"error {away(y, exact):.4f}"
    lines.append(f"{what:<28}{found}")
print("\n".join(lines))

# %% [markdown]
# (That error is what rounding y to bf16 costs.) In C++ nobody can tell that a barrier was
# forgotten, one sees what comes of it; so every test runs in several orders.
#
# ## A convolution that fetches each pixel once
#
# A 3 × 3 convolution is such a product, of windows by weights. Rung 7 of `conv2d` copies for each
# tap the pixels under it: 128 pixels of a tile, nine times. Rung 8 copies a patch of 8 × 16 pixels
# with a *halo* of one pixel around, and all nine taps read it, in rows that are shifted. And while
# it lies there each number is normalized and goes through SiLU, once. We let both count their
# copies, pixel by pixel, in the very lines that start them:

# %%
TALLY = """
inline int tallies[10][18];                               // rows −1 … 8, columns −1 … 16
inline void tally(int y, int x) { tallies[y + 1][x + 1]++; }

KERNEL(1) told(int* copies) {
    for (int i = 0; i < 10 * 18; i++)
        copies[i] = tallies[i / 18][i % 18];
}
"""
INCLUDE = '#include "tiles.cuh"'
by_taps = changed("conv2d/rung7_mma.cu", "gather.cuh", (INCLUDE, INCLUDE + TALLY),
                  ("        valid = valid && (unsigned)y", "        tally(y, column);\n"
                   "        valid = valid && (unsigned)y"))
by_patch = changed("conv2d/rung8_halo.cu", "halo.cuh", (INCLUDE, INCLUDE + TALLY),
                   ("        cp_async16(rows + place(row",
                    "        tally(row / 18 - 1, row % 18 - 1);\n"
                    "        cp_async16(rows + place(row"))
x, w = normal(1, 8, 16, 64, dtype=bf16), (normal(3, 3, 64, 128) / 24).astype(bf16)
exact = im2col.forward(x.astype(float), w.astype(float), 1, halo.SAME)


fig = viz.new_figure(8.4, 2.6)
for ax, code, forward in zip(fig.subplots(1, 2), (by_taps, by_patch),
                             (gather.functions(by_taps, im2col)[0],
                              halo.functions(by_patch, gathered)[0]), strict=True):
    assert away(forward(x, w, 1, halo.SAME), exact) < 0.004
    counted = np.empty((10, 18), np.int32)
    code.told[1, 1](counted)
    counted //= 8                                              # eight copies of 16 bytes a pixel
    ax.imshow(counted, cmap="Blues", vmax=14)
    for (i, j), copies in np.ndenumerate(counted):
        ax.text(j, i, copies, ha="center", va="center", fontsize=8)
    ax.add_patch(Rectangle((0.5, 0.5), 16, 8, fill=False))
    ax.set(title=f"{code.path.stem}: {counted.sum():,} copies of a pixel", xticks=[], yticks=[])
    viz.bare(ax)
fig

# %% [markdown]
# That, and what it takes along, is half a residual block of a U-Net in one kernel:
#
# **y = conv(silu(x · scale + shift)) + base + add**
#
# where scale and shift say what GroupNorm does to a channel of an image, base is bias and time, add
# the residual. One by one, in bf16, each of these writes down its result and rounds it; fused, only
# the last:

# %%
def silu(x):
    return x / (1 + np.exp(-x))


scale, shift, base = normal(1, 64), normal(1, 64), normal(1, 128)
add_to = normal(1, 8, 16, 128, dtype=bf16)
wide = [a.astype(float) for a in (x, w, add_to)]
exact = im2col.forward(silu(wide[0] * scale + shift), wide[1], 1, halo.SAME) + base + wide[2]
fused = rung8_halo.fused([x], w, scale=scale, shift=shift, base=base, add=add_to)
h = silu(x.astype(np.float32) * scale + shift).astype(bf16)
y = gathered.forward(h, w, 1, halo.SAME)
one_by_one = ((y.astype(np.float32) + base).astype(bf16).astype(np.float32)
              + add_to.astype(np.float32)).astype(bf16)
print(f"error, one by one: {away(one_by_one, exact):.4f};  fused: {away(fused, exact):.4f}")
print(f"SiLUs for these {8 * 16} pixels: {10 * 18 * 64:,} fused, and halo and all;",
      f"normalized at each tap it would be {9 * 8 * 16 * 64:,}")

# %% [markdown]
# ## Upsampling in four phases
#
# On its way up a U-Net doubles an image, each pixel written four times, and convolves it. A window
# of nine numbers then sees at most four different pixels. Which ones depends on whether its row and
# its column are even or odd, four *phases*:

# %%
fig = viz.new_figure(8.6, 2.5)
pixel = np.arange(16).reshape(4, 4).repeat(2, axis=0).repeat(2, axis=1)
for ax, (a, b) in zip(fig.subplots(1, 4), np.ndindex(2, 2), strict=True):
    i, j = 2 + a, 4 + b
    seen = len(np.unique(pixel[i - 1:i + 2, j - 1:j + 2]))
    ax.imshow(pixel % 8 + 8 * (pixel // 8 % 2), cmap="tab20")
    ax.add_patch(Rectangle((j - 1.5, i - 1.5), 3, 3, fill=False, linewidth=2.5))
    for u, v in np.ndindex(3, 3):
        ax.text(j - 1 + v, i - 1 + u, 3 * u + v, ha="center", va="center", fontsize=9)
    ax.set(title=f"phase ({a}, {b}): {seen} pixels", xticks=[], yticks=[])
    viz.bare(ax)
fig

# %% [markdown]
# So add up the weights that fall on the same pixel, once for the layer. Each phase is a convolution
# of the *small* image with 2 × 2 taps: 16 multiplications for its four outputs, where there were
# 36. It is an identity, not an approximation; with whole numbers nothing is rounded, and the two
# must be equal:

# %%
FALLS = {0: [[0], [1, 2]], 1: [[0, 1], [2]]}                   # phase: rows of w on row u of x


def upsampled(x, w):
    """conv(each pixel of x (N, H, W, C) four times, w (3, 3, C, O)) -> (N, 2H, 2W, O)"""
    N, H, W, _ = x.shape
    y = np.zeros((N, 2 * H, 2 * W, w.shape[3]), x.dtype)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for a, b, u, v in np.ndindex(2, 2, 2, 2):
        taps = w[FALLS[a][u]][:, FALLS[b][v]].sum(axis=(0, 1))             # (C, O)
        y[:, a::2, b::2] += x[:, a + u:, b + v:][:, :H, :W] @ taps
    return y


x, w = rng.integers(-9, 10, (2, 5, 7, 24)), rng.integers(-9, 10, (3, 3, 24, 16))
large = x.repeat(2, axis=1).repeat(2, axis=2)
truth = im2col.forward(large.astype(float), w.astype(float), 1, halo.SAME)
assert (upsampled(x, w) == truth).all()
ours = phase.upsampled(x.astype(bf16), w.astype(bf16))         # rung 9, on tensor cores
print(f"16 / 36 = {Fraction(16, 36)} of the multiplications; equal to the last digit;",
      f"in bf16 the error is {away(ours, truth):.4f}")

# %% [markdown]
# Both gradients, and why, stand in [docs/derivations](../docs/derivations/convolution.md).
#
# ## What a CPU cannot show
#
# All this tells whether a kernel is *right*, and what it asks for. It does not tell how fast it is.
#
# - **Time.** Here threads take turns. How well copies hide behind products, what the caches keep,
#   how long a barrier costs: only the machine says.
# - **Order in memory.** Here everyone sees at once what another wrote. A GPU may show it later, and
#   fences, which say when, do nothing here.
# - **The last bit.** A GPU has a unit of its own for exp and 1/x, right but for a bit or two, and
#   its tensor cores add in an order of their own. Tests leave room for that.
# - **In C++**, unlike in Python, nobody watches each access. What went wrong is seen in NaN, in
#   guards around arrays, in results that differ between orders; with `TINYDIFF_SANITIZE=1` also by
#   AddressSanitizer. Bank conflicts are not counted.
#
# **None of these kernels has been verified on a GPU yet.** What can be said about speed is
# arithmetic. An H100's data sheet has three numbers: what tensor cores compute, what other units
# compute, what memory delivers. And of each product we have counted for how many bytes a block
# asks:

# %%
TENSOR, PLAIN, MEMORY = 989e12, 67e12, 3.35e12                 # FLOPs/s bf16, float32; bytes/s
asked = {}                                                     # {rung: FLOPs for each byte}
for rung, trace in traces.items():
    sectors = sum(row.accesses * row.sectors for row in coalescing(trace) if row.kind == "read")
    asked[name(rung)] = 2 * P * C * O / (32 * sectors)
asked["mma"] = 2 * 128 * 128 * 64 / (SHARED / 3)               # 128 × 128 results, stage by stage
for rung, intensity in asked.items():
    print(f"{rung:<15}{intensity:6.2f} FLOPs for each byte")

# %% [markdown]
# That is what would have to come from memory if no cache kept anything. Caches do help: blocks side
# by side want the same tiles. For a whole layer only that counts which must come from memory, each
# activation once for each kernel that reads or writes it. Half a residual block of the U-Net of
# DDPM's CIFAR-10, then, kernel by kernel; each takes at least as long as the slower of its bytes
# and its FLOPs:

# %%
N, H, C, O = 128, 32, 128, 128
flops, size = 2 * N * H * H * 9 * C * O, 2 * N * H * H * C     # bytes of an activation in bf16
ways = {                                                       # (activations moved, FLOPs) a kernel
    "windows written down": {"statistics": (1, 0), "norm and SiLU": (2, 0), "im2col": (10, 0),
                             "product": (10, flops), "bias, time, residual": (3, 0)},
    "one by one": {"statistics": (1, 0), "norm and SiLU": (2, 0), "convolution": (2, flops),
                   "bias, time, residual": (3, 0)},
    "fused": {"all of it": (3, flops)}}
moved = {way: size * sum(count for count, _ in kernels.values()) for way, kernels in ways.items()}
floors = {way: sum(max(count * size / MEMORY, work / TENSOR) for count, work in kernels.values())
          for way, kernels in ways.items()}                    # seconds
for way in ways:
    print(f"{way:<22}{moved[way] / 1e6:4.0f} MB, {flops / moved[way]:3.0f} FLOPs for each byte:",
          f"at least {1e6 * floors[way]:3.0f} µs")
print(f"behind an upsampling, in phases, products take {1e6 * 4 / 9 * flops / TENSOR:.0f} µs,",
      f"not {1e6 * flops / TENSOR:.0f}")

fig = viz.new_figure(7, 4)
ax = fig.add_subplot(xscale="log", yscale="log", xlabel="FLOPs for each byte",
                     ylabel="FLOPs a second, at most", ylim=(7e10, 3e15))
roof = np.array([0.02, 1, PLAIN / MEMORY, TENSOR / MEMORY, 2000])
ax.plot(roof, np.minimum(TENSOR, roof * MEMORY), color="black")
ax.plot(roof[2:], np.full(3, PLAIN), color="black", linestyle="--")
for height, label in ((TENSOR, "tensor cores, bf16"), (PLAIN, "float32")):
    ax.annotate(label, (roof[-1], height), xytext=(0, 4), ha="right", fontsize=9,
                textcoords="offset points")
for rung, intensity in asked.items():
    limit = TENSOR if rung == "mma" else PLAIN
    ax.plot(intensity, min(limit, intensity * MEMORY), "o", markersize=8, label=rung)
for way, marker in zip(ways, "<s*", strict=True):
    ax.plot(flops / moved[way], flops / floors[way], marker, color="black", markersize=9,
            linestyle="", label=f"layer, {way}")
ax.grid(alpha=0.3)
ax.legend(frameon=False, loc="lower right", fontsize=9)
fig

# %% [markdown]
# Arithmetic, not measurement, and not one point would be reached in full: with `mma.sync` a GPU
# like this gets to some two thirds of the upper roof, which is why there is a rung `wgmma` above
# it. But it says where time can be won at all. Up to `cuda_register` each rung climbs the slope.
# The layer climbs it by not writing things down, until it stands under the flat roof; there only
# fewer multiplications can help.
#
# ## Check yourself

# %%
ORDERS = ("reverse",) if FAST else ("forward", "reverse", 5)   # right means: in every order
x, w, dy = normal(19, 17), normal(17, 21), normal(19, 21)      # an odd shape, ragged tiles
for order in ORDERS:
    with stepping(order=order):
        for rung in (naive, coalesced, shared, register):
            assert np.allclose(rung.forward(x, w), x @ w, atol=1e-4)
            assert np.allclose(rung.grad_input(dy, w), dy @ w.T, atol=1e-4)
            assert np.allclose(rung.grad_weight(x, dy), x.T @ dy, atol=1e-4)

x, w = normal(30, 72, dtype=bf16), normal(72, 40, dtype=bf16)
for order in ORDERS:
    with stepping(order=order):
        assert away(mma.forward(x, w), x.astype(float) @ w.astype(float)) < 0.004

sectors = {rung: {row.array: row.sectors for row in coalescing(traces[rung]) if row.kind == "read"}
           for rung in (naive, coalesced)}
assert sectors == {naive: {"x": 32, "w": 1}, coalesced: {"x": 1, "w": 4}}
assert [loads(traces[rung]) for rung in (shared, register)] == [2, 1 / 4]
assert floors["fused"] < floors["one by one"] < floors["windows written down"]
print("all of it holds")

# %% [markdown]
# **Exercise 1.** This kernel turns a matrix. It is right, and its writes are not: 32 sectors for
# each. Make it ask for 4 sectors on either side, and meet no bank twice.
#
# **Exercise 2.** A sum over a block, as it stood in many a program: once 32 threads are left they
# are one warp, they move in step, so they need no barrier. What does the simulator say to that? It
# is right: since 2017 GPUs let the threads of a warp go apart. Mend it, so that it holds in every
# order.

# %%
@kernel("float32[:,::1], float32[:,::1]")
def turn(x, y):                                                # change me
    i = cuda.blockIdx.y * 32 + cuda.threadIdx.y
    j = cuda.blockIdx.x * 32 + cuda.threadIdx.x
    y[j, i] = x[i, j]


x, y = normal(64, 96), np.empty((96, 64), np.float32)
trace = record(turn, (3, 2), (32, 32), x, y)
assert (y == x.T).all()
print(as_text(coalescing(trace)), as_text(bank_conflicts(trace)), sep="\n\n")

# %%
@kernel("float32[::1], float32[::1]")
def block_sum(x, y):                                           # change me
    part = cuda.shared.array(128, np.float32)
    i = cuda.threadIdx.x
    part[i] = x[i]
    cuda.syncthreads()
    half = 64
    while half > 0:
        if i < half:
            part[i] += part[i + half]
        if half > 32:
            cuda.syncthreads()
        half //= 2
    if i == 0:
        y[0] = part[0]


x = rng.integers(0, 9, 128).astype(np.float32)
for order in ("forward", "reverse", 2):
    y = np.zeros(1, np.float32)
    with stepping(order=order):
        caught(block_sum, 1, 128, x, y)
    print("the sum is", "right" if y[0] == x.sum() else "not there")

# %% [markdown]
# **Next:** the ladders from their GPU half on, from
# [conv2d/rung5_cuda_naive.py](../kernels/conv2d/rung5_cuda_naive.py) and
# [norm/rung2_cuda_twopass.py](../kernels/norm/rung2_cuda_twopass.py) up. Any of them runs here:
# `with stepping(order="reverse"): …`, with NumPy arrays.
