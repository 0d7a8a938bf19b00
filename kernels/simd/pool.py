"""One pool of threads for all kernels: numbered items of work, taken by whoever is free.

A job is a compiled task and a number of items. The caller opens it, wakes the workers and works
along; each thread takes the next item until none is left. A worker that the machine gives no core
is not waited for: only those that have begun are. So a busy machine slows a job, never stalls it.

Waiting threads sleep. Before that they look out for the next job for some microseconds, giving
their core to anyone who asks; OMP_WAIT_POLICY=passive sleeps at once, =active looks out for longer.
OMP_NUM_THREADS says how many threads there are. What a job computes never depends on it.
"""

import ctypes
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from .tasks import SPARE, pack, task
from .vector import external, fetch_add, invoke, read, write

FUNCTION, ARGUMENTS, ITEMS, LIMIT, NEXT, JOB, OPEN, RUNNING, ASLEEP, WAITING, PATIENCE = range(11)
MUTEX, START, DONE, SIZE = 128, 192, 256, 320             # bytes
PATIENCES = {"passive": 0, "": 1000, "active": 100_000}    # glances before a thread sleeps

lock   = external("pthread_mutex_lock", 1)
unlock = external("pthread_mutex_unlock", 1)
wait   = external("pthread_cond_wait", 2)
wake   = external("pthread_cond_broadcast", 1)
give_way = external("sched_yield", 0)


def take_items(pool, worker):
    if worker >= read(pool, LIMIT):
        return                                            # this job has memory for fewer workers
    function, arguments, items = read(pool, FUNCTION), read(pool, ARGUMENTS), read(pool, ITEMS)
    item = fetch_add(pool, NEXT, 1)
    while item < items:
        invoke(function, arguments, item, worker)
        item = fetch_add(pool, NEXT, 1)


@task
def stand_by(item, worker, pool):
    """The life of a worker: wait for a new job, help if it is still open, wait again.

    Whoever is about to sleep says so first and looks again then; whoever changes something looks
    for sleepers after it. So one sees the other, and nobody who does not sleep needs a lock.
    """
    seen = 0
    while True:
        for _ in range(read(pool, PATIENCE)):
            if read(pool, JOB) != seen:
                break
            give_way()
        if read(pool, JOB) == seen:
            lock(pool + MUTEX)
            fetch_add(pool, ASLEEP, 1)
            while fetch_add(pool, JOB, 0) == seen:
                wait(pool + START, pool + MUTEX)
            fetch_add(pool, ASLEEP, -1)
            unlock(pool + MUTEX)
        seen = read(pool, JOB)
        fetch_add(pool, RUNNING, 1)
        if fetch_add(pool, OPEN, 0):
            take_items(pool, worker)
        if fetch_add(pool, RUNNING, -1) == 1 and fetch_add(pool, WAITING, 0):
            rouse(pool, DONE)


@task
def lead(item, worker, pool):
    """Open the job that stands in the pool, work along, return when every item is done."""
    write(pool, NEXT, 0)
    fetch_add(pool, OPEN, 1)
    fetch_add(pool, JOB, 1)
    if fetch_add(pool, ASLEEP, 0):
        rouse(pool, START)
    take_items(pool, worker)
    fetch_add(pool, OPEN, -1)
    for _ in range(read(pool, PATIENCE)):
        if read(pool, RUNNING) == 0:
            break
        give_way()
    if fetch_add(pool, RUNNING, 0):
        lock(pool + MUTEX)
        fetch_add(pool, WAITING, 1)
        while fetch_add(pool, RUNNING, 0):
            wait(pool + DONE, pool + MUTEX)
        fetch_add(pool, WAITING, -1)
        unlock(pool + MUTEX)


def rouse(pool, condition):
    lock(pool + MUTEX)
    wake(pool + condition)
    unlock(pool + MUTEX)


@task
def help_out(item, worker, job):
    """A share of a job."""
    take_items(job, worker)


@task
def alone(item, worker, function, arguments, items):
    """All items, one after the other, on the caller's thread."""
    for i in range(items):
        invoke(function, arguments, i, worker)


@cache
def threads():
    """How many threads a job may use: the cores, or fewer where OMP_NUM_THREADS says so."""
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(have, int(wanted))) if wanted.isdecimal() else have


class Pool:
    """Sleeping workers and the memory they share; made at the first job, anew after a fork."""

    def __init__(self, size):
        self.size, self.busy = size, threading.Lock()
        self.memory = np.zeros(SIZE // 8, np.int64)       # every worker holds on to it
        policy = os.environ.get("OMP_WAIT_POLICY", "").lower()
        self.memory[PATIENCE] = PATIENCES.get(policy, PATIENCES[""])
        address, libc = self.memory.ctypes.data, ctypes.CDLL(None)
        self.here = pack([self.memory])
        libc.pthread_mutex_init(ctypes.c_void_p(address + MUTEX), None)
        for condition in (START, DONE):
            libc.pthread_cond_init(ctypes.c_void_p(address + condition), None)
        _ = stand_by.code                                 # loaded here once, not by each worker
        for worker in range(1, size):
            hand = threading.Thread(target=stand_by.call, args=(0, worker, self.memory),
                                    daemon=True, name=f"tinydiff kernels {worker}")
            try:
                hand.start()
            except RuntimeError:                          # the system has no more; fewer do as well
                break

    def lead(self, *job):
        self.memory[:4] = job                             # nobody reads it before it is opened
        lead.code(SPARE, SPARE, self.here, 0, 0)


class PythonPool:
    """The same where there is no pthread: Python's own threads help, which costs a job more."""

    def __init__(self, size):
        self.size, self.busy = size, threading.Lock()
        self.crew = ThreadPoolExecutor(size - 1, "tinydiff kernels")

    def lead(self, function, arguments, items, limit):
        job = np.array([function, arguments, items, limit, 0], np.int64)
        helpers = [self.crew.submit(help_out.call, 0, worker, job) for worker in range(1, limit)]
        try:
            help_out.call(0, 0, job)
        finally:
            for helper in helpers:
                helper.cancel() or helper.result()        # who has not begun need not begin


KIND = Pool if os.name == "posix" else PythonPool
_pool = None
_making = threading.Lock()


def workers(size):
    """The pool, of at least that many threads."""
    global _pool
    if _pool is None or _pool.size < size:
        with _making:
            if _pool is None or _pool.size < size:
                _pool = KIND(size)
    return _pool


def forget():
    """After a fork the child has none of its parent's threads."""
    global _pool, _making
    _pool, _making = None, threading.Lock()
    threads.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


def run(task, items, *arguments):
    """task(item, worker, *arguments) for item = 0 … items − 1, on all threads.

    Arguments are integers and arrays; an array becomes its address. Where the pool is in use by
    another thread of the program, or there is but one item, the caller's thread does it all.
    """
    packed = pack(arguments)
    if items == 1:
        task.code(SPARE, SPARE, packed, 0, 0)
        return
    count = threads()
    pool = workers(count) if count > 1 and items else None
    if pool and pool.busy.acquire(blocking=False):
        try:
            pool.lead(task.address, ctypes.addressof(packed), items, count)
        finally:
            pool.busy.release()
    else:
        alone.call(0, 0, task.address, ctypes.addressof(packed), items)
