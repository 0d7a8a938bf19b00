"""Steps as published pipelines take them, where they are not quite what the papers print.

Generators like the other samplers, but for their nodes: `timesteps` are given, all of them, and
the last may repeat the one before. Checkpoints are tuned with these, quirk by quirk.
"""

from itertools import pairwise
from math import exp, expm1

from tinydiff.diffusion.prediction import dialect
from tinydiff.diffusion.samplers.ancestral import deviation, fixed_small
from tinydiff.diffusion.samplers.contract import ask, noise_source
from tinydiff.diffusion.samplers.corrector import weights
from tinydiff.diffusion.samplers.multistep import WEIGHTS, transfer


def ddpm(predict, x_T, schedule, *, timesteps, seed=0, noise=None, variance=fixed_small):
    """Yield x_t (N, …) as `samplers.ddpm`, but the last step is noisy too if it starts above 1."""
    x_t, z = x_T, noise_source(noise, seed, x_T)
    for step, (t, s) in enumerate(pairwise(timesteps)):
        p = ask(predict, x_t, t, s)
        x_t, _ = schedule.posterior(p.x0, x_t, t, s)                       # DDPM Eq. 7
        if t > 1:
            x_t = x_t + deviation(p, variance, schedule, t, s) * z(step)
        yield x_t


def ddim(predict, x_T, schedule, *, timesteps, stride, final, seed=0, noise=None, eta=0.0):
    """Yield x_t (N, …), each step `stride` down or to `final`, wherever the next one starts."""
    x_t, z = x_T, noise_source(noise, seed, x_T)
    for step, t in enumerate(timesteps[:-1]):
        (a_t, b_t), (a_s, b_s) = map(schedule.levels, (t, t - stride if t > stride else final))
        p = ask(predict, x_t, t)
        std = eta * b_s / b_t * (1 - (a_t / a_s) ** 2) ** 0.5              # DDIM Eq. 16
        x_t = a_s * p.x0 + max(b_s**2 - std**2, 0.0) ** 0.5 * p.eps        # DDIM Eq. 12
        if eta > 0:
            x_t = x_t + std * z(step)
        yield x_t


def pndm(predict, x_T, schedule, *, timesteps, stride, final, predicts, runge_kutta, seed=0,
         noise=None):
    """Yield x_t (N, …): Adams–Bashforth, begun by Euler's or three Runge–Kutta steps.  PNDM

    What is averaged is what the network says, be it eps or v; it becomes eps where a step starts.
    """
    to_prediction, to_said = dialect(predicts)

    def said(x, t):
        p = ask(predict, x, t)
        return to_said(p.x0, p.eps, *schedule.levels(t))

    def moved(x, m, t, s):
        eps = to_prediction(x, m, *schedule.levels(t)).eps
        return transfer(schedule, x, eps, t, s if s > 0 else final)

    x_t, past, half = x_T, [], stride // 2
    for step, (t, s) in enumerate(pairwise(timesteps)):
        past = [said(x_t, t), *past[:3]]
        m = sum(w * e for w, e in zip(WEIGHTS[len(past) - 1], past))
        below = t - stride
        if runge_kutta and step < 3:
            m = past[0]
            m1 = said(moved(x_t, m, t, t - half), s + half)
            m2 = said(moved(x_t, m1, t, s + half), s + half)
            m3 = said(moved(x_t, m2, t, s), s)
            m, below = (m + 2 * m1 + 2 * m2 + m3) / 6, s
        elif step == 0 and s > 0:
            m = (m + said(moved(x_t, m, t, below), s)) / 2
            t, below = s + stride, s
        x_t = moved(x_t, m, t, below)
        yield x_t


def renoised(predict, x_T, schedule, *, timesteps, skip=lambda t: 0.0, seed=0, noise=None):
    """Yield x_t (N, …): x0, of which the share skip(t) is x_t itself, noised anew.  LCM"""
    x_t, z = x_T, noise_source(noise, seed, x_T)
    for step, (t, s) in enumerate(pairwise(timesteps)):
        a_s, b_s = schedule.levels(s)
        c_skip = skip(t)
        x0 = c_skip * x_t + (1 - c_skip) ** 0.5 * ask(predict, x_t, t).x0
        x_t = a_s * x0 + b_s * z(step) if b_s > 0 else x0
        yield x_t


# (of, keep, pull, k, fresh) of a step, x_s = keep x_t − pull (e^k − 1) p[of] + fresh z, were
# p[of] to stay what it is at t; of: 0 is x0, 1 is eps
FORMS = {
    "dpmsolver++": lambda a_t, b_t, a_s, b_s, h: (0, b_s / b_t, a_s, -h, 0.0),
    "dpmsolver": lambda a_t, b_t, a_s, b_s, h: (1, a_s / a_t, b_s, h, 0.0),
    "sde-dpmsolver++": lambda a_t, b_t, a_s, b_s, h: (
        0, b_s / b_t * exp(-h), a_s, -2 * h, b_s * max(0.0, -expm1(-2 * h)) ** 0.5),
    "sde-dpmsolver": lambda a_t, b_t, a_s, b_s, h: (
        1, a_s / a_t, 2 * b_s, h, b_s * max(0.0, expm1(2 * h)) ** 0.5),
}
FORMS["deis"] = FORMS["dpmsolver++"]                     # as published code reads it


def linear_multistep(predict, x_T, schedule, *, timesteps, form, orders, weigh=None, corrected=(),
                     seed=0, noise=None):
    """Yield x_t (N, …): DPM-Solver and UniPC; with orders of 1 DDIM, Euler's steps, ancestral ones.

    A step is one of FORMS, were the estimate m_0 at t to stay. It is bent by Σ w_j (m_j − m_0)/r_j:
    the m_j are orders[i] − 1 earlier estimates, or so many as there are, r_j steps of λ away, and
    w = weigh(k, r). A step in `corrected` is made again when m at its end is known, at r = 1.
    """
    x_t, z, past, last = x_T, noise_source(noise, seed, x_T), [], None
    for step, (order, t, s) in enumerate(zip(orders, timesteps, timesteps[1:])):
        now = schedule.log_snr(t) / 2
        h = schedule.log_snr(s) / 2 - now
        of, keep, pull, k, fresh = form(*schedule.levels(t), *schedule.levels(s), h)
        m0 = ask(predict, x_t, t)[of]
        if step - 1 in corrected:
            x_t = _bent(weigh, *last, (1.0, m0))
        last = x_t, keep, pull, k, m0, *(((then - now) / h, m) for then, m in past[:order - 1])
        x_t = _bent(weigh, *last) + (fresh * z(step) if fresh > 0 else 0.0)
        past = [(now, m0), *past[:1]]
        yield x_t


def _bent(weigh, x_t, keep, pull, k, m0, *others):
    """x_s from x_t and m0 there, and from others, pairs (r, m)."""
    x_s = keep * x_t - pull * expm1(k) * m0
    if others:
        for w, (r, m) in zip(weigh(k, [r for r, _ in others]), others):
            x_s = x_s - pull * w / r * (m - m0)
    return x_s


def taylor(k, ratios, *, midpoint, half=0.5):
    """The w of DPM-Solver, as its code has them: where the term in u² should weigh 0, `half`.

    `midpoint` gives one other the weight of half way; two are met by a parabola.
    """
    slope = expm1(k) / k - 1
    if len(ratios) < 2:
        return [expm1(k) / 2 if midpoint else slope]
    r1, r2 = ratios
    bend = ((expm1(k) - k) / k**2 - half - slope * r1) / (r1 - r2)
    return [slope + bend, -bend]


def unified(k, ratios, *, first_order):
    """The w of UniPC; to meet one other, half of B: k itself (`first_order`) or e^k − 1."""
    return [k / 2] if first_order and len(ratios) < 2 else [
        expm1(k) * rho for rho in weights(k, ratios)]
