# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12 · Convolution on the CPU: from seven loops to faster than PyTorch
#
# A U-Net spends nearly all of its time in one formula. Written down as it stands it is seven loops
# around one multiplication, and a training run would outlive us. The same formula, on the same
# laptop, can run so much faster that the factor looks like a misprint; we print it at the end.
# Nothing is left out on the way. It takes a handful of ideas, one on top of the other, and most
# have a file of their own, called a *rung*. We climb them.
#
# Source read here: [rung0_loops.py](../kernels/conv2d/rung0_loops.py),
# [rung1_im2col.py](../kernels/conv2d/rung1_im2col.py),
# [rung2_numba.py](../kernels/conv2d/rung2_numba.py), [winograd.py](../kernels/conv2d/winograd.py),
# [simd/isa.py](../kernels/simd/isa.py), [simd/microkernels.py](../kernels/simd/microkernels.py),
# [simd/transforms.py](../kernels/simd/transforms.py),
# [autograd/fused.py](../tinydiff/autograd/fused.py)

# %%
import ctypes
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from importlib.util import find_spec
from inspect import getsource
from time import perf_counter

import numpy as np
from llvmlite import binding, ir
from numpy.lib.stride_tricks import sliding_window_view
from tinydiff_kernels.simd import isa, peak, transforms
from tinydiff_kernels.simd.microkernels import microkernel

import tinydiff as td
from tinydiff import autograd as ag, viz
from tinydiff.autograd.fused import one_by_one
from tinydiff.kernels import LADDERS, threads

FAST = bool(os.environ.get("TINYDIFF_FAST"))
SAME = ((1, 1), (1, 1))                                        # padding that keeps the size
ladder = LADDERS["conv2d"].LADDER
rung = {idea: ladder[idea] for idea in ladder.plain + ladder.compiled}     # {idea: module}
rng = np.random.default_rng(0)
print("the rungs:", ", ".join(rung))

# %% [markdown]
# ## Rung 0: the definition
#
# **y[n, i, j, o] = Σ x[n, i + u, j + v, c] · w[u, v, c, o]**  over u, v, c
#
# Four indices say which result, three run over what goes into it: seven loops. This rung is never
# used for work. It is what all others must equal.

# %%
print(getsource(rung["loops"].forward))
print(getsource(rung["loops"].terms))

# %% [markdown]
# How long would a real layer take? We need not wait for it: we time a tiny one and count.

# %%
def draw(N, H, C, O):
    """A layer's input x (N, H, H, C) and weights w (3, 3, C, O)."""
    x = rng.standard_normal((N, H, H, C), np.float32)
    return x, rng.standard_normal((3, 3, C, O), np.float32) / np.float32(9 * C) ** 0.5


def flops(N, H, C, O):
    """One multiplication and one addition for each result and each number it is made of."""
    return 2 * (N * H * H * O) * (9 * C)


def name(N, H, C, O):
    return f"{N}×{H}×{H}×{C} → {O}"


def fastest(calls, rounds=3 if FAST else 15):
    """{name: seconds} of each of {name: function}, all turn about.

    Whatever else a machine does can only slow us down, so the best of some rounds is the truest.
    Each is called twice in a row, and timed the second time, when its threads are awake.
    """
    best = dict.fromkeys(calls, np.inf)
    for _ in range(rounds):
        for who, call in calls.items():
            call()
            start = perf_counter()
            call()
            best[who] = min(best[who], perf_counter() - start)
    return best


BATCH = 2 if FAST else 16
LAYERS = [(BATCH, H, C, C) for H, C in ((32, 32), (32, 64), (16, 128), (8, 256))]
TINY = 1, 8, 4, 4
x_tiny, w_tiny = draw(*TINY)
y_tiny = rung["loops"].forward(x_tiny, w_tiny, 1, SAME)
tiny = fastest({idea: lambda idea=idea: rung[idea].forward(x_tiny, w_tiny, 1, SAME)
                for idea in ("loops", "im2col")})
by_loops = {layer: tiny["loops"] * flops(*layer) / flops(*TINY) for layer in LAYERS}   # seconds
print(f"{name(*TINY)}: {1e3 * tiny['loops']:.1f} ms,",
      f"{flops(*TINY) / tiny['loops'] / 1e6:.1f} million FLOPs a second")
for layer, seconds in by_loops.items():
    print(f"{name(*layer)}: {flops(*layer) / 1e9:.2f} billion FLOPs, {seconds / 60:.1f} minutes")

# %% [markdown]
# (A FLOP is an addition or a multiplication of floats.) That is one layer, once. A U-Net has
# dozens, and a training step runs each three times: forward, and backward for the input and the
# weights.
#
# ## Rung 1: every window a row
#
# Nearly all of that time Python spends on finding out *what* to do, anew for each number. So say it
# once: lay every window out as a row of a matrix. Then a result is a row times a column of weights,
# and all of them are one matrix product, which NumPy hands to a library (BLAS). Here it is for a
# picture of 4 × 4 with one channel:

# %%
def im2col(x, w):
    """x (N, H, W, C), w (K, K, C, O) -> (y (N, H − K + 1, W − K + 1, O), columns)"""
    K, _, C, O = w.shape
    windows = sliding_window_view(x, (K, K), axis=(1, 2))      # (N, H', W', C, K, K), a mere view
    columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, K * K * C)       # now it is written
    return (columns @ w.reshape(-1, O)).reshape(*windows.shape[:3], O), columns


picture = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
_, columns = im2col(picture, np.ones((3, 3, 1, 1), np.float32))

fig = viz.new_figure(7.4, 2.6)
fig.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
axes = fig.subplots(1, 2, width_ratios=(4, 9))
for ax, title, matrix in zip(axes, ("x", "columns"), (picture[0, :, :, 0], columns), strict=True):
    ax.imshow(matrix, cmap="viridis", vmin=-6, vmax=20)
    for (i, j), value in np.ndenumerate(matrix):
        ax.text(j, i, f"{value:.0f}", ha="center", va="center", color="white")
    ax.set_title(f"{title}: {matrix.shape[0]} × {matrix.shape[1]}", fontsize=11)
    ax.set(xticks=[], yticks=[])
    viz.bare(ax)
axes[1].set_yticks(range(4), [f"y[{i}, {j}]" for i, j in np.ndindex(2, 2)])
fig

# %%
y, columns = im2col(np.pad(x_tiny, ((0, 0), *SAME, (0, 0))), w_tiny)
assert np.allclose(y, y_tiny, atol=1e-5)                       # equal to the seven loops
assert np.allclose(y, rung["im2col"].forward(x_tiny, w_tiny, 1, SAME), atol=1e-6)
print(f"{name(*TINY)}: {tiny['loops'] / tiny['im2col']:,.0f} times as fast as the loops")
N, H, C, O = LAYERS[1]
print(f"{name(N, H, C, O)}: x has {4e-6 * N * H * H * C:.1f} MB, its columns",
      f"{4e-6 * N * H * H * 9 * C:.1f} MB")

# %% [markdown]
# The price stands in the last line: every number is written down nine times, once for each window
# that it lies in, and read again by the product. (The rung takes a few pictures at a time, so that
# the columns of all of them never exist together; written they are nonetheless.) Whether that
# matters depends on what the machine is good at.
#
# ## What the machine could do
#
# Three things make a processor fast, and Python shows none of them.
#
# - **Vectors.** An instruction adds or multiplies a whole register of numbers at once.
# - **Fused multiply-add.** x · y + z is one instruction, as fast as the addition alone, and most
#   cores can begin two of them in every tick of their clock.
# - **Caches.** Memory is far away. What was used lately is kept near: a little of it very near
#   (L1), more of it near (L2), still more at some distance (L3).
#
# The first two say how fast we can compute; the third, how fast the numbers arrive.

# %%
here = isa.host()
limit, bandwidth = peak.flops_per_second(), peak.bytes_per_second()
print(f"{here.name}: {here.width} floats in a register; {threads()} threads")
print(f"computing in registers: {limit / 1e9:,.0f} billion FLOPs a second")
print(f"copying in memory:      {bandwidth / 1e9:,.1f} billion bytes a second")
print(f"so {limit / bandwidth:.0f} FLOPs in the time of one byte,",
      f"and {limit * tiny['loops'] / flops(*TINY):,.0f} in that of one FLOP of the loops")

# %% [markdown]
# And this is how the numbers arrive: one thread copies a block again and again. The larger the
# block, the further away it has to live.

# %%
def copying(size):
    """Copy a block, `size` bytes read and written together, so often that it takes a while."""
    x, y = np.ones(size // 8, np.float32), np.empty(size // 8, np.float32)

    def call():
        for _ in range(often(size)):
            np.copyto(y, x)
    return call


def often(size):
    return max(1, min(500, 2**22 // size))


sizes = [2**k for k in range(14, 25 if FAST else 28)]
seconds = fastest({size: copying(size) for size in (8, *sizes)})
empty = seconds[8] / often(8)                                  # a call that does nothing
rate = [size / (seconds[size] / often(size) - empty) / 1e9 for size in sizes]

fig = viz.new_figure(6, 2.8)
ax = fig.add_subplot(xscale="log", xlabel="kilobytes", ylabel="billion bytes a second")
ax.plot(np.array(sizes) / 1e3, rate, "o-")
ax.set_ylim(bottom=0)
ax.grid(alpha=0.3)
fig

# %% [markdown]
# Each step down is a cache that has become too small.
#
# Two limits, then. A layer that does F FLOPs and moves B bytes through memory takes at least as
# long as the slower of the two:
#
# **seconds ≥ max(F / FLOPs a second, B / bytes a second)**
#
# Drawn over F / B, the FLOPs for each byte, this is a roof: the *roofline* of this machine. Under
# it we put our first layer, once for each rung. What a rung moves we count: at least x, w and y;
# im2col writes the columns and reads them, too.

# %%
def moved(idea, N, H, C, O):
    """Bytes that a rung reads from memory and writes to it."""
    pixels = N * H * H
    columns = 2 * 9 * C * pixels if idea == "im2col" else 0
    return 4 * (C * pixels + 9 * C * O + O * pixels + columns)


times = {}                                                     # {layer: {rung: seconds}}
for layer in LAYERS:
    x, w = draw(*layer)
    times[layer] = fastest({idea: lambda idea=idea, x=x, w=w: rung[idea].forward(x, w, 1, SAME)
                            for idea in rung if idea != "loops"})
    times[layer] = {"loops": by_loops[layer]} | times[layer]

layer = LAYERS[0]
fig = viz.new_figure(6.4, 4)
ax = fig.add_subplot(xscale="log", yscale="log", title=name(*layer),
                     xlabel="FLOPs of the definition for each byte moved",
                     ylabel="billion of them a second")
roof = np.array([0.1, 1, 100]) * limit / bandwidth
ax.plot(roof, np.minimum(limit, roof * bandwidth) / 1e9, color="black", label="the roof")
for idea, seconds in times[layer].items():
    ax.plot(flops(*layer) / moved(idea, *layer), flops(*layer) / seconds / 1e9, "o", markersize=7,
            label=f"{idea}: {1e3 * seconds:,.1f} ms")
ax.grid(alpha=0.3)
ax.legend(frameon=False, loc="center left")
fig

# %% [markdown]
# This is our way up. The loops lie at the bottom; what keeps them from the roof is Python. im2col
# stands to the left, where the roof slopes: it moves too much. The rung after it moves only what it
# must. And Winograd's rungs come out near the roof or even above it, where no machine can be. They
# do not compute the definition.
#
# ## A block of results that stays in registers
#
# First, how does anybody reach the roof? Take C = A B. A number must be loaded from the cache
# before it can be multiplied, and a core loads no more registers in a tick than it can multiply. If
# every multiplication had to load both of its numbers, it would wait for them. The way out: keep a
# *block* of C in registers, and for each k load one column of A and one row of B. That is rows
# *times* columns to multiply, for rows *plus* columns to load.
#
# This is the micro-kernel, the heart of every product in this package. It is written in the
# compiler's own language, LLVM's, because a compiler must not be left to guess which numbers stay
# in registers:

# %%
print(getsource(microkernel))

# %% [markdown]
# The same in NumPy, register by register. `fma` rounds once: in float64 a product of two floats is
# exact, and the sum's own rounding is too fine to be seen.

# %%
def fma(a, b, c):
    """a · b + c, rounded once"""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def by_hand(A, B):
    """A (rows, K), B (K, width · vectors) -> A B"""
    sums = np.zeros((here.rows, here.vectors, here.width), np.float32)         # the block
    for k in range(A.shape[1]):
        b = B[k].reshape(here.vectors, here.width)             # to load: so many vectors
        for i in range(here.rows):
            a = np.full(here.width, A[i, k])                   # to load: one number, for all lanes
            for j in range(here.vectors):
                sums[i, j] = fma(a, b[j], sums[i, j])
    return sums.reshape(here.rows, here.panel)


K = 64
A = rng.standard_normal((here.rows, K), np.float32)
B = rng.standard_normal((K, here.panel), np.float32)
C = by_hand(A, B)
assert np.allclose(C, A @ B, atol=1e-4)
loads = here.rows + here.vectors
print(f"a block of {here.rows} × {here.vectors} registers of {here.width} floats:",
      f"{2 * here.rows * here.panel} FLOPs for {loads} loads")

# %% [markdown]
# Now the real one. A word of our vector language knows how to write itself down for LLVM, so a
# compiler for it fits into a cell. We call what comes out, and read it:

# %%
def machine_code(word):
    """(a function of integers, its assembly) from a word of the vector language."""
    long = ir.IntType(64)
    module = ir.Module()
    kind = ir.FunctionType(ir.VoidType(), [long] * len(word.arguments))
    function = ir.Function(module, kind, word.name)
    builder = ir.IRBuilder(function.append_basic_block())
    word.emit(builder, *function.args)
    builder.ret_void()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(),
        opt=3, jit=True)
    compiled = binding.parse_assembly(str(module))
    assembly = machine.emit_assembly(compiled)
    engine = binding.create_mcjit_compiler(compiled, machine)
    engine.finalize_object()
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(word.arguments))(
        engine.get_function_address(word.name))
    call.engine = engine                                       # the code lives as long as this
    return call, assembly


def loop(assembly):
    """What runs for every k: from the label to the jump back to it."""
    return re.search(r"^(\S*BB\S+):.*?\n(.*?\1)$", assembly, re.DOTALL | re.MULTILINE)[2]


multiply, assembly = machine_code(microkernel(accumulate=False))
C_real = np.empty_like(C)
multiply(A.ctypes.data, K, 1, B.ctypes.data, here.panel, C_real.ctypes.data, here.panel, K)
assert np.array_equal(C_real, C)                               # ours by hand, bit for bit
assert len(re.findall("fmadd|fmla", loop(assembly))) == here.rows * here.vectors
print(loop(assembly).expandtabs(4))

# %% [markdown]
# Most of the time of a training run passes in these lines. Hardly one waits for the one before it,
# because each sum has a register of its own.
#
# Why this block, then, and not a larger one? We ask the machine. With strides of 0 the kernel loads
# the same numbers again and again, so that nothing is measured but the block itself:

# %%
DEPTH = 20_000
heights = list(range(1, 25, 3 if FAST else 1))
codes = {rows: machine_code(microkernel(accumulate=False, rows=rows)) for rows in heights}
C_tall = np.empty((heights[-1], here.panel), np.float32)


def no_strides(rows):
    a, b, c = (matrix.ctypes.data for matrix in (A, B, C_tall))
    return lambda: codes[rows][0](a, 0, 0, b, 0, c, here.panel, DEPTH)


seconds = fastest({rows: no_strides(rows) for rows in heights})
rate = {rows: 2 * rows * here.panel * DEPTH / seconds[rows] / 1e9 for rows in heights}
stack = {rows: len(re.findall(r"[(\[]%?r?sp[)\],]", loop(codes[rows][1]))) for rows in heights}

fig = viz.new_figure(6, 3)
ax = fig.add_subplot(xlabel=f"rows of the block, each of {here.vectors} registers",
                     ylabel="billion FLOPs a second,\none thread")
for colour, label, chosen in (
        ("tab:blue", "all sums fit into the registers", [r for r in heights if not stack[r]]),
        ("tab:red", "some go to the cache and back", [r for r in heights if stack[r]])):
    ax.bar(chosen, [rate[rows] for rows in chosen], color=colour, label=label)
ax.set_ylim(0, 1.4 * max(rate.values()))
ax.legend(frameon=False, loc="upper left")
fig

# %% [markdown]
# On the left there is too little to do for each load, and every sum waits for itself: the next
# multiplication into it may not begin before the last has ended. On the right the registers have
# run out, and the loop puts sums away and fetches them again. The plateau between is the speed of
# the multipliers, and the block that `isa.py` names for this machine lies there.
#
# ## Rung 2: the windows, laid out in the cache
#
# With a product of our own we need not hand it a finished matrix. So the columns are never written
# to memory: a thread lays out as many rows as its cache holds, multiplies them there, and drops
# them.

# %%
print(rung["numba"].__doc__)
for layer in LAYERS:
    before, now = (moved(idea, *layer) / 1e6 for idea in ("im2col", "numba"))
    print(f"{name(*layer):<20} {now:4.1f} MB moved, not {before:4.1f};",
          f"{times[layer]['im2col'] / times[layer]['numba']:.1f} times as fast,",
          f"{flops(*layer) / times[layer]['numba'] / limit:.0%} of the limit")

# %% [markdown]
# (It is called after Numba, which translates the loops around the micro-kernel.) Nothing is written
# to memory but the result. From here on, doing the same sums in a better order can win no more than
# the last column leaves. To get further we must compute less.
#
# ## Winograd: fewer multiplications
#
# Two neighbouring results of a convolution in one dimension, with a window of three:
#
# **y₀ = d₀ g₀ + d₁ g₁ + d₂ g₂**,  **y₁ = d₁ g₀ + d₂ g₁ + d₃ g₂**
#
# Six multiplications. But both results use d₁ and d₂, and every g is used twice. Shmuel Winograd
# showed that four will do:

# %%
def two_results(d, g):
    """F(2, 3): y = [d₀ g₀ + d₁ g₁ + d₂ g₂, d₁ g₀ + d₂ g₁ + d₃ g₂], by four products"""
    m1 = (d[0] - d[2]) * g[0]
    m2 = (d[1] + d[2]) * (g[0] + g[1] + g[2]) / 2
    m3 = (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2
    m4 = (d[1] - d[3]) * g[2]
    return [m1 + m2 + m3, m2 - m3 - m4]


def whole(*shape):
    """Whole numbers as fractions, with which Python calculates exactly."""
    return np.vectorize(Fraction)(rng.integers(-99, 100, shape))


for _ in range(100):
    d, g = whole(4), whole(3)
    assert two_results(d, g) == [sum(d[:3] * g), sum(d[1:] * g)]
print("equal, exactly, a hundred times")

# %% [markdown]
# Where does that come from? Whoever multiplies two polynomials convolves their coefficients. But a
# product of polynomials is known, too, from its values at enough points, and a value costs a single
# multiplication. Look at what happens to g: these are the values of g₀ + g₁ z + g₂ z² at z = 0, 1,
# −1 and, so to speak, ∞ (two of them halved, which the way back needs).
#
# The sums of g are made once for the whole layer, those of d once for all output channels. What is
# left for each pair of channels is the four products. As matrices it reads
#
# **y = Aᵀ [ (G g) ⊙ (Bᵀ d) ]**  and in two dimensions  **Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A**
#
# where ⊙ multiplies number by number. Here are the matrices of `transforms.py`, for tiles of 2 × 2
# and of 4 × 4 results. The larger tile needs six points; the fractions come from there. The
# identity is exact for both:

# %%
def exact(matrix):
    """Floats as the fractions they stand for."""
    return np.array([[Fraction(c).limit_denominator(10_000) for c in row] for row in matrix])


for m in (2, 4):
    BT, G, AT = (exact(matrix[m]) for matrix in (transforms.BT, transforms.G, transforms.AT))
    d, g = whole(m + 2, m + 2), whole(3, 3)
    Y = AT @ ((G @ g @ G.T) * (BT @ d @ BT.T)) @ AT.T
    assert (Y == [[(d[i:i + 3, j:j + 3] * g).sum() for j in range(m)] for i in range(m)]).all()
    print(f"F({m}×{m}): {(m + 2)**2} multiplications in place of {9 * m * m},",
          f"{9 * m * m / (m + 2)**2:.2f} times fewer")
    for letter, matrix in {"Bᵀ": BT, "G": G, "Aᵀ": AT}.items():
        rows = ["  ".join(f"{c!s:>9}" for c in row) for row in matrix]
        print(f"{letter:<3}" + "\n   ".join(rows))

# %% [markdown]
# With channels, the sum over c goes inside the bracket: Aᵀ can wait for it. So at each of the (m +
# 2)² places of a tile there is a matrix product, (tiles, C) · (C, O), and the micro-kernel goes to
# work again. The whole rung in NumPy:

# %%
def winograd(x, w, m):
    """x (N, H, W, C), w (3, 3, C, O) -> y (N, H, W, O); m divides H and W"""
    N, H, W, _ = x.shape
    BT, G, AT = (np.array(M[m], x.dtype) for M in (transforms.BT, transforms.G, transforms.AT))
    x = np.pad(x, ((0, 0), *SAME, (0, 0)))
    d = sliding_window_view(x, (m + 2, m + 2), axis=(1, 2))[:, ::m, ::m]
    V = BT @ d @ BT.T                                          # (N, H/m, W/m, C, m+2, m+2)
    U = G @ w.transpose(2, 3, 0, 1) @ G.T                      # (C, O, m+2, m+2)
    M = np.einsum("nhwcij,coij->nhwoij", V, U)                 # (m + 2)² matrix products
    Y = AT @ M @ AT.T                                          # (N, H/m, W/m, O, m, m)
    return Y.transpose(0, 1, 4, 2, 5, 3).reshape(N, H, W, -1)


for m in (2, 4):
    y = rung[f"winograd{m}"].forward(x_tiny, w_tiny, 1, SAME)
    assert np.allclose(winograd(x_tiny, w_tiny, m), y_tiny, atol=1e-5)
    assert np.allclose(y, y_tiny, atol=1e-5)
print("by hand, by rungs 3 and 4, by loops: equal to float32's rounding")

# %% [markdown]
# The identity is exact, float32 is not. The transforms subtract numbers that are alike, and some of
# what was rounded away does not cancel. How much does that cost? We compare every rung with
# float64, over the number of channels:

# %%
channels = [8, 16, 32] if FAST else [8, 16, 32, 64, 128, 256]
errors = {idea: [] for idea in rung if idea != "loops"}
for C in channels:
    x, w = draw(2, 16, C, 16)
    truth = rung["im2col"].forward(x.astype(float), w.astype(float), 1, SAME)
    for idea, found in errors.items():
        apart = rung[idea].forward(x, w, 1, SAME) - truth
        found.append(np.sqrt(np.mean(apart**2) / np.mean(truth**2)))

fig = viz.new_figure(6, 3)
ax = fig.add_subplot(xscale="log", yscale="log", xlabel="channels", ylabel="error / size of y")
for idea, found in errors.items():
    ax.plot(channels, found, "o-", label=idea)
ax.axhline(2.0**-24, color="black", linewidth=0.8, linestyle="--")
ax.annotate("one rounding of float32", (channels[-1], 2.0**-24), xytext=(0, 3), ha="right",
            textcoords="offset points", fontsize=9)
ax.set_xticks(channels, channels)
ax.minorticks_off()
ax.grid(alpha=0.3)
ax.legend(frameon=False, ncols=2, fontsize=9)
fig

# %% [markdown]
# Winograd's larger tiles cost a few of float32's last bits. That noise is far below the one of
# training itself, where each step sees a few pictures out of thousands. And this is what it buys:

# %%
fig = viz.new_figure(7.6, 3.2)
ax = fig.add_subplot(ylabel="share of im2col's time", ylim=(0, 1.3))
ideas = list(errors)
for k, idea in enumerate(ideas):
    for i, layer in enumerate(LAYERS):
        share = times[layer][idea] / times[layer]["im2col"]
        ax.bar(i + (k - 1.5) / 5, share, 0.19, color=f"C{k}", label=idea if i == 0 else None)
        ax.text(i + (k - 1.5) / 5, share, f"{1e3 * times[layer][idea]:.1f}", ha="center",
                va="bottom", fontsize=8)
ax.set_xticks(range(len(LAYERS)), [name(*layer) for layer in LAYERS], fontsize=9)
ax.legend(frameon=False, fontsize=9, ncols=4, loc="upper center",
          title="milliseconds above each bar", title_fontsize=9)
fig

# %% [markdown]
# Four times fewer multiplications do not make it four times faster, because the transforms take
# their time. A transformed input serves every output channel: the more there are, the less its
# transform weighs. (And this is how a point can get above the roof: the roof counts what is
# computed, the point what would have been.)
#
# ## Fusion: what is never written
#
# In a residual block no convolution stands alone: it is `conv(silu(norm(x)))`, and to its result
# are added a bias, the time and the residual. Each of these is a short formula on an array too
# large for the near caches, and done one after the other, each reads all of it and writes all of
# it. The convolution can take them along: it applies norm and SiLU as it loads its windows, and
# adds as it stores its results.

# %%
print(getsource(one_by_one))
passes = {                                                     # (reads, writes) of the whole array
    "one after the other": {"mean and variance": (1, 0), "norm": (1, 1), "silu": (1, 1),
                            "convolution": (1, 1), "+ bias": (1, 1), "+ time": (1, 1),
                            "+ residual": (2, 1)},
    "fused": {"mean and variance": (1, 0), "all the rest": (2, 1)}}
N, H, C, O = BLOCK = LAYERS[0]
size = 4 * N * H * H * C                                       # bytes of x, and of y
traffic = {way: size * np.sum(list(steps.values())) for way, steps in passes.items()}
for way, steps in passes.items():
    reads, writes = np.sum(list(steps.values()), axis=0)
    print(f"{way:<20} reads {reads}, writes {writes}: {traffic[way] / 1e6:4.1f} MB")
saved = traffic["one after the other"] - traffic["fused"]
print(f"the difference, at the speed of memory: {1e3 * saved / bandwidth:.2f} ms")

# %% [markdown]
# The fused op is an ordinary op of autograd, and its readable twin stands beside it. They must
# agree, forward and in every gradient:

# %%
def inputs(N, H, C, O):
    """Tensors x, scale, shift, w, b, late (the time), add (the residual) of a block, and dy."""
    x, w = draw(N, H, C, O)
    shapes = (C,), (C,), (O,), (N, O), (N, H, H, O), (N, H, H, O)
    scale, shift, b, late, add, dy = (rng.standard_normal(shape, np.float32) for shape in shapes)
    arrays = {"x": x, "scale": scale, "shift": shift, "w": w, "b": b, "late": late, "add": add}
    return {key: td.Tensor(a, requires_grad=True) for key, a in arrays.items()}, dy


def forward(op, tensors):
    with td.no_grad():
        return op(**tensors, skip=None, groups=8, eps=1e-5).data


def both_ways(op, tensors, dy):
    """The result, and the gradient of every input."""
    for tensor in tensors.values():
        tensor.grad = None
    y = op(**tensors, skip=None, groups=8, eps=1e-5)
    y.backward(dy)
    return {"y": y.data} | {key: tensor.grad for key, tensor in tensors.items()}


tensors, dy = inputs(*BLOCK)
one, fused = (both_ways(op, tensors, dy) for op in (one_by_one, ag.norm_silu_conv2d))
for key in one:
    assert np.allclose(one[key], fused[key], rtol=1e-3, atol=1e-4 * abs(one[key]).max()), key
calls = {"one after the other": one_by_one, "fused": ag.norm_silu_conv2d}
taken = [fastest({way: lambda op=op: forward(op, tensors) for way, op in calls.items()}),
         fastest({way: lambda op=op: both_ways(op, tensors, dy) for way, op in calls.items()})]
for what, seconds in zip(("forward", "and backward"), taken, strict=True):
    print(f"{what:<13}", ",  ".join(f"{way} {1e3 * s:.2f} ms" for way, s in seconds.items()))

# %% [markdown]
# Backward gains, too. Nothing between x and y was kept for it; it computes silu(norm(x)) once more,
# again on the way into the cache. So fusion saves memory as well as time.
#
# ## Threads: the same bits from any number of them
#
# The work is cut into numbered pieces, and whichever thread is free takes the next. If the order of
# a sum depended on who came first, it would round differently each time, and no run could be
# repeated. So sums are cut by the shape of the layer alone. Each line below is a process of its
# own, which computes a layer forward and both of its gradients:

# %%
PROGRAM = f"""
import hashlib, json
from time import perf_counter
import numpy as np
from tinydiff.kernels import LADDERS

rung = LADDERS["conv2d"].LADDER["winograd4"]
N, H, C, O = {LAYERS[1]}
rng = np.random.default_rng(0)
x, w, dy = (rng.standard_normal(shape, np.float32)
            for shape in ((N, H, H, C), (3, 3, C, O), (N, H, H, O)))
best, padding = 9.0, ((1, 1), (1, 1))
for _ in range({5 if FAST else 20}):
    start = perf_counter()
    found = (rung.forward(x, w, 1, padding), rung.grad_input(dy, w, x.shape, 1, padding),
             rung.grad_weight(dy, x, w.shape, 1, padding))
    best = min(best, perf_counter() - start)
bits = hashlib.sha256(b"".join(array.tobytes() for array in found)).hexdigest()
print(json.dumps(dict(seconds=best, bits=bits)))
"""


def with_threads(count):
    """What the program says in a process with so many threads."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, stdout=subprocess.PIPE,
                          env=os.environ | {"OMP_NUM_THREADS": str(count)})
    return json.loads(done.stdout)


cores = os.cpu_count()
counts = sorted({1, 2, 3, 4, cores // 2, cores} & set(range(1, cores + 1)))
answers = {count: with_threads(count) for count in counts}
for count, answer in answers.items():
    print(f"{count:>3} threads: {1e3 * answer['seconds']:6.1f} ms,",
          f"{answers[1]['seconds'] / answer['seconds']:4.1f} times as fast as one,",
          f"bits {answer['bits'][:16]}…")
assert len({answer["bits"] for answer in answers.values()}) == 1

# %% [markdown]
# ## Against PyTorch
#
# PyTorch calls a library, oneDNN, into which experts have put years of work. It can hold pictures
# in two layouts: channels first, its habit, and channels last, like ours. We let it run in both,
# turn about with us, on as many threads as we have; what counts is the better of the two.

# %%
LAYOUTS = {"channels first": "contiguous_format", "channels last": "channels_last"}


def to_torch(a, layout):
    """x (N, H, W, C) or w (3, 3, C, O) with the axes as PyTorch orders them, in one layout."""
    import torch
    tensor = torch.from_numpy(a.copy())
    if a.ndim == 4:
        tensor = tensor.permute((3, 2, 0, 1) if a.shape[:2] == (3, 3) else (0, 3, 1, 2))
        tensor = tensor.contiguous(memory_format=getattr(torch, layout))
    return tensor


def torch_convolution(x, w, layout):
    import torch
    x, w = to_torch(x, layout), to_torch(w, layout)

    def call():
        with torch.inference_mode():
            return torch.conv2d(x, w, padding=1).permute(0, 2, 3, 1).numpy()
    return call


def torch_block(tensors, dy, layout):
    """What `both_ways` does, in PyTorch."""
    from torch.nn.functional import conv2d, group_norm, silu
    t = {key: to_torch(tensor.data, layout).requires_grad_() for key, tensor in tensors.items()}
    dy = to_torch(dy, layout)

    def call():
        for leaf in t.values():
            leaf.grad = None
        h = silu(group_norm(t["x"], 8, t["scale"], t["shift"]))
        y = conv2d(h, t["w"], t["b"], padding=1) + t["late"][:, :, None, None] + t["add"]
        y.backward(dy)
        return y.detach().permute(0, 2, 3, 1).numpy()
    return call


def races(layer):
    """Who runs against whom: one convolution forward, and a whole block forward and backward."""
    x, w = draw(*layer)
    tensors, dy = inputs(*layer)
    yield "convolution", {"ours": lambda: rung["winograd4"].forward(x, w, 1, SAME)} | {
        key: torch_convolution(x, w, layout) for key, layout in LAYOUTS.items()}
    yield "block, both ways", {"ours": lambda: both_ways(ag.norm_silu_conv2d, tensors, dy)["y"]} | {
        key: torch_block(tensors, dy, layout) for key, layout in LAYOUTS.items()}


lines = []
if find_spec("torch"):
    import torch
    torch.set_num_threads(threads())
    lines += [f"PyTorch {torch.__version__}, {threads()} threads, milliseconds",
              f"{'':<40}{'channels first':>15}{'channels last':>15}{'ours':>8}{'ratio':>8}"]
    for layer in LAYERS:
        for what, calls in races(layer):
            y, *others = (call() for call in calls.values())
            assert all(np.allclose(y, other, atol=1e-3) for other in others)
            ours, first, last = fastest(calls).values()
            lines.append(f"{name(*layer) + ', ' + what:<40}{1e3 * first:>15.2f}{1e3 * last:>15.2f}"
                         f"{1e3 * ours:>8.2f}{ours / min(first, last):>8.2f}")
print("\n".join(lines) or "PyTorch is not installed here. The tables that were measured against it "
      "are in kernels/README.md.")

# %% [markdown]
# Below 1 we are faster. These are single layers; [kernels/README.md](../kernels/README.md) has the
# measured tables of more of them, and `benchmarks/cpu_step.py` times whole training steps.
#
# ## Check yourself

# %%
N, H, C, O = 2, 7, 5, 3                                        # an odd size, few channels
x, w, dy = (rng.standard_normal(shape, np.float32)
            for shape in ((N, H, H, C), (3, 3, C, O), (N, H, H, O)))
for function, args in {"forward": (x, w), "grad_input": (dy, w, x.shape),
                       "grad_weight": (dy, x, w.shape)}.items():
    wanted = getattr(rung["loops"], function)(*args, 1, SAME)
    for idea in rung:                                          # every rung is the definition
        found = getattr(rung[idea], function)(*args, 1, SAME)
        assert np.allclose(found, wanted, atol=1e-4 * abs(wanted).max()), (idea, function)

x[0, 3, 3, 0] = np.nan                                         # what is no number is not hidden
assert np.isnan(rung["winograd4"].forward(x, w, 1, SAME)[0, 3, 3]).all()

plain = np.array(errors["im2col"])                             # float32, nothing clever
assert (errors["winograd2"] < 4 * plain).all()                 # the rounding we promised
assert (errors["winograd4"] < 20 * plain).all()
for layer in LAYERS:                                           # and it was worth the while
    assert times[layer]["loops"] > 100 * max(times[layer][idea] for idea in errors)
gain = max(times[layer]["loops"] / min(times[layer].values()) for layer in LAYERS)
print(f"from the loops to the fastest rung: {gain:,.0f} times")

# %% [markdown]
# **Exercise 1.** A tile of 4 × 4 is made from values of polynomials at 0, ±a, ±b and ∞. The paper
# has a, b = 1, 2, whole numbers, easy on the eye. The cell below measures the error for any a and
# b. Why does the package take others? Can you find better ones? (All that must hold is 0 < a < b.)
#
# **Exercise 2.** Before you run the last cell with a layer of yours, put the rungs in order. When
# do the transforms cost more than they save? Try 1 channel, then 512; pictures of side 4, then 64.

# %%
def matrices(a, b):
    """Bᵀ, G, Aᵀ of F(4×4) with the points 0, ±a, ±b and ∞."""
    f, g = 2 * a**2 * (a**2 - b**2), 2 * b**2 * (b**2 - a**2)
    points = np.array([a, -a, b, -b])
    BT = [[a**2 * b**2, 0, -(a**2) - b**2, 0, 1, 0],
          *([0, -p * q**2, -(q**2), p, 1, 0] for p, q in ((a, b), (-a, b), (b, a), (-b, a))),
          [0, a**2 * b**2, 0, -(a**2) - b**2, 0, 1]]
    G = [[1 / (a**2 * b**2), 0, 0],
         *([1 / s, p / s, p**2 / s] for p, s in zip(points, (f, f, g, g), strict=True)), [0, 0, 1]]
    AT = [[i == 0, *points**i, i == 3] for i in range(4)]
    return [np.array(matrix, float) for matrix in (BT, G, AT)]


def error(a, b):
    """How far float32 is from float64, on 200 tiles of 64 channels, relative to their size."""
    draws = np.random.default_rng(0)
    d, g = (draws.standard_normal((200, 64, side, side), np.float32) for side in (6, 3))
    found = []
    for kind in (np.float32, np.float64):
        BT, G, AT = (matrix.astype(kind) for matrix in matrices(a, b))
        V, U = BT @ d.astype(kind) @ BT.T, G @ g.astype(kind) @ G.T
        found.append(AT @ (U * V).sum(axis=1) @ AT.T)
    return np.sqrt(np.mean((found[0] - found[1]) ** 2) / np.mean(found[1] ** 2))


for ours, name_of in zip(matrices(5 / 8, 3 / 2), ("BT", "G", "AT"), strict=True):
    assert np.allclose(ours, getattr(transforms, name_of)[4])
for a, b in ((1, 2), (5 / 8, 3 / 2), (1 / 2, 1)):              # add yours
    print(f"a = {a}, b = {b}: error {error(a, b):.1e}")

# %%
mine = 4, 16, 24, 24                                           # N, H, C, O: change me
x, w = draw(*mine)
taken = fastest({idea: lambda idea=idea: rung[idea].forward(x, w, 1, SAME)
                 for idea in rung if idea != "loops"})
for idea in sorted(taken, key=taken.get):
    rate = flops(*mine) / taken[idea] / 1e9
    print(f"{idea:<10} {1e3 * taken[idea]:8.3f} ms, {rate:6.1f} billion FLOPs a second")

# %% [markdown]
# **Next:** the rungs themselves, from [rung0_loops.py](../kernels/conv2d/rung0_loops.py) up. You
# have met everything in them but the edges of pictures.
