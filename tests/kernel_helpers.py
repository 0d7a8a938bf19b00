"""What tests of the kernels share: compiling in this process, running in another one."""

import faulthandler
import hashlib
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
from tinydiff_kernels.simd import build, cache
from tinydiff_kernels.simd.tasks import TASKS, Task


def compiled(function):
    """`function`, in the vector language, as a task that is compiled here and now."""
    function.__module__ = "tinydiff_kernels.tests"        # then its words are translated
    task = Task(function, common=False)
    del TASKS[task.name]
    task.address = cache.link(*build.compile_task(task))
    return task


def forked(call):
    """The exit status of a child that does nothing but `call`; a signal it died of is negative."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                   # newer Pythons warn where threads run
        child = os.fork()
    if not child:
        try:
            faulthandler.disable()                        # its parent sees what became of it
            signal.alarm(60)
            call()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def python(code, *arguments, **environment):
    """What a fresh process prints that runs `code` and says nothing else."""
    out, err, status = ended(start(code, *arguments, **environment))
    assert (status, err) == (0, "")
    return out


def start(code, *arguments, path=(), **environment):
    """A fresh process that runs `code`, with folders before its path and other variables set."""
    paths = os.pathsep.join(map(str, [*path, *sys.path]))
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8",
                                 **environment})


def ended(process):
    """(what it printed, what it said on stderr, its exit status), once it has ended."""
    out, err = process.communicate(timeout=120)
    return out.decode(), err.decode(), process.returncode


def digest():
    """A fingerprint of convolutions, forward and backward, large enough for many items."""
    from tinydiff_kernels.conv2d import rung2_numba, rung4_winograd4
    rng = np.random.default_rng(0)
    found = hashlib.sha256()
    for rung, (N, S, C, O) in ((rung2_numba, (3, 21, 24, 40)), (rung4_winograd4, (3, 21, 24, 40)),
                               (rung4_winograd4, (2, 9, 136, 264))):  # weights that pass by
        x, w, dy = (rng.standard_normal(shape, dtype=np.float32)
                    for shape in ((N, S, S - 2, C), (3, 3, C, O), (N, S, S - 2, O)))
        for y in (rung.forward(x, w, 1, ((1, 1), (1, 1))),
                  rung.grad_input(dy, w, x.shape, 1, ((1, 1), (1, 1))),
                  rung.grad_weight(dy, x, w.shape, 1, ((1, 1), (1, 1)))):
            found.update(y)
    return found.hexdigest()


def put_digest(queue):
    queue.put(digest())
