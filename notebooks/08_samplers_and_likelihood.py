# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Samplers and likelihood, against exact answers
#
# There are dozens of samplers, and a picture that looks good says little about which of them is
# *right*. So we take data whose every answer is known in closed form, and measure: how fast each
# sampler comes to the truth, what noise mends and what it spoils, how many bits a picture costs,
# how far a trained network is from the best possible. At the end we bend sampling to edit pictures.
#
# Source read here: [diffusion/process.py](../tinydiff/diffusion/process.py),
# [diffusion/ideal.py](../tinydiff/diffusion/ideal.py),
# [samplers/sigma_space.py](../tinydiff/diffusion/samplers/sigma_space.py),
# [samplers/exponential.py](../tinydiff/diffusion/samplers/exponential.py),
# [diffusion/spacing.py](../tinydiff/diffusion/spacing.py),
# [diffusion/likelihood.py](../tinydiff/diffusion/likelihood.py),
# [diffusion/editing.py](../tinydiff/diffusion/editing.py)

# %%
import os
from inspect import getsource
from itertools import count, pairwise
from math import e, log2, pi

import numpy as np

import tinydiff as td
from tinydiff import data, images, viz
from tinydiff.demo import PROMPTS
from tinydiff.diffusion import loss_gap, nodes, noise, rate_distortion, spacing
from tinydiff.diffusion.densities import gaussian
from tinydiff.diffusion.likelihood import exact_vlb
from tinydiff.diffusion.objective import error_ratio
from tinydiff.diffusion.prediction import from_x0
from tinydiff.diffusion.samplers import sigma_space

FAST = bool(os.environ.get("TINYDIFF_FAST"))
rng = np.random.default_rng(0)
cosine, karras, flow = FAMILIES = td.Schedule.cosine(), td.Schedule.karras(), td.Schedule.flow()
law = td.Mixture(np.array([[-0.8], [0.1], [0.9]]), std=[0.1, 0.05, 0.15], weights=[1, 1, 2])


def end(steps):
    """The last x that a sampler yields."""
    *_, x = steps
    return x


# %% [markdown]
# ## One formula, three families
#
# Every process in this package is **x_t = signal(t) · x0 + noise(t) · eps**. The papers differ in
# how the two numbers are tied to each other:
#
# - *variance preserving* (DDPM, DDIM): signal² + noise² = 1
# - *EDM*, after Karras: signal = 1, and noise grows to 80
# - *flow matching*: signal + noise = 1, a straight line from picture to noise

# %%
print("t        " + "".join(f"{schedule.name:^28}" for schedule in FAMILIES))
for t in (0, 250, 500, 750, 1000):
    levels = ["{:>9.4f} · x0 +{:>8.4f} · eps".format(*schedule.levels(t)) for schedule in FAMILIES]
    print(f"{t:<5}" + "".join(levels))

# %% [markdown]
# Divide by signal, and the difference is gone: **x̄ = x0 + σ · eps**, with σ = noise/signal. A
# family is only a way to say *when* which σ is reached, and in what units x is kept. So a sampler
# has no reason to care. Visit the same twelve σ in each family, from the same start, and compare
# where three samplers end:

# %%
sigmas = spacing.karras_sigmas(12, 0.05, 80)[:-1]              # 12 levels, 80 … 0.05
x_bar = 80 * rng.standard_normal((200, 1))
apart = {}
for sampler in (td.ddim, td.heun, td.dpmpp_2m):
    ends = []
    for schedule in FAMILIES:
        times = [schedule.time(sigma) for sigma in sigmas]
        x = end(sampler(law.predictor(schedule), schedule.signal(times[0]) * x_bar, schedule,
                        timesteps=times))
        ends.append(x / schedule.signal(times[-1]))
    apart[sampler.__name__] = np.ptp(ends, axis=0).max()
    assert apart[sampler.__name__] < 1e-9
print("apart:", {name: f"{value:.0e}" for name, value in apart.items()})

# %% [markdown]
# ## The road that a sampler should follow
#
# Without dice, x̄ follows a differential equation, the *probability-flow ODE*:
#
# **dx̄/dσ = eps(x_t, t)**  (DDIM Eq. 14)
#
# Seen from above: all of the noised data flow along it like a river, and at every t they have just
# the law that noising gives them. For a bell curve we can guess the solution: who stands u
# deviations from the mean, stays u deviations from the mean, as mean and deviation shrink.

# %%
bell = td.Mixture(np.array([[0.3]]), std=0.5)
u, t, s = np.linspace(-2, 2, 9)[:, None], 900, 200


def at(u, t):
    """Where one stands who is u deviations from the mean.  x0 ~ N(0.3, 0.5²)"""
    signal, noise_t = cosine.levels(t)
    return signal * 0.3 + (signal**2 * 0.25 + noise_t**2) ** 0.5 * u


assert np.allclose(bell.flow(at(u, t), t, s, cosine), at(u, s), atol=1e-12)

# %% [markdown]
# For any law on a line the same argument works with ranks: curves cannot cross, so whoever has 30 %
# of all walkers on his left keeps them there. x_s is *the same quantile* at s as x_t was at t. That
# is `Mixture.flow`, exact to the last digit. Is it really the ODE's solution? Its slope must be
# eps:

# %%
x_t, step = np.linspace(-2, 2, 41)[:, None], 1e-4
up, down = (cosine.time(cosine.sigma(500) + side * step) for side in (1, -1))
slope = (law.flow(x_t, 500, up, cosine) / cosine.signal(up)
         - law.flow(x_t, 500, down, cosine) / cosine.signal(down)) / (2 * step)
wrong_by = abs(slope - law.predictor(cosine)(x_t, 500).eps).max()
print(f"slope of the flow and eps differ by at most {wrong_by:.0e}")
assert wrong_by < 1e-6

# %% [markdown]
# Here is the flow in all three families, each x_t drawn in units of √(signal² + noise²). The same
# roads, walked at different speeds. (And their forks: where the lines part, it is decided what a
# walker will be.)

# %%
times = np.arange(1000, -1, -50 if FAST else -20).tolist()
walks = []
for schedule in FAMILIES:
    x_T = schedule.prior_std * np.linspace(-2.2, 2.2, 23)[:, None]
    walks.append(np.stack([law.flow(x_T, 1000, t, schedule)[:, 0] / np.hypot(*schedule.levels(t))
                           for t in times]))
viz.paths(times, walks, targets=law.means[:, 0], titles=[schedule.name for schedule in FAMILIES])

# %% [markdown]
# ## What does an error cost? Orders
#
# A sampler replaces the river by straight pieces. Now that we know where each walker *should* be,
# we can say how wrong it is. The fair price is not steps but calls of the network; Heun pays two a
# step. Two samplers from their source, and one by hand.

# %%
print(getsource(td.euler))
print(getsource(sigma_space._heun_step))

# %% [markdown]
# Euler takes the slope where it stands. Heun walks on trial, asks again there, and takes the mean.
# DPM-Solver++(2M) is cleverer: it asks once, and *remembers*. In the clock λ = ln(signal/noise)
# the part of the equation that is linear in x can be solved exactly, which leaves
#
# **x_s = noise_s/noise_t · x_t + signal_s ∫ e^(λ−λ_s) x0(λ) dλ**, from λ_t to λ_s  (DPM++ §4)
#
# with x0(λ), the network's estimate on the way, as the only unknown. Take it as constant: then the
# integral is 1 − e^(−h), h = λ_s − λ_t. Or draw a line through the last two estimates, and take
# its value in the middle of the step:

# %%
def second_order(predict, x_t, schedule, times):
    """Yield x_t along the times, x0 from a line through its last two estimates.  DPM++ Alg. 2"""
    before = None
    for t, s in pairwise(times):
        (a_t, b_t), (a_s, b_s) = schedule.levels(t), schedule.levels(s)
        m0, h = predict(x_t, t).x0, np.log(a_s / b_s) - np.log(a_t / b_t)
        x0 = m0
        if before:
            m1, h1 = before
            x0 = m0 + h / (2 * h1) * (m0 - m1)                 # on the line, half a step ahead
        x_t = b_s / b_t * x_t + a_s * (1 - np.exp(-h)) * x0
        before = m0, h
        yield x_t


top, predict = cosine.time(80), law.predictor(cosine)


def road(n):
    """n steps in cosine's time from σ = 80 down to t = 1, evenly spaced in σ^(1/7)."""
    root = np.linspace(80 ** (1 / 7), cosine.sigma(1) ** (1 / 7), n + 1)
    return [top, *(cosine.time(sigma) for sigma in root[1:-1] ** 7), 1]


by_hand = list(second_order(predict, x_t, cosine, road(20)))
ours = list(td.dpmpp_2m(predict, x_t, cosine, timesteps=road(20)))
assert np.allclose(by_hand, ours, rtol=0, atol=1e-12)
print(f"by hand and ours: {abs(np.subtract(by_hand, ours)).max():.0e} apart")

# %% [markdown]
# Twice as many calls divide an error of *order* k by 2^k: on paper with two logarithmic scales
# that is a straight line with slope −k. The order in the legend is measured on the right half:

# %%
truth = law.flow(x_t, top, 1, cosine)
CALLS = 2 ** np.arange(3, 10)                                  # 8 … 512
STEPS = {td.euler: CALLS, td.heun: CALLS // 2, td.pndm: CALLS - 1, td.dpmpp_2m: CALLS,
         td.unipc: CALLS, td.dpmpp_3m: CALLS}                  # for so many calls
errors = {sampler: [abs(end(sampler(predict, x_t, cosine, timesteps=road(n))) - truth).mean()
                    for n in STEPS[sampler]] for sampler in STEPS}
order = {sampler: -np.polyfit(np.log(CALLS[-3:]), np.log(error[-3:]), 1)[0]
         for sampler, error in errors.items()}
fig = viz.curves(CALLS, {f"{sampler.__name__}, order {order[sampler]:.1f}": error
                         for sampler, error in errors.items()},
                 xlabel="calls of the predictor", ylabel="mean error at t = 1", log=True)
fig.axes[0].set_xscale("log", base=2)
fig

# %% [markdown]
# Euler has order 1: one more digit for ten times the calls. The others have 2 or 3, and at the
# right edge are 20 to 3,000 times nearer. (UniPC is sold as second order; its corrector adds one
# for free.) But look at the left edge: at eight calls Heun, with four long steps, is the worst of
# all. Orders are promises about *small* steps.
#
# Where are DDIM and DPM-Solver++(1S)? On Euler's line, for they are Euler: three papers, three
# notations, the same numbers. A few more such identities, each worth a page in some paper:

# %%
x_T, steps = noise.batch(0, range(50), 0, (1,), np.float64), road(30)
same = {"ddim = euler": [(td.ddim, {}), (td.euler, {})],
        "dpmpp_1s = euler": [(td.dpmpp_1s, {}), (td.euler, {})],
        "ddim, η = 1 = ddpm": [(td.ddim, {"eta": 1.0}), (td.ddpm, {})],
        "euler_ancestral = ddpm": [(td.euler_ancestral, {}), (td.ddpm, {})],
        "edm without churn = heun": [(td.edm, {"churn": 0}), (td.heun, {})],
        "dpmpp_2m_sde, η = 0 = dpmpp_2m": [(td.dpmpp_2m_sde, {"eta": 0.0}), (td.dpmpp_2m, {})]}
for name, ways in same.items():
    one, two = (list(sampler(predict, x_T, cosine, timesteps=steps, **own))
                for sampler, own in ways)
    same[name] = abs(np.subtract(one, two)).max()
    assert same[name] < 1e-10
print("\n".join(f"{name:<32} {value:.0e} apart" for name, value in same.items()))
one, two = (list(sampler(law.predictor(flow), x_T, flow, steps=30))
            for sampler in (td.flow_euler, td.ddim))
assert np.allclose(one, two, rtol=0, atol=1e-10)               # and on a flow, its own Euler

# %% [markdown]
# ## Eight calls of a real network
#
# The same race with the trained network, where the truth is a walk of 200 steps. All start from the
# same noise at σ = 80.

# %%
run = td.load_run("mnist")
schedule = run.schedule                                        # cosine too
network = td.denoiser(run.model.unet, schedule, run.contexts(PROMPTS))
ten = noise.batch(2, range(10), 0, run.shape)                  # (10, 28, 28, 1)


def even(n):
    return np.linspace(top, 0, n + 1).tolist()


def dense(n):
    return [*(schedule.time(sigma) for sigma in spacing.karras_sigmas(n, 0.02, 80)[:-1]), 0]


target = end(td.dpmpp_2m(network, ten, schedule, timesteps=even(40 if FAST else 200)))
eight = {"ddim": (td.ddim, even(8)), "dpmpp_2m": (td.dpmpp_2m, even(8)),
         "unipc": (td.unipc, even(8)), "heun": (td.heun, even(4)),
         "heun, dense": (td.heun, dense(4))}
rows = {name: end(sampler(network, ten, schedule, timesteps=times))
        for name, (sampler, times) in eight.items()}
distance = {name: float(((x - target) ** 2).mean() ** 0.5) for name, x in rows.items()}
labels = [f"{name}: {distance[name]:.2f} away" for name in rows]
viz.image_grid(np.concatenate([*rows.values(), target]).clip(-1, 1), rows=[*labels, "the truth"])

# %% [markdown]
# Methods that solve in λ (DDIM is one of them) take eight calls in their stride. Heun, whose slopes
# are in σ, overshoots from σ = 80 and leaves grain, whichever way its four steps are spread. By 50
# calls all are within 0.05 of the truth, and the choice hardly matters any more.
#
# ## Dice: what noise mends, and what it spoils
#
# DDIM with η > 0, DDPM, EDM's churn and 2M-SDE draw fresh noise on the way. With an exact predictor
# they and the ODE end in the same law. Then what is noise *for*? For predictors that err. Let ours
# be a bell curve's, right below t = 500 but lying above: there it says that x0 is larger by 0.3.
# How far is the walkers' law from the true one (KL divergence, in nats), at each t?

# %%
right = bell.predictor(cosine)


def lies_early(x_t, t):
    p = right(x_t, t)
    return p if t <= 500 else from_x0(x_t, p.x0 + 0.3, *cosine.levels(t))


def lies_always(x_t, t):
    return from_x0(x_t, right(x_t, t).x0 + 0.05, *cosine.levels(t))


def away(x_t, t):
    """KL of the walkers' normal law from the true one at t, in nats."""
    signal, noise_t = cosine.levels(t)
    true = (signal**2 * 0.25 + noise_t**2) ** 0.5
    ratio = x_t.std() / true
    return 0.5 * (ratio**2 + ((x_t.mean() - signal * 0.3) / true) ** 2 - 1) - np.log(ratio)


def dice(x):
    """Normal noise like x without end, quicker to have than from addresses."""
    rng = np.random.default_rng(1)
    return (rng.standard_normal(x.shape) for _ in count())


def walk(predict, eta):
    """The distance from the truth along 200 steps of DDIM(η)."""
    steps = td.ddim(predict, many, cosine, steps=200, eta=eta, noise=dice(many))
    return [away(x, t) for t, x in zip(nodes(cosine, 200)[1:], steps)]


many = rng.standard_normal((2_000 if FAST else 20_000, 1))
many = (many - many.mean()) / many.std()                       # no luck of the draw at the start
ETAS = (0.0, 0.5, 1.0)
early = {f"η = {eta:g}": walk(lies_early, eta) for eta in ETAS}
fig = viz.curves(nodes(cosine, 200)[1:], early, xlabel="t", ylabel="nats from the truth")
fig.axes[0].invert_xaxis()
fig

# %% [markdown]
# Up to t = 500 all three are led astray alike. From there on the predictor is right. The ODE is a
# one-to-one map: it carries its walkers faithfully, *with* their error, and the distance stays what
# it is. Noise forgets: each draw blurs the difference, each step down pulls towards the truth, and
# at η = 1 most of the error is gone at the end.
#
# So more noise is better? Only against *old* errors. A predictor that is always wrong in the same
# direction gets more to do where noise is added all the time, and does more wrong:

# %%
always = {f"η = {eta:g}": walk(lies_always, eta)[-1] for eta in ETAS}
for name in early:
    print(f"{name:<8} lied to early: {early[name][-1]:.3f}   lied to always: {always[name]:.3f}")

# %% [markdown]
# That is why EDM churns only between two noise levels, `s_min` and `s_max`, and why no η or churn
# is best for every network. With an exact predictor, and enough steps, they all do nearly the same
# (DDPM, of first order, is last to get there):

# %%
spread = {}
for name, (sampler, own) in {"heun": (td.heun, {}), "edm, churn 20": (td.edm, {"churn": 20}),
                             "ddpm": (td.ddpm, {}), "2m_sde": (td.dpmpp_2m_sde, {})}.items():
    x = end(sampler(right, many, cosine, timesteps=[*road(150), 0], noise=dice(many), **own))
    spread[name] = x.mean(), x.std()
print("\n".join(f"{name:<14} mean {mean:.3f}   deviation {deviation:.3f}"
                for name, (mean, deviation) in spread.items()))

# %% [markdown]
# ## Where to stop on the way: spacings
#
# Given ten calls, at which ten times should one ask? A *spacing* is a function (schedule, n) → the
# n + 1 times. Five are built in. Here are their noise levels, for the linear schedule,

# %%
linear = td.Schedule.linear()
SPACINGS = (spacing.trailing, spacing.linspace, spacing.leading, spacing.quadratic, spacing.karras)
viz.curves(range(10), {f.__name__: [linear.sigma(t) for t in f(linear, 10)[:-1]] for f in SPACINGS},
           xlabel="call", ylabel="σ", log=True)

# %% [markdown]
# and here what they are worth: how far from the exact flow are the walkers after ten calls?

# %%
starts = np.linspace(-2, 2, 41)[:, None]


def judge(spaced, schedule, sampler, n=10):
    """The mean error at t = 0 of n steps from standard normal quantiles."""
    x = end(sampler(law.predictor(schedule), starts, schedule, timesteps=spaced(schedule, n)))
    return abs(x - law.flow(starts, 1000, 0, schedule)).mean()


ON = [(linear, td.ddim), (linear, td.dpmpp_2m), (cosine, td.ddim), (cosine, td.dpmpp_2m)]
table = {f.__name__: [judge(f, *on) for on in ON] for f in SPACINGS}
print(" " * 10, *(f"{on.name + ' ' + sampler.__name__:>17}" for on, sampler in ON))
for name, row in table.items():
    print(f"{name:<10}", *(f"{error:>17.4f}" for error in row))

# %% [markdown]
# *Quadratic* wins here, as it spends its calls where the roads fork, at σ around 1. *Linspace* and
# *leading* spend one at t = 1, where nothing is left to decide; for that they jump there from
# t ≈ 100, so far that 2M's line through two estimates overshoots. *Karras* goes from σ = 80 down in
# steps that Heun's method likes, and needs: for these two samplers it spends too many calls where
# nothing is decided, high up and far down. Our recipes take *trailing*, which never fails badly and
# starts where training ended. Measure on your own schedule before you believe any table, this one
# included.
#
# ## How many bits is a picture?
#
# A model that can draw pictures can also say how *probable* a picture is; as a number of bits, how
# long its shortest message would be. The variational bound sends a picture down the chain (DDPM
# Eq. 5): what remains at T, then one Gaussian a step, and the pixels at the last. Each step costs
# the KL divergence between where x_s should go and where the model thinks it goes.
#
# First where the answer is known. A bell curve has an exact cost, ½ log₂(2πe · variance). The bound
# of its exact denoiser must lie above and come down to it as the chain gets finer:

# %%
entropy = 0.5 * log2(2 * pi * e * 0.25)
lines = [f"the bell curve itself: {entropy:.4f} bits/dim"]
bounds = {n: exact_vlb(bell, linear, steps=n).total.item() for n in (10, 30, 100, 300, 1000)}
lines += [f"{n:>5} steps: {bound:.4f} in closed form" for n, bound in bounds.items()]
x0 = bell.draw(20_000)
drawn = td.vlb(right, x0, cosine, steps=30, decoder=gaussian, variance=td.diffusion.fixed_large)
exact = exact_vlb(bell, cosine, steps=30).total.item()
error = drawn.total.std() / len(x0) ** 0.5
lines += [f"cosine, 30 steps: {drawn.total.mean():.4f} ± {error:.4f} by drawing, {exact:.4f} exact"]
print("\n".join(lines))

# %% [markdown]
# Now digits: the trained network on pictures it has never seen (it learned from MNIST's 60,000;
# these come from the other 10,000), and the *memoriser*, the exact predictor of a hundred pictures,
# on those hundred. What does each step cost, in bits for the whole picture?

# %%
digits = images.to_float(data.load("digits").images)           # (10000, 28, 28, 1)
world, pixels = digits[:100], 784
memoriser = td.ideal_predictor(world, schedule)
N, n = (2, 50) if FAST else (16, 200)
plain = td.clipped(td.denoiser(run.model.unet, schedule, np.repeat(run.contexts([""]), N, axis=0)),
                   schedule)
bound = td.vlb(plain, digits[:N], schedule, steps=n)
known = td.vlb(memoriser, world, schedule, steps=n)
costs = {"network": pixels * bound.terms.mean(0), "memoriser": pixels * known.terms.mean(0)}
fig = viz.curves(nodes(schedule, n)[:-2], {name: np.maximum(cost[:-1], 1e-6)
                                           for name, cost in costs.items()},
                 xlabel="t", ylabel="bits a step", log=True)
fig.axes[0].invert_xaxis()
fig.axes[0].set_ylim(1e-4)
for name, cost in costs.items():
    print(f"{name:<10} {cost[:-1].sum():6.1f} bits on the way, {cost[-1]:6.1f} for the pixels at "
          f"the end: {cost.sum() / pixels:.3f} bits/dim")
fig

# %% [markdown]
# The memoriser's bill is a gem. All there is to say is *which* of the hundred pictures it is, and
# that takes log₂ 100 = 6.6 bits. This is just what the steps on the way add up to, and the curve
# tells *when* they are spent: above t = 600, where a picture is decided. (Its pixels at the end are
# the fault of the last step's fixed noise, which is wider than a grey level.)
#
# The network starts on the same curve. But it knows digits and not *these*, so it goes on paying:
# for the shape of each stroke, then for the softness of each edge, and more than half of all bits
# in the very last steps, for shades that no eye can see. Its loss in training hardly counts those;
# that is why good pictures and good bits are two goals.
#
# The same numbers as a story: after so many bits, how well does the receiver know the picture
# (DDPM §4.3)?

# %%
rate, distortion = rate_distortion(bound)
viz.curves(rate, {"network, unseen digits": distortion}, xlabel="bits/dim received",
           ylabel="error of a pixel (of 255)")

# %% [markdown]
# ## The exact answer, along the ODE
#
# A bound is a bound. But the flow is one-to-one, so a density can be carried along it: where
# walkers crowd together it rises, by the divergence of their velocity. Start at the data, add up
# the divergence on the way to pure noise, and look up the normal density there:
#
# **d log p(x̄)/dσ = −div eps**  (Song et al. 2021, App. D.2)

# %%
line = np.linspace(-1.5, 1.8, 23 if FAST else 67)[:, None]
found = td.ode_log_likelihood(predict, line, cosine, timesteps=road(30 if FAST else 200))
density = np.exp(law.log_density(line, 1, cosine))
viz.curves(line[:, 0], {"density": density, "along the ODE": np.exp(found)},
           dots=("along the ODE",), xlabel="x")

# %% [markdown]
# In many dimensions the divergence costs one derivative a dimension; Hutchinson's trick measures it
# along random signs instead, right on average. Both, for six mountains in the plane:

# %%
plane = td.Mixture(rng.uniform(-1, 1, (6, 2)), std=rng.uniform(0.1, 0.3, 6))
spots, answer = plane.draw(50, seed=1), plane.predictor(cosine)
true = plane.log_density(spots, 1, cosine)
steps = road(30 if FAST else 150)
by_trace = td.ode_log_likelihood(answer, spots, cosine, timesteps=steps)
by_signs = td.ode_log_likelihood(answer, spots, cosine, timesteps=steps, probes=4)
for name, value in {"exact trace": by_trace, "four probes": by_signs}.items():
    print(f"{name}: off by {(value - true).mean():+.3f} on average, "
          f"{abs(value - true).mean():.3f} for a single spot")

# %% [markdown]
# ## How far is the network from the best possible?
#
# A loss has a floor, and it is not zero: nobody can know what noise has destroyed. For a mixture
# the floor is known without any network, `optimal_loss`. Notebook 05 compared a network with one
# floor, that of a memoriser. Here is a second one, from the other side: suppose one knew *only* the
# mean and the covariance of digits. The best denoiser is then linear, and its loss needs nothing
# but the covariance's eigenvalues λ: the mean of λ noise²/(signal² λ + noise²) for x0, which
# `error_ratio` turns into a loss in v.

# %%
spectrum = np.linalg.eigvalsh(np.cov(digits.reshape(len(digits), -1).T)).clip(0)       # (784,)


def linear_floor(t):
    """The least loss in v of a denoiser that knows mean and covariance."""
    signal, noise_t = schedule.levels(t)
    left = spectrum * noise_t**2 / (signal**2 * spectrum + noise_t**2)
    return error_ratio("v", signal, noise_t) * left.mean()


N = 4 if FAST else 64
asked = np.array([20, 100, 200, 300, 400, 500, 600, 700, 800, 900, 980])
plain = td.denoiser(run.model.unet, schedule, np.repeat(run.contexts([""]), N, axis=0))
everything = td.ideal_predictor(digits, schedule)
mine, least = loss_gap(plain, everything, digits[:N], schedule, asked, predicts="v")
levels = {"knows mean and covariance": np.array([linear_floor(t) for t in asked]),
          "network": mine, "knows every digit": least}
viz.curves(asked, levels, xlabel="t", ylabel="loss in v")

# %% [markdown]
# Near t = T all three agree: nothing is known there but the mean. In the middle the network's loss
# is little more than a third of the linear one's. *That* distance is what it has learned about
# strokes. Down to the memoriser it need not go, nor should it.
#
# How much is left to gain in bits? With infinitely many steps the bound's middle is an integral of
# the error of x0 over the signal-to-noise ratio, **½ ∫ E‖x0 − x̂0‖² d snr** (VDM), so a gap in the
# loss *is* a gap in bits. Checked on the network's bound, term by term, at 200 steps:

# %%
snr = schedule.snr(np.array(nodes(schedule, n)[:-1]))
by_error = 0.5 * np.diff(snr) * bound.mse.mean(0)[:-1] / np.log(2)
by_terms = bound.terms.mean(0)[:-1]
print(f"bits/dim on the way: {by_terms.sum():.4f} by the bound, {by_error.sum():.4f} by the error")
assert np.allclose(by_error, by_terms, rtol=1e-3)

# %% [markdown]
# ## Bending the road: editing
#
# A sampler can start anywhere, and a predictor can be told part of the answer. No training needed.
#
# **Image to image** (SDEdit): noise a picture only part of the way, t = strength · T, and come back
# with another prompt. These are threes; the prompt is *a handwritten eight*.

# %%
print(getsource(td.image_to_image))

# %%
labels, SHORT = data.load("digits").labels, 8 if FAST else 25
threes = digits[labels == 3][:8]
eights, unprompted = (td.denoiser(run.model.unet, schedule,
                                  np.repeat(run.contexts([text]), 8, axis=0))
                      for text in ("a handwritten eight", ""))
asking = td.clipped(td.guided(eights, unprompted, 2), schedule)
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
edited = [end(td.image_to_image(td.ddim, asking, threes, schedule, strength=strength, steps=SHORT))
          for strength in STRENGTHS]
changed = [float(((x - threes) ** 2).mean() ** 0.5) for x in edited]
viz.image_grid(np.concatenate([threes, *edited]),
               rows=["a three", *(f"strength {strength}" for strength in STRENGTHS)])

# %% [markdown]
# Little strength redraws edges; at 0.7 most threes are closed to eights and keep slant and weight;
# at 0.9 little of them is left.
#
# **Inpainting**: keep the known pixels, paint the rest. The simple way tells the predictor the
# known part of x0 (`inpainted`), for any sampler. But what is painted early, when the known part is
# still drowned in noise, may not fit it later. *RePaint* goes back up a step and down again,
# several times, so that both halves can come to terms. Who is right? In our world of a hundred
# digits there is a judge: show the upper half of one, and only one digit fits.

# %%
print(getsource(td.repaint))

# %%
mask = np.zeros((28, 28, 1))
mask[14:] = 1                                                  # 1: to paint
N = 8 if FAST else 40
upper, x_T = world[:N], noise.batch(0, range(N), 0, run.shape)
told = td.inpainted(memoriser, schedule, known=upper, mask=mask)
painted = {"ddim, told": end(td.ddim(told, x_T, schedule, steps=50))}
for resample in (1, 5):
    painted[f"repaint × {resample}"] = end(td.repaint(
        memoriser, x_T, schedule, known=upper, mask=mask, steps=50, resample=resample))
fits = {name: float((abs(x - upper).max(axis=(1, 2, 3)) < 0.3).mean())
        for name, x in painted.items()}
print("painted the one digit that fits:", {name: f"{share:.0%}" for name, share in fits.items()})

# %% [markdown]
# Now the trained network, from eight seeds. It is shown the upper half of a two, and not told that
# it is one; a three, a seven or an eight may start like this. Watch the seam.

# %%
shown = np.repeat(digits[labels == 2][:1], 8, axis=0)
hidden = np.where(mask == 1, 0, shown).astype(np.float32)      # grey: unknown
x_T = noise.batch(1, range(8), 0, run.shape)
free = td.clipped(unprompted, schedule)
told = end(td.ddim(td.inpainted(free, schedule, known=shown, mask=mask), x_T, schedule,
                   steps=SHORT))
again = end(td.repaint(free, x_T, schedule, known=shown, mask=mask, steps=SHORT, resample=5))
viz.image_grid(np.concatenate([shown[:1], hidden[1:], told, again]),
               rows=["the two, shown", "ddim, told", "repaint × 5"])

# %% [markdown]
# **Inversion.** The ODE's road can be walked upwards too: from a picture to the noise that would
# have drawn it (`invert`). DDIM downwards then leads back, the better the finer the steps:

# %%
pair = digits[[int(np.flatnonzero(labels == digit)[0]) for digit in (7, 0)]]            # a 7, a 0
nobody = td.denoiser(run.model.unet, schedule, np.repeat(run.contexts([""]), 2, axis=0))
trip = {}
for steps in (10, 20, 40) if FAST else (25, 50, 100, 200):
    top_of = end(td.invert(nobody, pair, schedule, steps=steps))
    back = end(td.ddim(nobody, top_of, schedule, steps=steps))
    trip[steps] = float(((back - pair) ** 2).mean() ** 0.5)
print("there and back, off by:", {steps: f"{value:.3f}" for steps, value in trip.items()})
print(f"deviation of the noise found: {top_of.std(axis=(1, 2, 3)).round(2)}")

# %% [markdown]
# (The noise found is too quiet. Corners are black in every digit, and from a pixel that never
# varies no noise can be read off.)
#
# With two pictures turned into noise, one can walk from one to the other *in noise*. Not along the
# chord: half-way between two noises lies something quieter than noise, on which no network was
# trained. `slerp` follows the arc.

# %%
shares = np.linspace(0, 1, 9)
a, b = (np.repeat(top_of[k:k + 1], 9, axis=0) for k in (0, 1))
nobody = td.denoiser(run.model.unet, schedule, np.repeat(run.contexts([""]), 9, axis=0))
between = end(td.ddim(nobody, td.slerp(a, b, shares), schedule, steps=SHORT))
viz.image_grid(between, columns=[f"{share:.0%}" for share in shares])

# %%
one, two = noise.batch(3, range(2), 0, (1, *run.shape))
middles = {"arc": td.slerp(one, two, 0.5), "chord": (one + two) / 2}
print("deviation half-way between two noises:",
      {name: round(float(x.std()), 2) for name, x in middles.items()})

# %% [markdown]
# ## Check yourself

# %%
for sampler, expected in {td.euler: 1, td.heun: 2, td.dpmpp_2m: 2, td.pndm: 2}.items():
    assert abs(order[sampler] - expected) < 0.2                # on paper and in fact
assert min(order[td.unipc], order[td.dpmpp_3m]) > 2.5
assert abs(early["η = 0"][-1] / early["η = 0"][100] - 1) < 0.1           # the ODE forgets nothing
assert early["η = 1"][-1] < early["η = 0.5"][-1] < early["η = 0"][-1]
assert always["η = 1"] > always["η = 0.5"] > always["η = 0"]
for mean, deviation in spread.values():
    assert abs(mean - 0.3) < 0.02
    assert abs(deviation - 0.5) < 0.03

assert list(bounds.values()) == sorted(bounds.values(), reverse=True)
assert entropy < bounds[1000] < entropy + 0.002                # a bound, and a tight one
assert abs(drawn.total.mean() - exact) < 4 * error
assert abs(costs["memoriser"][:-1].sum() - np.log2(100)) < (3 if FAST else 1)
assert abs(np.exp(found) - density).max() < (0.2 if FAST else 0.02)
assert abs(by_trace - true).max() < (0.5 if FAST else 0.05)
for t in (100, 500, 900):                                      # the floor, found in two ways
    floor, _ = law.optimal_loss(cosine, t)
    assert abs(loss_gap(predict, predict, law.draw(20_000), cosine, [t])[0] / floor - 1) < 0.08
assert (least < 1.05 * mine).all()                             # nobody beats the memoriser at home
assert (mine[asked < 800] < levels["knows mean and covariance"][asked < 800]).all()

assert changed == sorted(changed)                              # more strength, more change
assert fits["repaint × 5"] > fits["ddim, told"]
assert np.allclose(painted["repaint × 5"][:, :14], upper[:, :14], atol=1e-6)
ratios = [one / two for one, two in pairwise(trip.values())]
assert all(1.5 < ratio < 2.5 for ratio in ratios)              # twice the steps, half the error

# %% [markdown]
# **Exercise 1.** Write a spacing that beats the table: ten steps on the cosine schedule with 2M,
# from t = 1000 to 0. (Where do the roads fork? Times may be floats.) The cell below accepts
# whatever is a spacing, and measures it.

# %%
def mine_spaced(schedule, n):
    """n + 1 times from T to 0.  Change me."""
    return spacing.trailing(schedule, n)


for n in (1, 2, 5, 10, 50):
    times = mine_spaced(cosine, n)
    assert len(times) == n + 1                                 # n steps
    assert (times[0], times[-1]) == (1000, 0)                  # from noise to data
    assert (np.diff(times) < 0).all()                          # and never back
print(f"yours: {judge(mine_spaced, cosine, td.dpmpp_2m):.4f}, "
      f"best of the table: {min(row[3] for row in table.values()):.4f}")

# %% [markdown]
# **Exercise 2.** Write a sampler's step of order 2. It may ask as often as it likes, at any time
# between t and s; Heun is one answer, the midpoint another. Any honest step must pass two tests: if
# all data are one point, it lands on the straight mix of point and noise, exactly; and with twice
# the steps its error is half as large, or less.

# %%
def my_step(predict, x_t, schedule, t, s):
    """x_s from x_t.  Change me."""
    p = predict(x_t, t)
    return schedule.signal(s) * p.x0 + schedule.noise(s) * p.eps


def walked(predict, x_t, times):
    for t, s in pairwise(times):
        x_t = my_step(predict, x_t, cosine, t, s)
    return x_t


point, eps = np.full((9, 1), 0.7), rng.standard_normal((9, 1))
x = walked(td.ideal_predictor(point[:1], cosine), cosine.q_sample(point, top, eps), road(5))
assert np.allclose(x, cosine.q_sample(point, 1, eps), atol=1e-9)         # a straight road
off = [abs(walked(predict, x_t, road(n)) - truth).mean() for n in (100, 200, 400)]
slope = float(np.log2(off[0] / off[2]) / 2)
assert slope > 0.9
print(f"your order: {slope:.2f}")

# %% [markdown]
# Back to [the list of notebooks](README.md). Which claim in a paper would you now like to test?
