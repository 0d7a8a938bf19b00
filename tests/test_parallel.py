"""Pieces side by side: the answers of a plain loop, whatever the number of threads."""

import os
import threading
from contextlib import nullcontext

import numpy as np
import pytest
from story_helpers import answer

from tinydiff import parallel
from tinydiff.parallel import cores, one_blas_thread, side_by_side


@pytest.fixture(params=[1, 2, 4])
def threads(request, monkeypatch):
    """Run the test on so many threads, however many cores there are."""
    monkeypatch.setattr(parallel, "cores", lambda: request.param)
    return request.param


def test_the_answers_come_in_the_order_of_the_pieces(threads):
    assert side_by_side(pow, range(10), range(10, 20)) == [i ** (10 + i) for i in range(10)]
    assert side_by_side(pow, [], []) == []


def test_pieces_really_run_side_by_side_on_no_more_threads_than_cores(threads):
    meeting = threading.Barrier(threads)

    def meet(piece):
        meeting.wait(timeout=30)                           # passes only when all are there
        return threading.get_ident()

    assert len(set(side_by_side(meet, range(threads)))) == threads
    assert len(set(side_by_side(lambda piece: threading.get_ident(), range(20)))) <= threads


def test_the_first_error_is_raised_and_no_piece_is_left_running(threads):
    running = []

    def fail(piece):
        running.append(piece)
        try:
            if piece in (1, 3):
                raise ArithmeticError(f"piece {piece}")
        finally:
            running.remove(piece)

    with pytest.raises(ArithmeticError, match="piece 1"):
        side_by_side(fail, range(4))
    assert running == []


def test_threads_keep_the_callers_treatment_of_floating_point_faults(threads):
    def overflow(piece):
        return np.float32(1e38) * np.float32(10 + piece)

    with pytest.raises(FloatingPointError):                # as conftest says: all faults raise
        side_by_side(overflow, range(4))
    with np.errstate(over="ignore"):
        assert side_by_side(overflow, range(4)) == [np.inf] * 4


@pytest.mark.parametrize(("wanted", "have", "get"), [
    ("", 4, 4), ("1", 4, 1), ("3", 4, 3), ("8", 4, 4), ("0", 4, 1), ("2,2", 4, 4), ("all", 4, 4)])
def test_omp_num_threads_can_only_say_fewer(wanted, have, get, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(have)), raising=False)
    assert cores() == get


@pytest.mark.parametrize(("count", "get"), [(6, 6), (None, 1)])
def test_where_there_is_no_affinity_the_cores_are_counted(count, get, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert cores() == get


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is a matter of Linux")
def test_the_cores_that_a_process_may_not_use_are_not_counted(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)


PRODUCT = """
import hashlib, sys
import numpy as np
from tinydiff.parallel import side_by_side
rng = np.random.default_rng(0)
a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((1000, 700), (700, 300)))
for y in side_by_side(np.matmul, *[[z] * int(sys.argv[1]) for z in (a, b)]):
    print(hashlib.sha256(y).hexdigest())
"""


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_matrix_product_has_the_same_bits_on_one_thread_and_on_four(pieces):
    pytest.importorskip("threadpoolctl")
    few, many = (answer(PRODUCT, pieces, threads=n).split() for n in (1, 4))
    assert few == many
    assert len(few) == pieces


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
    assert isinstance(one_blas_thread(), nullcontext)
    assert side_by_side(abs, [-1, 2]) == [1, 2]
