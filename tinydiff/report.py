"""What a command says before long work, shows while it lasts, and proposes when it has ended."""

import shlex
import time
from contextlib import contextmanager

import numpy as np

from tinydiff import images
from tinydiff.diffusion import ideal_predictor, loss_gap
from tinydiff.parallel import cores, one_blas_thread
from tinydiff.predictor import denoiser
from tinydiff.runs import training_run


def describe(training, out, stop_at=None):
    """What is about to happen, and how long it takes here: a rehearsed step times those left."""
    t, done = training.plan, training.steps_done
    left = max(0, min(t.steps, stop_at or t.steps) - done)
    seconds = left and left * min(rehearse(training) for _ in range(2))
    return (f"device: cpu × {cores()} · data: {training.dataset.source}\n"
            f"model: {training.model.count():,} parameters · "
            f"{t.steps:,} steps of {t.batch} images, {done:,} done\n"
            f"expected time: about {clock(seconds)} · output: {out}")


def describe_drawing(run, asked, out, batch):
    """The same for pictures with the settings `asked`: a rehearsed step of each stage times all."""
    seconds = sum(steps * rehearse_drawing(stage, batch, options)
                  for stage, steps, options in run.stages(asked))
    return (f"device: cpu × {cores()} · model: {run.name} · "
            f"pictures: {len(asked['prompts']) * asked['n']}\n"
            f"expected time: about {clock(seconds)} · output: {out}")


def rehearse(training):
    """Seconds of one step, with the weights left alone."""
    started = time.perf_counter()
    training.gradient(training.steps_done + 1)
    return time.perf_counter() - started


def rehearse_drawing(run, batch, options):
    """Seconds of one step of drawing."""
    frames = run.denoise(batch=batch, **options)
    next(frames)                                          # x_T
    started = time.perf_counter()
    next(frames)
    return time.perf_counter() - started


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
    """The second Ctrl-C in this block, which saves nothing, tells how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        saved = ["--resume"] if any(file.exists() for file in files) else []
        raise KeyboardInterrupt("interrupted; the steps since the last save are lost; go on with: "
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
