# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Sampling: the way back
#
# A network that can say *this part is noise* is no painter yet. The painter is the sampler: it
# starts in pure noise and asks, steps, asks, steps. Before we trust a network we take one that is
# *exactly right*, so that every flaw we see is the sampler's own. Then we swap the trained one in,
# and nothing else changes.
#
# Source read here: [diffusion/ideal.py](../tinydiff/diffusion/ideal.py),
# [samplers/ancestral.py](../tinydiff/diffusion/samplers/ancestral.py),
# [samplers/implicit.py](../tinydiff/diffusion/samplers/implicit.py),
# [diffusion/spacing.py](../tinydiff/diffusion/spacing.py)

# %%
import os
from inspect import getsource
from itertools import pairwise

import numpy as np

import tinydiff as td
from tinydiff import data, images, viz
from tinydiff.demo import PROMPTS
from tinydiff.diffusion import nodes, noise

FAST = bool(os.environ.get("TINYDIFF_FAST"))
schedule = td.Schedule.cosine(T=1000)

# %% [markdown]
# ## A predictor that is exactly right
#
# Let the whole world of data be three numbers. Somebody shows us x_t = √ᾱ_t x0 + √(1 − ᾱ_t) eps.
# Which of the three was x0? Bayes' rule knows: each is as likely as the noise it would take. The
# best estimate is their mean under these odds. No training, no weights, four lines:

# %%
points = np.array([[-0.8], [0.1], [0.9]])                      # (M, 1)
predict = td.ideal_predictor(points, schedule, weights=[1, 1, 2])      # 0.9 is twice as common
for t in (1000, 700, 400, 100):
    x0 = predict(np.array([[0.3]]), t).x0.item()
    print(f"t = {t:>4}: the best guess at what x_t = 0.3 was is {x0:.3f}")

# %% [markdown]
# Far up it can only give the mean of all data; near t = 0 it names a point. Between, the future
# gets decided.
#
# ## Algorithm 2
#
# The DDPM paper's sampler undoes the noising one step at a time: subtract the share of the
# estimated noise that this one step had added, then add a little *fresh* noise:
#
# **x_{t−1} = (x_t − β_t / √(1 − ᾱ_t) · eps) / √α_t + σ_t z**  (DDPM Alg. 2, line 4), no z at the
# last

# %%
def algorithm_2(predict, x_T, schedule, seed=0):
    """Yield x_t for t = T − 1 … 0.  DDPM Alg. 2, as it is printed."""
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        eps = predict(x_t, t).eps
        beta, alpha, alpha_bar = schedule.beta[t], schedule.alpha[t], schedule.alpha_bar[t]
        x_t = (x_t - beta / (1 - alpha_bar) ** 0.5 * eps) / alpha**0.5
        if t > 1:
            variance = (1 - schedule.alpha_bar[t - 1]) / (1 - alpha_bar) * beta        # DDPM Eq. 7
            z = noise.batch(seed, range(len(x_T)), schedule.T - t, x_T.shape[1:], x_T.dtype,
                            purpose=noise.SAMPLER)
            x_t = x_t + variance**0.5 * z
        yield x_t


x_T = noise.batch(0, range(60), 0, (1,), np.float64)           # sixty walkers, in float64
by_hand = list(algorithm_2(predict, x_T, schedule))

# %% [markdown]
# The package writes the same step differently. It says: *if the estimate of x0 were the truth,
# what would x_{t−1} look like?*, and samples that Gaussian (DDPM Eq. 7). The two forms are equal,
# which people keep asking about; so here is the proof by machine.

# %%
print(getsource(td.ddpm))
ours = list(td.ddpm(predict, x_T, schedule, steps=1000))
apart = max(abs(a - b).max() for a, b in zip(by_hand, ours))
print(f"largest difference over all steps: {apart:.1e}")

# %% [markdown]
# ## DDIM: the same places, without the dice
#
# DDPM shakes at each step. DDIM takes the estimate apart into x0 and eps and mixes the two anew
# for the next time, **x_s = √ᾱ_s x0 + √(1 − ᾱ_s) eps** (DDIM Eq. 12, η = 0). Nothing is random but
# the start. Look at both from the same starts:

# %%
ddim = list(td.ddim(predict, x_T, schedule, steps=1000))
walks = [np.stack([x_T, *x])[::10, :30, 0] for x in (ours, ddim)]          # (101, 30) each
viz.paths(nodes(schedule, 1000)[::10], walks, targets=points[:, 0],
          titles=("DDPM: fresh noise at every step", "DDIM: none"))

# %% [markdown]
# Both end on the three points, and in the right shares, although walker by walker they end in
# different places. DDIM's smooth curves explain why it needs few steps: a smooth curve may be
# walked in long strides.
#
# η between 0 and 1 mixes the two; η = 1 *is* DDPM:

# %%
one = list(td.ddim(predict, x_T, schedule, steps=50, eta=1.0))
assert np.allclose(one, list(td.ddpm(predict, x_T, schedule, steps=50)), atol=1e-10)
half = list(td.ddim(predict, x_T, schedule, steps=50, eta=0.5))
walks = [np.stack([x_T, *x])[:, :30, 0] for x in (half, one)]
viz.paths(nodes(schedule, 50), walks, targets=points[:, 0],
          titles=("η = 0.5, 50 steps", "η = 1, 50 steps"))

# %% [markdown]
# ## With pictures: how many steps?
#
# Now let the world be a hundred digits. Each row starts from the same noise and takes more steps:

# %%
world = images.to_float(data.load("digits").images[:100])      # (100, 28, 28, 1)
exact = td.ideal_predictor(world, schedule)
COUNTS = (1, 2, 3, 5, 10, 50)
print("the nodes of three steps:", nodes(schedule, 3))
rows = [td.sample(td.ddim, exact, (8, 28, 28, 1), schedule, steps=n, seed=1) for n in COUNTS]
viz.image_grid(np.concatenate(rows), rows=[f"{n} step{'s' * (n > 1)}" for n in COUNTS])

# %% [markdown]
# One step gives a blur, and always the same one: the mean of all hundred. That is not a failure,
# it is the *right answer* to *what is the best guess, knowing nothing?* Only by stepping, and so
# choosing a little at a time, do we arrive at one picture.
#
# And look where we arrive:

# %%
final = rows[-1]
gap = ((final[:, None] - world[None]) ** 2).sum(axis=(2, 3, 4))            # (8, 100)
copies = world[gap.argmin(axis=1)]
viz.image_grid(np.concatenate([final, copies]), rows=["drawn", "nearest in the world"])

# %% [markdown]
# Exact copies. A perfect denoiser of a finite set can do nothing but copy: what lets a *network*
# draw digits that nobody wrote is that it is not perfect, but smooth.
#
# ## Five mistakes, and how to see them
#
# Three of these (1, 4 and 5) stood in published code. With a network one would blame the training;
# with the exact predictor there is no such excuse. One world is a bell curve, mean 0.5 and
# standard deviation 0.2, as 400 points: whatever comes out must have that mean and that deviation.
# The other is our three points: whatever comes out must *be* one of them.

# %%
def ddim_step(p, x_t, t, s, z):
    return schedule.signal(s) * p.x0 + schedule.noise(s) * p.eps                    # DDIM Eq. 12


def direction_subtracted(p, x_t, t, s, z):
    return schedule.signal(s) * p.x0 - schedule.noise(s) * p.eps


def ddpm_step(p, x_t, t, s, z):
    mean, variance = schedule.posterior(p.x0, x_t, t, s)                            # DDPM Eq. 7
    return mean + variance**0.5 * z


def root_forgotten(p, x_t, t, s, z):
    mean, variance = schedule.posterior(p.x0, x_t, t, s)
    return mean + variance * z


def noise_at_the_end(p, x_t, t, s, z):
    mean, _ = schedule.posterior(p.x0, x_t, t, s)
    return mean + schedule.step_variance(t, s) ** 0.5 * z                           # Alg. 2: z = 0


def walk(world, step, times, late=False):
    """Run `step` along the times; late: the predictor is told the time after the step."""
    rng, x_t = np.random.default_rng(0), start
    for t, s in pairwise(times):
        x_t = step(world(x_t, max(s, 1) if late else t), x_t, t, s, rng.standard_normal(x_t.shape))
    return x_t


rng = np.random.default_rng(1)
truth = rng.standard_normal((400, 1))
truth = 0.5 + 0.2 * (truth - truth.mean()) / truth.std()       # mean and deviation exact
bell = td.ideal_predictor(truth, schedule)
start = rng.standard_normal((500 if FAST else 4000, 1))
even = nodes(schedule, 200)
walkers = {"DDIM": (ddim_step, even),
           "DDPM": (ddpm_step, even),
           "1 direction subtracted, not added": (direction_subtracted, even),
           "2 variance where its root belongs": (root_forgotten, even),
           "3 the time told one step late": (ddim_step, even, True),
           "4 only the lowest 200 times": (ddim_step, range(200, -1, -1)),
           "5 noise at the last step too": (noise_at_the_end, even)}
results = {name: walk(bell, *how) for name, how in walkers.items()}
grain = {name: abs(walk(predict, *how) - points.T).min(axis=1).mean()
         for name, how in walkers.items()}
for name, x in results.items():
    print(f"{name:<34} mean {x.mean():+.2f}   deviation {x.std():.3f}   grain {grain[name]:.4f}")

# %% [markdown]
# DDPM with 200 of 1000 steps comes out a little narrow, as its noise is right only for small
# steps. The first four mistakes show in mean or deviation, and plainly. The fifth does not: it
# leaves a fine grain on everything, which only the last column sees. (In pictures it is the film
# grain that people try to train away.)
#
# ## Now a network
#
# The samplers do not change. `denoiser` turns the trained U-Net into a predictor with the same two
# answers, x0 and eps. Same noise, same prompt, three samplers:

# %%
run = td.load_run("mnist")
context = np.repeat(run.contexts(["a handwritten three"]), 8, axis=0)      # (8, L, D)
network = td.clipped(td.denoiser(run.model.unet, run.schedule, context), run.schedule)
STEPS = 10 if FAST else 50
ways = {"ddim": (td.ddim, {}), "ddim, η = 0.5": (td.ddim, {"eta": 0.5}), "ddpm": (td.ddpm, {})}
rows = [td.sample(sampler, network, (8, *run.shape), run.schedule, steps=STEPS, seed=3, **own)
        for sampler, own in ways.values()]
viz.image_grid(np.concatenate(rows), rows=list(ways))

# %% [markdown]
# And how many steps does *it* need? The same noise in each column:

# %%
COUNTS = (1, 2, 5, 25) if FAST else (1, 2, 4, 8, 16, 50)
sweep = [run.generate(PROMPTS, steps=n, seed=2) for n in COUNTS]
viz.image_grid(np.concatenate(sweep), rows=[f"{n} step{'s' * (n > 1)}" for n in COUNTS],
               columns=[prompt.split()[-1] for prompt in PROMPTS])

# %% [markdown]
# One step is the network's blur. A few steps draw the digit; more of them only touch it up.
#
# ## Check yourself

# %%
assert apart < 1e-9                                            # both forms of DDPM agree
share = (abs(by_hand[-1] - 0.9) < 1e-6).mean()
assert abs(share - 0.5) < 0.25                                 # 0.9 had half of all the weight
assert np.allclose(abs(ddim[-1] - points.T).min(axis=1), 0, atol=1e-2)     # all have arrived
blur = td.sample(td.ddim, exact, (1, 28, 28, 1), schedule, steps=1)
assert abs(blur - world.mean(axis=0)).max() < 0.1              # one step: the mean of the data
assert gap.min(axis=1).max() < 1e-3                            # many steps: one of the data

deviation = {name: x.std() for name, x in results.items()}
assert abs(deviation["DDIM"] - 0.2) < 0.02
assert abs(deviation["DDPM"] - 0.2) < 0.02
assert max(grain["DDIM"], grain["DDPM"]) < grain["5 noise at the last step too"] / 3
for n in range(1, 1001):                                       # every number of steps can be had
    assert len(nodes(schedule, n)) == n + 1

# %% [markdown]
# **Exercise 1.** `timesteps` takes any falling list of times. Give `td.ddim` ten steps, but most
# of them where you think that the digit is decided (look at notebook 05's strip). Can you beat
# even spacing against the 50-step picture? The cell below measures.
#
# **Exercise 2.** Why do the lowest hundred times (mistake 4) give a wrong mean *and* a wrong
# deviation? What does the predictor assume about an x_t at t = 100?

# %%
mine = [1000, 990, 950, 850, 700, 550, 400, 250, 120, 50, 0]   # change me
noise_8 = noise.batch(1, range(8), 0, (28, 28, 1))
*_, target = td.ddim(exact, noise_8, schedule, steps=200)
for name, spacing in {"even": nodes(schedule, 10), "mine": mine}.items():
    *_, x = td.ddim(exact, noise_8, schedule, timesteps=spacing)
    print(f"{name}: {abs(x - target).mean():.4f} away from 200 steps")

# %% [markdown]
# **Next:** [07](07_attention_text_guidance.ipynb), how words take part.
