"""Published scheduler configs as samplers: nodes, timesteps, what is ours in disguise, refusals."""

import json
from itertools import pairwise

import numpy as np
import pytest

from tinydiff.diffusion import Schedule, ddim, ddpm, dpmpp_2m, euler, pndm, unipc
from tinydiff.diffusion.prediction import Prediction
from tinydiff.pretrained.scheduler_settings import KEYS
from tinydiff.pretrained.schedulers import Scheduler, load_scheduler

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NAMES = [f"{kind}Scheduler" for kind in KEYS]


def scheduler(kind, **config):
    return Scheduler({"_class_name": f"{kind}Scheduler", **config})


def spread(schedule, std=0.7):
    """The exact predictor of data N(0, std²): linear in x_t."""

    def predict(x_t, t):
        a, b = schedule.levels(t)
        x0 = a * std**2 / (a**2 * std**2 + b**2) * x_t
        return Prediction(x0, (x_t - a * x0) / b)

    return predict


@pytest.fixture
def x_T(rng):
    return rng.normal(size=(2, 3, 4, 1)).astype(np.float32)


@pytest.mark.parametrize(("kind", "config", "sampler"), [
    ("DDPM", {"clip_sample": False}, ddpm), ("DDIM", {"clip_sample": False}, ddim),
    ("PNDM", {"skip_prk_steps": True, "set_alpha_to_one": True}, pndm),
    ("DPMSolverMultistep", {"timestep_spacing": "leading"}, dpmpp_2m),
    ("EulerDiscrete", {"timestep_spacing": "leading"}, euler),
    ("UniPCMultistep", {"timestep_spacing": "trailing"}, unipc),
])
def test_where_published_code_is_the_paper_it_is_our_own_sampler(kind, config, sampler, x_T, rng):
    published, noise = scheduler(kind, **SD, **config), rng.normal(size=(20, *x_T.shape))
    predict, schedule = spread(published.schedule), Schedule.scaled_linear()
    chain = list(published(predict, x_T, steps=20, noise=noise))
    ours = sampler(predict, x_T, schedule, timesteps=published.nodes(20), noise=noise)
    for x, other in zip(chain, ours, strict=True):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, other, rtol=0, atol=5e-6 * np.abs(other).max())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "LCMScheduler"])
def test_the_picture_has_the_spread_of_the_data(name):
    """Exact predictions of N(0, 0.7²) lead noise to it, however the steps are made."""
    published = Scheduler({"_class_name": name, "clip_sample": False})
    z = np.random.default_rng(1).normal(size=(1, 100, 100, 1)).astype(np.float32)
    x_T = (z * published.start_std(50)).astype(np.float32)
    *_, x0 = published(spread(published.schedule), x_T, steps=50)
    assert x0.std() == pytest.approx(0.7, abs=0.08)       # DDPM's small variance is short of it


@pytest.mark.parametrize(("kind", "config", "n", "told"), [
    ("DDPM", {}, 7, [852, 710, 568, 426, 284, 142, 0]),
    ("DPMSolverMultistep", {"timestep_spacing": "leading", "steps_offset": 1}, 7,
     [876, 751, 626, 501, 376, 251, 126]),
    ("PNDM", {"skip_prk_steps": True, "steps_offset": 1}, 10,
     [901, 801, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
    ("LCM", {}, 4, [999, 759, 499, 259]),
    ("EulerDiscrete", {}, 4, [999, 666, 333, 0]),
    ("HeunDiscrete", {}, 3, [999, 499.5, 499.5, 0, 0]),
    ("DDIM", {"timestep_spacing": "trailing"}, 4, [999, 749, 499, 249]),
])
def test_timesteps_are_as_published(kind, config, n, told):
    assert scheduler(kind, **config).timesteps(n) == told


def test_the_shift_of_a_flow_hits_the_smallest_sigma_twice():
    nodes = scheduler("FlowMatchEulerDiscrete", shift=3.0).nodes(4)
    assert nodes[-2:] == pytest.approx([8.929, 0], abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_fall_to_clean_data_and_the_clock_names_each(name):
    published = Scheduler({"_class_name": name})
    nodes, clock = published.nodes(9), published.clock(9)
    assert len(nodes) == 10
    assert nodes[-1] == 0
    assert all(t > s for t, s in pairwise(nodes))
    told = published.timesteps(9)
    if name != "PNDMScheduler":
        assert [clock(t) for t in nodes[:-1]] == list(dict.fromkeys(told))
    asked = []
    predict = spread(published.schedule)
    for _ in published(lambda x, t: asked.append(clock(t)) or predict(x, t), np.ones((1, 2, 2, 1)),
                       steps=9):
        pass
    assert asked == told


@pytest.mark.parametrize("kind", ["EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep"])
@pytest.mark.parametrize("curve", ["use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas"])
def test_a_curve_through_the_only_level_of_training_is_told_as_that(kind, curve):
    assert scheduler(kind, num_train_timesteps=1, **{curve: True}).timesteps(1) == [0]


def test_steps_may_be_skipped_where_they_remember_nothing(x_T):
    published = scheduler("DDIM", **SD)
    predict = spread(published.schedule)
    chain = list(published(predict, x_T, steps=10))
    later = list(published(predict, chain[3], steps=10, skip=4))
    np.testing.assert_array_equal(later, chain[4:])


def test_a_config_is_found_in_its_folder(tmp_path):
    folder = tmp_path / "scheduler"
    folder.mkdir()
    file = folder / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "DDIMScheduler", **SD}))
    for path in (file, folder, tmp_path):
        assert load_scheduler(path).schedule.T == 1000
    with pytest.raises(FileNotFoundError, match=r"scheduler_config\.json"):
        load_scheduler(tmp_path / "elsewhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"_class_name": 3}', "[" * 9999, "\xff{}"])
def test_a_file_that_is_no_config_is_refused_by_name(text, tmp_path):
    file = tmp_path / "scheduler_config.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"scheduler_config\.json"):
        load_scheduler(file)


@pytest.mark.parametrize(("kind", "key", "value"), [
    ("DDPM", "variance_type", "fixed_large_log"), ("DDPM", "variance_type", "learned"),
    ("DDPM", "beta_schedule", "laplace"),
    ("DDPM", "prediction_type", "score"), ("PNDM", "prediction_type", "sample"),
    ("EulerDiscrete", "use_beta_sigmas", True), ("EulerDiscrete", "timestep_spacing", "cubic"),
    ("EulerDiscrete", "sigma_max", 700.0), ("EulerAncestralDiscrete", "prediction_type", "sample"),
    ("UniPCMultistep", "solver_p", {}), ("UniPCMultistep", "use_dynamic_shifting", True),
    ("UniPCMultistep", "solver_order", 4), ("UniPCMultistep", "disable_corrector", ["0"]),
    ("FlowMatchEulerDiscrete", "use_dynamic_shifting", True),
    ("FlowMatchEulerDiscrete", "invert_sigmas", True), ("FlowMatchEulerDiscrete", "shift", 0),
    ("DPMSolverMultistep", "algorithm_type", "rk4"), ("DPMSolverMultistep", "final_sigmas_type", 0),
    ("DDIM", "num_train_timesteps", 10**12), ("DDIM", "num_train_timesteps", 0),
    ("DDIM", "num_train_timesteps", "1000"), ("DDIM", "beta_end", "0.02"), ("DDIM", "beta_end", 2),
    ("DDIM", "beta_start", -1), ("DDIM", "beta_start", float("nan")),
    ("DDIM", "trained_betas", [0.1]), ("DDIM", "trained_betas", 0.5),
    ("UniPCMultistep", "disable_corrector", 3), ("DDIM", "trained_betas", [[]] * 1000),
    ("DDIM", "clip_sample", "yes"), ("DDIM", "steps_offset", 0.5), ("LCM", "timestep_scaling", []),
    ("LCM", "original_inference_steps", 0),
    ("DDIM", "dynamic_thresholding_ratio", 1.5),
])
def test_what_is_not_supported_is_refused_by_file_and_key(kind, key, value):
    with pytest.raises(ValueError, match=f"^scheduler_config.json: {key} "):
        scheduler(kind, **{key: value})


@pytest.mark.parametrize(("kind", "key", "config"), [
    ("DPMSolverMultistep", "final_sigmas_type", {"algorithm_type": "dpmsolver"}),
    ("UniPCMultistep", "final_sigmas_type", {"predict_x0": False}),
    ("DPMSolverMultistep", "solver_order", {
        "algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistep", "use_karras_sigmas", {
        "use_karras_sigmas": True, "use_exponential_sigmas": True}),
    ("DPMSolverMultistep", "use_flow_sigmas", {"use_flow_sigmas": True, "use_karras_sigmas": True}),
    ("UniPCMultistep", "prediction_type", {"prediction_type": "flow_prediction"}),
    ("UniPCMultistep", "prediction_type", {
        "prediction_type": "v_prediction", "use_flow_sigmas": True}),
    ("DDIM", "beta_schedule", {"beta_start": 0.0, "beta_end": 0.0}),
])
def test_what_has_no_sense_together_is_refused_by_key(kind, key, config):
    with pytest.raises(ValueError, match=f"^scheduler_config.json: {key}"):
        scheduler(kind, **config)


def test_what_a_class_does_not_read_is_ignored():
    odd = {"sigma_max": "?", "algorithm_type": 3, "_diffusers_version": "0.0.4", "solver_p": {}}
    assert scheduler("DDIM", **odd).nodes(4) == scheduler("DDIM").nodes(4)


@pytest.mark.parametrize(("kind", "asked"), [
    ("DDIM", {}), ("DDIM", {"steps": 0}), ("DDIM", {"steps": 1001}), ("DDIM", {"steps": 2.5}),
    ("DDIM", {"steps": 2, "timesteps": [3, 2]}), ("DDIM", {"timesteps": [3, 2]}),
    ("DDPM", {"timesteps": [2, 3]}), ("DDPM", {"timesteps": []}), ("DDPM", {"timesteps": [1000]}),
    ("DDPM", {"steps": 3, "eta": 0.5}), ("DDIM", {"steps": 3, "skip": 3}), ("PNDM", {"steps": 3}),
    ("LCM", {"steps": 51}), ("LCM", {"steps": 1.5}), ("DPMSolverMultistep", {"steps": 1000}),
    ("DDPM", {"timesteps": 7}), ("DDPM", {"timesteps": [None]}), ("DDPM", {"timesteps": "abc"}),
    ("DDPM", {"timesteps": [[9], [3, 2]]}), ("DDPM", {"timesteps": [float("inf"), 2]}),
    ("DDPM", {"timesteps": np.array(7)}), ("EulerDiscrete", {"timesteps": [float("nan")]}),
    ("EulerDiscrete", {"timesteps": {9: 1}}), ("EulerDiscrete", {"timesteps": [10**400]}),
])
def test_steps_that_cannot_be_walked_are_refused_at_once(kind, asked, x_T):
    with pytest.raises(ValueError, match=f"^{kind}Scheduler"):
        scheduler(kind)(None, x_T, **asked)
