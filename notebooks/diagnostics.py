"""Oracles for diffusion code: each function knows a right answer, and says what it found instead.

Behind each stands a closed form, an identity or an exact special case, so none needs a trained
network; and none believes the code it examines: the laws of data are written out here.
"""

from itertools import pairwise

import numpy as np

import tinydiff as td
from tinydiff.autograd import Tensor, attention
from tinydiff.diffusion import densities, noise, objective, prediction, spacing
from tinydiff.diffusion.samplers import fixed_large, fixed_small
from tinydiff.optim import EMA, Flat

FAMILIES = (td.Schedule.linear, td.Schedule.cosine, td.Schedule.karras, td.Schedule.flow)
ONE, NONE = np.ones((1, 1)), np.zeros((1, 1))


def expect(what, found, right, within):
    """AssertionError with the worst pair of numbers unless all found are right ± within."""
    found, right = np.broadcast_arrays(np.asarray(found, float), np.asarray(right, float))
    gap = np.nan_to_num(np.abs(found - right), nan=np.inf)
    if not (gap <= within).all():
        i = (gap - within).argmax()
        raise AssertionError(f"{what}: expected {right.flat[i]:.6g}, got {found.flat[i]:.6g}")


class Bell:
    """x0 ~ N(m, std²): the denoiser is a straight line, the ODE keeps each standard score u."""

    def __init__(self, schedule, m=0.3, std=0.5):
        self.schedule, self.m, self.v = schedule, m, std**2

    def predict(self, x_t, t):
        a, b = self.schedule.levels(t)
        score = (x_t - a * self.m) / (a**2 * self.v + b**2)
        return td.Prediction(self.m + a * self.v * score, b * score)

    def curve(self, u, t):
        a, b = self.schedule.levels(t)
        return a * self.m + np.sqrt(a**2 * self.v + b**2) * u


def moments(sampler, law, **options):
    """Yield mean and deviation of x at each node, exactly: x = c + A x_T + Σ B_i z_i.

    Row 0 starts from 0 and hears no noise, so it is c; row 1 shows A, row i + 2 shows B_i.
    """
    rows = np.eye(103)
    for x in sampler(law.predict, rows[1], law.schedule, noise=iter(rows[2:]), **options):
        yield x[0], np.sqrt(((x[1:] - x[0]) ** 2).sum())


def ode_errors(sampler, schedule, counts=(40, 80, 160)):
    """The mean error against the exact ODE for each number of steps, a list.

    The nodes are even in σ^(1/7), but every other is late by half a step: on even ones nobody would
    see a solver mistake one step's length for another's.
    """
    law, u, t = Bell(schedule), np.array([-1.4, 0.3, 1.1]), np.arange(schedule.T + 1)
    sigma, errors = schedule.sigma(t), []
    for n in counts:
        i = np.arange(n + 1.0)
        i[1:-1:2] += 0.5
        nodes = np.interp(np.interp(i / n, [0, 1], sigma[[-1, 1]] ** (1 / 7)) ** 7, sigma, t)
        *_, x = sampler(law.predict, law.curve(u, nodes[0]), schedule, timesteps=nodes)
        errors.append(np.abs(x - law.curve(u, nodes[-1])).mean())
    return errors


def published_numbers():
    """β_1, β_T and ᾱ_T of the named schedules are those of papers and code."""
    for make, *golden in ((td.Schedule.linear, 1e-4, 0.02, 4.03583e-5),
                          (td.Schedule.scaled_linear, 8.5e-4, 0.012, 4.66010e-3),
                          (td.Schedule.cosine, 4.12842e-5, 0.999, 2.42877e-9)):
        found = make().beta[1], make().beta[-1], make().alpha_bar[-1]
        expect(f"β_1, β_T, ᾱ_T of {make.__name__}, relative", np.divide(found, golden), 1, 1e-4)


def forward_chain():
    """t steps of √α x + √β z arrive where noising in one go does.  DDPM Eq. 2, 4"""
    schedule, mean, variance = td.Schedule.linear(), 1.0, 0.0
    for t in range(1, schedule.T + 1):
        mean *= schedule.alpha[t] ** 0.5
        variance = schedule.alpha[t] * variance + schedule.beta[t]
        expect(f"weight of x0 in x_{t}", schedule.q_sample(ONE, t, NONE), mean, 1e-9)
        expect(f"weight of eps in x_{t}", schedule.q_sample(NONE, t, ONE), variance**0.5, 1e-9)


def posterior():
    """A draw of x_t, then one of q(x_s | x_t, x0), is a draw of x_s.  DDPM Eq. 7"""
    for schedule in (make() for make in FAMILIES):
        for t, s in pairwise((1000, 700, 699, 300, 3, 0)):
            (a_t, b_t), (a_s, b_s) = schedule.levels(t), schedule.levels(s)
            c_0, variance = schedule.posterior(ONE, NONE, t, s)
            c_t, _ = schedule.posterior(NONE, ONE, t, s)
            where = f"after the step from t = {t} to {s} of {schedule.name}"
            expect(f"weight of x0 {where}", c_0 + c_t * a_t, a_s, 1e-9)
            expect(f"variance {where}", c_t**2 * b_t**2 + variance, b_s**2, 1e-9 * (1 + b_t**2))


def spacings():
    """n steps are n steps: from noise down to clean data, whatever n."""
    schedule = td.Schedule.linear()
    for space in (spacing.trailing, spacing.linspace, spacing.leading, spacing.karras):
        for n in (7, 10, 36, 50, 300, 999, 1000):
            times = space(schedule, n)
            expect(f"steps, first, last time of {space.__name__} with n = {n}",
                   (len(times) - 1, times[0], times[-1]), (n, schedule.T, 0), (0, 250, 0))


def one_point():
    """If all data are one point, DDPM with β̃ has the right spread at each time, and ends on it."""
    law, times = Bell(td.Schedule.linear(), 0.3, 0.0), np.linspace(1000, 0, 51)
    small, large = (list(moments(td.ddpm, law, timesteps=times, variance=variance))
                    for variance in (fixed_small, fixed_large))
    expect("deviation of x_t", np.array(small)[:, 1], law.schedule.noise(times[1:]), 1e-4)
    expect("mean, deviation of samples of one point", large[-1], (0.3, 0), 1e-9)


def spread():
    """Samples of a Gaussian have its mean and its deviation."""
    for sampler in (td.ddim, td.ddpm, td.euler, td.heun, td.euler_ancestral, td.dpmpp_2m_sde):
        *_, found = moments(sampler, Bell(td.Schedule.cosine()), steps=100)
        expect(f"mean, deviation of {sampler.__name__}'s samples", found, (0.3, 0.5), 0.02)


def orders():
    """Each ODE sampler converges to the exact curve as fast as its order says."""
    for sampler, right in {td.ddim: 1, td.heun: 2, td.dpmpp_2m: 2, td.dpmpp_3m: 3}.items():
        errors = ode_errors(sampler, td.Schedule.linear())
        expect(f"order of {sampler.__name__}", np.log2(errors[0] / errors[-1]) / 2, right, 0.2)


def dialects():
    """Whatever a network names leads back to x0 and eps; and clipped or not, these explain x_t."""
    x0, eps = np.random.default_rng(0).standard_normal((2, 50))
    for schedule in (make() for make in FAMILIES):
        for t in (1, 300, 900):
            a, b = schedule.levels(t)
            for name, target in prediction.TARGETS.items():
                p = prediction.PREDICTS[name](a * x0 + b * eps, target(x0, eps, a, b), a, b)
                expect(f"x0, eps by way of {name} at t = {t}", p[:2], (x0, eps), 1e-8 * (a / b + b))
            p = td.clipped(Bell(schedule, 3.0, 0.0).predict, schedule)(0.3 * ONE, t)
            expect("signal · x0 + noise · eps with x0 clipped", a * p.x0 + b * p.eps, 0.3, 1e-9)


def guidance():
    """w = 0 ignores the condition, 1 obeys it, and eps is a straight line in w.  CFG Eq. 6"""
    schedule, x_t = td.Schedule.linear(), np.linspace(-2, 2, 5)[:, None]
    cond, uncond = Bell(schedule, 0.8, 0.2).predict, Bell(schedule).predict
    for w in (0, 1, 2, 7.5):
        right = (1 - w) * uncond(x_t, 400).eps + w * cond(x_t, 400).eps
        expect(f"eps guided with w = {w}", td.guided(cond, uncond, w)(x_t, 400).eps, right, 1e-9)


def classifier():
    """With two classes, the exact classifier and scale 1 a class's eps is found.  ADM Eq. 14"""
    schedule, x_t = td.Schedule.linear(), np.linspace(-2, 2, 9)[:, None]
    a, b = schedule.levels(500)
    left, right = (Bell(schedule, m, 0.4).predict(x_t, 500).eps for m in (-0.7, 0.7))
    p = 1 / (1 + np.exp(-1.4 * a * x_t / ((a * 0.4) ** 2 + b**2)))        # p(right | x_t)
    mixed, slope = (1 - p) * left + p * right, (1 - p) * (left - right) / b         # ∇ log p
    found = td.classifier_guided(lambda *_: td.Prediction(x_t, mixed), lambda *_: slope, 1,
                                 schedule)(x_t, 500)
    expect("eps guided to the class", found.eps, right, 1e-9)


def training_times():
    """Training asks about t = 1 … T, all alike."""
    t = objective.draw(td.Schedule.cosine(10), np.zeros((1000, 1)), "eps", seed=0, step=0).t
    expect("smallest t that training asks about", t.min(), 1, 0)
    expect("share of each t, times T", np.bincount(t, minlength=11)[1:] / 100, 1, 0.3)


def bound():
    """The bound of the exact model of a unit Gaussian is its entropy, on any chain.  DDPM Eq. 5"""
    law, x0 = Bell(td.Schedule.linear(), 0.0, 1.0), noise.batch(0, range(2000), 0, (1,), np.float64)
    found = td.vlb(law.predict, x0, law.schedule, timesteps=[200, 100, 0], variance=fixed_large,
                   decoder=densities.gaussian)
    expect("bits/dim of a unit Gaussian", found.total.mean(), 1.4189385 / np.log(2), 0.1)


def decoder():
    """Whatever is predicted, the 256 values of a pixel share one probability of 1.  DDPM Eq. 13"""
    pixels = np.arange(256) / 127.5 - 1
    for mean, std in ((0.0, 0.02), (0.3, 0.5), (-0.99, 0.003)):
        nats, *_ = densities.discretised(pixels, mean + 0 * pixels, 2 * np.log(std) + 0 * pixels)
        expect(f"sum of p over 256 values, deviation {std}", np.exp(-nats).sum(), 1, 1e-9)


def same_noise():
    """A picture's noise is its own: alone or in any batch."""
    batch, alone = (noise.batch(7, rows, 3, (5,), np.float64) for rows in (range(6), [4]))
    expect("numbers that change when picture 4 is drawn alone", (alone != batch[4]).sum(), 0, 0)


def same_answer():
    """A network answers for a picture alike alone and anywhere in a batch."""
    rng = np.random.default_rng(0)
    unet = td.UNet(td.UNetConfig(base=8, heads=2, groups=4), rng=rng).astype(np.float64)
    for p in unet.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape)
    x, t = rng.standard_normal((4, 7, 7, 1)), np.array([700, 3, 999, 42])
    alone = np.concatenate([unet.predict(x[k:k + 1], t[k]) for k in range(4)])
    expect("an answer in a batch instead of alone", unet.predict(x, t), alone, 1e-9)


def one_head():
    """Attention is softmax(q kᵀ / √d) v, row by row."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 5, 16))
    odds = np.exp(q[0] @ k[0].T / 4)                                      # √16 = 4
    expect("attention of width 16", attention(Tensor(q), Tensor(k), Tensor(v)).data[0],
           odds / odds.sum(axis=1, keepdims=True) @ v[0], 1e-9)


def gradients():
    """Backward agrees with differences: where a value is used twice, and where it is stretched."""
    x, b = np.random.default_rng(0).standard_normal((2, 4, 3))
    for what, f in (("used twice", lambda x, b: x * x + x),
                    ("stretched over rows", lambda x, b: x + b)):
        expect(f"error of the gradient of a value {what}", td.gradcheck(f, x, b[0]), 0, 1e-6)


def average():
    """An average of weights keeps what they were, and moves towards what they are."""
    flat = Flat({"w": Tensor(np.zeros(1))})
    ema, flat.data[:] = EMA(flat, decay=0.9), 1.0
    ema.update(1000)
    expect("the average of weights that were 0 and are 1, decay 0.9", ema.data, 0.1, 1e-9)


DIAGNOSTICS = {f.__name__: f for f in (
    published_numbers, forward_chain, posterior, spacings, one_point, spread, orders, dialects,
    guidance, classifier, training_times, bound, decoder, same_noise, same_answer, one_head,
    gradients, average)}


def examine():
    """Run every diagnostic -> {name: None if all is well, else one sentence with the numbers}."""
    found = {}
    for name, diagnostic in DIAGNOSTICS.items():
        try:
            with np.errstate(all="ignore"):              # what breaks should say so in numbers
                found[name] = diagnostic()
        except (AssertionError, ArithmeticError) as wrong:
            found[name] = str(wrong)
    return found
