"""What a command says before long work, shows while it lasts, and proposes when it has ended."""

import shlex
import time
import traceback
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np

from tinydiff import images
from tinydiff.backend import array_module, gpu, memory_of, of_device, wait_for
from tinydiff.diffusion import ideal_predictor, loss_gap
from tinydiff.evaluation.estimate import straight
from tinydiff.parallel import cores, one_blas_thread
from tinydiff.predictor import denoiser
from tinydiff.replay import one_by_one
from tinydiff.runs import training_run


def describe(training, out, stop_at=None):
    """What is about to happen, and how long it takes here: a rehearsed step times those left."""
    t, done = training.plan, training.steps_done
    left = max(0, min(t.steps, stop_at or t.steps) - done)
    seconds = left and left * min(rehearse(training) for _ in range(2))
    return (f"device: {device(training.flat.data)} · data: {training.dataset.source}\n"
            f"model: {training.model.count():,} parameters · "
            f"{t.steps:,} steps of {t.batch} images, {done:,} done\n"
            f"expected time: about {clock(seconds)} · output: {out}")


def describe_drawing(run, asked, out, batch):
    """The same for pictures with the settings `asked`."""
    return (f"device: {device(run.unet.home)} · model: {run.name} · "
            f"pictures: {len(asked['prompts']) * asked['n']}\n"
            f"expected time: about {clock(rehearse_drawing(run, asked, batch))} · output: {out}")


def device(array):
    """What works on an array, as a user knows it."""
    return f"cpu × {cores()}" if array_module(array) is np else f"cuda ({gpu()})"


def rehearse(training, pictures=None):
    """Seconds of one step, with the weights left alone; of so many pictures, if not the plan's."""
    if pictures:
        training = copy(training)
        training.plan = replace(training.plan, batch=pictures)
    started = time.perf_counter()
    training.gradient(training.steps_done + 1)
    wait_for(training.flat.grad)
    return time.perf_counter() - started


@one_by_one()                                             # as `memory_of` sees no graph's
def rehearse_drawing(run, asked, batch):
    """Seconds of drawing, `batch` pictures at a time: a rehearsed step of each stage times all."""
    seconds = 0
    for stage, steps, options in run.stages(asked):
        frames = stage.denoise(batch=batch, **options)
        wait_for(next(frames))                            # x_T
        started = time.perf_counter()
        wait_for(next(frames))
        seconds += steps * (time.perf_counter() - started)
    return seconds


@contextmanager
def sized(step, pictures, option):
    """Too little memory on a GPU in this block is said in numbers; step(n) is a step of n pictures.

    It is tried with 1, 2, 4 … of them; what so many need is on the line through the last two.
    """
    try:
        yield
    except MemoryError as error:
        if not of_device(error):
            raise
        traceback.clear_frames(error.__traceback__)       # they hold what was computed so far
        points = []
        with suppress(MemoryError):
            for n in (2**k for k in range((pictures - 1).bit_length())):
                points.append((n, *memory_of(partial(step, n))))
        if len(points) < 2:
            raise MemoryError("the GPU has too little memory for two pictures at a time") from None
        (n, less, _), (twice, more, most) = points[-2:]
        need = straight(points, 1, pictures)
        if need <= most:                                  # it was something else
            raise
        fit = int(twice + n * max(0, 0.9 * most - more) / (more - less))      # some is in pieces
        raise MemoryError(f"{pictures} pictures at a time need about {need / 1e9:.2g} GB of the "
                          f"GPU's memory, {most / 1e9:.2g} GB were free; {fit} fit, {option}{fit}"
                          ) from None


def distance_from_best(training, times, n=64):
    """The loss in eps on n pictures it learned from, unprompted, and the least possible, (K,) each.

    The least is that of the exact predictor of its pictures, of the first 10,000 if there are more.
    """
    run, known = training_run(training, "now"), images.to_float(training.dataset.images[:10_000])
    context = np.repeat(run.contexts([""]), len(known[:n]), axis=0)
    with one_blas_thread():
        return loss_gap(denoiser(run.model.unet, run.schedule, context),
                        ideal_predictor(known, run.schedule), known[:n], run.schedule, times)


def preview(training, path):
    """One picture of each prompt, in few steps, from the weights of the moment."""
    run, prompts = training_run(training, path.stem), training.dataset.prompts
    images.write_png(path, images.grid(run.generate(list(prompts), steps=min(10, run.schedule.T),
                                                    **training.example())))


def clock(seconds):
    """1:05:09, or 2:40 below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def resumable(again, *files):
    """The second Ctrl-C in this block, or a GPU that fails, tells how to go on from the last save.
    """
    try:
        yield
    except (KeyboardInterrupt, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not of_device(error):
            raise
        saved = ["--resume"] if any(file.exists() for file in files) else []
        kind, what = ((OSError, f"the GPU failed ({error})") if of_device(error) else
                      (KeyboardInterrupt, "interrupted"))
        raise kind(f"{what}; the steps since the last save are lost; go on with: "
                   + as_typed([*again, *saved])) from None


def finish(outcome, out, again, asks):
    """Say what to type next; the exit code of how training ended."""
    if outcome == "done":
        print(f"done: {out}; now: {as_typed(['sample', out, *asks])}")
        return 0
    print(f"{outcome}, and saved in {out}; go on with: {as_typed(again)}")
    return 130 if outcome == "interrupted" else 0


def as_typed(words):
    """A command of ours, ready to be typed."""
    return shlex.join(["tinydiff", *map(str, words)])
