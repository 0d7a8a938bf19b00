# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · The bug zoo
#
# Diffusion code with a mistake in it seldom crashes. It trains, it samples, and what comes out is a
# little grey, a little grainy, or fine until somebody asks for another number of steps; and then
# one blames the network, the data, the learning rate. In this notebook nobody may blame the
# network. Twenty-seven mistakes sit in numbered cages, one wrong line each; half of them were
# published. You see what they do to pictures, find them with oracles, and name the line.
#
# Source read here: [bug_zoo.py](bug_zoo.py) (read it last: it has all the answers),
# [diagnostics.py](diagnostics.py), and whatever your search leads to.

# %%
import os
from inspect import getsource

import bug_zoo as zoo
import diagnostics
import numpy as np

import tinydiff as td
from tinydiff import viz
from tinydiff.diffusion import fixed_large

FAST = bool(os.environ.get("TINYDIFF_FAST"))
run = td.load_run("mnist")
context = np.repeat(run.contexts(["a handwritten three"]), 8, axis=0)      # (8, L, D)
network = td.denoiser(run.model.unet, run.schedule, context)

# %% [markdown]
# ## What mistakes look like
#
# Inside `with zoo.cage(3):` one function of the package has one line changed, wherever it is called
# from; after the `with` all is well again. Here is the shipped network with *a handwritten three*,
# from the same noise in each column, with right code and in six cages:

# %%
def drawn(sampler, **own):
    """Eight threes."""
    with np.errstate(all="ignore"):                            # some of them explode
        return np.nan_to_num(td.sample(sampler, network, (8, *run.shape), run.schedule, steps=25,
                                       seed=3, **own))


sheet = {"no mistake": drawn(td.ddim)}
for number, sampler, own in ((21, td.ddim, {}), (23, td.euler_ancestral, {}),
                             (26, td.ddpm, {"variance": fixed_large}), (27, td.dpmpp_2m, {}),
                             (3, td.ddpm, {}), (18, td.ddim, {})):
    with zoo.cage(number):
        sheet[f"cage {number}"] = drawn(sampler, **own)
viz.image_grid(np.concatenate(list(sheet.values())), rows=list(sheet))

# %% [markdown]
# The last two nobody would miss. But look at the two after the first: handsome threes, cleaner than
# the right ones. Only, they are all alike. Then a little film grain, which one would try to train
# away. And the fifth row: is anything wrong with it at all?
#
# ## What oracles say
#
# A *diagnostic* knows a right answer that needs no training: a published number, an identity, the
# closed form for a Gaussian. It says nothing if the code agrees, else one sentence with both
# numbers. `examine()` runs all of them in less than a second:

# %%
healthy = diagnostics.examine()
print(f"{sum(v is None for v in healthy.values())} of {len(healthy)} diagnostics are content")
print(getsource(diagnostics.posterior))

# %% [markdown]
# ## Cage 21: a search
#
# The row of equal threes. Which oracles complain, and, as telling, which do not?

# %%
def complaints(number):
    """What the diagnostics say about a cage -> {name: sentence}."""
    with zoo.cage(number):
        return {name: said for name, said in diagnostics.examine().items() if said}


for name, said in complaints(21).items():
    print(f"{name}: {said}")

# %% [markdown]
# Schedule, noising, posterior, dialects, spacing: all content. So what x_t *is* and *where* it is
# asked about are right, and the fault is in the step of one sampler. Its samples have no deviation,
# and its order is 0: more steps do not help, it converges to the wrong thing. One function is left
# to read. In the cage it shows itself as it runs; hold it against DDIM Eq. 12,
# **x_s = √ᾱ_s x0 + √(1 − ᾱ_s − σ²) eps + σ z**, before you look at the answer.

# %%
with zoo.cage(21):
    print(getsource(td.ddim))

# %%
print(zoo.reveal(21))

# %% [markdown]
# ## Cage 27: a mistake that no picture shows
#
# The fifth row was drawn by a sampler *of second order*: with twice the steps it should make a
# quarter of the error. Its threes are as good as those of the first row. Is it?

# %%
print(complaints(27))
counts = np.array([10, 20, 40, 80, 160])
right = diagnostics.ode_errors(td.dpmpp_2m, td.Schedule.linear(), counts)
with zoo.cage(27):
    wrong = diagnostics.ode_errors(td.dpmpp_2m, td.Schedule.linear(), counts)
figure = viz.curves(counts, {"no mistake": right, "cage 27": wrong}, xlabel="steps",
                    ylabel="error against the exact ODE", log=True)
figure.axes[0].set_xscale("log")
figure

# %%
with zoo.cage(27):
    print(getsource(td.dpmpp_2m))

# %%
print(zoo.reveal(27))

# %% [markdown]
# Where all steps have the same h, right and wrong are one number, and where h changes slowly,
# almost; a test on evenly spaced nodes would not have noticed. **An oracle finds only what it is
# asked about.** For this reason alone every other node of the diagnostic comes late.
#
# ## Fingerprints
#
# Every cage against every diagnostic. A row is a mistake's fingerprint:

# %%
numbers = range(1, len(zoo.MISTAKES) + 1, 9 if FAST else 1)
said = {number: complaints(number) for number in numbers}
names = list(diagnostics.DIAGNOSTICS)
print_of = np.array([[name in said[number] for name in names] for number in numbers], float)
viz.heatmap(print_of, rows=[str(number) for number in numbers], columns=names,
            title="who complains about which cage", size=(0.3, 0.17))

# %% [markdown]
# Most mistakes are caught by one oracle only. That is no waste: it names the place. And a mistake
# that many see lies deep, where everything stands on it.
#
# ## Your turn
#
# Choose a cage. Read the sentence, name the file, open it in the cage with `getsource`, name the
# line; only then `print(zoo.reveal(number))`. Three to begin with, from easy to hard: 25, 15, 9.

# %%
for number in (25, 15, 9):
    for name, sentence in complaints(number).items():
        print(f"cage {number:>2}, {name}: {sentence}")

# %% [markdown]
# ## Mistakes test the tests
#
# The same mistakes can be let into a whole test suite, and a suite worth its time must then fail:
#
#     TINYDIFF_MISTAKE="nats sold as bits" pytest tests/test_likelihood.py
#
# This is *mutation testing*, and it is the only way to know that a green test could have been red.
# tests/test_bug_zoo.py does it for every cage.
#
# ## Check yourself

# %%
assert not any(healthy.values())                               # no false alarm
assert all(said.values())                                      # and no cage goes unnoticed
again = diagnostics.examine()
assert again == healthy                                        # all cages are shut again
variety = {name: rows.std(axis=0).mean() for name, rows in sheet.items()}
assert max(variety["cage 21"], variety["cage 23"]) < 0.8 * variety["no mistake"]
assert abs(right[-2] / right[-1] - 4) < 0.5                    # second order
assert abs(wrong[-2] / wrong[-1] - 2) < 0.3                    # and first

# %% [markdown]
# **Exercise 1.** Cage 13 is caught by looking into the noise itself. Catch it from outside, as a
# user would: write `mine`, which draws pictures with `td.sample` and raises AssertionError if a
# picture depends on how many are drawn with it. The cell below lets it run outside the cage, where
# it must be silent, and inside, where it must not.
#
# **Exercise 2.** Breed a mistake that nobody here notices, by changing `bred` below. An oracle sees
# only where it looks: does one look at `flow_heun`? at `guided_rescaled`? Then write the diagnostic
# that finds yours; `ode_errors` may help.

# %%
def mine():
    """A try that has no idea: three steps of DDIM, once and once more."""
    bell = diagnostics.Bell(run.schedule)
    one, again = (td.sample(td.ddim, bell.predict, (1, 4), run.schedule, steps=3) for _ in (1, 2))
    assert np.allclose(one, again), "the same seed draws another picture"


def notices(diagnostic, case):
    """Whether a diagnostic is silent on right code and complains in that `with`."""
    diagnostic()
    try:
        with case:
            diagnostic()
    except AssertionError:
        return True
    return False


bred = zoo.Mistake("mine", "bred in exercise 2", "diffusion.samplers.sigma_space:_heun_step",
                   right="h / 2 *", wrong="h / 3 *")
with zoo.let_in(bred):
    unnoticed = not any(diagnostics.examine().values())
print("cage 13 is caught by mine:", notices(mine, zoo.cage(13)))
print("my mistake goes unnoticed:", unnoticed)

# %% [markdown]
# **Next:** [12](12_convolution_on_the_cpu.ipynb), from seven loops to faster than PyTorch.
