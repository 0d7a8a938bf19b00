"""A stage runs in a process of its own, so a kernel that hangs costs one item and not the run.

A stage's module has items(options) -> [(name, a function without arguments)]. The function returns
a dictionary, the item's result, and {"ok": False} in it is a failure. So is an exception, except
LeftOut and ModuleNotFoundError, which say why there is no result.
"""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from signal import SIGKILL
from threading import Timer

from gpu import TOOLS

PYTHON = (sys.executable, "-m", "gpu")                    # then a module of this folder: its main
GRACE  = 15                                               # seconds that a last item may take longer
BROKEN = 3                                                # status of a process that lost its GPU


class LeftOut(Exception):
    """Why an item was not looked at."""


def run(module, options, until, patience):
    """Yield (item, {"result" | "error" | "left_out": …}) of a stage's items.

    until: the time when the last one may begin; patience: the seconds that one may take. One that
    takes longer is ended, and the next begins in a new process.
    """
    first = 0
    while first is not None:
        words = ["child", module, json.dumps(options), str(first), str(until)]
        with subprocess.Popen([*PYTHON, *words], stdout=subprocess.PIPE, encoding="utf-8",
                              cwd=TOOLS, process_group=0) as process:
            try:
                first = yield from listen(process, until, patience)
            finally:
                end(process)


def listen(process, until, patience):
    """Yield what a child says; return the item to begin with in another process, or None."""
    item, following = "its process", None                 # what it is doing, and what comes next
    alarm = alarm_for(process, until, patience)
    for line in process.stdout:
        alarm.cancel()
        said = json.loads(line)
        if "begins" in said:
            item, following = said["begins"], said["number"] + 1
        elif "ended" in said:
            item = following = None
        else:
            yield said.pop("item"), said
            item = None
        alarm = alarm_for(process, until, patience)
    alarm.cancel()
    status = process.wait()
    if item is not None:
        yield item, {"error": "it took too long and was ended" if status == -SIGKILL else
                     f"its process ended with status {status}"}
    return following


def alarm_for(process, until, patience):
    """A timer that ends the process if it says nothing for too long."""
    alarm = Timer(min(patience, max(0, until - time.time()) + GRACE), end, [process])
    alarm.daemon = True
    alarm.start()
    return alarm


def end(process):
    """End a process and everything it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, SIGKILL)


def ended_in_time(command, seconds):
    """(exit status, what was printed) of a program.  LeftOut where it takes longer."""
    seconds = max(1, round(seconds))
    done = subprocess.run(["timeout", "--kill-after=2", str(seconds), *command], check=False,
                          cwd=TOOLS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          errors="replace")
    if done.returncode in (124, 137):
        raise LeftOut(f"it took longer than {seconds} s")
    return done.returncode, done.stdout


def main(module, options, first, until):
    """Life as a child: each item from `first` on, as long as there is time."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)                                         # everything else is printed to stderr
    options = {**json.loads(options), "until": float(until)}
    say = lambda **what: print(json.dumps(what), file=answers)
    return work_through(import_module(module).items(options), int(first), options, say)


def work_through(items, first, options, say):
    """Say of each item what it gives; return the process's exit status."""
    for number, (item, work) in enumerate(items[first:], first):
        if time.time() > options["until"]:
            say(item=f"{item}, and the {len(items) - number - 1} after it",
                left_out="no time was left")
            break
        say(begins=item, number=number)
        try:
            say(item=item, result=work())
        except (LeftOut, ModuleNotFoundError) as reason:
            say(item=item, left_out=in_words(reason))
        except Exception as error:
            say(item=item, error=f"{type(error).__name__}: {in_words(error)}")
            if options["backend"] == "gpu" and broken():
                return BROKEN
    say(ended=True)
    return 0


def in_words(error):
    """A message without the machine's folders."""
    return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "", str(error))[:500]


def broken():
    """Whether this process has lost its GPU, as it does after a kernel's wrong address."""
    try:
        import cupy
        cupy.cuda.Device().synchronize()
        cupy.zeros(1).get()
    except Exception:
        return True
    return False

