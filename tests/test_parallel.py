"""How many threads there are, and BLAS on one of them."""

import os

import numpy as np
import pytest
from story_helpers import answer

from tinydiff import parallel
from tinydiff.parallel import cores, one_blas_thread


@pytest.mark.parametrize(("wanted", "have", "get"), [
    ("", 4, 4), ("1", 4, 1), ("3", 4, 3), ("8", 4, 4), ("0", 4, 1), ("2,2", 4, 4), ("all", 4, 4)])
def test_omp_num_threads_can_only_say_fewer(wanted, have, get, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(have)), raising=False)
    assert cores.__wrapped__() == get


@pytest.mark.parametrize(("count", "get"), [(6, 6), (None, 1)])
def test_where_there_is_no_affinity_the_cores_are_counted(count, get, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert cores.__wrapped__() == get


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is a matter of Linux")
def test_the_cores_that_a_process_may_not_use_are_not_counted(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores.__wrapped__() == 1
    finally:
        os.sched_setaffinity(0, before)


PRODUCT = """
import hashlib
import numpy as np
from tinydiff.parallel import one_blas_thread
rng = np.random.default_rng(0)
a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((1000, 700), (700, 300)))
with one_blas_thread():
    print(hashlib.sha256(a @ b).hexdigest())
"""


def test_a_matrix_product_has_the_same_bits_on_one_thread_and_on_four():
    pytest.importorskip("threadpoolctl")
    few, many = (answer(PRODUCT, threads=n) for n in (1, 4))
    assert few == many
    assert len(few.strip()) == 64


def test_blas_gets_its_threads_back():
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def now():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()
                if pool["user_api"] == "blas"]

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = now()
        with one_blas_thread():
            assert set(now()) <= {1}
        assert now() == before


def test_without_threadpoolctl_blas_is_left_alone(monkeypatch):
    monkeypatch.setattr(parallel, "blas", lambda: None)
    with one_blas_thread():
        np.testing.assert_array_equal(np.eye(2) @ np.eye(2), np.eye(2))
