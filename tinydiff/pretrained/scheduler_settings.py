"""What a scheduler_config.json may say: the keys of each class, their defaults, what clashes."""

from math import inf
from types import SimpleNamespace

from tinydiff.diffusion.samplers.published import FORMS
from tinydiff.pretrained.options import Options

PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}

# The keys that a class reads, with what each may be: a tuple of values, the default first; or else
# the default itself, for any number, a whole one if it is an int, also null if it is None.
OFF, ON, NEVER = (False, True, None), (True, False), (False, None)
SHAPES = "linear", "scaled_linear", "squaredcos_cap_v2"
LINSPACE, LEADING = ("linspace", "leading", "trailing"), ("leading", "linspace", "trailing")
EPS_OR_V = {"prediction_type": ("epsilon", "v_prediction")}
CLIP = {"clip_sample": ON, "clip_sample_range": 1.0}
THRESHOLD = {"thresholding": OFF, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": SHAPES,
         "trained_betas": None, "prediction_type": tuple(PREDICTS)[:3], "steps_offset": 0,
         "timestep_spacing": LINSPACE}
ZERO = {**BETAS, "rescale_betas_zero_snr": OFF}
CHAIN = {**ZERO, **CLIP, **THRESHOLD, "timestep_spacing": LEADING}
CURVES = {"use_karras_sigmas": OFF, "use_exponential_sigmas": OFF, "use_beta_sigmas": NEVER}
ENDS = {"sigma_min": (None,), "sigma_max": (None,)}
SOLVER = {**ZERO, **THRESHOLD, **CURVES, "prediction_type": tuple(PREDICTS), "flow_shift": 1.0,
          "use_flow_sigmas": OFF, "use_dynamic_shifting": NEVER, "solver_order": (2, 1, 3),
          "lower_order_final": ON, "final_sigmas_type": ("zero", "sigma_min")}
KEYS = {
    "DDPM": {**CHAIN, "beta_schedule": (*SHAPES, "sigmoid"), "variance_type": (
        "fixed_small", "fixed_small_log", "fixed_large", "learned_range")},
    "DDIM": {**CHAIN, "set_alpha_to_one": ON},
    "PNDM": {**BETAS, **EPS_OR_V, "timestep_spacing": LEADING, "set_alpha_to_one": (False, True),
             "skip_prk_steps": (False, True)},
    "LCM": {**CHAIN, "beta_schedule": (SHAPES[1], *SHAPES), "beta_start": 0.00085,
            "beta_end": 0.012, "clip_sample": OFF, "original_inference_steps": 50,
            "timestep_scaling": 10.0},
    "EulerDiscrete": {**ZERO, **CURVES, **ENDS, "interpolation_type": ("linear", "log_linear"),
                      "timestep_type": ("discrete", "continuous"),
                      "final_sigmas_type": ("zero", "sigma_min")},
    "EulerAncestralDiscrete": {**ZERO, **EPS_OR_V},
    "HeunDiscrete": {**BETAS, **CURVES, **CLIP, "clip_sample": OFF, "beta_start": 0.00085,
                     "beta_end": 0.012},
    "DPMSolverMultistep": {**SOLVER, "use_lu_lambdas": OFF, "euler_at_final": OFF,
                           "algorithm_type": tuple(FORMS),
                           "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
                           "lambda_min_clipped": -inf},
    "UniPCMultistep": {**SOLVER, **ENDS, "predict_x0": ON, "disable_corrector": [],
                       "solver_type": ("bh2", "bh1", "midpoint", "heun", "logrho"),
                       "solver_p": (None,), "shift_terminal": None},
    "FlowMatchEulerDiscrete": {**CURVES, "num_train_timesteps": 1000, "shift": 1.0,
                               "shift_terminal": None, "stochastic_sampling": OFF,
                               "use_dynamic_shifting": NEVER, "invert_sigmas": NEVER},
}
CURVED = "use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas"
LISTS = "trained_betas", "disable_corrector"              # of numbers; all others are one
LEAST = {"num_train_timesteps": 1, "original_inference_steps": 1, "shift": 1e-3, "flow_shift": 1e-3,
         "shift_terminal": 1e-3, "lambda_min_clipped": -inf}                          # others 0
MOST  = dict.fromkeys(("beta_start", "beta_end", "trained_betas", "dynamic_thresholding_ratio"), 1)
SIZE  = 100_000                                           # others; no memory for nonsense
CLASHES = [     # (key, whether its value has no sense beside the others, what would have)
    ("trained_betas", lambda c: len(c.trained_betas or [0] * c.num_train_timesteps)
     != c.num_train_timesteps, "num_train_timesteps of them"),
    ("use_karras_sigmas", lambda c: len(c.curves) > 1, "one curve of sigmas"),
    ("use_flow_sigmas", lambda c: c.use_flow_sigmas and c.curves and
     (c.kind, *c.curves) != ("UniPCMultistep", CURVED[0]), "no curve beside it"),
    ("prediction_type", lambda c: {
        "v_prediction": c.use_flow_sigmas, "flow_prediction": c.in_eps or not c.use_flow_sigmas
     }.get(c.prediction_type),
     "'flow_prediction' with use_flow_sigmas where x0 is solved for, else 'v_prediction'"),
    ("final_sigmas_type", lambda c: c.in_eps and c.final_sigmas_type == "zero",
     "'sigma_min' where eps is solved for"),
    ("solver_order", lambda c: c.algorithm_type == "sde-dpmsolver" and c.solver_order == 3,
     "1 or 2 with sde-dpmsolver")]


class Settings(SimpleNamespace):
    """The values of the keys that a class reads, and `kind`, its name; any other is None."""

    def __getattr__(self, key):
        return None


def read(config, file):
    """The Settings of a config, a dict; ValueError naming file and key for another value."""
    options = Options(config, file)
    name = options.choice("_class_name", None, *(f"{kind}Scheduler" for kind in KEYS))
    c = Settings(kind=name.removesuffix("Scheduler"))
    for key, values in KEYS[c.kind].items():
        setattr(c, key, taken(options, key, values))
    c.curves = [key for key in CURVED if getattr(c, key)]
    c.in_eps = c.predict_x0 is False or c.algorithm_type in ("dpmsolver", "sde-dpmsolver")
    for key, clashes, expected in CLASHES:
        if clashes(c):
            raise ValueError(f"{file}: {key} {getattr(c, key)!r:.100} is not supported here; "
                             f"expected {expected}")
    return c


def taken(options, key, values):
    """The value of a key, one of those in KEYS; ValueError for another."""
    if isinstance(values, tuple):
        return options.choice(key, values[0], *values)
    low, high, many = LEAST.get(key, 0), MOST.get(key, SIZE), key in LISTS
    whole = type(values) is int or values == []
    number = lambda x: type(x) in ((int,) if whole else (int, float)) and low <= x <= high
    numbers = lambda xs: type(xs) is list and len(xs) <= SIZE and all(map(number, xs))
    return options.take(
        key, values, lambda value: value is values or (numbers if many else number)(value),
        f"{'a list of ' * many}{'whole ' * whole}number{'s' * many} from {low} to {high}")
