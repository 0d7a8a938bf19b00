"""Each planted mistake is noticed by the stored cases named for it, and there is no idle case."""

import bug_zoo
import pytest
from planted import PLANTED
from test_stored_parity import CASES


def notices(case):
    """Whether a stored case fails, or its weights no longer fit the model."""
    try:
        CASES[case]()
    except AssertionError:
        return True
    except ValueError as error:
        if "does not hold the weights" not in str(error):
            raise
        return True
    return False


@pytest.mark.parametrize("m", PLANTED, ids=lambda m: m.name)
def test_a_planted_mistake_is_noticed_by_every_case_named_for_it(m):
    with bug_zoo.let_in(m):                               # ValueError where its text is gone
        assert {case: notices(case) for case in m.fails.split()} == \
            dict.fromkeys(m.fails.split(), True) != {}


def test_without_a_mistake_no_case_has_anything_to_notice():
    assert not [case for case in CASES if notices(case)]


def test_every_stored_folder_notices_some_mistake():
    needed = {case.split("/")[0] for m in PLANTED for case in m.fails.split()}
    assert needed == {case.split("/")[0] for case in CASES}
