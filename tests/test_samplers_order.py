"""How fast samplers converge to the exact curves, and how right the law of their samples is."""

from math import sqrt

import numpy as np
import pytest
from sampler_helpers import (
    COSINE,
    EVERYWHERE,
    FLOW,
    KARRAS,
    LINEAR,
    NEEDS_SIGNAL,
    STRAIGHT,
    Gaussian,
    Mixture,
    last,
    moments,
    named,
)

from tinydiff.diffusion import Prediction
from tinydiff.diffusion.samplers import (
    ddim,
    ddpm,
    ddpm_eps_form,
    dpmpp_1s,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    edm,
    euler,
    euler_ancestral,
    flow_euler,
    flow_heun,
    heun,
    lcm,
    pndm,
    unipc,
)

SCORES = np.array([-1.4, -0.5, 0.3, 1.1])                # where in the law a curve runs
FIRST = [(euler, {}), (ddim, {}), (dpmpp_1s, {})]
SECOND = [(heun, {}), (edm, {}), (dpmpp_2m, {}), (dpmpp_2m_sde, {"eta": 0.0}), (pndm, {})]


def karras_nodes(schedule, start, end, n):
    """n + 1 times from start to end, evenly spaced in σ^(1/7)."""
    root = np.linspace(schedule.sigma(start) ** (1 / 7), schedule.sigma(end) ** (1 / 7), n + 1)
    return [start, *map(schedule.time, root[1:-1] ** 7), end]


def even_nodes(schedule, start, end, n):
    return np.linspace(start, end, n + 1).tolist()


def limping_nodes(schedule, start, end, n):
    """Karras nodes, every other one half a step late: the ratio of two steps is ⅓, then 3."""
    times = karras_nodes(schedule, start, end, n)
    return [t if k % 2 == 0 or k in (0, n) else (t + times[k + 1]) / 2
            for k, t in enumerate(times)]


def order(sampler, law, spaced, start, end, *, ns=(80, 160, 320), **own):
    """The slope of the error at `end` against the exact curve, over step sizes."""
    errors = []
    for n in ns:
        times = spaced(law.schedule, start, end, n)
        x = last(sampler(law.predict, law.curve(SCORES, start), law.schedule, timesteps=times,
                         **own))
        errors.append(np.abs(x - law.curve(SCORES, end)).mean())
    return -np.polyfit(np.log(ns), np.log(errors), 1)[0]


@pytest.mark.parametrize(("sampler", "own"), **named([*FIRST, *SECOND, (dpmpp_3m, {})]))
@pytest.mark.parametrize("law", [Gaussian, Mixture])
@pytest.mark.parametrize(("schedule", "start"), [
    (LINEAR, 1000), (COSINE, COSINE.time(80)), (KARRAS, 1000), (FLOW, FLOW.time(80))],
    ids=["linear", "cosine", "karras", "flow"])
def test_every_ode_sampler_has_its_order_down_to_the_first_time(sampler, own, law, schedule, start):
    slope = order(sampler, law(schedule), karras_nodes, start, 1, **own)
    if sampler is dpmpp_3m:
        assert 2.5 <= slope <= 3.3
    elif (sampler, own) in FIRST:
        assert slope == pytest.approx(1, abs=0.15)
    else:
        assert slope == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(("sampler", "own"), **named([*FIRST, *SECOND]))
@pytest.mark.parametrize("law", [Gaussian, Mixture])
@pytest.mark.parametrize(("schedule", "start"), [(LINEAR, 1000), (COSINE, 960), (FLOW, 950)],
                         ids=["linear", "cosine", "flow"])
def test_the_order_is_the_same_on_even_times(sampler, own, law, schedule, start):
    slope = order(sampler, law(schedule), even_nodes, start, 50, ns=(160, 320, 640), **own)
    assert slope == pytest.approx(1 if (sampler, own) in FIRST else 2, abs=0.15)


@pytest.mark.parametrize(("sampler", "theirs"), [(heun, 2), (dpmpp_2m, 2), (dpmpp_3m, 3)])
@pytest.mark.parametrize("schedule", [LINEAR, KARRAS], ids=["linear", "karras"])
def test_no_order_depends_on_even_steps(sampler, theirs, schedule):
    slope = order(sampler, Gaussian(schedule), limping_nodes, 900, 1, ns=(160, 320, 640))
    assert slope == pytest.approx(theirs, abs=0.3)


@pytest.mark.parametrize("law", [Gaussian, Mixture])
@pytest.mark.parametrize("spaced", [karras_nodes, even_nodes])
def test_flow_samplers_have_the_orders_of_euler_and_heun(law, spaced):
    for sampler, theirs in (flow_euler, 1), (flow_heun, 2):
        assert order(sampler, law(FLOW), spaced, 950, 50) == pytest.approx(theirs, abs=0.15)


@pytest.mark.parametrize("law", [Gaussian, Mixture])
@pytest.mark.parametrize(("schedule", "start"), [(LINEAR, 1000), (KARRAS, 1000)],
                         ids=["linear", "karras"])
@pytest.mark.parametrize("own", [{}, {"order": 1}])
def test_the_corrector_lifts_unipc_by_one_order(law, schedule, start, own):
    """Where its last step, which nothing corrects, is too small to matter."""
    slope = order(unipc, law(schedule), karras_nodes, start, 1, **own)
    assert slope == pytest.approx(own.get("order", 2) + 1, abs=0.3)


@pytest.mark.parametrize("own", [{}, {"order": 3}])
@pytest.mark.parametrize(("schedule", "start"), [(LINEAR, 1000), (COSINE, 960)],
                         ids=["linear", "cosine"])
def test_the_last_step_of_unipc_is_of_first_order_and_leaves_it_at_two(schedule, start, own):
    """Its error is that of one step, h²: seen where the nodes are even and stop high above 0."""
    slope = order(unipc, Gaussian(schedule), even_nodes, start, 50, ns=(160, 320, 640), **own)
    assert slope == pytest.approx(2, abs=0.2)


# The law of the samples. All is affine, so these are no estimates.

def ends_of_curves(law):
    """What LCM is distilled to: x0 is where the curve through x_t ends."""
    def predict(x_t, t):
        a, b = law.schedule.levels(t)
        score = (x_t - a * law.m) / sqrt(a**2 * law.v + b**2)
        return Prediction(law.m + sqrt(law.v) * score, score)
    return predict


FIRST_AND_SDE = {euler, ddim, dpmpp_1s, ddpm, ddpm_eps_form, euler_ancestral, dpmpp_2m_sde}
WALKS = [(*case, schedule) for schedule in (LINEAR, COSINE, KARRAS, FLOW)
         for case in [*EVERYWHERE, *(STRAIGHT if schedule is FLOW else [])]
         if schedule is not FLOW or case[0] not in NEEDS_SIGNAL]


@pytest.mark.parametrize(("sampler", "own", "schedule"), **named(WALKS))
@pytest.mark.parametrize("steps", [50, 1000])
def test_samples_have_the_datas_mean_and_deviation(sampler, own, schedule, steps):
    law = Gaussian(schedule)
    predict = ends_of_curves(law) if sampler is lcm else law.predict
    mean, deviation = moments(sampler, schedule, predict, steps=steps, **own)
    assert mean == pytest.approx(law.m, abs=0.002)       # x_T forgets √ᾱ_T m
    high = schedule is COSINE and sampler in (heun, edm, pndm)    # σ = 20,291 in its first step
    few = 0.12 if sampler in FIRST_AND_SDE or high or "churn" in own else 0.035
    assert deviation == pytest.approx(sqrt(law.v), rel=0.008 if steps == 1000 else few)
