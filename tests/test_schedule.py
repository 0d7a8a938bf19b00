"""Noise schedules: golden tables, the forward chain, the posterior, and times between the rows."""

import json

import numpy as np
import pytest

from tinydiff.diffusion.process import across
from tinydiff.diffusion.schedule import Schedule

SCHEDULES = [Schedule.linear(), Schedule.cosine(), Schedule.scaled_linear(), Schedule.linear(50),
             Schedule.sigmoid_beta(), Schedule.sigmoid_alpha_bar()]
NO_VP = [Schedule.karras(), Schedule.flow(), Schedule.flow(200, shift=3.0)]     # variance not kept
ENDS_WITHOUT_SIGNAL = [Schedule.flow(), Schedule.scaled_linear().zero_terminal_snr()]


@pytest.mark.parametrize(("schedule", "beta_1", "beta_T", "alpha_bar_T", "sigma_max"), [
    (Schedule.linear(1000), 1e-4, 0.02, 4.03583e-5, 157.41),
    (Schedule.linear(4000), 2.5e-5, 0.005, 4.24665e-5, 153.45),
    (Schedule.scaled_linear(1000), 8.5e-4, 0.012, 4.66010e-3, 14.615),
    (Schedule.scaled_linear(1000, start=0.0015, end=0.0195), 1.5e-3, 0.0195, 1.42304e-4, 83.82),
    (Schedule.cosine(1000), 4.12842e-5, 0.999, 2.42877e-9, 20291),
    (Schedule.cosine(4000), 9.86582e-6, 0.999, 1.51798e-10, 81165),
    (Schedule.sigmoid_beta(), 1.49205e-4, 0.0199508, 3.96818e-5, 158.74),
    (Schedule.sigmoid_alpha_bar(), 3.00279e-4, 0.999, 3.00279e-7, 1824.9),
])
def test_tables_have_the_papers_ends(schedule, beta_1, beta_T, alpha_bar_T, sigma_max):
    T = schedule.T
    assert schedule.beta[1] == pytest.approx(beta_1, rel=3e-6)
    assert schedule.beta[T] == pytest.approx(beta_T, rel=3e-6)
    assert schedule.alpha_bar[T] == pytest.approx(alpha_bar_T, rel=3e-6)
    assert schedule.sigma(T) == pytest.approx(sigma_max, rel=4e-5)


@pytest.mark.parametrize(("schedule", "crossing"), [
    (Schedule.linear(), 258), (Schedule.scaled_linear(), 354), (Schedule.cosine(), 495),
])
def test_signal_equals_noise_where_the_papers_say(schedule, crossing):
    snr = schedule.snr(np.arange(1001))
    assert np.abs(snr - 1).argmin() == pytest.approx(crossing, abs=1)
    assert schedule.snr(0) == np.inf


@pytest.mark.parametrize(("t", "alpha_bar", "variance", "c_0", "c_t"), [
    (1, 0.9999, 0, 1, 0),
    (2, 0.9997800921, 5.453187661e-5, 0.5452914995, 0.454708499),
    (10, 0.9981052048, 2.381820278e-4, 0.1472737174, 0.8527262261),
    (100, 0.8970181457, 2.034596259e-3, 0.01907634532, 0.9808960213),
    (500, 0.07858724288, 0.01003135541, 0.003070071114, 0.9941066702),
    (1000, 4.035829765e-5, 0.01999998353, 1.283514872e-4, 0.9899486783),
])
def test_linear_posterior_has_the_golden_coefficients(t, alpha_bar, variance, c_0, c_t):
    schedule, one, none = Schedule.linear(), np.ones((1, 1)), np.zeros((1, 1))
    assert schedule.alpha_bar[t] == pytest.approx(alpha_bar, rel=1e-9)
    assert schedule.posterior(one, none, t)[0].item() == pytest.approx(c_0, rel=1e-9, abs=1e-15)
    assert schedule.posterior(none, one, t)[0].item() == pytest.approx(c_t, rel=1e-9, abs=1e-15)
    assert schedule.posterior(one, one, t)[1] == pytest.approx(variance, rel=1e-9, abs=1e-15)


def test_cosine_caps_only_its_last_beta():
    schedule = Schedule.cosine(1000)
    assert np.flatnonzero(schedule.beta == 0.999).tolist() == [1000]
    assert schedule.alpha_bar[500] == pytest.approx(0.4938436, abs=5e-8)


def test_linear_keeps_the_process_when_T_changes():
    gaps, time = [], np.linspace(0, 1, 101)                       # t/T
    for T in (1000, 4000):
        limit = -(0.1 * time + (20 - 0.1) / 2 * time**2)          # −∫ beta·T d(t/T), as T → ∞
        gaps.append(np.abs(np.log(Schedule.linear(T).alpha_bar_at(T * time)) - limit).max())
    assert gaps[0] < 0.1
    assert gaps[1] == pytest.approx(gaps[0] / 4, rel=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_q_sample_is_t_steps_of_the_forward_chain(schedule):
    x0, t = np.full((1, 1), 0.7), schedule.T // 3
    mean, variance = x0.item(), 0.0
    for beta in schedule.beta[1:t + 1]:
        mean, variance = (1 - beta) ** 0.5 * mean, (1 - beta) * variance + beta      # DDPM Eq. 2
    still, one = np.zeros((1, 1)), np.ones((1, 1))
    assert schedule.q_sample(x0, t, still).item() == pytest.approx(mean, rel=1e-12)
    assert schedule.q_sample(still, t, one).item() ** 2 == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("schedule", [*SCHEDULES, *NO_VP, *ENDS_WITHOUT_SIGNAL])
def test_posterior_carries_the_marginal_at_t_to_the_marginal_at_s(schedule):
    one, none = np.ones((1, 1)), np.zeros((1, 1))
    T = schedule.T
    for t, s in [(T, T - 1), (T // 2, T // 3), (2, 1), (1, 0), (T, 0), (T / 3, T / 7)]:
        c_0, variance = schedule.posterior(one, none, t, s)
        c_t, _ = schedule.posterior(none, one, t, s)
        assert c_0 + c_t * schedule.signal(t) == pytest.approx(schedule.signal(s), rel=1e-10)
        assert c_t**2 * schedule.noise(t) ** 2 + variance == pytest.approx(
            schedule.noise(s) ** 2, rel=1e-10, abs=1e-15)


def test_posterior_is_the_normalised_product_of_two_gaussians():
    schedule, t, x0, x_t = Schedule.linear(), 300, 0.4, -0.2
    grid = np.linspace(-3, 3, 60001)
    with np.errstate(under="ignore"):
        a, b = schedule.alpha_bar[t - 1], schedule.beta[t]
        density = np.exp(-(x_t - (1 - b) ** 0.5 * grid) ** 2 / (2 * b)           # DDPM Eq. 2
                         - (grid - a**0.5 * x0) ** 2 / (2 * (1 - a)))            # DDPM Eq. 4
        density /= density.sum()
        mean = (grid * density).sum()
        variance = ((grid - mean) ** 2 * density).sum()
    ours = schedule.posterior(np.array([x0]), np.array([x_t]), t)
    assert ours[0].item() == pytest.approx(mean, abs=1e-9)
    assert ours[1] == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_whole_times_give_the_tables_own_values(schedule):
    t = np.arange(schedule.T + 1)
    assert (schedule.alpha_bar_at(t) == schedule.alpha_bar).all()
    assert all(schedule.alpha_bar_at(int(k)) == schedule.alpha_bar[k] for k in t[::7])
    np.testing.assert_allclose(schedule.step_variance(t[1:], t[:-1]), schedule.beta[1:], rtol=1e-10)


def test_log_alpha_bar_is_linear_between_rows():
    schedule = Schedule.cosine()
    low, high = np.log(schedule.alpha_bar[[640, 641]])
    assert np.log(schedule.alpha_bar_at(640.25)) == pytest.approx(0.75 * low + 0.25 * high)
    assert np.log(schedule.signal(np.array([640.25]))) == pytest.approx((3 * low + high) / 8)


def test_signal_and_noise_are_legs_of_a_right_triangle_with_slope_sigma():
    schedule, t = Schedule.linear(), np.linspace(0.5, 1000, 77)
    np.testing.assert_allclose(schedule.signal(t) ** 2 + schedule.noise(t) ** 2, 1, rtol=1e-14)
    np.testing.assert_allclose(schedule.sigma(t), schedule.noise(t) / schedule.signal(t))
    np.testing.assert_allclose(schedule.snr(t) * schedule.sigma(t) ** 2, 1)


@pytest.mark.parametrize("t", [-1, 1000.001, np.nan, np.inf, np.array([3, 1001])])
def test_time_outside_the_chain_is_refused(t):
    with pytest.raises(ValueError, match=r"\[0, 1000\]"):
        Schedule.linear().signal(t)


def test_a_batch_of_times_is_that_many_single_times(rng):
    schedule, t = Schedule.cosine(), np.array([1, 400, 1000])
    x0, eps = rng.standard_normal((2, 3, 4, 5, 1))
    x_t = schedule.q_sample(x0, t, eps)
    mean, variance = schedule.posterior(x0, x_t, t)
    assert variance.shape == (3, 1, 1, 1)
    for n in range(3):
        one = slice(n, n + 1)
        alone = schedule.q_sample(x0[one], int(t[n]), eps[one])
        mean_alone, variance_alone = schedule.posterior(x0[one], alone, int(t[n]))
        np.testing.assert_allclose(x_t[one], alone, rtol=1e-14)
        np.testing.assert_allclose(mean[one], mean_alone, rtol=1e-14)
        assert variance[n].item() == pytest.approx(variance_alone)


@pytest.mark.parametrize("t", [7, 7.5, np.array([7, 900]), np.array([7.5, 900.0])])
def test_float32_stays_float32(t):
    schedule, x = Schedule.linear(), np.ones((2, 3, 3, 1), np.float32)
    assert schedule.q_sample(x, t, x).dtype == np.float32
    assert schedule.posterior(x, x, t)[0].dtype == np.float32
    assert (across(schedule.noise(t), x) * x).dtype == np.float32


def test_tables_are_float64_and_read_only():
    schedule = Schedule.linear()
    for table in (schedule.beta, schedule.alpha, schedule.alpha_bar):
        assert table.shape == (1001,)
        assert table.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


def test_from_alpha_bar_keeps_the_table_and_its_betas():
    linear = Schedule.linear()
    schedule = Schedule.from_alpha_bar(linear.alpha_bar, name="mine")
    assert (schedule.alpha_bar == linear.alpha_bar).all()
    np.testing.assert_allclose(schedule.beta, linear.beta, rtol=1e-10)


def test_a_schedule_may_end_without_any_signal():
    schedule = Schedule.from_alpha_bar([1, 0.5, 0])
    assert schedule.sigma(2) == np.inf
    assert schedule.snr(2) == schedule.signal(2) == 0
    assert schedule.beta[2] == 1


@pytest.mark.parametrize("table", [
    [1.0], [0.9, 0.5], [1, 0.5, 0.5], [1, 0.5, -0.1], [1, np.nan], 1.0,
])
def test_a_table_that_does_not_fall_from_one_is_refused(table):
    with pytest.raises(ValueError, match="fall strictly from 1"):
        Schedule.from_alpha_bar(table)


@pytest.mark.parametrize("schedule", [
    *SCHEDULES, *NO_VP, *ENDS_WITHOUT_SIGNAL, Schedule.cosine(77, s=0.02),
    Schedule.from_alpha_bar([1, 0.3, 0.1], "mine"), Schedule.from_levels([1, 0.6], [0, 2]),
    Schedule.linear().respaced([0, 30, 1000]), Schedule.karras().respaced([0, 30, 1000]),
])
def test_config_rebuilds_the_schedule_through_json(schedule):
    again = Schedule.named(**json.loads(json.dumps(schedule.config)))
    assert again == schedule
    assert (again.alpha_bar == schedule.alpha_bar).all()


def test_karras_has_the_nodes_of_edm_at_whole_times():
    sigma = Schedule.karras(18).sigma(np.arange(18, -1, -1))
    np.testing.assert_allclose(sigma[:7], [80, 57.58599, 40.78557, 28.37458, 19.35245, 12.91008,
                                           8.400935], rtol=1e-6)                  # EDM Eq. 5
    np.testing.assert_allclose(sigma[-3:], [0.00752802, 0.002, 0], rtol=1e-6)
    assert (Schedule.karras().signal(np.arange(1001)) == 1).all()


@pytest.mark.parametrize("schedule", [Schedule.flow(), Schedule.flow(shift=3.0)])
def test_flow_is_a_straight_line_from_the_picture_to_the_noise(schedule):
    t = np.linspace(0, 1000, 77)
    np.testing.assert_allclose(schedule.signal(t) + schedule.noise(t), 1, rtol=1e-14)
    assert schedule.levels(1000) == (0, 1)
    shift = schedule.parameters["shift"]
    assert schedule.noise(250) == pytest.approx(shift * 0.25 / (1 + (shift - 1) * 0.25))
    assert schedule.sigma(1000) == np.inf


@pytest.mark.parametrize("schedule", [*SCHEDULES, *NO_VP, *ENDS_WITHOUT_SIGNAL])
def test_time_undoes_sigma(schedule):
    for t in np.linspace(0, schedule.T, 301).tolist():
        assert schedule.time(schedule.sigma(t)) == pytest.approx(t, abs=1e-8)
    if np.isfinite(schedule.sigma(schedule.T)):
        with pytest.raises(ValueError, match="sigma must lie in"):
            schedule.time(1.001 * schedule.sigma(schedule.T))
    with pytest.raises(ValueError, match="sigma must lie in"):
        schedule.time(-0.1)


@pytest.mark.parametrize("schedule", [*SCHEDULES, *NO_VP])
def test_log_snr_falls_and_tells_the_steps_variances(schedule):
    t = np.arange(schedule.T + 1)
    lam = schedule.log_snr(t)
    assert (np.diff(lam) < 0).all()
    t, s = t[2:-1], t[1:-2]                                          # CFG Eq. 2, 3: λ < λ'
    fresh = -np.expm1(lam[t] - lam[s])
    np.testing.assert_allclose(schedule.step_variance(t, s), fresh * schedule.noise(t) ** 2,
                               rtol=1e-8)
    np.testing.assert_allclose(schedule.posterior_variance(t, s), fresh * schedule.noise(s) ** 2,
                               rtol=1e-8)
    assert schedule.log_snr(0) == np.inf


@pytest.mark.parametrize("schedule", [Schedule.cosine(), Schedule.karras(), Schedule.flow()])
@pytest.mark.parametrize(("t", "u", "s"), [(900, 500, 1), (1000, 30.5, 7), (3, 2, 1)])
def test_two_steps_in_a_row_are_one_long_step(schedule, t, u, s):
    """Scale and variance of q(x_t | x_s), LDM Eq. 5 to 7, compose over a time between."""
    scale = schedule.signal(t) / schedule.signal(u)
    assert scale**2 * schedule.step_variance(u, s) + schedule.step_variance(t, u) == pytest.approx(
        schedule.step_variance(t, s))


def test_sampling_starts_from_the_processs_own_spread():
    assert Schedule.linear().prior_std == Schedule.flow().prior_std == 1
    assert Schedule.karras().prior_std == 80


@pytest.mark.parametrize("schedule", [Schedule.scaled_linear(), Schedule.linear(50)])
def test_zero_terminal_snr_moves_the_last_root_to_zero_and_keeps_the_first(schedule):
    bent = schedule.zero_terminal_snr()
    root, line = schedule.alpha_bar**0.5, bent.alpha_bar**0.5
    assert line[-1] == 0
    assert bent.beta[-1] == 1
    assert line[1] == pytest.approx(root[1], rel=1e-14)
    steps = np.diff(line[1:]) / np.diff(root[1:])                    # shifted and stretched
    np.testing.assert_allclose(steps, steps[0], rtol=1e-8)
    assert bent.alpha_bar_at(schedule.T - 0.5) == pytest.approx(bent.alpha_bar[-2] / 2)


def test_a_respaced_chain_is_the_same_process_at_fewer_times():
    times = [0, 4, 8, 500.5, 1000]
    for schedule in (Schedule.linear(), Schedule.karras(), Schedule.flow()):
        few = schedule.respaced(times)
        assert few.T == 4
        for k, t in enumerate(times):
            assert few.levels(k) == pytest.approx(schedule.levels(t), rel=1e-12)
    linear = Schedule.linear()
    few = linear.respaced(range(0, 1001, 4))                         # iDDPM Eq. 19
    assert few.beta[1] == pytest.approx(5.1941932e-4)
    assert few.beta[250] == pytest.approx(0.0775193450)
    assert np.prod(1 - few.beta) == pytest.approx(linear.alpha_bar[1000])
    np.testing.assert_allclose(linear.respaced(range(1001)).beta, linear.beta, atol=1e-15)


def test_alpha_bar_may_be_a_function_of_the_share_of_the_way():
    schedule = Schedule.from_alpha_bar(lambda share: (1 - share) ** 2, T=50)
    np.testing.assert_allclose(schedule.alpha_bar, (1 - np.arange(51) / 50) ** 2)
    assert schedule.name == "from_alpha_bar"


def test_tables_of_a_schedule_by_levels_are_those_of_x_t_scaled_to_keep_its_variance():
    schedule, t = Schedule.karras(), np.arange(1001)
    np.testing.assert_allclose(schedule.alpha_bar, 1 / (1 + schedule.sigma(t) ** 2))
    np.testing.assert_allclose(schedule.alpha_bar_at(t), schedule.alpha_bar)
    np.testing.assert_allclose(np.cumprod(schedule.alpha), schedule.alpha_bar, rtol=1e-10)
    assert not schedule.table.flags.writeable
    assert not schedule.alpha_bar.flags.writeable


def test_schedules_made_differently_are_not_equal():
    assert Schedule.linear(1000) == Schedule.linear(1000)
    assert Schedule.linear(1000) != Schedule.linear(999)
    assert Schedule.cosine(1000) != Schedule.cosine(1000, s=0.01)


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda: Schedule.named("cosin"), "did you mean 'cosine'"),
    (lambda: Schedule.named("scaled-linear"), "did you mean 'scaled_linear'"),
    (lambda: Schedule.named("linear", T=100, s=1), "linear has no parameter 's'"),
    (lambda: Schedule.linear(20), "T is 20; take T > 20"),
    (lambda: Schedule.linear(1), "take T > 20"),
    (lambda: Schedule.cosine(0), "at least 1, got 0"),
    (lambda: Schedule.cosine(10.0), r"whole number of at least 1, got 10\.0"),
    (lambda: Schedule.cosine(s=-0.1), "must not be negative, got -0.1"),
    (lambda: Schedule.scaled_linear(end=1.2), r"in \(0, 1\), got 0.00085 and 1.2"),
    (lambda: Schedule.sigmoid_beta(start=0), r"in \(0, 1\), got 0 and 0.02"),
    (lambda: Schedule.sigmoid_alpha_bar(tau=0), "got -3, 3 and 0"),
    (lambda: Schedule.karras(sigma_min=0), "0 < sigma_min < sigma_max"),
    (lambda: Schedule.karras(1), "expected T > 1"),
    (lambda: Schedule.flow(shift=0), "shift must be above 0, got 0"),
    (lambda: Schedule.from_levels([1, 0.5], [0.1, 1]), "start at 1 and 0"),
    (lambda: Schedule.from_levels([1, 0.5, 0.4], [0, 1, 0.8]), "rising strictly"),
    (lambda: Schedule.flow().zero_terminal_snr(), "flow does not keep the variance"),
    (lambda: Schedule.cosine(1).zero_terminal_snr(), "T must be above 1"),
    (lambda: Schedule.cosine(s=np.inf), "must not be negative, got inf"),
    (lambda: Schedule.linear().respaced([1000, 500, 0]), r"fall strictly from 1 .* got \[4"),
    (lambda: Schedule.linear().posterior(1.0, 1.0, 5, 5), "t = 5 and s = 5"),
    (lambda: Schedule.linear().posterior(1.0, 1.0, 0), r"\[0, 1000\], got -1"),
    (lambda: Schedule.linear().q_sample(np.ones((2, 3)), 1, np.ones(3)), r"\(2, 3\), got \(3,\)"),
    (lambda: Schedule.linear().q_sample(np.ones((2, 3)), np.array([1, 2, 3]), np.ones((2, 3))),
     r"2 images, got shape \(3,\)"),
])
def test_bad_arguments_get_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
