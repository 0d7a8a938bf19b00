# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Attention, text and guidance: how words steer a picture
#
# So far the network could draw *a* digit. Which one is decided by words, in three moves: cut text
# into tokens, let pictures look at words (attention), and at the end exaggerate what the words
# changed (guidance). Each fits on one screen.
#
# Source read here: [models/tokenizer.py](../tinydiff/models/tokenizer.py),
# [autograd/product.py](../tinydiff/autograd/product.py),
# [nn/attention.py](../tinydiff/nn/attention.py),
# [models/text_encoder.py](../tinydiff/models/text_encoder.py),
# [diffusion/guidance.py](../tinydiff/diffusion/guidance.py)

# %%
import os
from collections import Counter
from inspect import getsource
from itertools import pairwise

import numpy as np

import tinydiff as td
from tinydiff import autograd as ag, data, images, viz
from tinydiff.demo import PROMPTS, WORDS
from tinydiff.diffusion import noise
from tinydiff.models.tokenizer import PAD, Tokenizer

FAST = bool(os.environ.get("TINYDIFF_FAST"))
STEPS = 8 if FAST else 25
rng = np.random.default_rng(0)
run = td.load_run("mnist")

# %% [markdown]
# ## Move 1: text into tokens
#
# Letters are too small to mean much, words too many to list. Byte-pair encoding takes the middle
# road, and finds it by counting: *which two neighbours stand together most often?* Glue them, give
# the glued piece a number, count again. The first five rounds by hand, on the captions of all
# digits:

# %%
texts = [text for label in range(10) for text in data.captions("digits", label)]
print(len(texts), "captions:", ", ".join(texts[:5]), "…\n")
words = [list(f" {word}") for text in texts for word in text.split()]      # a blank opens each word
for _ in range(5):
    pairs = Counter(pair for word in words for pair in pairwise(word))
    (left, right), count = max(pairs.items(), key=lambda item: item[1])
    print(f"{left + right!r:>6}  {count} times")
    for word in words:
        for i in range(len(word) - 1, 0, -1):
            if (word[i - 1], word[i]) == (left, right):
                word[i - 1:i + 1] = [left + right]

# %% [markdown]
# The package does the same on bytes, so that no letter in the world is unknown:

# %%
tokenizer = Tokenizer.learn(texts, size=512, length=16)
print(f"256 bytes, 2 signs, {len(tokenizer.merges)} glued pieces")
for text in ("a handwritten seven", "a handwritten sevenfold", "八"):
    ids = tokenizer.encode([text])[0]
    print([tokenizer.spell(i) for i in ids if i != PAD])

# %% [markdown]
# A caption it knows is a few whole words (the empty piece in front says *here it begins*), a new
# word is made of pieces, and even 八 is three bytes. Nothing is ever *unknown*, only longer.
#
# ## Move 2: attention
#
# Each token asks a question (a query q), each shows what it is about (a key k) and has something
# to say (a value v). How well key fits query decides how much of that value is heard:
#
# **attention(q, k, v) = softmax(q kᵀ / √d) v**  (Transformer Eq. 1)

# %%
def attend(q, k, v):
    """q (L, d), k (M, d), v (M, e) -> what each of the L hears (L, e), and its shares (L, M)."""
    scores = q @ k.T / np.sqrt(q.shape[1])                     # (L, M)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)                # softmax: each row sums to 1
    return shares @ v, shares


q, k, v = rng.standard_normal((6, 8)), rng.standard_normal((4, 8)), rng.standard_normal((4, 5))
heard, shares = attend(q, k, v)
assert np.allclose(heard, ag.attention(q, k, v).data, rtol=1e-12)
viz.heatmap(shares, rows=[f"query {i}" for i in range(6)], columns=[f"key {i}" for i in range(4)],
            low=0, high=1, title="shares")

# %% [markdown]
# Three lines, and two properties worth knowing. Shuffle keys together with values, and nothing
# changes: attention sees a *set*, not a sequence. That is why the text encoder adds a position to
# every token, or *not now* would equal *now not*. And each answer is a mixture of the values: it
# cannot leave their range.

# %%
order = rng.permutation(4)
assert np.allclose(attend(q, k[order], v[order])[0], heard)
assert (heard <= v.max(axis=0) + 1e-12).all()
assert (heard >= v.min(axis=0) - 1e-12).all()

# %% [markdown]
# A layer learns the matrices that make q, k and v, and splits them among several *heads*, each
# free to look for something else. If the context is the picture itself, pixels look at pixels
# (self-attention); if it is the text, pixels look at words (**cross-attention**, LDM §3.3). It is
# the same class:

# %%
print(getsource(td.models.text_encoder.Attention))

# %% [markdown]
# ## What the text encoder made of the words
#
# Four ways to ask for each digit, each as its context's first token (the one that also joins the
# time embedding). Bright: nearly the same direction. The network was never told that *seven* and
# *7* are one; it found out because the same pictures came with both. Look also for *different*
# digits that lean towards each other.

# %%
asked = [data.captions("digits", label)[way] for label in range(10) for way in (0, 4, 6, 11)]
pooled = run.contexts(asked)[:, 0]                             # (40, D)
pooled -= pooled.mean(axis=0)
pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
alike = pooled @ pooled.T
viz.heatmap(alike, rows=asked, low=-1, high=1, size=(0.13, 0.13))

# %% [markdown]
# ## Where do pixels look?
#
# `viz.watch` notes every call of every layer. From the arguments of a cross-attention layer we can
# compute its shares again, by the formula above, and lay them over the picture: how much did each
# place listen to each token? (The mean over all layers of that kind, all heads and all steps; each
# map is stretched from its least to its most.)

# %%
def shares_of(layer, x, context):
    """How much each pixel hears of each token: (L, M), the mean over heads."""
    with td.no_grad():
        q, k = layer.split(layer.q(x)).data, layer.split(layer.k(context)).data      # (1, h, L, d)
    return np.mean([attend(q[0, h], k[0, h], k[0, h])[1] for h in range(layer.heads)], axis=0)


prompt = "a handwritten eight"
context = run.contexts([prompt])
x_T = noise.normal(0, 1, 0, run.shape)[None]
predict = td.clipped(td.denoiser(run.model.unet, run.schedule, context), run.schedule)
with viz.watch(run.model.unet) as calls:
    *_, x0 = td.ddim(predict, x_T, run.schedule, steps=STEPS)
crossing = [(layer, args) for path, layer, args, _ in calls if path.endswith("cross_attention")]
side = int(min(args[0].shape[1] for _, args in crossing) ** 0.5)           # of the coarsest level
all_shares = np.mean([shares_of(layer, *args) for layer, args in crossing
                      if args[0].shape[1] == side**2], axis=0)
maps = all_shares.T.reshape(-1, side, side)                    # (tokens, h, w)

ids = run.model.tokenizer.encode([prompt])[0]
pieces = ["<begin>", *(run.model.tokenizer.decode([i]) for i in ids[1:] if i != PAD)]
heard = {piece: f"{m.mean():.3f}" for piece, m in zip(pieces, maps)}
padding = maps[len(pieces):].sum(axis=0).mean()
print(f"mean share of each token: {heard}, of all the padding {padding:.3f}")
viz.attention_maps(images.to_uint8(x0[0]), maps[:len(pieces)], pieces)

# %% [markdown]
# Read such maps with care: they show where a layer listened, not what it did with it. The padding
# is all zeros and always the same, so the share it gets is attention kept *away* from words; look
# at the numbers above. Then who tells the network what to draw? Do not guess, swap: give it the
# first token of one prompt and all the others of another.

# %%
three, eight = run.contexts(["a handwritten three"]), run.contexts(["a handwritten eight"])
nothing = run.contexts([""])                                   # (1, L, D)
x_8 = noise.batch(0, range(8), 0, run.shape)


def draw(context, x_T):
    """Pictures (N, H, W, C) of contexts (N, L, D) from noise, with guidance 2."""
    empty = np.repeat(nothing, len(x_T), axis=0)
    predict = td.guided(td.denoiser(run.model.unet, run.schedule, context),
                        td.denoiser(run.model.unet, run.schedule, empty), 2)
    *_, x0 = td.ddim(td.clipped(predict, run.schedule), x_T, run.schedule, steps=STEPS)
    return x0


swapped = [np.concatenate([first[:, :1], rest[:, 1:]], axis=1)
           for first in (three, eight) for rest in (three, eight)]
viz.image_grid(np.concatenate([draw(np.repeat(context, 8, axis=0), x_8) for context in swapped]),
               rows=["three, three", "three, eight", "eight, three", "eight, eight"])

# %% [markdown]
# (Labels: first token, the others.) The first token decides. It has seen the whole sentence in the
# text encoder, and it alone also joins the time embedding, which reaches every block. For a prompt
# that names one thing that is enough; *a red square left of a blue circle* would need the others.
#
# ## Move 3: guidance
#
# The network was trained with the caption left out now and then. So it can be asked twice, *with*
# the prompt (c) and *without* (u), and the difference is what the words changed. Why stop there?
#
# **eps = eps_u + w (eps_c − eps_u)**  (CFG Eq. 6; w = 1 + the paper's w)

# %%
print(getsource(td.guided))

# %%
uncond = td.denoiser(run.model.unet, run.schedule, nothing)
cond = td.denoiser(run.model.unet, run.schedule, context)
x_t, t = x_T, 900
for w in (0, 1, 3, 6):
    p, c, u = td.guided(cond, uncond, w)(x_t, t), cond(x_t, t), uncond(x_t, t)
    assert np.allclose(p.eps, u.eps + w * (c.eps - u.eps), atol=1e-5)
    again = run.schedule.signal(t) * p.x0 + run.schedule.noise(t) * p.eps
    assert np.allclose(again, x_t, atol=1e-4)                  # a mixture of x0 and eps as ever
print("w = 0 never heard the prompt, w = 1 is the plain answer, above 1 it is exaggerated")

# %% [markdown]
# The same noise in every column, more guidance in every row:

# %%
WEIGHTS = (0, 1, 3, 6)
rows = [run.generate(PROMPTS, steps=STEPS, guidance=w, seed=4) for w in WEIGHTS]
viz.image_grid(np.concatenate(rows), rows=[f"w = {w}" for w in WEIGHTS], columns=WORDS)

# %% [markdown]
# w = 0 is one and the same picture ten times: nobody heard the prompt. At w = 1 most columns are
# what was asked for, at 3 they are clearer; at 6 strokes grow heavy and alike. Guidance buys
# obedience and pays with variety. See the price: eight seeds of one prompt,

# %%
rows = [run.generate(["a handwritten four"], n=8, steps=STEPS, guidance=w, seed=5)
        for w in (1, 3, 6)]
spread = [np.std(images.to_float(x), axis=0).mean() for x in rows]         # between the eight
print("spread between pictures:", {w: round(float(s), 3) for w, s in zip((1, 3, 6), spread)})
viz.image_grid(np.concatenate(rows), rows=["w = 1", "w = 3", "w = 6"])

# %% [markdown]
# ## Negative prompts are the same formula
#
# Nothing says that u must be *no* prompt. Put another prompt there, and the picture moves away
# from it: the same line of code, nothing new to train.

# %%
asked, away = "a handwritten nine", ("", "a handwritten four", "a handwritten seven")
rows = [run.generate([asked], n=8, steps=STEPS, seed=6, negative=negative) for negative in away]
viz.image_grid(np.concatenate(rows), rows=["nine", "not a four", "not a seven"])

# %% [markdown]
# ## Check yourself

# %%
for text in texts:                                             # nothing is lost in tokens
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text
by_word = np.arange(40) // 4
same, other = alike[by_word[:, None] == by_word].mean(), alike[by_word[:, None] != by_word].mean()
print(f"alikeness of two ways to ask for one digit {same:.2f}, for two digits {other:.2f}")
assert same > other + 0.3
assert np.allclose(all_shares.sum(axis=1), 1, atol=1e-5)       # no attention is lost

unprompted = run.generate(["a one", "a two"], steps=STEPS, guidance=0, seed=4)
apart = abs(unprompted[0].astype(int) - unprompted[1]).max()
assert apart <= 1                                              # w = 0: the prompt cannot matter
plain = run.generate(["a two"], steps=STEPS, guidance=1, seed=4, negative="a one")
again = run.generate(["a two"], steps=STEPS, guidance=1, seed=4)
assert np.array_equal(plain, again)                            # w = 1: u is not even asked

# %% [markdown]
# **Exercise 1.** What is guidance with w = −1? Predict it from the formula, then look.
#
# **Exercise 2.** A context is only numbers, so there is a way from one prompt to another. Walk
# from *three* to *eight* in equal steps, with the same noise. Where does the picture change its
# mind?

# %%
way = np.linspace(0, 1, 11)
blend = np.concatenate([three + share * (eight - three) for share in way])
viz.image_grid(draw(blend, np.repeat(x_T, 11, axis=0)), columns=[f"{share:.0%}" for share in way])

# %% [markdown]
# Back to [00](00_prompt_to_picture.ipynb): read it once more. There should be no magic left in it.
