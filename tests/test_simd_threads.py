"""Jobs of many items: each done once, with the same result whoever does it, whatever else runs."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest

pytest.importorskip("numba")

from kernel_helpers import compiled, digest, ended, forked, put_digest, python, start
from tinydiff_kernels.simd import cache as code_cache, pool as threads
from tinydiff_kernels.simd.pool import Pool, PythonPool, run
from tinydiff_kernels.simd.vector import fetch_add, read, write

posix = pytest.mark.skipif(os.name != "posix", reason="a matter of POSIX")
DIGEST = "from kernel_helpers import digest; print(digest())"


def note(item, worker, done, who, turns):
    """done[item] += 1, who[item] = worker, after so many turns of idle work"""
    for _ in range(turns):
        fetch_add(who, item, 1)
    write(who, item, worker)
    write(done, item, read(done, item) + 1)


def linger(item, worker, done, flag):
    """done[item] += 1, once flag is up"""
    while not read(flag, 0):
        pass
    fetch_add(done, item, 1)


task = cache(compiled)


def job(items, turns=0):
    """(how often each item was done, by which worker)"""
    done, who = np.zeros(items, np.int64), np.full(items, -1)
    run(task(note), items, done, who, turns)
    return done, who


@pytest.fixture
def cores(monkeypatch):
    """cores(n): go on as on n cores, with a new pool."""
    def have(count):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)
        threads.threads.cache_clear()
    monkeypatch.setattr(threads, "_pool", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield have
    threads.threads.cache_clear()


@pytest.fixture(params=[pytest.param(Pool, marks=posix), PythonPool])
def kind(request, monkeypatch, cores):
    monkeypatch.setattr(threads, "KIND", request.param)
    cores(4)
    return request.param


@pytest.mark.parametrize(("wanted", "have", "get"), [
    ("", 4, 4), ("1", 4, 1), ("3", 4, 3), ("8", 4, 4), ("0", 4, 1), ("2,2", 4, 4), ("all", 4, 4),
    ("-1", 4, 4), ("1e9", 4, 4), ("²", 4, 4)])
def test_omp_num_threads_can_only_say_fewer(wanted, have, get, monkeypatch, cores):
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    cores(have)
    assert threads.threads.__wrapped__() == get


@pytest.mark.parametrize(("count", "get"), [(6, 6), (None, 1)])
def test_where_there_is_no_affinity_the_cores_are_counted(count, get, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert threads.threads.__wrapped__() == get


@pytest.mark.parametrize("count", [1, 2, 4, 9])
@pytest.mark.parametrize("items", [0, 1, 2, 3, 1000])
def test_each_item_is_done_once_by_a_worker_there_is(kind, cores, count, items):
    cores(count)
    done, who = job(items)
    np.testing.assert_array_equal(done, 1)
    assert set(who) <= set(range(count))


def test_all_workers_help(kind):
    for turns in (10**4, 10**5, 10**6):                   # until each got its chance
        if set(job(100, turns)[1]) == {0, 1, 2, 3}:
            return
    pytest.fail("some worker never helped")


def test_fewer_threads_than_the_pool_has_are_respected(kind, cores):
    job(100, 1000)
    cores(2)
    for _ in range(50):
        assert set(job(100, 100)[1]) <= {0, 1}
    cores(4)
    assert (job(100)[0] == 1).all()


def test_a_pool_that_grows_leaves_the_old_workers_their_memory(cores):
    cores(2)
    job(10)
    old = weakref.ref(threads._pool.memory)
    cores(4)
    job(10)
    gc.collect()
    assert threads._pool.size == 4
    assert old() is not None


def test_a_single_item_wakes_nobody(cores):
    cores(4)
    assert job(1)[1] == [0]
    assert threads._pool is None


def test_where_no_thread_can_be_started_the_caller_does_it_all(cores, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    cores(4)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert (job(100)[1] == 0).all()


@pytest.mark.parametrize("policy", ["passive", "active", "PASSIVE", "whatever"])
def test_the_wait_policy_changes_no_result(cores, monkeypatch, policy):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    cores(4)
    for _ in range(20):
        assert (job(50)[0] == 1).all()


def test_results_have_the_same_bits_on_any_number_of_threads(kind, cores):
    found = []
    for count in (1, 2, 4, 3, 16):
        cores(count)
        found.append(digest())
    assert set(found) == {found[0]}


def test_two_processes_at_once_and_more_threads_than_cores_change_nothing():
    both = [start(DIGEST, OMP_NUM_THREADS="64", OMP_WAIT_POLICY=policy)
            for policy in ("active", "passive")]
    assert [ended(process) for process in both] == [(digest() + "\n", "", 0)] * 2


def test_eight_python_threads_at_once_all_get_their_own_results(kind):
    expected = digest()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: digest(), range(24))) == [expected] * 24
        counts = list(pool.map(lambda turns: job(100, turns)[0], range(0, 2400, 100)))
    np.testing.assert_array_equal(counts, 1)


@posix
@pytest.mark.parametrize("held", ["nothing", "a job", "the locks"])
def test_a_forked_child_has_a_pool_of_its_own(cores, held):
    def child():
        assert digest() == expected
        assert (job(100)[0] == 1).all()

    cores(4)
    expected = digest()
    if held == "a job":
        other = threading.Thread(target=job, args=(100, 10**5))
        other.start()
        assert forked(child) == 0
        other.join()
    elif held == "the locks":
        ready, go = threading.Event(), threading.Event()

        def hold():
            with threads._making, code_cache._lock:
                ready.set()
                go.wait(60)

        other = threading.Thread(target=hold)
        other.start()
        ready.wait()
        assert forked(child) == 0
        go.set()
        other.join()
    else:
        assert forked(child) == 0
    assert digest() == expected


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_of_multiprocessing_compute_the_same(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    expected = digest()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [context.Process(target=put_digest, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [expected] * 2
    for child in children:
        child.join(60)
        assert child.exitcode == 0


@posix
def test_ctrl_c_arrives_after_the_job_and_the_pool_still_works(kind):
    done, flag = np.zeros(40, np.int64), np.zeros(1, np.int64)

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        flag[0] = 1

    patient = task(linger)                                # compiled before the clock runs
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.1, interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            run(patient, 40, done, flag)
    finally:
        signal.signal(signal.SIGINT, before)
    np.testing.assert_array_equal(done, 1)
    assert (job(100)[0] == 1).all()
    assert not threads._pool.busy.locked()


def test_without_pthread_nothing_that_names_it_is_linked():
    code = """if True:
        from kernel_helpers import digest
        from tinydiff_kernels.simd import pool as threads
        threads.KIND = threads.PythonPool
        print(digest())
        assert threads._pool.size > 1
        assert "address" in vars(threads.help_out)
        assert not any("address" in vars(task) for task in (threads.lead, threads.stand_by))
    """
    assert python(code, OMP_NUM_THREADS="4") == digest() + "\n"


def seconds(items=2000, turns=2000):
    before = time.perf_counter()
    job(items, turns)
    return time.perf_counter() - before


@pytest.mark.slow
def test_a_busy_machine_slows_a_job_but_never_stalls_it(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    alone = min(seconds() for _ in range(5))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(threads.threads())]
    try:
        assert min(seconds() for _ in range(5)) < 8 * alone + 0.1
    finally:
        for process in busy:
            process.kill()
            process.wait()
