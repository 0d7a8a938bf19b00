"""Each mistake of the bug zoo is found: by its diagnostics, and by the tests of this suite."""

import json
import os
import subprocess
import sys
from functools import cache
from inspect import getsource
from pathlib import Path

import bug_zoo
import diagnostics
import numpy as np
import pytest

from tinydiff.diffusion import Schedule, ddim

ROOT = Path(__file__).resolve().parents[1]
NAMES = [m.name for m in bug_zoo.MISTAKES]
FOUND_BY = {                                             # test_FILE.py::test_NAME as FILE::NAME
    "linear and scaled linear swapped":
        "known_faults::linear_is_linear_in_beta_and_scaled_linear_in_its_root",
    "tables read one row too early":
        "schedule::log_alpha_bar_is_linear_between_rows",
    "noise weighed by its variance":
        "schedule::q_sample_is_t_steps_of_the_forward_chain",
    "the root over the whole product":
        "schedule::posterior_carries_the_marginal_at_t_to_the_marginal_at_s",
    "beta where beta tilde is meant":
        "samplers::the_fixed_variances_are_the_papers",
    "noise in the last step too":
        "samplers::ddpm_is_algorithm_2_in_its_eps_form[fixed_large]",
    "the direction to x_t subtracted":
        "known_faults::ddim_scales_a_gaussian_by_the_closed_form",
    "the lowest times only":
        "known_faults::sampling_starts_at_T_and_ends_at_clean_data",
    "a stride of whole steps":
        "spacing::every_number_of_steps_is_walked_or_refused_by_name[77-leading]",
    "deviations subtracted, not variances":
        "samplers_order::samples_have_the_datas_mean_and_deviation[50-euler_ancestral-cosine]",
    "the second slope at the old time":
        "samplers_order::every_ode_sampler_has_its_order_down_to_the_first_time"
        "[linear-Gaussian-heun]",
    "all steps taken for equal":
        "samplers_order::the_order_is_the_same_on_even_times[cosine-Gaussian-dpmpp_2m]",
    "half a parabola":
        "samplers_order::every_ode_sampler_has_its_order_down_to_the_first_time"
        "[linear-Gaussian-dpmpp_3m]",
    "a guidance weight that starts at zero":
        "guidance::w_is_one_plus_the_papers_weight",
    "away from the class":
        "guidance::a_guided_step_raises_the_probability_of_the_class",
    "x0 clipped and eps not":
        "guidance::clipped_bounds_x0_and_keeps_eps_consistent",
    "v with the wrong sign":
        "prediction::x_t_and_v_are_x0_and_eps_turned_by_an_angle",
    "training from t = 0 to T − 1":
        "objective::t_is_uniform_from_one_to_T",
    "nats sold as bits":
        "likelihood::a_term_is_the_kl_above_and_the_decoder_at_the_last_step",
    "the prior forgotten":
        "likelihood::the_right_variance_makes_the_bound_of_a_gaussian_tight[karras]",
    "bins of half their width":
        "likelihood::the_decoder_has_the_papers_golden_values",
    "time told by the place in the batch":
        "known_faults_network::an_image_is_denoised_alike_alone_and_anywhere_in_a_batch",
    "one stream of noise for the batch":
        "noise::an_image_does_not_depend_on_its_batch",
    "scores not divided":
        "nn::attention_is_each_head_on_its_own_slice_of_the_width",
    "the last gradient wins":
        "tensor::an_uneven_diamond_waits_for_its_longer_side",
    "a bias's gradient averaged":
        "tensor::gradients_are_added_in_place_into_a_flat_buffer",
    "an average that averages nothing":
        "known_faults_network::ema_has_forgotten_the_random_start_when_it_is_first_looked_at",
}
EVERY_RUN = """
import contextlib, io, json, sys
import pytest

class Outcomes:
    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            outcomes.append(report.outcome)

sys.path += ["notebooks", "tools"]
import bug_zoo
asked, found = json.loads(sys.stdin.read()), []
options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "-W",
           "ignore::pytest.PytestAssertRewriteWarning"]
for name, tests in asked:
    outcomes = []
    with bug_zoo.mistake(name) if name else contextlib.nullcontext():
        with contextlib.redirect_stdout(io.StringIO()):
            pytest.main([*options, *tests], plugins=[Outcomes()])
    found.append(outcomes)
print(json.dumps(found))
"""


def path_of(test):
    file, name = test.split("::")
    return f"tests/test_{file}.py::test_{name}"


def python(*arguments, stdin=None, **environment):
    """Run Python at the root of the repository -> its finished process."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, input=stdin, text=True,
                          env={**os.environ, **environment}, capture_output=True, check=False)


@pytest.fixture(scope="module")
def outcomes():
    """{name: the outcomes of its tests with the mistake}, and without any under None."""
    tests = {name: [path_of(test)] for name, test in FOUND_BY.items()}
    asked = [(None, [test for [test] in tests.values()]), *tests.items()]
    done = python("-c", EVERY_RUN, stdin=json.dumps(asked))
    assert done.returncode == 0, done.stderr
    return dict(zip([None, *tests], json.loads(done.stdout.splitlines()[-1]), strict=True))


@cache
def complaints(name):
    """{diagnostic: what it says about the mistake of that name}, of those that do not pass."""
    with bug_zoo.mistake(name):
        return {d: said for d, said in diagnostics.examine().items() if said}


def test_the_diagnostics_are_content_with_right_code():
    assert not any(diagnostics.examine().values())


def test_an_oracle_names_the_worst_pair_and_what_is_no_number_is_never_right():
    diagnostics.expect("x", [1.0, 2.2], [1.1, 2.0], [0.15, 0.25])
    with pytest.raises(AssertionError, match=r"^x: expected 1\.1, got 1$"):
        diagnostics.expect("x", [1.0, 2.2], [1.1, 2.0], [0.05, 0.25])
    with pytest.raises(AssertionError, match=r"^x: expected 1, got nan$"):
        diagnostics.expect("x", [1.5, np.nan], 1, 0.1)


@pytest.mark.parametrize("m", bug_zoo.MISTAKES, ids=lambda m: m.name)
def test_every_mistake_makes_the_diagnostics_named_for_it_complain(m):
    assert m.fails
    assert set(m.fails.split()) <= complaints(m.name).keys()


def test_mistakes_are_told_apart_by_who_complains_and_how():
    found = [complaints(name) for name in NAMES]
    assert len({frozenset(said) for said in found}) > 0.7 * len(NAMES)
    assert len({str(said) for said in found}) == len(NAMES)
    assert set().union(*found) == diagnostics.DIAGNOSTICS.keys()       # and each is needed


@pytest.mark.parametrize("name", NAMES)
def test_every_mistake_makes_a_test_of_this_suite_fail(name, outcomes):
    assert outcomes[name]
    assert "failed" in outcomes[name]


def test_the_tests_that_find_mistakes_pass_without_one(outcomes):
    assert len(outcomes[None]) >= len(FOUND_BY)
    assert set(outcomes[None]) == {"passed"}


@pytest.mark.parametrize(("mistake", "code"), [("", 0), ("v with the wrong sign", 1)])
def test_a_variable_lets_a_mistake_into_a_whole_run_of_pytest(mistake, code):
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider",
                  path_of(FOUND_BY["v with the wrong sign"]), TINYDIFF_MISTAKE=mistake)
    assert done.returncode == code, done.stdout


def test_a_mistake_lives_as_long_as_its_with_and_shows_its_line():
    def seen_until(error):
        with bug_zoo.mistake("the direction to x_t subtracted"):
            seen.append(getsource(ddim))
            raise error

    right, seen = getsource(ddim), []
    with pytest.raises(KeyError):
        seen_until(KeyError)
    assert seen == [right.replace("+ (b_s**2", "- (b_s**2")] != [right]
    assert getsource(ddim) == right


def test_a_mistake_reaches_what_was_imported_and_wrapped_before():
    make = Schedule.linear                               # a classmethod, bound long ago
    right = make(100).beta[50]
    with bug_zoo.mistake("linear and scaled linear swapped"):
        assert make(100).beta[50] < 0.9 * right
    assert make(100).beta[50] == right


def test_cages_hold_every_mistake_once_and_not_in_the_order_of_the_list():
    numbers = range(1, len(NAMES) + 1)
    assert sorted(bug_zoo.reveal(n).splitlines()[0] for n in numbers) == sorted(NAMES)
    assert [bug_zoo.reveal(n).splitlines()[0] for n in numbers] != NAMES


def test_what_is_not_in_the_zoo_gets_one_sentence():
    with pytest.raises(ValueError, match=r"no mistake is called 'typo'; there are linear and"):
        bug_zoo.mistake("typo")
    with pytest.raises(ValueError, match=f"the cages are numbered 1 to {len(NAMES)}, got 0"):
        bug_zoo.cage(0)
    gone = bug_zoo.Mistake("gone", "", "diffusion.samplers.implicit:ddim", "x = y", "x = z")
    with pytest.raises(ValueError, match="ddim no longer has the text 'x = y'"), \
            bug_zoo.let_in(gone):
        pass
