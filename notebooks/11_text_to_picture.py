# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · Text to picture: the whole system, step by step
#
# This is what Stable Diffusion is made of, small enough to be trained on a laptop and to be looked
# at from all sides:
#
# ```
# prompt ─▶ tokens ─▶ context ─┐
# seed ─▶ z_T ─────────────────┴▶ U-Net, in latents ─▶ z_0 ─▶ decoder ─▶ 32 × 32
#                                                     32 × 32 ─▶ second U-Net ─▶ 64 × 64
# ```
#
# It paints a world of coloured shapes, for a reason: in that world *did it draw what I asked?* has
# an exact answer. A parser reads the picture back and compares.
#
# Source read here: [data/scenes.py](../tinydiff/data/scenes.py),
# [generate.py](../tinydiff/generate.py), [upscale.py](../tinydiff/upscale.py),
# [evaluation/scene_parser.py](../tinydiff/evaluation/scene_parser.py),
# [evaluation/attention.py](../tinydiff/evaluation/attention.py),
# [variation.py](../tinydiff/variation.py)

# %%
import os
from inspect import getsource

import numpy as np

import tinydiff as td
from tinydiff import data, images, viz
from tinydiff.data.scene_words import Claim, Named
from tinydiff.data.scenes import HELD_PAIRS, HELD_RELATIONS
from tinydiff.data.shapes import draw, masks
from tinydiff.diffusion import noise
from tinydiff.diffusion.editing import slerp
from tinydiff.evaluation.attention import chance, iou, word_maps
from tinydiff.evaluation.questions import questions_about
from tinydiff.evaluation.scene_parser import parse, satisfies
from tinydiff.models.tokenizer import PAD
from tinydiff.upscale import beside
from tinydiff.variation import between

FAST = bool(os.environ.get("TINYDIFF_FAST"))
STEPS = 6 if FAST else 30
run = td.load_run("shapes")                     # two trained models in a row, shipped
small, large = run.small, run.large             # one draws in latents, one enlarges
for name, part in (("text encoder", small.model.text_encoder), ("U-Net", small.unet),
                   ("autoencoder", small.autoencoder), ("second U-Net", large.unet)):
    print(f"{name:<14}{part.count():>10,} parameters")

# %% [markdown]
# ## The world it knows
#
# Circles, squares, triangles, diamonds and crosses in six colours, two sizes, on three grounds; one
# to three of them, never touching. Captions say some of it, in many ways; all they say is true.

# %%
world = data.load("shapes64")
pictures, captions = world.batch(6, 0, 0, 0.0, np.random.default_rng(3))
for caption in captions:
    print("·", caption)
viz.image_grid(pictures, zoom=1)

# %% [markdown]
# ## The way of one prompt
#
# First the words. Frequent words are one token each; the first token only says *here it begins*.

# %%
prompt, seed = "a red circle above a blue square", 0
tokenizer = small.model.tokenizer
ids = tokenizer.encode([prompt])                               # (1, L)
print([tokenizer.spell(i).decode() for i in ids[0] if i != PAD])
context, empty = small.contexts([prompt]), small.contexts([""])
print("context", context.shape)

# %% [markdown]
# Then the noise. It is noise for a *latent* this time, and the U-Net never sees anything else. What
# the second line says in code: ask with the prompt, ask without, and exaggerate the difference.

# %%
shape = small.shape_of((32, 32))                               # of a latent
z_T = noise.normal(seed, 0, 0, shape)[None]
predict = td.guided(td.denoiser(small.unet, small.schedule, context),
                    td.denoiser(small.unet, small.schedule, empty), small.own.guidance)
watched = td.trace(predict)
z = [z_T, *td.ddim(watched, z_T, small.schedule, steps=small.own.steps)]
print("z_T", z_T.shape, "asked", len(watched.predictions), "times")

# %% [markdown]
# On the way, decoded: above what z_t is, below what the network believes the end to be. (The
# decoder was never shown noise. It makes of it what it can.) Places and colours come first,
# shapes later, edges last.

# %%
times = td.diffusion.nodes(small.schedule, small.own.steps)
chosen = [round(share * (len(times) - 2)) for share in np.linspace(0, 1, 7)]
viz.image_grid(np.concatenate([small.pixels(np.concatenate([z[i] for i in chosen])),
                               small.pixels(np.concatenate([watched.predictions[i].x0
                                                            for i in chosen]))]),
               rows=["z_t", "z_0"], columns=[f"t = {times[i]:g}" for i in chosen])

# %% [markdown]
# The last z is what was asked for. The decoder makes 32 × 32 pixels of it
# ([10](10_latents.ipynb)). By hand and by `generate`, which is told to use DDIM as well: the recipe
# itself asks for DDPM's chain, whose fresh noise at every step makes up for some mistakes.

# %%
picture = small.pixels(z[-1])
same = small.generate([prompt], seed=seed, sampler="ddim")
apart = abs(picture.astype(int) - same).max()
print(f"by hand and generate: at most {apart} of 255 levels apart")
assert apart <= 1

# %% [markdown]
# ## Enlarged
#
# The second U-Net diffuses pixels, 64 × 64 of them, and looks at the small picture all the while:
# it is repeated to full size and stands beside x_t as more channels. In training the small
# picture was made a little noisy, so that the network does not trust it blindly: what it gets
# here was never a real one. The line that does it:

# %%
print(getsource(beside))
enlarged = large.generate([prompt], seed=seed, init=picture[0])
whole = run.generate([prompt], seed=seed, sampler="ddim")      # both stages
assert abs(enlarged.astype(int) - whole).max() <= 2

# %% [markdown]
# How good is it? We can *know*: read the scene in the small picture, and let the world itself draw
# that scene at 64 × 64.

# %%
scene = parse(picture[0])
for thing in scene.objects:
    print(thing)
truth = draw([scene], 64)
repeated = picture.repeat(2, axis=1).repeat(2, axis=2)
for name, candidate in (("each pixel twice", repeated), ("second U-Net", enlarged)):
    error = abs(candidate.astype(int) - truth)
    print(f"{name:<17}{error.mean():>6.2f} levels from the truth, the worst pixel {error.max()}")
viz.image_grid(np.concatenate([repeated, enlarged, truth]), zoom=2,
               columns=["twice", "second U-Net", "the truth"])

# %% [markdown]
# ## Did it draw what I asked?
#
# `parse` finds the objects from pixels alone, by drawing each candidate again and comparing, and
# says None rather than guess. A *claim* is what a prompt demands, in a form that can be checked.
# These objects, in this relation, and nothing else:

# %%
claim = Claim((Named("red", "circle"), Named("blue", "square")), ((0, "above", 1),), None)
print("kept the promise:", satisfies(scene, claim))

# %% [markdown]
# An examination: prompts in the world's own words, of one to three objects. *Unseen* prompts name
# what training never showed, pairs like a purple circle, or relations like a diamond above a
# circle. (More prompts and all the other measures: `tinydiff eval shapes-latent`.)

# %%
ASKED = 6 if FAST else 48
exams = {split: questions_about("shapes", ASKED, split, seed=5) for split in ("train", "unseen")}
answers = {split: small.generate(exam.prompts, steps=STEPS) for split, exam in exams.items()}
for split, exam in exams.items():
    found = exam.answered(answers[split])
    print(f"{split:<7}{found['prompt_accuracy']:>5.0%} of {found['n']}, 95 % sure between "
          "{:.0%} and {:.0%}:".format(*found["ci95"]),
          {kind: f"{part['prompt_accuracy']:.0%}" for kind, part in found["by_kind"].items()})

# %% [markdown]
# The mistakes are worth more than the successes. The first of them, with what the parser read:

# %%
wrong = [(split, i) for split, exam in exams.items()
         for i in np.flatnonzero(~exam.right(answers[split]))][:8]
for number, (split, i) in enumerate(wrong, 1):
    read = parse(answers[split][i])
    said = "unreadable" if read is None else ", ".join(" ".join(t[2::-1]) for t in read.objects)
    print(f"{number} {split:<6} asked: {exams[split].prompts[i]}\n         read:  {said}")
viz.image_grid(np.stack([answers[split][i] for split, i in wrong]),
               columns=[str(number) for number in range(1, len(wrong) + 1)]) if wrong else "none"

# %% [markdown]
# ## Which word was heard where?
#
# In a cross-attention layer each place of the picture shares its attention out among the tokens.
# `word_maps` draws as `generate` does and listens. And because the truth is known, looking can be
# replaced by counting: cut the map of *red* off at as many pixels as the red object has, and see
# how many are the same (IoU, intersection over union).

# %%
seen, ((words, maps),) = word_maps(small, [prompt], seed=seed, sampler="ddim")
print("maps", maps.shape)                                      # (steps, words, h, w)
telling = [i for i, word in enumerate(words) if word != "a"]
viz.attention_maps(seen[0], maps[:, telling].mean(axis=0), [words[i] for i in telling])

# %%
for thing, mask in zip(scene.objects, masks([scene], 32)[0]):
    for word in [word for word in thing[1::-1] if word in words]:
        hit = iou(maps[:, words.index(word)].mean(axis=0), mask)
        print(f"{word:>8} on the {thing.colour} {thing.shape}: {hit:.2f}, "
              f"chance {chance(mask):.2f}")

# %% [markdown]
# When is a word heard? The map of *red* in four parts of the way:

# %%
parts = np.array_split(maps[:, words.index("red")], 4)
viz.attention_maps(seen[0], [part.mean(axis=0) for part in parts],
                   [f"{25 * i}–{25 * i + 25} %" for i in range(4)])

# %% [markdown]
# ## Guidance: obedience for variety
#
# The same seeds under more and more guidance; below, the price list: how many of the examination's
# prompts were obeyed, and how far pictures of one prompt are apart.

# %%
WEIGHTS = (0, 1, 3, 6)
PROMPTS = list(world.prompts[:5])
rows = [small.generate(PROMPTS, steps=STEPS, guidance=w, seed=1) for w in WEIGHTS]
for w in WEIGHTS:
    kept = exams["train"].answered(small.generate(exams["train"].prompts[:ASKED // 2], steps=STEPS,
                                                  guidance=w))
    many = small.generate(["a green triangle"], n=4 if FAST else 12, steps=STEPS, guidance=w)
    print(f"w = {w}: {kept['prompt_accuracy']:>4.0%} obeyed, "
          f"spread {images.to_float(many).std(axis=0).mean():.2f}")
viz.image_grid(np.concatenate(rows), rows=[f"w = {w}" for w in WEIGHTS])

# %% [markdown]
# ## Variations
#
# One row a prompt, one column a seed: what do rows share, what do columns? A prompt says *what*;
# what it leaves open, place, size, ground, the noise decides, much alike for all prompts.

# %%
for row in PROMPTS[:4]:
    print("·", row)
viz.image_grid(run.generate(PROMPTS[:4], n=3), rows=["", "", "", ""], zoom=1)

# %% [markdown]
# **Between two prompts** lie contexts that no words have, **between two seeds** noise that no
# seed gives. Contexts mix along a straight line. Noise must not: the mean of two draws is too
# small to be noise, so it goes along the arc. By hand, and by `between`:

# %%
first, last, WAY = "a red circle", "a blue square", 7
ways = np.linspace(0, 1, WAY, dtype=np.float32)
z_0, z_1 = (noise.normal(s, 0, 0, shape)[None] for s in (4, 7))
a, b = small.contexts([first]), small.contexts([last])
blend = np.concatenate([a + share * (b - a) for share in ways])             # (7, L, D)
start = np.concatenate([slerp(z_0, z_1, share) for share in ways])
print("deviation of the noise on the arc:", [f"{one.std():.2f}" for one in start],
      f"- of a plain mean: {((z_0 + z_1) / 2).std():.2f}")
predict = td.guided(td.denoiser(small.unet, small.schedule, blend),
                    td.denoiser(small.unet, small.schedule, np.repeat(empty, WAY, axis=0)),
                    small.own.guidance)
*_, z = td.ddim(predict, start, small.schedule, steps=STEPS)
by_hand = small.pixels(z)
ours = between(small, first, last, WAY, seed=4, to_seed=7, steps=STEPS, sampler="ddim")
print(f"by hand and between: {abs(by_hand.astype(int) - ours).max()} levels apart")
viz.image_grid(np.concatenate([between(small, first, last, WAY, seed=4, steps=STEPS),
                               between(small, first, first, WAY, seed=4, to_seed=7, steps=STEPS),
                               ours]), rows=["prompts", "seeds", "both"])

# %% [markdown]
# **From a picture.** `init` is turned into a latent and noised to a part of the way; the rest is
# drawn anew. Little strength keeps it, much forgets it. And with a **mask** only what is bright
# there is painted, the rest stays.

# %%
STRENGTHS = (0.3, 0.5, 0.7, 0.8, 0.9, 1)
asked = "a green circle above a blue square"
changed = [small.generate([asked], seed=2, steps=STEPS, init=picture[0], strength=strength)
           for strength in STRENGTHS]
viz.image_grid(np.concatenate([picture, *changed]),
               columns=["init", *(f"{strength:g}" for strength in STRENGTHS)])

# %%
hole = np.zeros((32, 32, 1), np.uint8)
hole[16:] = 255                                                # the lower half is to be painted
wishes = ["a red circle above a yellow cross", "a red circle above a green triangle",
          "a red circle"]
painted = np.concatenate([small.generate([wish], n=2, seed=1, steps=STEPS, init=picture[0],
                                         mask=hole) for wish in wishes])
kept = abs(painted[:, :12].astype(int) - picture[:, :12]).mean()
print(f"above the seam: {kept:.1f} levels from before, for the decoder sees all of the latent")
viz.image_grid(np.concatenate([picture, painted]),
               columns=["init", "cross", "", "triangle", "", "nothing", ""])

# %% [markdown]
# ## What it never saw
#
# These pairs and relations were kept from training, though each colour, each shape and each word
# was there. Whoever learned pictures by heart must fail; whoever learned what *purple* means and
# what *circle* means need not.

# %%
print("never seen:", ", ".join(f"{colour} {shape}" for colour, shape in sorted(HELD_PAIRS)))
print("nor:", ", ".join(" ".join(relation) for relation in sorted(HELD_RELATIONS)))
NEW = ["a purple circle", "an orange square", "a yellow triangle", "a red diamond",
       "a blue diamond above a green circle", "a red triangle left of a blue square"]
new = small.generate(NEW, n=3, steps=STEPS)
read = [parse(one) for one in new]
for i, text in enumerate(NEW):
    told = ["?" if one is None else " & ".join(f"{t.colour} {t.shape}" for t in one.objects)
            for one in read[3 * i:3 * i + 3]]
    print(f"{text:<37}", ", ".join(told))
viz.image_grid(new, rows=NEW)

# %% [markdown]
# ## Check yourself
#
# There are no unknown words, and no words are a prompt too. Only what is too long to be read is
# refused, before anything is drawn.

# %%
alone = run.generate(["an orange circle"], seed=9)
crowd = run.generate(["a blue square", "an orange circle"], n=2, seed=9)
assert alone.shape == (1, 64, 64, 3)
assert abs(alone[0].astype(int) - crowd[2]).max() <= 2         # company changes nothing
odd = small.generate(["", "ein roter Kreis", "🟥"], steps=2)
assert odd.shape == (3, 32, 32, 3)
try:
    small.generate(["a red " * 2000])
except ValueError as error:
    print(error)
free = [small.generate([""], steps=2, guidance=w) for w in (1, 5)]
assert np.array_equal(*free)                                   # no words, nothing to exaggerate
again = small.autoencoder.latents(images.to_float(picture))
assert abs(images.to_uint8(small.autoencoder.pictures(again)).astype(int) - picture).mean() < 8
assert [thing[:2] for thing in parse(truth[0]).objects] == [t[:2] for t in scene.objects]
ends = between(small, first, last, 2, seed=4, steps=2)
plain = small.generate([first, last], seed=4, steps=2)
assert abs(ends.astype(int) - plain).max() <= 1                # the ends of a way are no mixture

# %% [markdown]
# **Exercise 1.** Ask for four objects, or for *a red circle above a red circle*, which the world
# never shows. What comes, and what does the parser say?
#
# **Exercise 2.** Give the second U-Net a small picture of something else, a digit for example. What
# does it believe that edges look like?

# %%
strange = run.generate(["a red circle above a red circle",
                        "a red circle, a blue square, a green cross and a yellow diamond"], n=2)
digit = data.load("digits").images[:1]
digit = np.pad(digit, ((0, 0), (2, 2), (2, 2), (0, 0))).repeat(3, axis=3)         # (1, 32, 32, 3)
sharp = large.generate(["a white circle"], init=digit[0])
viz.image_grid(np.concatenate([strange, digit.repeat(2, axis=1).repeat(2, axis=2), sharp]), zoom=1,
               columns=["two reds", "", "four", "", "digit", "enlarged"])

# %% [markdown]
# **Next:** [12](12_convolution_on_the_cpu.ipynb), why all of this is fast enough for a laptop.
