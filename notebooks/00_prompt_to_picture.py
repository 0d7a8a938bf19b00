# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · From a prompt to a picture
#
# Type *a handwritten seven*, get a seven that nobody ever wrote. Here we walk that road once,
# slowly, in five stages, and look at what passes from each to the next. Every stage has a notebook
# of its own later; today it is enough to know what goes in and what comes out.
#
# ```
# prompt ─▶ 1 tokens ─▶ 2 context ─┐
# seed ───▶ 3 noise ───────────────┴▶ 4 U-Net, asked again and again ─▶ 5 picture
# ```
#
# Source read here: [generate.py](../tinydiff/generate.py),
# [tokenizer.py](../tinydiff/models/tokenizer.py),
# [text_encoder.py](../tinydiff/models/text_encoder.py), [unet.py](../tinydiff/models/unet.py),
# [noise.py](../tinydiff/diffusion/noise.py),
# [implicit.py](../tinydiff/diffusion/samplers/implicit.py)

# %%
from inspect import getsource

import numpy as np

import tinydiff as td
from tinydiff import images, viz
from tinydiff.demo import PROMPTS
from tinydiff.diffusion import noise
from tinydiff.models.tokenizer import PAD

run = td.load_run("mnist")           # a small trained model that comes with the package
print(f"{run.model.count():,} numbers were learned; "
      f"the text encoder has {run.model.text_encoder.count():,} of them, "
      f"the U-Net {run.model.unet.count():,}")

# %% [markdown]
# First the whole thing, so that we know where we are going: ten prompts, four pictures each.

# %%
pictures = run.generate(PROMPTS, n=4, seed=0)
print(pictures.shape, pictures.dtype)
viz.image_grid(np.concatenate([pictures[index::4] for index in range(4)]),
               columns=[prompt.split()[-1] for prompt in PROMPTS])

# %% [markdown]
# ## Stage 1: words become tokens
#
# A network adds and multiplies, so words must become numbers. The tokenizer cuts text into pieces
# that were common in the captions it learned from, and gives the number of each piece. (The empty
# piece in front says *here it begins*.) A common phrase is few pieces; a word it never saw falls
# apart into letters.

# %%
prompt = "a handwritten seven"
tokenizer = run.model.tokenizer
for text in (prompt, "a handwritten zebra"):
    ids = tokenizer.encode([text])                                        # (1, L)
    print(ids.shape, [tokenizer.spell(i).decode() for i in ids[0] if i != PAD])     # PAD: the rest

# %% [markdown]
# ## Stage 2: tokens become a context
#
# Each token becomes a vector, and a small transformer lets the vectors look at each other: the
# *seven* after *handwritten* is another *seven* than one that stands alone. What comes out is the
# **context** (L tokens, D numbers each), all that the rest of the program ever knows of your
# words.

# %%
context = run.contexts([prompt])
print("context", context.shape, context.dtype)

# %% [markdown]
# ## Stage 3: a seed becomes noise
#
# The picture starts as pure noise, x_T. The noise has an address, (seed, index of the picture), so
# the same address gives the same noise on every machine, in every batch.

# %%
x_T = noise.normal(seed=0, image=0, step=0, shape=run.shape)[None]        # (1, H, W, C)
print("x_T", x_T.shape, f"mean {x_T.mean():+.2f}, standard deviation {x_T.std():.2f}")

# %% [markdown]
# ## Stage 4: the U-Net, asked again and again
#
# The network has one skill: shown a noisy picture x_t, told how noisy it is (the time t) and what
# it should be of (the context), it says what is noise and what is picture. Asked at t = T, where
# there is nothing *but* noise, its answer is a blur: the average of all the sevens it can imagine.
# So we do not take the answer. We take a small step towards it, and ask again.

# %%
predict = td.denoiser(run.model.unet, run.schedule, context)
answer = predict(x_T, run.schedule.T)
print("the answer holds x0", answer.x0.shape, "and eps", answer.eps.shape)

# %% [markdown]
# A **sampler** does the stepping. This one, DDIM, is short enough to read here. Each turn of its
# loop splits x_t into an estimate of the clean picture and an estimate of the noise, and mixes
# them again with a little less noise:
#
# **x_s = √ᾱ_s · x0 + √(1 − ᾱ_s) · eps**  (DDIM Eq. 12 with η = 0)

# %%
print(getsource(td.ddim))

# %% [markdown]
# Watch it. Above: x_t, from noise to picture. Below: what the network believed, at that moment,
# the finished picture to be. The belief starts as a blur and sharpens; what the noise left open
# gets decided on the way.

# %%
STEPS = 25
times = td.diffusion.nodes(run.schedule, STEPS)                # the times it stops at, T … 0
watched = td.trace(td.clipped(predict, run.schedule))          # keeps every answer
x = list(td.ddim(watched, x_T, run.schedule, steps=STEPS))
viz.trajectory([x_T, *x], watched.predictions, times[:-1])

# %% [markdown]
# The trick that makes the prompt *count* is to ask twice, with the prompt and without, and to go
# further in the direction in which they differ. It is called guidance, is one line long, and has
# its own notebook (07). `run.generate` does it for you.
#
# ## Stage 5: numbers become a picture
#
# Inside, black is −1 and white +1. Outside, a grey level is a byte. (Big models put one more
# network here, a *decoder*, because they draw in a smaller space than that of pixels. Digits are
# small enough to do without.)

# %%
picture = images.to_uint8(x[-1])
print(f"{x[-1].dtype} in [{x[-1].min():.2f}, {x[-1].max():.2f}] -> {picture.dtype} {picture.shape}")

# %% [markdown]
# ## All five in one call
#
# `run.generate` is these five stages and little else. Let us see that it is: the same seed, the
# same prompt, no guidance.

# %%
same = run.generate([prompt], seed=0, steps=STEPS, guidance=1, sampler="ddim")
viz.image_grid(np.concatenate([picture, same]), columns=["by hand", "generate"], zoom=3)

# %% [markdown]
# ## Check yourself
#
# What does a picture depend on? On its prompt, its seed and its index; on nothing else. Predict
# each line before you run it.

# %%
def far(a, b):
    """The largest difference of two pictures, in grey levels of 255."""
    return abs(a.astype(int) - b.astype(int)).max()


assert far(picture, same) <= 1                            # our five stages are `generate`
alone = run.generate(["the digit 4"], n=1, seed=5)
crowd = run.generate(["a one", "the digit 4"], n=3, seed=5)       # the ones first, then the fours
assert far(alone[0], crowd[3]) <= 1                       # company changes nothing
assert far(crowd[3], crowd[4]) > 50                       # another index, another picture
assert far(alone, run.generate(["the digit 4"], seed=6)) > 50     # another seed, another picture
assert far(alone, run.generate(["the digit 9"], seed=5)) > 50     # another prompt, another picture

# %% [markdown]
# **Exercise 1.** The first noise is shared by all prompts: the same seed and index under ten
# prompts. Do the ten pictures share anything you can see, slant or thickness? Look along the rows
# of the grid at the top, then draw one seed of your own.
#
# **Exercise 2.** The captions it learned from had no zebra. What does *a handwritten zebra* give?
# Can you explain it from the tokens that stage 1 printed?

# %%
mine = run.generate([*PROMPTS[:4], "a handwritten zebra"], n=1, seed=2024)
viz.image_grid(mine, columns=["0", "1", "2", "3", "zebra"], zoom=2)

# %% [markdown]
# **Next:** [03](03_autograd.ipynb), how a program learns from its mistakes: gradients.
