"""Every line of the papers' derivations gives the same number, on chains small enough to count."""

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest

from tinydiff.diffusion.densities import gaussian, kl
from tinydiff.diffusion.guidance import classifier_guided, guided
from tinydiff.diffusion.ideal import Mixture
from tinydiff.diffusion.objective import learned_log_variance, vlb_weight
from tinydiff.diffusion.prediction import Prediction, from_eps, from_x0
from tinydiff.diffusion.samplers import ddim, ddpm, euler
from tinydiff.diffusion.samplers.guided import ddpm_guided
from tinydiff.diffusion.schedule import Schedule
from tinydiff.models.blocks import AdaptiveResBlock, ResBlock
from tinydiff.models.text_encoder import TextEncoderConfig, TransformerBlock

LINEAR, COSINE, KARRAS = Schedule.linear(), Schedule.cosine(), Schedule.karras()
FAMILIES = [LINEAR, COSINE, KARRAS, Schedule.flow()]
STEPS = [(2, 1), (40, 39), (500, 499), (900, 350), (999, 998)]


# A chain of three states and three steps: all 81 paths, one axis for each of x0, x1, x2, x3.

def tables(rng, *shape):
    """Random positive tables whose last axis sums to 1."""
    weights = rng.uniform(0.1, 1, shape)
    return weights / weights.sum(-1, keepdims=True)


def on(axes, table):
    """The table with its axes at those of x0 … x3 that `axes` names, ready to be multiplied."""
    order = np.argsort(axes)
    shape = [3 if axis in axes else 1 for axis in range(4)]
    return table.transpose(order).reshape(shape)


def over(joint, *axes):
    """The marginal of a joint table over the axes named, the others kept as 1."""
    return joint.sum(tuple(set(range(joint.ndim)) - set(axes)), keepdims=True)


class Chain:
    """q(x0 … x3), by its forward steps q(x_t | x_{t-1}), and a model p by its reverse steps."""

    def __init__(self, rng):
        self.q0 = on([0], tables(rng, 3))
        self.forward = [None, *(on([t - 1, t], tables(rng, 3, 3)) for t in (1, 2, 3))]
        self.prior = on([3], tables(rng, 3))
        self.reverse = [None, *(on([t, t - 1], tables(rng, 3, 3)) for t in (1, 2, 3))]
        self.q = reduce(np.multiply, self.forward[1:], self.q0)
        self.p = reduce(np.multiply, self.reverse[1:], self.prior)

    def mean(self, f):
        """E_q of a function of the path."""
        return (self.q * f).sum()

    def given_x0(self, t):
        """q(x_t | x0)"""
        return over(self.q, 0, t) / self.q0

    def back(self, t, *condition):
        """q(x_{t-1} | x_t), or q(x_{t-1} | x_t, x0) with condition 0"""
        return over(self.q, t - 1, t, *condition) / over(self.q, t, *condition)


@pytest.fixture
def chain(rng):
    return Chain(rng)


@pytest.fixture
def value(chain):
    """L as it is defined: DDPM Eq. 17"""
    return chain.mean(-np.log(chain.p / (chain.q / chain.q0)))


def test_the_bound_lies_above_the_negative_log_likelihood(chain, value):
    data, model = chain.q0.ravel(), over(chain.p, 0).ravel()
    assert value > -(data * np.log(model)).sum()                                 # DDPM Eq. 3
    at_x0 = (chain.q / chain.q0 * np.log(chain.p * chain.q0 / chain.q)).sum((1, 2, 3))
    assert (at_x0 < np.log(model)).all()                                         # DDIM Eq. 2


def test_the_bound_splits_into_steps_and_the_decoder(chain, value):
    ratios = [np.log(chain.reverse[t] / chain.forward[t]) for t in (1, 2, 3)]
    whole = chain.mean(-np.log(chain.prior) - sum(ratios))                       # DDPM Eq. 18, 23
    assert whole == pytest.approx(value, rel=1e-13)
    apart = chain.mean(-np.log(chain.prior) - sum(ratios[1:])) - chain.mean(ratios[0])
    assert apart == pytest.approx(value, rel=1e-13)                              # DDPM Eq. 19


def test_bayes_rule_turns_a_step_around_given_x0(chain, value):
    turned = [chain.back(t, 0) * chain.given_x0(t) / chain.given_x0(t - 1) for t in (2, 3)]
    for t, step in zip((2, 3), turned):                                          # DDPM Eq. 20
        np.testing.assert_allclose(np.broadcast_to(chain.forward[t], step.shape), step, rtol=1e-13)
    ratios = [np.log(chain.reverse[t] / step) for t, step in zip((2, 3), turned)]
    first = np.log(chain.reverse[1] / chain.forward[1])
    assert chain.mean(-np.log(chain.prior) - sum(ratios) - first) == pytest.approx(value)


def test_the_factors_of_bayes_rule_telescope(chain, value):
    ratios = [np.log(chain.reverse[t] / chain.back(t, 0)) for t in (2, 3)]
    found = chain.mean(-np.log(chain.prior / chain.given_x0(3)) - sum(ratios)
                       - np.log(chain.reverse[1]))                               # DDPM Eq. 21
    assert found == pytest.approx(value, rel=1e-13)


def test_the_bound_is_a_sum_of_divergences_and_the_decoder(chain, value):
    prior = chain.mean(np.log(chain.given_x0(3) / chain.prior))                  # L_T
    between = [chain.mean(np.log(chain.back(t, 0) / chain.reverse[t])) for t in (2, 3)]
    decoder = chain.mean(-np.log(chain.reverse[1]))                              # L_0
    assert min(prior, *between) > 0
    assert prior + sum(between) + decoder == pytest.approx(value, rel=1e-13)     # DDPM Eq. 5, 22


def test_bayes_rule_without_x0_gives_the_entropy_of_the_data(chain, value):
    turned = {t: chain.back(t) * over(chain.q, t) / over(chain.q, t - 1) for t in (1, 2, 3)}
    for t, step in turned.items():                                               # DDPM Eq. 24
        np.testing.assert_allclose(chain.forward[t], step, rtol=1e-13)
    ratios = [np.log(chain.reverse[t] / chain.back(t)) for t in (1, 2, 3)]
    telescoped = chain.mean(-np.log(chain.prior / over(chain.q, 3)) - sum(ratios)
                            - np.log(chain.q0))                                  # DDPM Eq. 25
    assert telescoped == pytest.approx(value, rel=1e-13)
    prior = chain.mean(np.log(over(chain.q, 3) / chain.prior))
    entropy = chain.mean(-np.log(chain.q0))
    parts = prior + sum(chain.mean(-ratio) for ratio in ratios) + entropy        # DDPM Eq. 16, 26
    assert parts == pytest.approx(value, rel=1e-13)
    exact = reduce(np.multiply, [chain.back(t) for t in (1, 2, 3)], chain.prior)
    best = chain.mean(-np.log(exact / (chain.q / chain.q0)))
    assert best - entropy == pytest.approx(prior, rel=1e-12)        # only the prior is left


def test_the_objective_of_a_process_that_is_no_chain_splits_likewise(chain, rng):
    """q(x3 | x0) ∏ q(x_{t-1} | x_t, x0), each factor its own table: DDIM Eq. 6 and 1 in Eq. 11."""
    last = on([0, 3], tables(rng, 3, 3))
    back = [on([0, t, t - 1], tables(rng, 3, 3, 3)) for t in (2, 3)]
    path = last * back[0] * back[1]                                              # DDIM Eq. 6
    np.testing.assert_allclose(path.sum((1, 2, 3)), 1)
    q = chain.q0 * path
    objective = (q * np.log(path / chain.p)).sum()                               # DDIM Eq. 11
    parts = (q * np.log(last / chain.prior)).sum() - (q * np.log(chain.reverse[1])).sum() + sum(
        (q * np.log(step / chain.reverse[t])).sum() for t, step in zip((2, 3), back))
    assert objective == pytest.approx(parts, rel=1e-13)


# The same chain with a label of two values drawn from x0: axis 4.

@pytest.fixture
def labelled(chain, rng):
    """q̂(x0 … x3, y) of ADM App. H: the label depends on x0, the steps do not see it (28)–(31)."""
    label = tables(rng, 3, 2).reshape(3, 1, 1, 1, 2)
    return chain.q[..., None] * label


def test_a_label_of_x0_changes_neither_steps_nor_paths_nor_marginals(chain, labelled):
    for t in (0, 1, 2):
        step = chain.forward[t + 1][..., None]
        told = over(labelled, t, t + 1, 4) / over(labelled, t, 4)
        np.testing.assert_allclose(told, np.broadcast_to(step, told.shape), rtol=1e-13)  # Eq. 30
        untold = over(labelled, t, t + 1) / over(labelled, t)
        np.testing.assert_allclose(untold, step, rtol=1e-13)                     # ADM Eq. 32–37
        np.testing.assert_allclose(over(labelled, t)[..., 0], over(chain.q, t))  # ADM Eq. 45–49
    paths = labelled.sum(4) / over(labelled, 0)[..., 0]
    np.testing.assert_allclose(paths, chain.q / chain.q0, rtol=1e-13)            # ADM Eq. 38–44
    told = labelled / over(labelled, 0, 4)
    steps = reduce(np.multiply, chain.forward[1:])[..., None]
    np.testing.assert_allclose(told, np.broadcast_to(steps, told.shape))         # ADM Eq. 31


def test_the_label_of_two_neighbours_is_that_of_the_cleaner(labelled):
    for t in (0, 1, 2):
        of_both = over(labelled, t, t + 1, 4) / over(labelled, t, t + 1)
        of_one = over(labelled, t, 4) / over(labelled, t)
        np.testing.assert_allclose(of_both, np.broadcast_to(of_one, of_both.shape))  # ADM Eq. 51–53
        of_noisier = over(labelled, t + 1, 4) / over(labelled, t + 1)
        assert np.abs(of_both - of_noisier).max() > 1e-3


def test_a_classifier_times_the_reverse_step_is_the_labels_own_reverse_step(labelled):
    for t in (0, 1, 2):
        told = over(labelled, t, t + 1, 4) / over(labelled, t + 1, 4)
        step = over(labelled, t, t + 1) / over(labelled, t + 1)
        classifier = over(labelled, t, 4) / over(labelled, t)
        Z = (step * classifier).sum(t, keepdims=True)                            # one for each y
        np.testing.assert_allclose(told, step * classifier / Z, rtol=1e-13)      # ADM Eq. 2
        above = over(labelled, t + 1, 4) / over(labelled, t + 1)
        np.testing.assert_allclose(told, step * classifier / above, rtol=1e-13)  # ADM Eq. 55–60


# Gaussian steps: the means and variances of the papers are those of the functions.

def truth(x0, schedule):
    """A predictor that knows x0."""
    return lambda x_t, t: from_x0(x_t, x0, *schedule.levels(t))


@pytest.mark.parametrize("schedule", FAMILIES)
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_what_a_model_loses_is_the_distance_of_the_means_and_a_constant(schedule, t, s, rng):
    x0, x_t, *guesses = rng.standard_normal((4, 6))
    mean_q, variance_q = schedule.posterior(x0, x_t, t, s)
    variance = schedule.step_variance(t, s)                          # any fixed σ_t²
    rests = []
    for guess in guesses:
        mean, _ = schedule.posterior(guess, x_t, t, s)
        loss = kl(mean_q, np.log(variance_q), mean, np.log(variance))[0]
        rests.append(loss - (mean_q - mean) ** 2 / (2 * variance))               # DDPM Eq. 8
    np.testing.assert_allclose(rests[0], rests[1], rtol=1e-9, atol=1e-9)
    ratio = variance_q / variance
    np.testing.assert_allclose(rests[0], (ratio - 1 - np.log(ratio)) / 2, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("t", "s"), [step for step in STEPS if step[0] - step[1] == 1])
@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
def test_the_loss_of_the_mean_is_a_weighted_loss_of_eps(schedule, t, s, rng):
    x0, eps, said = rng.standard_normal((3, 6))
    alpha_bar, alpha, beta = (table[t] for table in (schedule.alpha_bar, schedule.alpha,
                                                     schedule.beta))
    variance = schedule.step_variance(t, s)
    x_t = schedule.q_sample(x0, t, eps)
    mean, _ = schedule.posterior(from_eps(x_t, said, *schedule.levels(t)).x0, x_t, t)
    want, _ = schedule.posterior((x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5, x_t, t)
    through_x0 = (want - mean) ** 2 / (2 * variance)                             # DDPM Eq. 9
    simplified = ((x_t - beta / (1 - alpha_bar) ** 0.5 * eps) / alpha**0.5 - mean) ** 2
    np.testing.assert_allclose(simplified / (2 * variance), through_x0, rtol=1e-6)   # DDPM Eq. 10
    of_eps = vlb_weight(schedule, t, s, "eps", variance) * (eps - said) ** 2     # DDPM Eq. 12
    np.testing.assert_allclose(of_eps, through_x0, rtol=1e-6)
    weight = beta**2 / (2 * variance * alpha * (1 - alpha_bar))
    assert vlb_weight(schedule, t, s, "eps", variance) == pytest.approx(weight, rel=1e-9)


@pytest.mark.parametrize(("t", "s"), STEPS)
@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
def test_substituting_the_estimate_into_the_posterior_is_the_latent_papers_step(schedule, t, s):
    (a_t, b_t), (a_s, b_s) = schedule.levels(t), schedule.levels(s)
    scale = a_t / a_s                                                            # LDM Eq. 6
    step = b_t**2 - scale**2 * b_s**2                                            # LDM Eq. 7
    assert schedule.step_variance(t, s) == pytest.approx(step, rel=1e-9)
    x_t, x0 = np.array([[0.7]]), np.array([[-0.4]])
    mean, variance = schedule.posterior(x0, x_t, t, s)
    assert variance == pytest.approx(step * b_s**2 / b_t**2, rel=1e-9)           # LDM Eq. 11
    assert mean.item() == pytest.approx(scale * b_s**2 / b_t**2 * 0.7 - a_s * step / b_t**2 * 0.4,
                                        rel=1e-9)                                # LDM Eq. 12
    [x_s] = ddpm(truth(x0, schedule), x_t, schedule, timesteps=[t, s], noise=[np.ones((1, 1))])
    assert x_s.item() == pytest.approx(mean.item() + variance**0.5, rel=1e-9)    # LDM Eq. 10


# DDIM's family, at every share eta of the posterior's noise.

@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("schedule", FAMILIES)
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_every_eta_carries_the_marginal_at_t_to_the_marginal_at_s(schedule, eta, t, s):
    x0, one, none = np.array([[0.7]]), np.ones((1, 1)), np.zeros((1, 1))

    def step(x_t, z):
        noise = [z] if eta else []
        [x_s] = ddim(truth(x0, schedule), x_t, schedule, timesteps=[t, s], eta=eta, noise=noise)
        return x_s.item()

    (a_t, b_t), (a_s, b_s) = schedule.levels(t), schedule.levels(s)
    mean = step(a_t * x0, none)
    by_x_t, by_z = step(a_t * x0 + one, none) - mean, step(a_t * x0, one) - mean
    assert mean == pytest.approx(a_s * 0.7, rel=1e-9)                            # DDIM Eq. 6, 7
    assert (by_x_t * b_t) ** 2 + by_z**2 == pytest.approx(b_s**2, rel=1e-9)      # DDIM Eq. 4
    sigma = eta * schedule.posterior_variance(t, s) ** 0.5
    assert by_z == pytest.approx(sigma, rel=1e-6, abs=1e-12)
    assert by_x_t == pytest.approx((b_s**2 - sigma**2) ** 0.5 / b_t, rel=1e-9)


@pytest.mark.parametrize(("t", "s"), STEPS)
def test_the_forward_process_forgets_x0_only_at_eta_one(t, s):
    """q(x_t | x_s, x0) by Bayes' rule from the step down and the two marginals: DDIM Eq. 8."""
    (a_t, b_t), (a_s, b_s) = LINEAR.levels(t), LINEAR.levels(s)

    def coefficients(sigma2):
        slope = (b_s**2 - sigma2) ** 0.5 / b_t                       # of x_s on x_t, DDIM Eq. 7
        gain = slope * b_t**2 / b_s**2                               # of x_t on x_s
        return gain, a_t - gain * a_s, b_t**2 - gain * slope * b_t**2            # x_s, x0, variance

    markov = coefficients(LINEAR.posterior_variance(t, s))
    expected = a_t / a_s, 0, LINEAR.step_variance(t, s)                          # DDIM Eq. 3
    assert markov == pytest.approx(expected, rel=1e-8, abs=1e-9)
    assert abs(coefficients(0.0)[1]) > 1e-6


@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_the_variational_objective_is_a_weighted_simple_loss(schedule, eta, t, s, rng):
    """J_σ = L_γ + C, step by step: DDIM Theorem 1, Eq. 10, 11."""
    x0, eps, said = rng.standard_normal((3, 5, 1))
    x_t, still = schedule.q_sample(x0, t, eps), [np.zeros((5, 1))]
    levels, sigma2 = schedule.levels(t), eta**2 * schedule.posterior_variance(t, s)
    means = [next(ddim(lambda x, _, e=e: from_eps(x, e, *levels), x_t, schedule, timesteps=[t, s],
                       eta=eta, noise=still)) for e in (eps, said)]
    loss = kl(means[0], np.log(sigma2), means[1], np.log(sigma2))[0]
    (a_t, b_t), (a_s, b_s) = levels, schedule.levels(s)
    C = a_s - (b_s**2 - sigma2) ** 0.5 * a_t / b_t
    gamma = C**2 * b_t**2 / (2 * sigma2 * a_t**2)
    np.testing.assert_allclose(loss, gamma * (eps - said) ** 2, rtol=1e-5)
    if eta == 1:
        assert gamma == pytest.approx(vlb_weight(schedule, t, s, "eps", sigma2), rel=1e-6)


def test_the_probability_flow_step_differs_from_ddims_by_the_step_squared():
    eps, t, gaps = np.array([[0.8]]), 600, []
    sigma = COSINE.sigma(t)
    for h in (0.02, 0.01, 0.005):
        s = COSINE.time(sigma * (1 - h))
        [x_s] = euler(lambda x, _: Prediction(x, eps), np.ones((1, 1)), COSINE, timesteps=[t, s])
        x_bar = 1 / COSINE.signal(t) + 0.5 * (COSINE.sigma(s) ** 2 - sigma**2) / sigma * 0.8
        gaps.append(abs(x_s.item() / COSINE.signal(s) - x_bar))                  # DDIM Eq. 13, 15
    np.testing.assert_allclose(np.divide(*np.array([gaps[:-1], gaps[1:]])), 4, rtol=1e-6)


# The SDEs between data and noise.

@pytest.mark.parametrize("push", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("direction", [1, -1])
def test_every_sde_of_the_family_has_the_same_marginals(push, direction):
    """Variance v + σ² forwards and backwards, whatever β: EDM Eq. 6, here with σ = t."""
    v, errors = 0.25, []
    normal = Mixture(np.zeros((1, 1)), v**0.5)
    for n in (100, 200):
        sigmas = np.linspace(0.5, 2, n + 1)[::direction]
        spread = v + sigmas[0] ** 2
        for here, there in pairwise(sigmas):
            h, t = there - here, KARRAS.time(here)
            pull = normal.score(np.ones((1, 1)), t, KARRAS).item() * here        # linear in x
            gain = 1 - h * pull + push * abs(h) * here * pull        # β(t) = push
            spread = gain**2 * spread + 2 * push * abs(h) * here**2
        errors.append(abs(spread - (v + sigmas[-1] ** 2)))
    assert errors[0] < 0.1
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)        # Euler–Maruyama: order 1


# Classifier and classifier-free guidance, with a classifier that is exactly right.

CLASSES = [Mixture(np.array([[-0.6, 0.2]]), 0.4), Mixture(np.array([[0.7, -0.1]]), 0.4)]
BOTH = Mixture(np.array([[-0.6, 0.2], [0.7, -0.1]]), 0.4, weights=[0.3, 0.7])


def log_classifier(x_t, t):
    """log p(y = 1 | x_t) for the two classes, by Bayes' rule."""
    return np.log(0.7) + CLASSES[1].log_density(x_t, t, COSINE) - BOTH.log_density(x_t, t, COSINE)


def exact_gradient(x_t, t, y):
    """∇ log p(y | x_t) of the same."""
    return CLASSES[y].score(x_t, t, COSINE) - BOTH.score(x_t, t, COSINE)


def test_the_classifiers_gradient_is_its_first_order_expansion(rng):
    mean, away, t = rng.standard_normal((1, 2)), rng.standard_normal((1, 2)), 500
    g = exact_gradient(mean, t, 1)                                               # ADM Eq. 6
    rests = [(log_classifier(mean + d * away, t) - log_classifier(mean, t)
              - d * (away * g).sum()).item() for d in (0.02, 0.01)]
    assert rests[0] / rests[1] == pytest.approx(4, rel=0.05)                     # ADM Eq. 5


def test_completing_the_square_moves_the_mean_by_sigma_g(rng):
    root, (mean, g, x) = rng.standard_normal((3, 3)), rng.standard_normal((3, 3))
    Sigma = root @ root.T + np.eye(3)

    def square(d):
        return -0.5 * d @ np.linalg.solve(Sigma, d)

    def constant(y):
        return square(y - mean) + (y - mean) @ g - square(y - mean - Sigma @ g)

    np.testing.assert_allclose(constant(x), 0.5 * g @ Sigma @ g, rtol=1e-10)     # ADM Eq. 7, 8, 9
    np.testing.assert_allclose(constant(2 * x), constant(x), rtol=1e-10)


@pytest.mark.parametrize(("t", "s"), [(600, 500), (300, 299)])
def test_a_guided_step_is_the_gaussian_that_the_derivation_ends_with(t, s):
    """Exact where log p(y | ·) is straight: p(x_s | x_t) e^(g x_s), normalised on a grid."""
    x_t, g, scale = np.array([[0.3]]), -1.7, 2.0
    predict = truth(np.array([[0.5]]), COSINE)
    mean, variance = COSINE.posterior(np.array([[0.5]]), x_t, t, s)
    grid = mean.item() + scale * g * variance + variance**0.5 * np.linspace(-10, 10, 20001)
    log_step = -gaussian(grid, mean.item(), np.log(variance))[0]                 # ADM Eq. 3, 4
    flat = log_step + (grid - mean.item()) ** 2 / (2 * variance)                 # the C of Eq. 4
    assert np.ptp(flat) < 1e-9
    density = np.exp(log_step + scale * g * (grid - mean.item()) - log_step.max())
    density /= density.sum()
    own = {"grad_log_prob": lambda x, t, y: np.full_like(x, g), "y": 0, "scale": scale}
    at_mean, one_up = (next(ddpm_guided(predict, x_t, COSINE, timesteps=[t, s], noise=[z], **own))
                       for z in (np.zeros((1, 1)), np.ones((1, 1))))
    assert at_mean.item() == pytest.approx((grid * density).sum(), rel=1e-9)     # ADM Eq. 10
    deviation = ((grid - at_mean.item()) ** 2 @ density) ** 0.5
    assert (one_up - at_mean).item() == pytest.approx(deviation, rel=1e-6)


def test_a_picture_guides_by_the_distance_of_what_is_seen_of_it(rng):
    """log p(y | x_t) = −½‖y − A x0_hat‖² with a straight A: the estimate moves towards y."""
    A, y, t = rng.standard_normal((2, 3)), rng.standard_normal((1, 2)), 400
    normal = Mixture(np.zeros((1, 3)), 0.5)
    predict = normal.predictor(COSINE)
    signal, noise = COSINE.levels(t)
    gain = 0.25 * signal / (0.25 * signal**2 + noise**2)             # x0_hat = gain · x_t

    def log_prob(x_t):
        return -0.5 * ((y - predict(x_t, t).x0 @ A.T) ** 2).sum(1)               # LDM Eq. 17

    def gradient(x_t, t, y):
        return gain * (y - gain * x_t @ A.T) @ A

    x_t, h = rng.standard_normal((1, 3)), 1e-5 * np.eye(3)
    slopes = (log_prob(x_t + h) - log_prob(x_t - h)) / 2e-5
    np.testing.assert_allclose(gradient(x_t, t, y)[0], slopes, atol=1e-8)
    closer = classifier_guided(predict, gradient, y, COSINE, scale=0.1)(x_t, t).x0
    assert np.linalg.norm(y - closer @ A.T) < np.linalg.norm(y - predict(x_t, t).x0 @ A.T)


@pytest.mark.parametrize("w_paper", [0.0, 0.7, 3.0])
def test_guiding_the_unconditional_by_one_more_is_guiding_the_conditional(w_paper, rng):
    x_t, t = rng.standard_normal((6, 2)), 500
    cond, uncond = CLASSES[1].predictor(COSINE), BOTH.predictor(COSINE)
    more = classifier_guided(uncond, exact_gradient, 1, COSINE, scale=w_paper + 1)(x_t, t)
    same = classifier_guided(cond, exact_gradient, 1, COSINE, scale=w_paper)(x_t, t)
    np.testing.assert_allclose(more[:2], same[:2], atol=1e-8)                    # CFG §3.1
    free = guided(cond, uncond, 1 + w_paper)(x_t, t)                             # CFG Eq. 6
    np.testing.assert_allclose(free[:2], more[:2], atol=1e-8)


@pytest.mark.parametrize(("t", "s"), STEPS)
def test_the_posterior_in_log_snr_is_the_posterior(t, s):
    lam, lam_s = LINEAR.log_snr(t), LINEAR.log_snr(s)
    a_t, a_s = (1 / (1 + np.exp(-x)) ** 0.5 for x in (lam, lam_s))               # CFG Eq. 1
    assert a_t == pytest.approx(LINEAR.signal(t), rel=1e-12)
    assert (1 - a_t**2) ** 0.5 == pytest.approx(LINEAR.noise(t), rel=1e-9)
    fresh = -np.expm1(lam - lam_s)
    x_t, x0 = np.array([[0.7]]), np.array([[-0.4]])
    mean, variance = LINEAR.posterior(x0, x_t, t, s)
    expected = (1 - fresh) * a_s / a_t * 0.7 - fresh * a_s * 0.4
    assert mean.item() == pytest.approx(expected, rel=1e-8)                      # CFG Eq. 3
    assert variance == pytest.approx(fresh * (1 - a_s**2), rel=1e-8)
    assert LINEAR.step_variance(t, s) == pytest.approx(fresh * (1 - a_t**2), rel=1e-8)  # CFG Eq. 2


@pytest.mark.parametrize(("w_paper", "v"), [(0.0, 1.0), (1.5, 0.3)])
def test_guided_sampling_in_log_snr_is_the_ancestral_sampler(w_paper, v, rng):
    """CFG Alg. 2, line by line; its variance goes as a learned one does.  CFG Eq. 4"""
    cond, uncond, times = CLASSES[1].predictor(COSINE), BOTH.predictor(COSINE), [900, 500, 40, 0]
    below, noise = dict(pairwise(times)), rng.standard_normal((2, 6, 2))

    def learned(x_t, t):
        share = np.full(x_t.shape, 2 * v - 1)
        return cond(x_t, t)._replace(log_variance=learned_log_variance(COSINE, share, t, below[t]))

    x = rng.standard_normal((6, 2))
    chain = ddpm(guided(learned, uncond, 1 + w_paper), x, COSINE, timesteps=times, noise=noise)
    for (t, s), z, ours in zip(pairwise(times), [*noise, 0], chain, strict=True):
        (a_t, b_t), (a_s, b_s) = COSINE.levels(t), COSINE.levels(s)
        eps = (1 + w_paper) * cond(x, t).eps - w_paper * uncond(x, t).eps
        x0 = (x - b_t * eps) / a_t
        if s == 0:
            x = x0
        else:
            fresh = -np.expm1(COSINE.log_snr(t) - COSINE.log_snr(s))
            mean = (1 - fresh) * a_s / a_t * x + fresh * a_s * x0
            x = mean + ((fresh * b_s**2) ** (1 - v) * (fresh * b_t**2) ** v) ** 0.5 * z
        np.testing.assert_allclose(ours, x, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_a_temperature_is_noise_scaled_before_it_is_given_to_the_sampler(temperature, rng):
    x0, x_T, z = rng.standard_normal((3, 6, 2))
    mean, own, cooled = (next(ddpm(truth(x0, COSINE), x_T, COSINE, timesteps=[600, 500],
                                  noise=[share * z]))
                         for share in (0, 1, temperature))
    np.testing.assert_allclose(cooled - mean, temperature * (own - mean), rtol=1e-9)  # ADM App. G


# Blocks of the networks.

def in_float64(module):
    """The module in float64 with no zero weights."""
    module.astype(np.float64)
    for p in module.parameters().values():
        p.data += 0.1
    return module


def test_a_transformer_block_whose_outputs_are_silent_changes_nothing(rng):
    block = in_float64(TransformerBlock(TextEncoderConfig(width=8, heads=2), rng=rng))
    x = rng.standard_normal((2, 5, 8))
    mask = np.ones((2, 1, 1, 5), bool)
    silent = [block.attention.out, block.linear2]                                # LDM Eq. 20, 22
    assert np.abs(block(x, mask).data - x).max() > 0.1
    for layer in silent:
        for p in layer.parameters().values():
            p.data[...] = 0
    np.testing.assert_array_equal(block(x, mask).data, x)


def test_an_adaptive_norm_that_scales_by_one_and_shifts_by_none_is_the_norm(rng):
    told, plain = (in_float64(block(4, 4, 6, groups=2, rng=rng))
                   for block in (AdaptiveResBlock, ResBlock))
    x, emb = rng.standard_normal((2, 3, 3, 4)), rng.standard_normal((2, 6))
    for name, p in plain.parameters().items():
        p.data[...] = told.parameters()[name].data
    assert np.abs(told(x, emb).data - plain(x, emb).data).max() > 1e-3
    for layer in (told.scale, told.shift, plain.shift):                          # ADM §3.1
        for p in layer.parameters().values():
            p.data[...] = 0
    np.testing.assert_allclose(told(x, emb).data, plain(x, emb).data, atol=1e-12)
