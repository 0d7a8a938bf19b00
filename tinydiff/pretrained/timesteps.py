"""How noisy the training of a published scheduler was, and where its n steps go.

A grid is a function (c, sigmas, n, given) -> (nodes, told): c has the settings of the config,
sigmas (T,) are the levels of training, `given` are timesteps in place of n spaced ones. Nodes are
n + 1 levels, or in a chain our times; the network is told one timestep for each but the last.
"""

from itertools import pairwise
from math import inf

import numpy as np

from tinydiff.diffusion.spacing import karras_sigmas


@np.errstate(all="ignore")                               # a Schedule finds what does not fall
def alpha_bars(c):
    """ᾱ (T + 1,) in float32's numbers: timesteps cut to whole ones depend on the last bit."""
    T, start, end = c.num_train_timesteps, c.beta_start, c.beta_end
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2    # iDDPM Eq. 17
    beta = np.array(c.trained_betas) if c.trained_betas else {
        "linear": lambda: _even(start, end, T),
        "scaled_linear": lambda: _even(np.sqrt(start), np.sqrt(end), T) ** 2,
        "sigmoid": lambda: start + (end - start) / (1 + np.exp(-_even(-6, 6, T))),
        "squaredcos_cap_v2": lambda: np.minimum(1 - f[1:] / f[:-1], 0.999)}[c.beta_schedule]()
    alpha = 1 - beta.astype(np.float32)
    table = np.cumprod([1.0, *alpha.tolist()]).astype(np.float32)
    if c.rescale_betas_zero_snr:                         # Lin et al. 2305.08891, Alg. 1
        root = table[1:] ** 0.5
        table[1:] = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return table.astype(np.float64)


def _even(start, end, n):
    """n even numbers as torch.linspace has them: counted from both ends, rounded once."""
    start, end = np.float32(start), np.float32(end)
    step, i = np.float64((end - start) / np.float32(max(1, n - 1))), np.arange(n)
    return np.where(i < n // 2, start + step * i, end - step * (n - 1 - i)).astype(np.float32)


def spaced(c, n, last, below=0):
    """n timesteps that fall inside [0, last) as timestep_spacing says, with `below` more below."""
    if c.timestep_spacing == "trailing":
        return np.arange(last, 0, -c.num_train_timesteps / n).round()[:n] - 1
    if c.timestep_spacing == "leading":
        return np.arange(n + below)[::-1][:n] * (last // (n + below)) + c.steps_offset
    return np.linspace(0, last - 1, n + below)[::-1][:n]


def chain(c, sigmas, n, given):
    """DDPM, DDIM, PNDM: whole timesteps. LCM: a few of those that it was distilled with."""
    told = given
    if given is None and c.original_inference_steps:
        m = c.original_inference_steps
        told = np.arange(m, 0, -1)[np.arange(n) * m // n] * (c.num_train_timesteps // m) - 1
    elif given is None:
        told = spaced(c, n, c.num_train_timesteps).round()
    return [*(int(t) + 1 for t in told), 0], [int(t) for t in told]


def sigma_space(c, sigmas, n, given):
    """Euler, Heun: timesteps need not be whole; a curve leads between the first and the last."""
    T = c.num_train_timesteps
    told = spaced(c, n, T) if given is None else given
    levels = np.interp(told, np.arange(T), sigmas)
    if c.interpolation_type == "log_linear":
        levels = np.geomspace(sigmas[-1], sigmas[0], n + 1)
    if c.curves:
        levels, told = curve(c, n, levels[-1], levels[0], sigmas)
    if c.timestep_type == "continuous" and c.prediction_type == "v_prediction":
        return [*levels, _last(c, sigmas)], 0.25 * np.log(levels)
    return [*levels, _last(c, sigmas)][:n + 1], told


def log_snr_space(c, sigmas, n, given):
    """DPM-Solver, UniPC: one timestep more, dropped; a curve over all levels; told whole ones."""
    T, is_unipc = c.num_train_timesteps, c.predict_x0 is not None
    clip = -inf if c.lambda_min_clipped is None else c.lambda_min_clipped
    top = T - int(np.searchsorted(-np.log(sigmas[::-1]), clip))
    told = spaced(c, n, top, below=1).round() if given is None else given
    levels, last = np.interp(told, np.arange(T), sigmas), _last(c, sigmas)
    if c.curves:
        levels, told = curve(c, n, sigmas[0], sigmas[-1], sigmas)
        if not c.use_exponential_sigmas and (is_unipc or c.beta_schedule != "squaredcos_cap_v2"):
            told = told.round()
    if c.use_flow_sigmas:
        even = np.linspace(1, 1 / T, n + 1)[:-1] if is_unipc else \
            1 - np.linspace(1, 1 / T, n + 1)[:0:-1]
        levels = levels / (levels + 1) if c.curves else \
            np.minimum(shifted(c, even), 1 - 1e-6)
        told = levels * T
    if is_unipc and last and (c.curves or c.use_flow_sigmas):
        last = levels[-1]
    return [*levels, last], np.trunc(told)


def flow(c, sigmas, n, given):
    """FlowMatchEuler: shifted, from a range whose lower end was shifted already."""
    T, lowest = c.num_train_timesteps, c.shift / (c.num_train_timesteps + c.shift - 1)
    levels = shifted(c, np.linspace(T, T * lowest, n) / T if given is None else np.divide(given, T))
    if c.curves:
        levels, _ = curve(c, n, levels[-1], levels[0], levels[::-1])
    return [*levels, 0.0], levels * T if given is None else given


def curve(c, n, low, high, sigmas):
    """(levels, told): n from high to low, and where training had them.

    Karras's are even in σ^(1/7), others in log σ, which is linear between two timesteps: the
    last that is not above, and the next. Of zero SNR the very last is not the highest.
    """
    low, high = float(low), float(high)
    ends = np.log(np.array([high, low], np.float32 if c.use_lu_lambdas else np.float64)).tolist()
    levels = karras_sigmas(n, low, high)[:n] if c.use_karras_sigmas else \
        np.exp(np.linspace(*ends, n))
    x, logs = np.log(levels), np.log(sigmas)
    k = np.searchsorted(np.minimum(logs, logs[-1]), x, side="right") - 1
    k = k.clip(0, len(logs) - 2)
    w = (logs[k] - x) / (logs[k] - logs[k + 1])
    return levels, np.fmax(0, k + w.clip(0, 1))           # 0 where there is but one


def shifted(c, sigma):
    """More of the way in noise, Esser et al. 2403.03206 Eq. 23; then spread to shift_terminal."""
    shift, end = c.shift or c.flow_shift, c.shift_terminal
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    return 1 - (1 - sigma) / ((1 - sigma[-1]) / (1 - end)) if end else sigma


def _last(c, sigmas):
    return sigmas[0] if c.final_sigmas_type == "sigma_min" else 0.0


def calls(c, told):
    """The timestep of each call: Heun's are asked twice, and PNDM's where it begins, or in between.

    Of three Runge–Kutta steps each asks four times.
    """
    if c.kind == "HeunDiscrete":
        return told[:1] + [t for t in told[1:] for _ in range(2)]
    if c.kind != "PNDM":
        return told
    if c.skip_prk_steps:
        return told[:2] + told[1:]
    half = c.num_train_timesteps // len(told) // 2
    begun = [(t, s + half, s + half, s) for t, s in pairwise(told[:4])]
    return [*(t for four in begun for t in four), *told[3:]]
