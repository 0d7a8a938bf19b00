# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Latents: pictures made small, and large again
#
# So far noise was taken away from pixels. But most of what pixels say nobody would miss: that this
# blue is 230 and its neighbour 231, that an edge is smooth. Latent diffusion (LDM) first trains a
# network that makes pictures *small*, and large again, and then paints in the small ones. Here we
# train that first network, in seconds, look at what it makes, and see why a number called *scale*
# stands in every checkpoint of Stable Diffusion.
#
# ```
# x (32, 32, 3) ─▶ encoder ─▶ mean, log-variance ─▶ z (16, 16, 4) ─▶ decoder ─▶ x̂ (32, 32, 3)
# ```
#
# Source read here: [models/autoencoder.py](../tinydiff/models/autoencoder.py),
# [autoencoding.py](../tinydiff/autoencoding.py),
# [models/quantizer.py](../tinydiff/models/quantizer.py),
# [models/discriminator.py](../tinydiff/models/discriminator.py)

# %%
import os
from inspect import getsource

import numpy as np

import tinydiff as td
from tinydiff import autograd as ag, data, images, viz
from tinydiff.autoencoding import AutoencoderTraining
from tinydiff.evaluation.estimate import flops_behind
from tinydiff.evaluation.scene_parser import parse
from tinydiff.models import Discriminator, adaptive_weight, hinge
from tinydiff.models.autoencoder import kl, sampled
from tinydiff.optim import AdamW, Flat
from tinydiff.recipe import Recipe

FAST = bool(os.environ.get("TINYDIFF_FAST"))
STEPS = 20 if FAST else 350
rng = np.random.default_rng(0)
world = data.load("shapes")                          # scenes without end: no two batches are alike
pictures, captions = world.batch(64, 0, 0, 1.0, rng)
x = images.to_float(pictures)
for caption in captions[:4]:
    print(caption)
viz.image_grid(pictures[:10])

# %% [markdown]
# ## What it saves
#
# Drawing asks the U-Net a hundred times: fifty steps, with the prompt and without. So its price is
# the price of a picture. One and the same network, on pixels and on latents a half and a quarter
# as wide and high:

# %%
def price(side, channels):
    """Numbers in x_t, and the FLOPs of asking a U-Net about it once."""
    unet = td.UNet(td.UNetConfig(channels=channels, base=64, mults=(1, 2), attend=(0, 1), heads=4,
                                 predicts="v"), rng=rng)
    x_t = np.zeros((1, side, side, channels), np.float32)
    return x_t.size, flops_behind(unet(x_t, np.array([500])))


prices = {"pixels": price(32, 3), "f = 2": price(16, 4), "f = 4": price(8, 4)}
for name, (numbers, flops) in prices.items():
    print(f"{name:<8}{numbers:>6,} numbers{flops / 1e9:>7.2f} GFLOPs a call, "
          f"1/{prices['pixels'][1] / flops:.0f} of what pixels cost")

# %% [markdown]
# A convolution costs what there is to walk over, so a quarter of the width is a sixteenth of the
# price. Attention compares *every two* places, so that there it is a 256th. At 512 × 512 pixels the
# difference decides whether it can be done at all: 7 · 10¹⁰ pairs of pixels, or 2 · 10⁷ pairs of
# latents.
#
# ## A U-Net cut in two
#
# The encoder is the way down of a U-Net, the decoder its way up. What a U-Net has besides, time,
# text and skips, is gone: the skips must be, as they would carry the picture past the narrow place.
# The encoder does not name one latent but a bell curve for each number, and training draws from it:

# %%
print(getsource(sampled))
print(getsource(kl))

# %% [markdown]
# Why the dice? A decoder that only ever saw *the* latents of real pictures would be lost a hair's
# breadth beside them, and diffusion never hits exactly. The second function, times a small weight,
# keeps the encoder from escaping the dice by making latents huge: it costs to be far from
# N(0, 1). So the loss is
#
# **L = ‖x − x̂‖² + kl · KL(q(z|x) ‖ N(0, 1))**, and if wanted a critic's opinion  (LDM Eq. 25)
#
# Two of them, in training now: f = 2 and f = 4, what a side is divided by.

# %%
def trained(steps=STEPS, **own):
    """(the training after its steps, their losses, the finished Autoencoder)"""
    table = dict(steps=steps, batch=16, ema=0.98, patch=2, **own)
    training = AutoencoderTraining(Recipe().change({
        "data": {"name": "shapes"}, "sample": {"clip": False}, "autoencoder": table}), world)
    losses = [training.step()[0] for _ in range(steps)]
    return training, losses, training.finished()


HALF, QUARTER = dict(base=32, mults=[1], lr=6e-3), dict(base=16, mults=[1, 2], lr=1e-2)
_, loss2, model2 = trained(**HALF)
training4, loss4, model4 = trained(**QUARTER)
for model in (model2, model4):
    print(f"f = {model.config.factor}: {x[0].size:,} numbers become {model.latents(x)[0].size:,}; "
          f"{model.count():,} parameters")
viz.curves(range(1, STEPS + 1), {"f = 2": loss2, "f = 4": loss4}, xlabel="step", ylabel="loss",
           log=True)

# %% [markdown]
# Are they any good? Not "it looks fine" but two numbers: the error in decibels
# (PSNR = 10 log₁₀ 255² / mse; six more are half the error), and whether a parser that knows this
# world still reads the same scene.

# %%
def psnr(a, b):
    """Decibels between pictures in [-1, 1], the mean over pictures."""
    return float(10 * np.log10(4 / ((a - b) ** 2).mean(axis=(1, 2, 3))).mean())


def read_alike(a, b):
    """The share of pictures uint8 in whose two versions the same objects are read."""
    seen = [[scene and {thing[:3] for thing in scene.objects} for scene in map(parse, both)]
            for both in (a, b)]
    return np.mean([one is not None and one == other for one, other in zip(*seen)])


made = {f"f = {model.config.factor}": model.pictures(model.latents(x))
        for model in (model2, model4)}
for name, y in made.items():
    print(f"{name}: {psnr(x, y):.1f} dB, {read_alike(pictures, images.to_uint8(y)):.0%} read alike")
viz.image_grid(np.concatenate([x[:10], *(y[:10] for y in made.values())]), rows=["x", *made])

# %% [markdown]
# A few seconds, and f = 2 can be recognised. With a quarter of the numbers, f = 4 so far knows
# where something is and in what colour; what is lost, or late, are corners and edges. Patience
# buys the rest: recipes train for thousands of steps (`tinydiff train shapes-latent`).
#
# ## What is in a latent?
#
# Latents are often drawn as a mysterious cloud. They are not. The picture, and its four channels:

# %%
def grey(a, side=32):
    """Numbers (N, h, w) as grey pictures (N, side, side, 3) in [-1, 1], about ±2.5 at the ends."""
    big = a.repeat(side // a.shape[1], axis=1).repeat(side // a.shape[2], axis=2)
    return np.repeat((big / 2.5).clip(-1, 1)[..., None], 3, axis=3).astype(np.float32)


z0 = model2.latents(x)                                         # (64, 16, 16, 4)
CHANNELS = [f"channel {c}" for c in range(4)]
viz.image_grid(np.concatenate([[x[i], *grey(z0[i].transpose(2, 0, 1))] for i in range(4)]),
               columns=["x", *CHANNELS], rows=["", "", "", ""])

# %% [markdown]
# They are small pictures: the same things in the same places, in four colours of the network's own
# choosing. So what works with pictures works with latents. Push them one place to the right; put
# two halves together; and take the mean of two:

# %%
def cut(a, b):
    """The left half of a, the right half of b."""
    middle = a.shape[2] // 2
    return np.concatenate([a[:, :, :middle], b[:, :, middle:]], axis=2)


one, other, u, v = x[:8], x[8:16], z0[:8], z0[8:16]
pushed = model2.pictures(np.roll(u, 1, axis=2))
print(f"pushed by one latent, that is two pixels: {psnr(np.roll(one, 2, axis=2), pushed):.1f} dB")
print(f"cut: {psnr(cut(one, other), model2.pictures(cut(u, v))):.1f} dB")
viz.image_grid(np.concatenate([one, pushed, model2.pictures(cut(u, v)),
                               model2.pictures((u + v) / 2)]),
               rows=["x", "pushed", "cut", "mean of two"])

# %% [markdown]
# (Nearly: the norms look at a whole picture at once, so that a white half changes the colours of
# a black one.) The last row is the one to think about. The mean of two latents is a double
# exposure, not something *between* two scenes: the autoencoder has learned what pictures look
# like from near, and nothing of what a circle is. That is the division of labour in LDM: the
# autoencoder saves pixels, meaning is left to the diffusion.
#
# How far does one number of a latent reach? Add 1 to it, decode, and see which pixels mind:

# %%
middle = np.repeat(z0[:1], 4, axis=0)
middle[range(4), 8, 8, range(4)] += 1
reach = abs(model2.pictures(middle) - model2.pictures(z0[:1])).max(axis=3)       # (4, 32, 32)
share = reach[:, 14:20, 14:20].sum(axis=(1, 2)) / reach.sum(axis=(1, 2))
print("of the change, inside 6 × 6 pixels:", [f"{part:.0%}" for part in share])
viz.image_grid(1 - 2 * (reach / reach.max())[..., None], columns=CHANNELS)

# %% [markdown]
# ## A scale for the noise
#
# A schedule is made for data of deviation about 1: at the t where signal and noise weigh alike,
# the picture should be half drowned. Nobody told the encoder. So the deviation is *measured*,
# once, after training, and stored (LDM App. G); `latents` multiplies by it and `pictures`
# divides. (Stable Diffusion's famous 0.18215 is this number: its raw latents have a deviation of
# about 5.5.)

# %%
for model in (model2, model4):
    raw, z = model.encode(x)[0], model.latents(x)
    print(f"f = {model.config.factor}: raw mean {raw.mean():+.2f}, deviation {raw.std():.2f}; "
          f"shift {model.config.shift:+.2f}, scale {model.config.scale:.2f}; "
          f"after them {z.mean():+.2f} and {z.std():.2f}")

# %% [markdown]
# And without? Here is one channel of z_t at seven times, as the U-Net gets to see it, for latents
# five times too small, right, and five times too large:

# %%
schedule, TIMES = td.Schedule.cosine(), (50, 150, 300, 500, 700, 850, 950)
two = z0[5:6, ..., [z0[5].std(axis=(0, 1)).argmax()]]          # two diamonds, (1, 16, 16, 1)
eps, rows = rng.standard_normal(two.shape).astype(np.float32), {}
for factor in (0.2, 1, 5):
    z_t = np.stack([schedule.q_sample(factor * two, t, eps)[0, ..., 0] for t in TIMES])
    z_t -= z_t.mean(axis=(1, 2), keepdims=True)
    rows[f"× {factor:g}"] = grey(z_t / z_t.std(axis=(1, 2), keepdims=True))
    print(f"× {factor:<4g}signal and noise weigh alike at t = {schedule.time(factor):.0f}")
viz.image_grid(np.concatenate(list(rows.values())), rows=list(rows),
               columns=[f"t = {t}" for t in TIMES])

# %% [markdown]
# Too small, and all is half drowned before an eighth of the way: most steps of training, and of
# drawing, are spent where there is nothing to see. Too large, and the scene is plain to see until
# shortly before the end: nearly nothing is left to the late times, where it should be decided
# *what* to draw, and pure noise, from which drawing starts, is far from anything seen in
# training.
#
# ## Or codes
#
# VQ-VAE takes another road to latents that are easy to hit. The encoder may say what it likes;
# the decoder is only ever told the nearest of a few learned vectors, the *codebook*. A nearest
# neighbour has no slope, so the gradient is passed on as if nothing had happened ("straight
# through"), and each code follows the mean of the latents that chose it.

# %%
_, _, model_vq = trained(**QUARTER, codes=64)
z = model_vq.encode(x)[0]                                      # (64, 8, 8, 4), before the codebook
chosen = model_vq.codebook.nearest(z)                          # (64, 8, 8), which code
how_often = np.bincount(chosen.ravel(), minlength=64) / chosen.size
used = how_often[how_often > 0]
bits = -(used * np.log2(used)).sum()
print(f"{len(used)} of 64 codes in use; a picture is {chosen[0].size} codes of {bits:.1f} bits, "
      f"{chosen[0].size * bits / 8:.0f} bytes instead of {pictures[0].size:,}")
print("a picture, to the decoder:")
print("\n".join(" ".join(f"{code:2}" for code in row) for row in chosen[0]))
y = model_vq.pictures(model_vq.latents(x))
print(f"{psnr(x, y):.1f} dB, where the bell curves have {psnr(x, made['f = 4']):.1f}")
viz.image_grid(np.concatenate([x[:10], y[:10]]), rows=["x", "64 codes"])

# %% [markdown]
# What is such a codebook good for, if it loses more? For the other half of the story: a diffusion
# model *draws* latents, and they are a little wrong. So ask what a wrong latent costs. A third
# candidate joins, bell curves again, but with a heavier weight on their divergence: it forces the
# encoder to leave more noise in training, so that the decoder learns to live with it.

# %%
_, _, model_kl = trained(**QUARTER, kl=1e-2)
LEVELS = np.array([0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5])
lines = {}
for name, model in (("kl = 1e-6", model4), ("kl = 1e-2", model_kl), ("64 codes", model_vq)):
    z = model.latents(x)
    wrong = rng.standard_normal(z.shape).astype(np.float32)
    lines[name] = [psnr(x, model.pictures(z + np.float32(level) * wrong)) for level in LEVELS]
    print(f"{name:<10}" + "".join(f"{value:>7.1f}" for value in lines[name]))
viz.curves(LEVELS, lines, xlabel="noise added to latents of deviation 1", ylabel="dB")

# %% [markdown]
# Left is the autoencoder alone, and there the lightest weight is best. Right is what a careless
# diffusion model makes of it, and there it is worst. The best autoencoder is not the one to paint
# with, and no picture of reconstructions tells.
#
# ## A critic for what squared errors do not see
#
# A squared error forgives blur: if an edge may lie here or there, its favourite answer is grey. So
# LDM lets a second network, the discriminator, look at real pictures and at decoded ones, patch by
# patch, and say which are which; the decoder is paid for fooling it.

# %%
print(getsource(hinge))
critic = Discriminator(3, rng=rng)
flat = Flat(critic.parameters())
optimizer = AdamW(flat)
for step in range(1, 6 if FAST else 61):
    real = training4.batch(step)                               # (16, 32, 32, 3)
    flat.grad[...] = 0
    loss = hinge(critic(real), critic(model4.pictures(model4.latents(real))))
    loss.backward()
    optimizer.step(5e-3, step)
    if step in (1, 5, 20, 60):
        print(f"step {step:>3}: hinge {loss.item():.3f}  (1 is not knowing, 0 is being sure)")

# %% [markdown]
# Sixty batches, and it begins to know them by what we know them by: they are blurred. Each score
# sees 15 × 15 pixels. A reconstruction, and over it how sure the critic is that it is one, place
# by place:

# %%
with td.no_grad():
    scores = critic(made["f = 4"][:4]).data[..., 0]            # (4, 8, 8)
viz.attention_maps(images.to_uint8(made["f = 4"][0]), [-scores[0]], ["looks made"])

# %% [markdown]
# How loud may it speak? If its gradient is a hundred times the reconstruction's, the pictures
# become noise that pleases the critic; a hundredth, and it is not heard. Both are measured where
# they meet, at the last layer of the decoder, on every batch anew:
#
# **λ = ‖∇ L_rec‖ / (‖∇ L_adv‖ + 10⁻⁴)**  (VQGAN Eq. 7)
#
# One batch by hand:

# %%
w = training4.model.decoder.conv_out.w                         # the last layer


def slope(loss_of):
    """The gradient at the last layer of loss_of(x̂)."""
    mean_z, _ = training4.model.moments(real)
    training4.flat.grad[...] = 0
    loss_of(training4.model.decoded(mean_z)).backward()
    return w.grad.copy()


of_rec = slope(lambda y: ag.mse(y, real))
of_adv = slope(lambda y: -ag.mean(critic(y)))                  # the decoder wants high scores
weight = adaptive_weight(of_rec, of_adv)
assert np.isclose(weight, np.linalg.norm(of_rec) / (np.linalg.norm(of_adv) + 1e-4))
print(f"‖∇ L_rec‖ = {np.linalg.norm(of_rec):.4f}, ‖∇ L_adv‖ = {np.linalg.norm(of_adv):.4f}, "
      f"λ = {weight:.4f}")
together = (of_rec * of_adv).sum() / np.linalg.norm(of_rec) / np.linalg.norm(of_adv)
print(f"cosine between the two: {together:+.2f}  (1: they agree, −1: they pull apart)")

# %% [markdown]
# With λ both pull equally hard; a recipe's `adversarial` is a plain factor before it (0: no
# critic, as in `shapes-latent`, whose flat colours need none), and `adversarial_from` the step
# from which on it may speak: a critic of the first, grey pictures learns nothing worth hearing.
#
# ## Check yourself

# %%
zero = np.zeros((1, 2, 2, 4))
assert kl(zero, zero).item() == 0                              # N(0, 1) is not far from itself
draws = sampled(zero + 1, zero - 2, rng.standard_normal((40_000, 2, 2, 4))).data
assert np.allclose(draws.mean(axis=0), 1, atol=0.02)           # μ
assert np.allclose(draws.std(axis=0), np.exp(-1), atol=0.02)   # σ = e^(logvar / 2)
for model in (model2, model4, model_kl, model_vq):
    z = model.latents(x)
    assert z.shape == (64, *(32 // model.config.factor,) * 2, 4)
    assert abs(z.std() - 1) < 0.1                              # what the schedule was made for
    assert np.allclose(model.pictures(z), model.decode(model.encode(x)[0]), atol=1e-4)
snapped = (model_vq.codebook.quantised(model_vq.encode(x)[0]) - model_vq.config.shift) \
    * model_vq.config.scale
assert np.allclose(model_vq.pictures(snapped), y, atol=1e-4)   # a code is its own nearest code
assert np.isclose(np.linalg.norm(weight * of_adv), np.linalg.norm(of_rec), rtol=0.1)

# %% [markdown]
# **Exercise 1.** Mirror latents left to right and decode. Does the picture turn? And upside down?
# Which layers could tell?
#
# **Exercise 2.** How small can you go? f = 8 has 4 × 4 × 4 numbers for a scene. Which scenes
# survive?

# %%
turned = model2.pictures(z0[:10, :, ::-1])
print(f"mirrored: {psnr(x[:10, :, ::-1], turned):.1f} dB")
_, _, model8 = trained(base=16, mults=[1, 2, 2], lr=1e-2)
viz.image_grid(np.concatenate([x[:10], turned, model8.pictures(model8.latents(x[:10]))]),
               rows=["x", "turned", "f = 8"])

# %% [markdown]
# **Next:** [11](11_text_to_picture.ipynb), where a diffusion model paints such latents, to order.
