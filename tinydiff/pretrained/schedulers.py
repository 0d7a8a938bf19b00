"""Published schedulers: scheduler_config.json becomes a sampler that steps as its authors' code.

    for x_t in load_scheduler("stable-diffusion-v1-5/scheduler")(predict, x_T, steps=20): ...

Each x_t is signal(t)·x0 + noise(t)·eps of `.schedule`, also where diffusers keeps it divided by
signal (Euler, Heun). In a chain our t is their timestep + 1, in a flow T·σ, elsewhere whatever is
as noisy as the step; what the network is told there, `clock` knows.
"""

from functools import partial
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from tinydiff.diffusion.prediction import from_x0
from tinydiff.diffusion.process import across
from tinydiff.diffusion.samplers import fixed_large, fixed_small, heun, published
from tinydiff.diffusion.schedule import Schedule
from tinydiff.pretrained import timesteps as grids
from tinydiff.pretrained.scheduler_settings import PREDICTS, read
from tinydiff.pretrained.tensors import read_json


def load_scheduler(path):
    """The Scheduler of a scheduler_config.json, or of the folder it is in, or that has scheduler/.

    FileNotFoundError if there is none; ValueError naming file and key for what is not supported.
    """
    name = "scheduler_config.json"
    files = [file for file in (Path(path), Path(path, name), Path(path, "scheduler", name))
             if file.is_file()]
    if not files:
        raise FileNotFoundError(f"{path} holds no {name}")
    return Scheduler(read_json(files[0]), files[0])


class Scheduler:
    """A sampler `(predict, x_T, schedule=its own, *, steps, …)` with the steps of a config, a dict.

    `schedule` is ours, `predicts` what its network says, `config` as given: with another
    "_class_name" it is another scheduler of the model. ValueError naming `file` and key.
    """

    def __init__(self, config, file="scheduler_config.json"):
        self.config, self.settings = config, read(config, file)
        self.name = f"{self.settings.kind}Scheduler"
        self.predicts = PREDICTS.get(self.settings.prediction_type, "velocity")
        try:
            self.schedule, self.sigmas = training(self.settings)
        except ValueError as error:
            raise ValueError(f"{file}: beta_schedule: {error}") from None

    def plan(self, steps=None, timesteps=None):
        """(nodes, told): our n + 1 times, and the timestep that the network is told at the first n.

        `timesteps` list the checkpoint's own, where diffusers takes them. ValueError for both,
        neither, and what cannot be walked.
        """
        c, T, top = self.settings, self.schedule.T, self.schedule.sigma(self.schedule.T)
        given = timesteps.tolist() if isinstance(timesteps, np.ndarray) else timesteps
        listed = isinstance(given, (list, tuple, range)) and all(
            isinstance(t, Real) and 0 <= t <= T for t in given)
        n = len(given) if listed else steps
        least = 4 if c.skip_prk_steps is False else 1
        most = c.original_inference_steps or c.num_train_timesteps
        fixed = c.curves or c.use_flow_sigmas or c.kind in GIVEN_NONE
        if (steps is None) == (timesteps is None) or not isinstance(n, Integral) \
                or not least <= n <= most or (timesteps is not None and fixed):
            raise ValueError(f"{self.name}: expected steps, a whole number from {least} to {most}"
                             f"{'' if fixed else ', or as many timesteps'}, got steps={steps} and "
                             f"timesteps={given}")
        with np.errstate(all="ignore"):                   # what is no number does not fall
            nodes, told = GRIDS[c.kind](c, self.sigmas, n, given)
        if c.shift or c.use_flow_sigmas:
            nodes = [sigma * T for sigma in np.float32(nodes).tolist()]
        elif self.sigmas is not None:
            nodes = [round(self.schedule.time(min(sigma, top)), 9)
                     for sigma in np.float32(nodes).tolist()]
        if not (nodes[0] <= T and 0 <= nodes[-1] and all(t > s for t, s in pairwise(nodes[:-1]))):
            raise ValueError(f"{self.name}: these {n} steps do not fall; take fewer")
        return nodes, np.asarray(told).tolist()

    def nodes(self, steps):
        """Our times of so many steps, both ends included: n + 1."""
        return self.plan(steps)[0]

    def timesteps(self, steps):
        """What the network is told at each of its calls, in the checkpoint's own counting."""
        return grids.calls(self.settings, self.plan(steps)[1])

    def clock(self, steps=None, timesteps=None):
        """A function from our t to what the network is told there."""
        if GRIDS[self.settings.kind] is grids.chain:
            return lambda t: t - 1
        return dict(zip(*self.plan(steps, timesteps))).__getitem__

    def start_std(self, steps):
        """What a standard normal is multiplied by to be x_T."""
        c = self.settings
        whole = GRIDS[c.kind] is not grids.sigma_space or c.timestep_spacing == "leading"
        return 1.0 if whole else self.schedule.noise(self.nodes(steps)[0])

    def __call__(self, predict, x_T, schedule=None, *, steps=None, timesteps=None, seed=0,
                 noise=None, skip=0, **own):
        """Yield x_t (N, …) after every step but the first `skip`, with x_T where those end.

        DDIM takes eta and use_clipped_model_output. ValueError for another option.
        """
        (nodes, _), c = self.plan(steps, timesteps), self.settings
        takes = ["eta", "use_clipped_model_output"] if c.kind == "DDIM" else []
        if own.keys() - set(takes) or x_T.dtype.kind != "f" or not 0 <= skip < len(nodes) - 1:
            raise ValueError(f"{self.name}: expected floats, skip below the number of steps, and "
                             f"no options but {takes}, got {x_T.dtype}, {skip} and {list(own)}")
        schedule = schedule or self.schedule
        keeps_eps = c.kind == "DDIM" and not own.pop("use_clipped_model_output", False)
        if (c.thresholding and c.predict_x0 is not False) or c.clip_sample:
            predict = limited(predict, schedule, c, keeps_eps)
        return steps_of(c, nodes, skip)(predict, x_T, schedule, timesteps=nodes[skip:], seed=seed,
                                        noise=noise, **own)


def training(c):
    """(schedule, sigmas): ours, and the levels (T,) where nodes are found by level, or None."""
    T, in_chain = c.num_train_timesteps, GRIDS[c.kind] is grids.chain
    if c.shift:
        return Schedule.flow(T), None
    table, sigmas = grids.alpha_bars(c), None
    if not in_chain:
        if c.rescale_betas_zero_snr:                      # not quite zero, nor the last to fall
            table[-1] = 2.0**-24
        sigmas = ((1 - table[1:]) / table[1:]).astype(np.float32) ** 0.5
        table = np.maximum(table, table[-1] * (1 + 1e-6 * np.arange(T, -1, -1)))
    schedule = Schedule.from_alpha_bar(table, c.beta_schedule)
    return Schedule.flow(T) if c.use_flow_sigmas else schedule, sigmas


def steps_of(c, nodes, skip):
    """The sampler that steps as a class does from nodes[skip:]."""
    n = len(nodes) - 1
    strides = {"stride": c.num_train_timesteps // n, "final": 0 if c.set_alpha_to_one else 1}
    variance = fixed_large if c.variance_type == "fixed_large" else fixed_small
    walks = {
        "DDPM": partial(published.ddpm, variance=variance),
        "DDIM": partial(published.ddim, **strides),
        "PNDM": partial(published.pndm, **strides, predicts=PREDICTS.get(c.prediction_type),
                        runge_kutta=not c.skip_prk_steps and n - skip > 3),
        "LCM": partial(published.renoised, skip=lambda t: 0.25 / (
            (c.timestep_scaling * (t - 1)) ** 2 + 0.25)),
        "HeunDiscrete": heun}
    if c.kind in walks or c.stochastic_sampling:
        return walks.get(c.kind, published.renoised)
    is_unipc, orders = c.kind == "UniPCMultistep", [c.solver_order or 1] * n
    if c.lower_order_final and (n < 15 or is_unipc):
        orders = [min(order, n - step) for step, order in enumerate(orders)]
    if c.euler_at_final or nodes[-1] in (0, nodes[-2]):
        orders[-1] = 1
    form = c.algorithm_type or ("sde-dpmsolver++" if c.kind == "EulerAncestralDiscrete" else
                                "dpmsolver" if c.in_eps else "dpmsolver++")
    weigh = partial(published.unified, first_order=c.solver_type == "bh1") if is_unipc else \
        partial(published.taylor, midpoint=c.solver_type != "heun",
                half=-0.5 if form == "sde-dpmsolver++" else 0.5)
    corrected = {*range(skip, n)} - {*c.disable_corrector} if is_unipc else ()
    return partial(published.linear_multistep, form=published.FORMS[form], orders=orders[skip:],
                   weigh=weigh, corrected={step - skip for step in corrected})


def limited(predict, schedule, c, keeps_eps):
    """`predict` with x0 thresholded (Imagen, §2.3) or clipped; eps follows unless it is kept."""

    def predict_inside(x_t, t):
        p, most = predict(x_t, t), c.clip_sample_range
        if c.thresholding:
            rows = abs(p.x0).reshape(len(p.x0), -1)
            most = np.quantile(rows, c.dynamic_thresholding_ratio, axis=1)
            most = across(most.clip(1, c.sample_max_value), p.x0)
        x0 = p.x0.clip(-most, most) / (most if c.thresholding else 1)
        return p._replace(x0=x0) if keeps_eps else \
            from_x0(x_t, x0, *schedule.levels(t))._replace(log_variance=p.log_variance)

    return predict_inside


GIVEN_NONE = "DDIM", "PNDM", "EulerAncestralDiscrete", "UniPCMultistep"    # of timesteps
GRIDS = {"FlowMatchEulerDiscrete": grids.flow, "DPMSolverMultistep": grids.log_snr_space,
         "UniPCMultistep": grids.log_snr_space, "HeunDiscrete": grids.sigma_space,
         "EulerDiscrete": grids.sigma_space, "EulerAncestralDiscrete": grids.sigma_space,
         **dict.fromkeys(("DDPM", "DDIM", "PNDM", "LCM"), grids.chain)}
