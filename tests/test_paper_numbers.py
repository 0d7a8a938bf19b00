"""Numbers that the papers print, or that follow from what they print, found again."""

from statistics import NormalDist

import numpy as np
import pytest

from tinydiff.diffusion.objective import draw, unweighted, vlb_weight
from tinydiff.diffusion.prediction import edm_scale, from_edm, from_eps
from tinydiff.diffusion.schedule import Schedule
from tinydiff.diffusion.spacing import karras_sigmas, linspace

LINEAR, COSINE, KARRAS = Schedule.linear(), Schedule.cosine(), Schedule.karras()


def test_at_the_first_step_the_golden_weight_is_that_of_the_large_variance():
    assert vlb_weight(LINEAR, 1, 0, "eps", LINEAR.beta[1]) == pytest.approx(0.50005001, rel=1e-8)


def test_descent_on_the_simple_loss_reaches_the_best_linear_model():
    """eps ≈ w_t x_t for x0 ~ N(0, v): the best w_t is noise/(signal² v + noise²).  DDPM Alg. 1"""
    schedule, v, w = Schedule.from_alpha_bar([1, 0.9, 0.5, 0.1]), 0.25, np.zeros(4)
    rng, steps = np.random.default_rng(0), 60
    for step in range(steps):
        x0 = v**0.5 * rng.standard_normal((64, 50))
        d = draw(schedule, x0, "eps", seed=0, step=step)
        for t in (1, 2, 3):
            x_t, target = d.x_t[d.t == t], d.target[d.t == t]
            gradient = (x_t * (w[t] * x_t - target)).mean()
            w[t] -= (1 if step < 10 else 10 / step) * gradient       # settles as it averages
    t = np.arange(1, 4)
    best = schedule.noise(t) / (schedule.signal(t) ** 2 * v + schedule.noise(t) ** 2)
    np.testing.assert_allclose(w[1:], best, rtol=0.02)


@pytest.mark.parametrize(("T", "golden"), [(1000, 0.00643), (4000, 0.00314)])
def test_the_cosines_offset_keeps_the_first_noise_below_a_pixels_bin(T, golden):
    deviation = Schedule.cosine(T).beta[1] ** 0.5
    assert deviation == pytest.approx(golden, abs=5e-6)              # iDDPM §3.2
    assert deviation < 1 / 127.5


def test_log_snr_drawn_as_classifier_free_guidance_does_is_a_cosine():
    """λ = −2 log tan(au + b) between ±20: CFG §2."""
    b = np.arctan(np.exp(-10))
    a = np.arctan(np.exp(10)) - b
    schedule = Schedule.from_alpha_bar([1, *np.cos(a * np.linspace(0, 1, 5) + b) ** 2])
    golden = [20, 1.7626188, 0, -1.7626188, -20]
    np.testing.assert_allclose(schedule.log_snr(np.arange(1, 6)), golden, rtol=2e-8, atol=1e-12)
    t = np.arange(1, 1000)
    wide = -2 * np.log(np.tan(np.pi / 2 * t / 1000))                 # ±∞: iDDPM's without offset
    np.testing.assert_allclose(Schedule.cosine(s=0).log_snr(t), wide, rtol=1e-9, atol=1e-12)


# EDM Table 1: three earlier designs and its own, in one language.

def vp(T=1000, beta_d=19.9, beta_min=0.1):
    """ᾱ = exp(−½ β_d τ² − β_min τ) of τ = t/T: what `linear` tends to as T grows."""
    return Schedule.from_alpha_bar(lambda tau: np.exp(-0.5 * beta_d * tau**2 - beta_min * tau), T=T)


def test_the_vp_column_is_a_schedule_with_its_inverse_and_its_steps():
    schedule = vp()
    assert schedule.sigma(1000) == pytest.approx(152.16697, rel=1e-8)
    assert schedule.sigma(1) == pytest.approx(0.010485993, rel=1e-7)
    for t in (1, 250, 999):
        sigma = schedule.sigma(t)
        inverse = ((0.1**2 + 2 * 19.9 * np.log(1 + sigma**2)) ** 0.5 - 0.1) / 19.9
        assert schedule.time(sigma) / 1000 == pytest.approx(inverse, rel=1e-9)
        assert schedule.signal(t) ** 2 * (1 + sigma**2) == pytest.approx(1, rel=1e-12)
    N, eps_s = 28, 1e-3
    times = 1 + np.arange(N) / (N - 1) * (eps_s - 1)
    np.testing.assert_allclose(linspace(schedule, N), [*1000 * times, 0], rtol=1e-12)
    gaps = [np.abs(Schedule.linear(T).log_snr(np.arange(1, 101) * T / 100)
                   - vp().log_snr(np.arange(10, 1001, 10))).max() for T in (1000, 4000)]
    assert gaps[1] == pytest.approx(gaps[0] / 4, rel=0.05)           # its limit, at order 1


def test_the_ve_column_is_karras_spacing_of_a_large_rho():
    i = np.arange(50)
    sigma = (100**2 * (0.02**2 / 100**2) ** (i / 49)) ** 0.5         # σ = √t of its time steps
    gaps = [np.abs(karras_sigmas(50, 0.02, 100, rho)[:-1] / sigma - 1).max() for rho in (1e3, 2e3)]
    assert gaps[0] == pytest.approx(np.log(100 / 0.02) ** 2 / 8e3, rel=0.01)     # in the middle
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.01)                       # none as ρ → ∞
    schedule = Schedule.from_levels(np.ones(51), [0, *sigma[::-1]])
    assert schedule.prior_std == pytest.approx(100)
    assert [schedule.time(s) for s in sigma] == pytest.approx(list(range(50, 0, -1)))


def test_the_iddpm_column_is_the_cosine_schedule_read_backwards():
    M, C1, C2, u = 1000, 0.001, 0.008, [0.0]
    alpha_bar = np.sin(np.pi / 2 * np.arange(M + 1) / (M * (C2 + 1))) ** 2
    for j in range(M, 0, -1):
        u.insert(0, ((u[0] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], C1) - 1) ** 0.5)
    assert u[0] == pytest.approx(20291.17, rel=1e-7)
    assert u[8] == pytest.approx(80.20370, rel=1e-7)
    np.testing.assert_allclose(COSINE.sigma(M - np.arange(M)), u[:-1], rtol=1e-6)
    N, j0 = 18, 8
    steps = np.floor(j0 + (M - 1 - j0) / (N - 1) * np.arange(N) + 0.5).astype(int)
    lower = COSINE.respaced(range(M - j0 + 1))                       # starts at u_8, σ = 80.2
    assert linspace(lower, N) == [*(M - steps).tolist(), 0]


def test_networks_of_the_earlier_columns_name_eps_and_see_x_t(rng):
    x, eps, other = rng.standard_normal((3, 6))
    for schedule in (vp(), COSINE):
        signal, noise = schedule.levels(300)
        sigma = noise / signal
        assert signal == pytest.approx(1 / (sigma**2 + 1) ** 0.5)                # c_in
        D = from_eps(signal * x, eps, signal, noise).x0
        np.testing.assert_allclose(D, 1 * x - sigma * eps, rtol=1e-10)           # c_skip, c_out
        loss = (from_eps(signal * x, other, signal, noise).x0 - D) ** 2 / sigma**2   # λ = 1/σ²
        weight = unweighted(schedule.snr(300), "eps")
        np.testing.assert_allclose(loss, weight * (other - eps) ** 2, rtol=1e-9)
    ve = Schedule.from_levels([1, 1], [0, 3])                        # its network names −eps
    np.testing.assert_allclose(from_eps(x, -eps, *ve.levels(1)).x0, x + 3 * eps)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_edms_own_column_has_unit_variance_going_in_and_coming_out(sigma):
    sigma_data, x = 0.5, np.array([1.0])
    c_skip = from_edm(x, 0 * x, 1.0, sigma).x0.item()
    c_out = from_edm(0 * x, x, 1.0, sigma).x0.item()
    assert edm_scale(1.0, sigma) ** 2 * (sigma_data**2 + sigma**2) == pytest.approx(1)   # c_in
    assert (1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * sigma**2 == pytest.approx(c_out**2)
    for other in (c_skip - 0.01, c_skip + 0.01):                     # c_skip asks least of F
        assert (1 - other) ** 2 * sigma_data**2 + other**2 * sigma**2 > c_out**2
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    assert weight * c_out**2 == pytest.approx(1)                                 # λ


def test_noise_levels_of_training_may_be_drawn_as_edm_draws_them():
    """ln σ ~ N(−1.2, 1.2²), by a function of times: EDM Table 1."""
    normal = NormalDist(-1.2, 1.2)

    def times(u):
        return np.array([KARRAS.time(np.exp(normal.inv_cdf(p))) for p in u]), 1.0

    log_sigma = np.log(KARRAS.sigma(draw(KARRAS, np.zeros((2000, 1)), "edm", seed=1, step=0,
                                         times=times).t))
    assert log_sigma.mean() == pytest.approx(-1.2, abs=4 * 1.2 / 2000**0.5)
    assert log_sigma.std() == pytest.approx(1.2, rel=4 / 4000**0.5)
