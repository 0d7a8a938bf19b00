# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · Training: five lines, many times
#
# Nobody can draw a digit from nothing in one go, and no network either. But *a little less noise,
# please* is a question with an answer, and we can make as many exercises with solutions as we
# like: take a picture, add noise, ask for the noise. That is Algorithm 1 of the DDPM paper. Here
# we set the exercises, train for real, and ask what a good mark would be.
#
# Source read here: [train.py](../tinydiff/train.py),
# [diffusion/schedule.py](../tinydiff/diffusion/schedule.py),
# [diffusion/objective.py](../tinydiff/diffusion/objective.py),
# [diffusion/prediction.py](../tinydiff/diffusion/prediction.py), [optim.py](../tinydiff/optim.py)

# %%
import os
from dataclasses import replace
from inspect import getsource

import numpy as np

import tinydiff as td
from tinydiff import autograd as ag, data, images, viz
from tinydiff.demo import PROMPTS
from tinydiff.diffusion import noise, objective, prediction
from tinydiff.generate import Run
from tinydiff.runs import training_run
from tinydiff.train import Training

FAST = bool(os.environ.get("TINYDIFF_FAST"))
rng = np.random.default_rng(0)
digits = data.load("digits")
x0 = images.to_float(digits.images)                            # uint8 -> float32 in [-1, 1]
print(digits.source, x0.shape, f"in [{x0.min()}, {x0.max()}]")

# %% [markdown]
# ## Setting the exercise: how a picture drowns
#
# One small step of noise after the other, x_t = √(1 − β_t) x_{t−1} + √β_t z (DDPM Eq. 2), a
# thousand times. Since sums of Gaussian noise are Gaussian noise, there is a short cut to any t at
# once:
#
# **x_t = √ᾱ_t x0 + √(1 − ᾱ_t) eps**  (DDPM Eq. 4), where ᾱ_t = (1 − β_1) ⋯ (1 − β_t)
#
# √ᾱ_t is called `signal(t)`, √(1 − ᾱ_t) `noise(t)`. Here are both roads, for one number 0.7:

# %%
schedule = td.Schedule.cosine(T=1000)
walked = np.full(20_000, 0.7)
for t in range(1, 301):                                        # the long road
    beta = schedule.beta[t]
    z = rng.standard_normal(walked.shape)
    walked = (1 - beta) ** 0.5 * walked + beta**0.5 * z                                 # DDPM Eq. 2
jumped = schedule.q_sample(np.full(20_000, 0.7), 300, rng.standard_normal(20_000))      # DDPM Eq. 4
for name, x in {"300 steps": walked, "one jump": jumped}.items():
    print(f"{name:>9}: mean {x.mean():.3f}, standard deviation {x.std():.3f}")
signal, noise_t = schedule.signal(300), schedule.noise(300)
print(f"   theory: mean {0.7 * signal:.3f}, standard deviation {noise_t:.3f}")

# %%
times = [0, 50, 150, 300, 450, 600, 800, 1000]
eps = noise.batch(0, range(3), 0, x0.shape[1:])
strip = [schedule.q_sample(x0[n:n + 1], t, eps[n:n + 1]) for n in range(3) for t in times]
viz.image_grid(np.concatenate(strip), columns=[f"t = {t}" for t in times])

# %% [markdown]
# At which t can you still tell which digit it is? There a denoiser has something to decide;
# further right it can only guess, further left it only polishes.
#
# *How fast* it drowns is the schedule, and it is ours to choose. The linear one of the DDPM paper
# spends its last third on what is nearly pure noise; the cosine one (iDDPM Eq. 17) spreads the
# work.

# %%
viz.schedule_curves([schedule, td.Schedule.linear(), td.Schedule.scaled_linear()])

# %% [markdown]
# ## What to ask for: three dialects
#
# Ask for the noise eps, for the clean picture x0, or for v = √ᾱ eps − √(1 − ᾱ) x0. Since we know
# x_t, each answer gives the other two. So why choose? Because networks err. See what one and the
# same error of 0.01 in the *answer* does to the estimate of the picture:

# %%
some, eps = x0[:64], rng.standard_normal((64, 28, 28, 1), np.float32)
print("error of x0 if the answer is off by 0.01")
for t in (10, 500, 990):
    signal, noise_t = schedule.signal(t), schedule.noise(t)
    x_t, line = schedule.q_sample(some, t, eps), f"t = {t:>4}"
    for dialect, understand in prediction.PREDICTS.items():
        right = prediction.TARGETS[dialect](some, eps, signal, noise_t)
        assert np.allclose(understand(x_t, right, signal, noise_t).x0, some, atol=1e-3)
        off = abs(understand(x_t, right + 0.01, signal, noise_t).x0 - some).mean()
        line += f"   {dialect:>3}: {off:.4f}"
    print(line)

# %% [markdown]
# Near t = T, where sampling *begins*, hardly any picture is left in x_t, and an answer in eps has
# to be divided by that little. Near t = 0 the picture is nearly known, and an answer in x0 forgets
# that. v is at least as good as either at every t, so our networks speak v.
#
# ## Algorithm 1
#
# Here is the paper's algorithm, and beside each line what it is called here:
#
# ```
# 1  repeat
# 2    x0 ~ the data                         training.batch(step)        (and its caption)
# 3    t ~ uniform on 1 … T                  objective.draw(…).t
# 4    eps ~ normal(0, 1)                    objective.draw(…).eps
# 5    descend on ‖target − network(x_t, t)‖²     mse, backward, optimizer.step
# ```
#
# We hold every fifth digit back, to see later whether it learned digits or learned *these* digits.
# Everything else is the recipe of `tinydiff demo`.

# %%
held = np.arange(10_000) % 5 == 0
seen = replace(digits, images=digits.images[~held], labels=digits.labels[~held])
recipe = td.load_recipe("demo")
if FAST:
    recipe = recipe.override(["train.steps=16", "train.batch=16", "train.warmup=4"])
STEPS = recipe.train.steps
training = Training(recipe, seen)
print(f"{training.model.count():,} weights, {STEPS} steps of {recipe.train.batch} pictures")

# %% [markdown]
# The first step by hand. `draw` is lines 3 and 4, the loss line 5.

# %%
pictures, ids = training.batch(1)                              # (N, H, W, C), (N, L)
draw = objective.draw(training.schedule, pictures, "v", seed=0, step=1)
answer = training.model(draw.x_t, draw.t, ids)                 # a Tensor (N, H, W, C)
by_hand = ag.mse(answer, draw.target)                          # DDPM Eq. 14
print(f"t = {draw.t[:6]} …   loss {by_hand.item():.4f}")

# %% [markdown]
# And by the package:

# %%
print(getsource(Training.gradient))
print(getsource(Training.step))

# %%
loss, lr, norm = training.step()
assert abs(loss - by_hand.item()) < 1e-5                       # the same step
assert np.isclose(loss, (draw.target**2).mean(), rtol=1e-4)    # a new network says 0 to everything

# %% [markdown]
# ## The rest of them
#
# (`tinydiff train` runs this loop with a progress bar, files, and a Ctrl-C that can be resumed.)
# Four times on the way we stop, let it draw, and set an exam on digits that it never saw: the same
# pictures, times and noise each time.

# %%
def loss_at(predict, x0, t):
    """The mean squared error in v at one time, of a predictor."""
    eps = noise.batch(7, range(len(x0)), t, x0.shape[1:])
    signal, noise_t = schedule.signal(t), schedule.noise(t)
    p = predict(schedule.q_sample(x0, t, eps), t)
    v = prediction.to_v(p.x0, p.eps, signal, noise_t)
    return float(((v - prediction.to_v(x0, eps, signal, noise_t)) ** 2).mean())


def unprompted(run, N):
    """The network of a run as a predictor for N pictures, without a prompt."""
    return td.denoiser(run.model.unet, schedule, np.repeat(run.contexts([""]), N, axis=0))


def drawn(run):
    """One picture of each prompt, in few steps, each from a seed of its own."""
    return np.concatenate([run.generate([prompt], steps=3 if FAST else 15, seed=seed)
                           for seed, prompt in enumerate(PROMPTS)])


def exam(run):
    """The loss on unseen digits: the mean over five times."""
    some = x0[held][:8 if FAST else 100]
    predict = unprompted(run, len(some))
    return np.mean([loss_at(predict, some, t) for t in (100, 300, 500, 700, 900)])


schedule = training.schedule
milestones = [STEPS // 8, STEPS // 4, STEPS // 2, STEPS]
losses, sheets, marks = [loss], [], []
while training.steps_done < STEPS:
    losses.append(training.step()[0])
    if training.steps_done in milestones:
        run = training_run(training, "mean")                   # the running mean of the weights
        sheets.append(drawn(run))
        marks.append((exam(Run(training.model, schedule, recipe, run.shape, "raw")), exam(run)))
viz.loss_curve(np.arange(1, STEPS + 1), losses)

# %% [markdown]
# Single losses jump about: each is another batch at other times t. The mean over the last 25 steps
# tells the story, a cliff and then a long slope. The pictures get better on that slope, where the
# curve seems flat:

# %%
viz.image_grid(np.concatenate(sheets), rows=[f"step {m}" for m in milestones],
               columns=[prompt.split()[-1] for prompt in PROMPTS])

# %% [markdown]
# ## A running mean of the weights
#
# Each batch pulls in a slightly different direction, so weights tremble. What we sample from is
# not the weights themselves but their running mean (EMA): **mean += (1 − d) · (weight − mean)**,
# with d close to 1. Here is a toy: one weight that wants to be 1, with a noisy gradient.

# %%
weight, mean, walk = 0.0, 0.0, []
for step in range(1, 401):
    weight -= 0.2 * (weight - 1 + rng.standard_normal())       # slope of (weight − 1)²/2, noisy
    decay = min(0.98, (1 + step) / (10 + step))                # it warms up, as ours does
    mean += (1 - decay) * (weight - mean)
    walk.append((weight, mean))
weights, means = np.transpose(walk)
viz.curves(np.arange(1, 401), {"the weight": weights, "its running mean": means}, xlabel="step")

# %% [markdown]
# While the weight travels, its mean lags behind; once it only trembles, the mean is where it wants
# to be. The exam tells the same of our run: at first the mean lags, then it leads, and at the end,
# where the learning rate falls to zero and the weights come to rest, the two meet.

# %%
for step, (of_weights, of_mean) in zip(milestones, marks):
    print(f"step {step:>4}: loss on unseen digits {of_weights:.4f} with the weights, "
          f"{of_mean:.4f} with their mean")

# %% [markdown]
# ## Is my loss good?
#
# The question everybody asks, and it *has* an answer. For a finite set of pictures the best
# possible predictor is known exactly (it is the hero of the next notebook): it knows every
# training picture by heart, and says which of them x_t may have come from. No network can have a
# lower loss on these pictures. Let us compare, time by time, on pictures that were trained on and
# on those held back.

# %%
N = 16 if FAST else 200
network, ideal = unprompted(run, N), td.ideal_predictor(x0[~held], schedule)
times = np.array([20, 100, 200, 300, 400, 500, 600, 700, 800, 900, 980])
curves = {"network, unseen pictures": [loss_at(network, x0[held][:N], t) for t in times],
          "network, seen pictures": [loss_at(network, x0[~held][:N], t) for t in times],
          "ideal, seen pictures": [loss_at(ideal, x0[~held][:N], t) for t in times]}
viz.curves(times, curves, xlabel="t", ylabel="loss in v")

# %% [markdown]
# Two things to see. The network's two curves all but lie on each other: it does hardly better on
# what it has seen, so it has learned *digits*. And the ideal predictor: at large t, where there is
# only guessing, the network is nearly as good; but at small t the ideal recognises the very
# picture and makes no error at all. Should the network try to get there? No! Whoever reaches that
# curve can only ever draw the training pictures again. A good loss lies above it.
#
# ## Check yourself

# %%
assert np.mean(losses[-5:]) < (0.98 if FAST else 0.4) * losses[0]          # it learned
assert abs(jumped.mean() - walked.mean()) < 0.03               # Eq. 2, 300 times, is Eq. 4 once
assert abs(jumped.std() - walked.std()) < 0.03
assert Training(recipe, seen).step()[0] == losses[0]           # a seed decides everything
assert means[100:].std() < weights[100:].std() / 2             # a mean trembles less
best, mine = curves["ideal, seen pictures"], curves["network, seen pictures"]
assert all(b < 1.05 * m for b, m in zip(best, mine))           # nobody beats the ideal at home

# %% [markdown]
# **Exercise 1.** Let the network speak eps: `recipe.set("model.predicts", "eps")`. Is its loss
# comparable with the one above? (What is the loss of a network that always says 0, in each
# dialect?)
#
# **Exercise 2.** A running mean that starts at the random weights takes long to forget them. Look
# up in [optim.py](../tinydiff/optim.py) what d is at step 1, 10, 100, and check it here.

# %%
target_sizes = {dialect: objective.draw(schedule, x0[:500], dialect, seed=0, step=0).target
                for dialect in ("eps", "x0", "v")}
for dialect, target in target_sizes.items():
    print(f"always saying 0 costs {(target**2).mean():.2f} in {dialect}")

# %% [markdown]
# **Next:** [06](06_sampling.ipynb), the way back from noise to picture.
