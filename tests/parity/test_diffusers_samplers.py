"""Our samplers and the schedulers of diffusers, step by step from the same start, model and noise.

The model's answers are fixed numbers, one for each call, so that nothing but the step is compared.
Their t is ours − 1 and their final node our 0; they keep their tables in float32, hence 5e-5 of the
largest number. Where they walk in σ, they hold x_t/signal.
"""

from itertools import pairwise
from math import expm1

import numpy as np
import pytest

from tinydiff.diffusion import Schedule
from tinydiff.diffusion.prediction import from_eps, from_v, from_velocity, from_x0
from tinydiff.diffusion.samplers import (
    ddim,
    ddpm,
    dpmpp_1s,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    euler,
    euler_ancestral,
    fixed_large,
    fixed_small,
    flow_euler,
    flow_heun,
    heun,
    lcm,
    pndm,
    unipc,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from open_loop import OUTPUTS, READS, X_T, Z, numbers, walked  # noqa: E402

# theirs: they hand tensors to NumPy in a way it no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULE, FLOW = Schedule.scaled_linear(), Schedule.flow()
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SAYS = ["epsilon", "sample", "v_prediction"]


def theirs(kind, n, monkeypatch, *, start=X_T, outputs=OUTPUTS, step=(), **config):
    """Our names of their nodes, and their x after every call of the model."""
    scheduler = kind(**config)
    scheduler.set_timesteps(n)
    chain = walked(scheduler, monkeypatch, start=start, outputs=outputs, **dict(step))
    times = dict.fromkeys(numbers(scheduler.timesteps).tolist())    # some stand there twice
    return [*times, -1.0], chain


def ours(sampler, times, *, schedule=SCHEDULE, reads=from_eps, outputs=OUTPUTS, **own):
    replay = iter(outputs)

    def predict(x_t, t):
        return reads(x_t, next(replay), *schedule.levels(t))

    return list(sampler(predict, X_T, schedule, timesteps=times, noise=Z, **own))


def assert_alike(chain, others):
    assert len(chain) == len(others) > 2
    for x, other in zip(chain, others):
        np.testing.assert_allclose(x, other, rtol=0, atol=5e-5 * np.abs(other).max())


def later(times):
    """Their nodes in our time, which is 0 for clean data."""
    return [t + 1 for t in times]


@pytest.mark.parametrize("predicts", SAYS)
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize(("theirs_is", "variance"), [("fixed_small", fixed_small),
                                                     ("fixed_large", fixed_large)])
def test_ddpm(predicts, spacing, theirs_is, variance, monkeypatch):
    times, others = theirs(diffusers.DDPMScheduler, 10, monkeypatch, variance_type=theirs_is,
                           timestep_spacing=spacing, prediction_type=predicts, clip_sample=False,
                           **BETAS)
    assert_alike(ours(ddpm, later(times), reads=READS[predicts], variance=variance), others)


def test_ddpm_with_a_learned_variance(monkeypatch):
    both = [np.concatenate([output, np.tanh(output[::-1])], axis=1) for output in OUTPUTS]
    times, others = theirs(diffusers.DDPMScheduler, 10, monkeypatch, variance_type="learned_range",
                           outputs=both, clip_sample=False, **BETAS)
    steps = dict(pairwise(later(times)))
    large, small = ({t: variance(SCHEDULE, t, s) for t, s in steps.items()}
                    for variance in (fixed_large, fixed_small))
    replay = iter(OUTPUTS)

    def predict(x_t, t):
        output = next(replay)
        share = (np.tanh(output[::-1]) + 1) / 2
        log_variance = share * np.log(large[t]) + (1 - share) * np.log(max(small[t], 1e-20))
        return from_eps(x_t, output, *SCHEDULE.levels(t))._replace(log_variance=log_variance)

    chain = list(ddpm(predict, X_T, SCHEDULE, timesteps=later(times), noise=Z))
    assert_alike(chain, others)


@pytest.mark.parametrize("predicts", SAYS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])    # where their stride is T // n
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(predicts, spacing, eta, monkeypatch):
    times, others = theirs(diffusers.DDIMScheduler, 10, monkeypatch, timestep_spacing=spacing,
                           prediction_type=predicts, clip_sample=False, set_alpha_to_one=True,
                           step={"eta": eta}, **BETAS)
    assert_alike(ours(ddim, later(times), reads=READS[predicts], eta=eta), others)


@pytest.mark.parametrize(("kind", "sampler", "own"), [
    ("DDPMScheduler", ddpm, {}),
    ("DDIMScheduler", ddim, {}),
    ("DDIMScheduler", ddim, {"eta": 0.9}),
])
def test_chains_that_start_without_signal(kind, sampler, own, monkeypatch):
    """With eta = 1 theirs takes the root of 1 − ᾱ − std², which rounds below 0."""
    times, others = theirs(getattr(diffusers, kind), 10, monkeypatch, rescale_betas_zero_snr=True,
                           timestep_spacing="trailing", prediction_type="v_prediction",
                           clip_sample=False, step=own, **BETAS)
    chain = ours(sampler, later(times), schedule=SCHEDULE.zero_terminal_snr(), reads=from_v, **own)
    assert_alike(chain, others)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_pndm(spacing, monkeypatch):
    """Of a model that says eps; where it says v, they mix old v, we mix what those say of eps."""
    times, others = theirs(diffusers.PNDMScheduler, 10, monkeypatch, timestep_spacing=spacing,
                           skip_prk_steps=True, set_alpha_to_one=True, **BETAS)
    assert_alike(ours(pndm, later(times)), others[1:])


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
@pytest.mark.parametrize(("kind", "sampler"), [
    ("EulerDiscreteScheduler", euler), ("EulerAncestralDiscreteScheduler", euler_ancestral),
    ("HeunDiscreteScheduler", heun)])
def test_samplers_in_sigma(kind, sampler, predicts, spacing, monkeypatch):
    if spacing == "karras" and sampler is euler_ancestral:
        return                                            # they have no such option
    kind, times = getattr(diffusers, kind), None
    config = {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    if spacing == "karras":
        scheduler = kind(**config, **BETAS)
        scheduler.set_timesteps(10)
        sigmas = dict.fromkeys(numbers(scheduler.sigmas).tolist())
        times = [SCHEDULE.time(min(sigma, SCHEDULE.sigma(1000))) for sigma in sigmas]
    start = X_T / SCHEDULE.signal(times[0] if times else {"leading": 901}.get(spacing, 1000))
    found, others = theirs(kind, 10, monkeypatch, start=start, prediction_type=predicts, **config,
                           **BETAS)
    times = times or later(found)
    if sampler is heun:
        others = others[1::2] + others[-1:]               # their halves of a step
    chain = ours(sampler, times, reads=READS[predicts])
    assert_alike([x / SCHEDULE.signal(s) for x, s in zip(chain, times[1:])], others)


@pytest.mark.parametrize("predicts", SAYS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("sampler", "config"), [
    (dpmpp_1s, {"solver_order": 1}),
    (dpmpp_2m, {"solver_order": 2}),
    (dpmpp_2m_sde, {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
])
def test_dpm_solver(sampler, config, predicts, spacing, monkeypatch):
    times, others = theirs(diffusers.DPMSolverMultistepScheduler, 10, monkeypatch,
                           timestep_spacing=spacing, prediction_type=predicts, **config, **BETAS)
    assert_alike(ours(sampler, later(times), reads=READS[predicts]), others)


def test_dpm_solver_3m_but_for_the_half_of_a_term_that_they_leave_out(monkeypatch):
    """Theirs weighs u² by half its integral: the other half, carried on, is all that differs."""
    times, others = theirs(diffusers.DPMSolverMultistepScheduler, 20, monkeypatch, solver_order=3,
                           solver_type="heun", prediction_type="sample", **BETAS)
    times, m, missing = later(times), OUTPUTS, 0
    lam = [SCHEDULE.log_snr(t) / 2 for t in times]
    for i, (t, s) in enumerate(pairwise(times)):
        missing = missing * SCHEDULE.noise(s) / SCHEDULE.noise(t)
        if 2 <= i < 19:
            h, h1, h2 = lam[i + 1] - lam[i], lam[i] - lam[i - 1], lam[i - 1] - lam[i - 2]
            D2 = ((m[i] - m[i - 1]) * h / h1 - (m[i - 1] - m[i - 2]) * h / h2) / ((h1 + h2) / h)
            missing = missing - SCHEDULE.signal(s) * ((expm1(-h) + h) / h**2 - 0.5) * D2
        others[i] = others[i] + missing
    assert np.abs(missing).max() == 0                     # the last step forgets x_t
    assert_alike(ours(dpmpp_3m, times, reads=from_x0), others)


@pytest.mark.parametrize("predicts", SAYS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, predicts, spacing, monkeypatch):
    times, others = theirs(diffusers.UniPCMultistepScheduler, 10, monkeypatch, solver_order=order,
                           timestep_spacing=spacing, prediction_type=predicts, **BETAS)
    assert_alike(ours(unipc, later(times), reads=READS[predicts], order=order), others)


@pytest.mark.parametrize("n", [3, 8])
def test_lcm(n, monkeypatch):
    times, others = theirs(diffusers.LCMScheduler, n, monkeypatch, clip_sample=False, **BETAS)
    assert_alike(ours(lcm, later(times)), others)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("kind", "sampler"), [("FlowMatchEulerDiscreteScheduler", flow_euler),
                                               ("FlowMatchHeunDiscreteScheduler", flow_heun)])
def test_flow_matching(kind, sampler, shift, monkeypatch):
    times, others = theirs(getattr(diffusers, kind), 10, monkeypatch, shift=shift)
    times = [*times[:-1], 0.0]                            # theirs is 1000 σ, as ours
    if sampler is flow_heun:
        others = others[1::2] + others[-1:]
    assert_alike(ours(sampler, times, schedule=FLOW, reads=from_velocity), others)
