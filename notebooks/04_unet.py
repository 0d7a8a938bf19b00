# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · The U-Net: a network that sees the wood and the trees
#
# To tell noise from picture one must look closely (is this pixel an outlier?) and from afar (is
# this the lower bow of an eight?). The U-Net does both: it shrinks the picture step by step,
# thinks about the small one, and grows it again, each size being handed what was seen on the way
# down. We build its parts, one after the other, and check each against a definition.
#
# Source read here: [models/unet.py](../tinydiff/models/unet.py),
# [models/blocks.py](../tinydiff/models/blocks.py), [nn/layers.py](../tinydiff/nn/layers.py),
# [nn/time_embedding.py](../tinydiff/nn/time_embedding.py),
# [rung0_loops.py](../kernels/conv2d/rung0_loops.py)

# %%
from inspect import getsource

import numpy as np

import tinydiff as td
from tinydiff import autograd as ag, data, images, viz
from tinydiff.models.blocks import ResBlock
from tinydiff.models.unet import depth_to_space, space_to_depth
from tinydiff.nn import sinusoids

rng = np.random.default_rng(0)
digits = images.to_float(data.load("digits").images[:8])       # (N, H, W, C) in [-1, 1]
viz.image_grid(digits)

# %% [markdown]
# ## A convolution, by loops
#
# Every output pixel is a weighted sum of the pixels around the same spot; the weights are the same
# everywhere. That is the whole idea: *what makes an edge here makes an edge there.*
#
# **y[n, i, j, o] = Σ x[n, i + u, j + v, c] · w[u, v, c, o]**  over u, v, c

# %%
def convolve(x, w):
    """x (N, H, W, C), w (K, K, C, O) -> y (N, H − K + 1, W − K + 1, O)"""
    N, H, W, _ = x.shape
    K, _, _, O = w.shape
    y = np.zeros((N, H - K + 1, W - K + 1, O))
    for i in range(H - K + 1):
        for j in range(W - K + 1):
            window = x[:, i:i + K, j:j + K, :]                 # (N, K, K, C)
            y[:, i, j, :] = np.tensordot(window, w, axes=3)
    return y


x, w = rng.standard_normal((2, 9, 8, 3)), rng.standard_normal((3, 3, 3, 5))
assert np.allclose(convolve(x, w), ag.conv2d(x, w).data)
print("x", x.shape, "w", w.shape, "-> y", convolve(x, w).shape)

# %% [markdown]
# With weights chosen by hand it finds edges. A network chooses them itself, thousands of them.

# %%
edge = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]]) / 8                  # left minus right
filters = np.stack([edge, edge.T, np.full((3, 3), 1 / 9)], axis=-1)        # (3, 3, 3)
seen = ag.conv2d(digits, filters[:, :, None, :], padding=1).data           # (N, H, W, 3)
viz.image_grid(np.concatenate([digits[:6], *(seen[:6, ..., [o]] for o in range(3))]),
               rows=["digit", "left edges", "upper edges", "blur"])

# %% [markdown]
# ## How far does it see?
#
# A 3 × 3 convolution sees 3 × 3 pixels, two in a row 5 × 5. To see a whole digit that way takes
# fourteen. Autograd can *show* it: ask for the gradient of one output pixel, and look how large it
# is at each pixel of the input. (All weights get random values: a fresh U-Net is silent, see
# below.)

# %%
def influence(network):
    """How much each input pixel matters to the middle of the output (H, W): log₁₀ of a share."""
    x = td.Tensor(rng.standard_normal((1, 28, 28, 1)), requires_grad=True)
    y = network(x)
    dy = np.zeros(y.shape)
    dy[0, 14, 14] = 1
    y.backward(dy)
    share = abs(x.grad[0, :, :, 0])
    return np.log10(share / share.max() + 1e-4)                # −4: not at all, or nearly


def convolutions(depth):
    """`depth` 3 × 3 convolutions in a row, without anything between."""
    def network(x):
        for _ in range(depth):
            x = ag.conv2d(x, rng.standard_normal((3, 3, 1, 1)), padding=1)
        return x
    return network


def random_unet(mults):
    """A U-Net of so many levels without attention, every weight random."""
    unet = td.UNet(td.UNetConfig(base=16, mults=mults, attend=()), rng=rng)
    unet.middle1.attention = None                              # convolutions and nothing else
    for p in unet.parameters().values():
        p.data[...] = 0.2 * rng.standard_normal(p.shape)
    return lambda x: unet(x, np.array([500]))


networks = {"1 convolution": convolutions(1), "4 convolutions": convolutions(4),
            "U-Net, 1 level": random_unet((1,)), "U-Net, 3 levels": random_unet((1, 2, 2))}
fields = np.stack([np.mean([influence(network) for _ in range(4)], axis=0)
                   for network in networks.values()])
viz.image_grid(fields[..., None] / 2 + 1, zoom=4, columns=list(networks))

# %% [markdown]
# Black: the pixel in the middle knows nothing of it; white: what it listens to most; in between by
# powers of ten. On a picture of half the size a 3 × 3 window covers twice as much, on a quarter
# four times: that is why the U-Net goes down. On the way it loses *where* things are, and the skip
# connections bring that back.
#
# ## Group norm: keep the numbers in range
#
# After many layers numbers would explode or vanish. So for each image and each group of channels
# we subtract the mean and divide by the standard deviation, then let the network choose its own
# scale.

# %%
h = rng.standard_normal((2, 7, 7, 8)) * 30 + 100
groups = h.reshape(2, 49, 4, 2)                                # 8 channels as 4 groups of 2
mean, var = groups.mean(axis=(1, 3), keepdims=True), groups.var(axis=(1, 3), keepdims=True)
by_hand = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(h.shape)
assert np.allclose(ag.group_norm(h, np.ones(8), np.zeros(8), groups=4).data, by_hand)
print(f"before: mean {h.mean():.0f}, deviation {h.std():.0f};  "
      f"after: mean {abs(by_hand.mean()):.0f}, deviation {by_hand.std():.0f}")

# %% [markdown]
# ## Telling the time
#
# The network must know *how* noisy its input is. A bare number t = 1 … 1000 is hard to read for a
# network, so it is spelled as waves of many lengths, like the hands of a clock: the fast ones tell
# neighbouring times apart, the slow ones morning from evening. (Transformer §3.5)

# %%
times = np.arange(1, 201)
viz.heatmap(sinusoids(times, 32).T, size=(0.03, 0.06),
            title="16 sines, then 16 cosines (down) at t = 1 … 200 (across)")

# %% [markdown]
# ## The residual block
#
# This is the brick of which everything is built. Norm, a bend (SiLU), a convolution; twice.
# Between the two the time comes in, one number for each channel. And the input is *added* at the
# end, so the block only has to say what to change. (Its sister beside it, `AdaptiveResBlock`, lets
# the time also multiply; our recipes use that one.)

# %%
print(getsource(ResBlock))

# %% [markdown]
# `scale=0.0` in the second convolution means that a fresh block changes nothing at all. A deep
# network then starts as a shallow one, and gradients pass through as if it were not there.

# %%
block = ResBlock(16, 16, 64, groups=8, rng=rng)
h, emb = rng.standard_normal((2, 7, 7, 16), np.float32), rng.standard_normal((2, 64), np.float32)
assert np.array_equal(block(td.Tensor(h), td.Tensor(emb)).data, h)
print("a new ResBlock returns its input, bit for bit")

# %% [markdown]
# ## All together
#
# Here is the U-Net of the MNIST recipe. First it folds each 2 × 2 square of pixels into four
# channels (a quarter of the pixels, a quarter of the work). Follow the sizes down and up: the
# further to the right, the coarser the picture. Every `up` block gets the output of a `down` block
# beside its own input, which is why it has more to learn.

# %%
unet = td.UNet(td.UNetConfig.mnist(), rng=rng)
print(viz.unet_shapes(unet, digits[:1], np.array([500])))

# %%
folded = space_to_depth(digits, 2)
print("folded:", digits.shape, "->", folded.shape)
assert np.array_equal(depth_to_space(folded, 2).data, digits)  # nothing is lost, only moved

# %% [markdown]
# And this is the way through it. It reads as the drawing in every paper: down, middle, up.

# %%
print(getsource(td.UNet.__call__))

# %% [markdown]
# The same class, with other numbers, is the network of the DDPM paper. It counts 35.7 million
# parameters there (DDPM §B); let us count ours.

# %%
cifar = td.UNet(td.UNetConfig.ddpm_cifar10(), rng=rng)
print(f"{cifar.count():,}")
assert cifar.count() == 35_746_307
del cifar

# %% [markdown]
# ## Check yourself
#
# What must be true of any network that denoises a batch? There is published code in which the
# answer depended on the place in the batch, and some in which it did not depend on the time.

# %%
def shaken(unet):
    """The same network with a little noise in every weight, so that nothing is silent."""
    for p in unet.parameters().values():
        p.data += 0.05 * rng.standard_normal(p.shape).astype(np.float32)
    return unet


assert not unet.predict(digits, 500).any()                 # a fresh one predicts 0 everywhere

unet = shaken(unet)
t = np.arange(1, 9) * 100
y = unet.predict(digits, t)
assert y.shape == digits.shape                             # one answer a pixel
order = rng.permutation(8)
assert np.allclose(unet.predict(digits[order], t[order]), y[order], atol=1e-4)
assert np.allclose(unet.predict(digits[:1], 100), y[:1], atol=1e-4)    # neighbours do not matter
assert abs(unet.predict(digits, 1) - unet.predict(digits, 900)).max() > 1e-3      # the time does

# %% [markdown]
# **Exercise 1.** 28 halves to 14 and to 7, and 7? Find out what the U-Net does with odd sizes:
# `Downsample` and `Upsample` in blocks.py are eight lines. Which sizes does it refuse, and why
# those?
#
# **Exercise 2.** Even the U-Net of one level, where nothing is ever halved, is not quite black in
# the corners. Who carries word from there? (Look at group norm before you blame the convolutions.)

# %%
for size in (28, 27, 20):
    try:
        unet.predict(np.zeros((1, size, size, 1), np.float32), 500)
        print(size, "works")
    except ValueError as refusal:
        print(size, "is refused:", refusal)

# %% [markdown]
# **Next:** [05](05_training.ipynb), where its weights learn something.
