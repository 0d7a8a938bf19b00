"""Published schedulers, option by option and drawn at random, against diffusers: every x, every t.

The loop is open. diffusers counts in float32; 5e-5 of a step's largest number are allowed, 1e-3
where σ = 4096, 3e-4 where UniPC solves for two weights in float32. Not drawn is what float32 cannot
decide: cosine betas in σ (20,291) or where eps is solved for. Not compared is what has no number.
"""

import inspect
import itertools
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from open_loop import OUTPUTS, READS, X_T, Z, numbers, walked  # noqa: E402

from tinydiff.diffusion.samplers import fixed_large, fixed_small  # noqa: E402
from tinydiff.pretrained.scheduler_settings import PREDICTS  # noqa: E402
from tinydiff.pretrained.schedulers import Scheduler  # noqa: E402
from tinydiff.pretrained.timesteps import alpha_bars  # noqa: E402

# theirs: they hand tensors to NumPy in a way it no longer likes, and NaN is theirs to find
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet_numpy")]

NS = [1, 2, 3, 7, 10, 20, 50]
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLAG, SAYS = [False, True], ["epsilon", "sample", "v_prediction"]
BETAS = {"betas": [SD, {}, {"beta_schedule": "squaredcos_cap_v2"}, {"num_train_timesteps": 600},
                   {"trained_betas": [1e-4 + 1e-5 * i for i in range(500)],
                    "num_train_timesteps": 500}],
         "timestep_spacing": ["leading", "linspace", "trailing"], "steps_offset": [0, 1],
         "prediction_type": SAYS}
EPS_OR_V = {"prediction_type": ["epsilon", "v_prediction"]}
CLIP = {"clip_sample": FLAG, "clip_sample_range": [1.0, 0.5]}
THRESHOLD = {"thresholding": FLAG, "dynamic_thresholding_ratio": [0.995, 0.8],
             "sample_max_value": [1.0, 1.5]}
CURVE = {"curve": [None, "use_karras_sigmas", "use_exponential_sigmas"]}
END = {"final_sigmas_type": ["zero", "sigma_min"]}
FLOW = {"flow": [False, False, True], "flow_shift": [1.0, 3.0]}
ZERO = {"rescale_betas_zero_snr": FLAG}
OPTIONS = {
    "DDPMScheduler": {**BETAS, **CLIP, **THRESHOLD, **ZERO, "variance_type": [
        "fixed_small", "fixed_small_log", "fixed_large"]},
    "DDIMScheduler": {**BETAS, **CLIP, **THRESHOLD, **ZERO, "set_alpha_to_one": FLAG,
                      "step_eta": [0.0, 0.4, 0.9], "step_use_clipped_model_output": FLAG},
    "PNDMScheduler": {**BETAS, **EPS_OR_V, "skip_prk_steps": FLAG, "set_alpha_to_one": FLAG},
    "LCMScheduler": {**BETAS, **CLIP, **THRESHOLD, **ZERO, "timestep_scaling": [10.0, 0.01],
                     "original_inference_steps": [50, 100], "timestep_spacing": ["leading"]},
    "EulerDiscreteScheduler": {**BETAS, **ZERO, **CURVE, **END, "interpolation_type": [
        "linear", "log_linear"], "timestep_type": ["discrete", "continuous"]},
    "EulerAncestralDiscreteScheduler": {**BETAS, **EPS_OR_V, **ZERO},
    "HeunDiscreteScheduler": {**BETAS, **CURVE, "clip_sample": FLAG},
    "DPMSolverMultistepScheduler": {
        **BETAS, **ZERO, **END, **THRESHOLD, **FLOW, "curve": [*CURVE["curve"], "use_lu_lambdas"],
        "algorithm_type": ["dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "deis"],
        "solver_order": [1, 2, 3], "solver_type": ["midpoint", "heun", "bh1"],
        "lower_order_final": FLAG, "euler_at_final": FLAG,
        "lambda_min_clipped": [-float("inf"), -5.1, -3.0]},
    "UniPCMultistepScheduler": {
        **BETAS, **ZERO, **CURVE, **END, **THRESHOLD, **FLOW, "solver_order": [1, 2, 3],
        "solver_type": ["bh2", "bh1", "midpoint"], "predict_x0": FLAG, "lower_order_final": FLAG,
        "disable_corrector": [[], [0, 2]]},
    "FlowMatchEulerDiscreteScheduler": {**CURVE, "shift": [1.0, 3.0, 0.7], "shift_terminal": [
        None, 0.1], "stochastic_sampling": FLAG},
}


@pytest.fixture
def quiet_numpy():
    with np.errstate(all="ignore"):
        yield


def drawn(name, seed):
    """A config of a class, the options of `step`, and a number of steps, none beyond float32."""
    draw = random.Random(f"{name}{seed}")
    n, config, step = draw.choice(NS), {}, {}
    for key, values in OPTIONS[name].items():
        (step if key.startswith("step_") else config)[key.removeprefix("step_")] = \
            draw.choice(values)
    config |= config.pop("betas", {})
    in_eps = config.get("predict_x0") is False or \
        config.get("algorithm_type") in ("dpmsolver", "sde-dpmsolver")
    if curve := config.pop("curve", None):
        config[curve] = True
    if config.get("rescale_betas_zero_snr"):
        config["prediction_type"], n = "v_prediction", max(n, 7)
    if config.pop("flow", False) and not curve and not in_eps and "deis" not in config.values():
        config |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    if in_eps or config.get("algorithm_type") == "deis" or config.get("solver_type") == "bh1":
        config |= {"final_sigmas_type": "sigma_min", "rescale_betas_zero_snr": False,
                   "solver_order": min(config["solver_order"], 2)}
    if config.get("beta_schedule") == "squaredcos_cap_v2" and (
            in_eps or name.startswith(("Heun", "Euler", "PNDM"))):
        config |= SD
    T = config.get("num_train_timesteps", 1000)
    if len(np.arange(T, 0, -T / n)) > n:                 # T/n rounded down gives them a step more
        config["timestep_spacing"] = "leading"
    if config.get("shift_terminal") or (name.startswith("Heun") and config["clip_sample"]):
        n = max(n, 3)
    return config, step, n


def share_table(scheduler, ours):
    """Gives theirs the rescaled ᾱ of ours, which has to be its own.

    Theirs goes from ᾱ to betas and back in float32, which each make of processor rounds its way;
    where a step is cut to whole timesteps the last bit shows.
    """
    table = torch.tensor(alpha_bars(ours.settings)[1:], dtype=torch.float32)
    np.testing.assert_allclose(table[:-1], scheduler.alphas_cumprod[:-1], rtol=2e-5)
    table[-1] = scheduler.alphas_cumprod[-1]              # 0, or 2⁻²⁴ where σ has to be a number
    first, scheduler.alphas_cumprod = scheduler.alphas_cumprod[0].clone(), table
    if getattr(scheduler, "final_alpha_cumprod", None) == first:
        scheduler.final_alpha_cumprod = table[0]
    if hasattr(scheduler, "lambda_t"):
        scheduler.lambda_t = ((table / (1 - table)) ** 0.5).log()


def compared(name, config, n, monkeypatch, *, given=None, skip=0, outputs=OUTPUTS, learned=None,
             **step):
    """Asserts that all x and timesteps agree, and the deviation of x_T; whether there were any."""
    scheduler = getattr(diffusers, name)(**config)
    ours = Scheduler({"_class_name": name, **config})
    if config.get("rescale_betas_zero_snr"):
        share_table(scheduler, ours)
    nodes, told = ours.plan(None if given else n, given)
    scheduler.set_timesteps(timesteps=given) if given else scheduler.set_timesteps(n)
    their_times = numbers(scheduler.timesteps)
    np.testing.assert_allclose(told if given else ours.timesteps(n), [
        *dict.fromkeys(their_times)] if given else their_times, rtol=1e-6, atol=1e-3)
    in_sigma = name.startswith(("Euler", "Heun"))
    over = [ours.schedule.signal(t) if in_sigma else 1.0 for t in nodes]
    if not given:
        std = float(getattr(scheduler, "init_noise_sigma", 1.0))
        assert ours.start_std(n) / over[0] == pytest.approx(std, rel=1e-5)
    if len({*their_times}) < len(their_times) and their_times[0] == their_times[1]:
        return False                                     # theirs would start at the second
    chain = walked(scheduler, monkeypatch, start=X_T / over[skip], outputs=outputs,
                   begin=skip * scheduler.order, **step)
    if name.startswith("Heun"):
        chain = chain[1::2] + chain[-1:]                  # their halves of a step
    if name.startswith("PNDM"):
        chain = chain[n > 1:] if config["skip_prk_steps"] else chain[3:12:4] + chain[12:]
    replay, reads = iter(OUTPUTS), dict((v, READS[k]) for k, v in PREDICTS.items())[ours.predicts]

    def predict(x_t, t):
        p = reads(x_t, next(replay), *ours.schedule.levels(t))
        return p._replace(log_variance=learned(t)) if learned else p

    xs = list(ours(predict, X_T, timesteps=given, steps=None if given else n, noise=Z, skip=skip,
                   **step))
    assert len(xs) == len(chain) == len(nodes) - 1 - skip
    loss = 1e-3 if in_sigma and config.get("rescale_betas_zero_snr") else \
        3e-4 if "predict_x0" in config and config["solver_order"] == 3 else 5e-5
    for x, other, a in zip(xs, chain, over[skip + 1:]):
        if not np.isfinite(other).all():
            return False
        np.testing.assert_allclose(x / a, other, rtol=0, atol=loss * np.abs(other).max())
    return True


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("name", OPTIONS)
def test_settings_drawn_at_random(name, part, monkeypatch):
    done = 0
    for seed in range(40 * part, 40 * part + 40):
        config, step, n = drawn(name, seed)
        if n < 4 and config.get("skip_prk_steps") is False:
            continue
        try:
            done += compared(name, config, n, monkeypatch, **step)
        except torch._C._LinAlgError:                    # UniPC's, where its last two nodes are one
            continue
        except AssertionError as error:
            raise AssertionError(f"{name} {config} n = {n} {step}: {error}") from None
    assert done >= 20


# PNDM: theirs would then begin behind the timestep that it asks twice
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "PNDMScheduler"])
def test_the_first_steps_skipped_as_from_picture_to_picture(name, monkeypatch):
    done = 0
    for seed in range(40):
        config, step, n = drawn(name, seed)
        if n > 1:
            done += compared(name, config, n, monkeypatch, skip=1 + seed % min(n - 1, 5), **step)
    assert done >= 15


@pytest.mark.parametrize("n", [7, 20, 31])
@pytest.mark.parametrize("betas", [{}, SD, {"num_train_timesteps": 100, "beta_end": 0.05}])
@pytest.mark.parametrize(("name", "curve"), [
    (f"{kind}Scheduler", curve)
    for kind in ("EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep")
    for curve in OPTIONS[f"{kind}Scheduler"]["curve"][1:]])
def test_curves_where_zero_snr_puts_the_highest_sigma_before_the_last(name, curve, betas, n,
                                                                      monkeypatch):
    config = {**betas, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    done = compared(name, config | {curve: True}, n, monkeypatch)
    assert done or name != "EulerDiscreteScheduler"       # others round their first times to one


@pytest.mark.parametrize("n", NS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_spacing_and_prediction(name, spacing, n, monkeypatch):
    for says, offset in itertools.product(OPTIONS[name].get("prediction_type", [None]), [0, 1]):
        config = {**SD, "timestep_spacing": spacing, "prediction_type": says,
                  "steps_offset": offset} if says else {}
        if name == "PNDMScheduler":
            config["skip_prk_steps"] = True
        assert compared(name, config, n, monkeypatch)


@pytest.mark.parametrize("name", [name for name in OPTIONS if not name.startswith("Flow")])
@pytest.mark.parametrize("n", [7, 20])
def test_stable_diffusions_pndm_config_as_another_class(name, n, monkeypatch):
    """As `from_config` does it: what PNDM had by default is the other class's own default."""
    ours = {**SD, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
            "steps_offset": 1, "trained_betas": None, "clip_sample": False}
    pndm = diffusers.PNDMScheduler.from_config(ours)
    theirs = getattr(diffusers, name).from_config(pndm.config)
    theirs.set_timesteps(n)
    scheduler = Scheduler({**ours, "_class_name": name})
    np.testing.assert_allclose(scheduler.timesteps(n), numbers(theirs.timesteps), atol=1e-4)
    takes = inspect.signature(type(theirs)).parameters
    known = {key: value for key, value in ours.items() if key in takes}
    assert compared(name, known, n, monkeypatch)


@pytest.mark.parametrize(("name", "given"), [
    ("DDPMScheduler", [900, 500, 499, 20]), ("LCMScheduler", [999, 759, 19]),
    ("EulerDiscreteScheduler", [999, 500.5, 3]), ("HeunDiscreteScheduler", [999, 500, 3]),
    ("DPMSolverMultistepScheduler", [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]),
])
def test_timesteps_of_ones_own(name, given, monkeypatch):
    assert compared(name, SD, None, monkeypatch, given=given)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_learned_variance(spacing, monkeypatch):
    both = [np.concatenate([output, np.tanh(output[::-1])], axis=1) for output in OUTPUTS]
    config = {**SD, "variance_type": "learned_range", "timestep_spacing": spacing}
    scheduler = Scheduler({"_class_name": "DDPMScheduler", **config})
    schedule, shares = scheduler.schedule, iter(OUTPUTS)

    def learned(t):
        share = (np.tanh(next(shares)[::-1]) + 1) / 2
        return lambda s, above: share * np.log(fixed_large(schedule, t, s)) + (
            1 - share) * np.log(max(fixed_small(schedule, t, s), 1e-20))

    assert compared("DDPMScheduler", config, 10, monkeypatch, outputs=both, learned=learned)
