"""Training, told straight: DDPM Algorithm 1 on captioned pictures.

    training = Training(recipe, dataset)      # tokenizer, networks, optimizer, EMA
    training.step()                           # one descent on the loss
    fit(training, folder)                     # all of them, with a bar, files and Ctrl-C

A step is a pure function of the weights and its number, so a run that resumes needs to know
nothing else.
"""

import re
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache, partial
from math import isfinite
from pathlib import Path

import numpy as np

from tinydiff import checkpoint, images
from tinydiff.autograd.blame import first_bad
from tinydiff.backend import alongside
from tinydiff.diffusion import noise, objective
from tinydiff.files import append, write_atomically
from tinydiff.frozen_text import model_of
from tinydiff.optim import EMA, Flat, clip_grad, learning_rate
from tinydiff.parallel import one_blas_thread
from tinydiff.predictor import as_heard
from tinydiff.progress import bar, interruptible
from tinydiff.resuming import Diverged, put_back, read_state, refuse_lost
from tinydiff.tables import LOSSES, OPTIMIZERS, TIMES, WEIGHTS
from tinydiff.upscale import shrunk, smaller
from tinydiff.whole_step import WholeStep

MEMORY = 1 << 28                                          # bytes for captions once read
ADVICE = "train into another folder with a smaller train.lr"
CHECKPOINT = "checkpoint.safetensors"
COLUMNS = "step,loss,lr,grad_norm,images_per_s,seconds"


class Training:
    """A model in the making, with all that its next step depends on.

    steps_done counts the optimizer steps behind it. With an Autoencoder, trained before on the same
    device and left alone, x0 are its latents.  LDM Eq. 2
    """

    file, log, what = CHECKPOINT, "metrics.csv", "train"
    torn = False                                          # amid a move: some weights are new

    def __init__(self, recipe, dataset, autoencoder=None, device="cpu"):
        self.recipe, self.dataset, self.autoencoder = recipe, dataset, autoencoder
        if recipe.train.lessons and dataset.count is not None:
            raise ValueError("train.lessons: only scenes drawn on the fly can be simple at first, "
                             f"not {recipe.data.name}; leave it out")
        self.plan, self.schedule = recipe.train, recipe.schedule()
        C = autoencoder.config.latent if autoencoder else dataset.shape[-1]
        self.model = model_of(recipe, dataset, C).to(device)
        self.model.unet.compute_in(self.plan.precision)
        kept = min(1 << 16, MEMORY // max(self.model.read("").nbytes, 1))
        self.ids = lru_cache(kept)(partial(self.model.read, cut=True))          # (L,) or (L, D)
        self.flat = Flat(self.model.parameters(), halved=self.plan.precision == "bf16")
        self.ema = EMA(self.flat, decay=recipe.train.ema)
        self.optimizer = OPTIMIZERS[recipe.train.optimizer](
            self.flat, beta2=recipe.train.beta2, decay=recipe.train.decay, ema=self.ema)
        self.moments = (objective.SecondMoments(self.schedule.T)  # t is drawn where L_vlb is large
                        if recipe.diffusion.loss == "vlb" else None)
        self.times = self.moments.draw if self.moments else TIMES[recipe.diffusion.times](
            self.schedule)
        self.whole_step, self.steps_done = WholeStep(self), 0

    @np.errstate(all="ignore")                            # a lost number is found and named
    def step(self):
        """One descent on the loss.  DDPM Alg. 1   -> (loss, lr, norm of the gradient)

        Raises Diverged, naming step and layer and leaving the weights alone, when a number is lost.
        """
        t, step = self.recipe.train, self.steps_done + 1
        lr = learning_rate(step, lr=t.lr, warmup=t.warmup, steps=None if t.constant else t.steps)
        loss, norm = self.whole_step(step, lr) or self.by_parts(step, lr)
        self.steps_done, self.torn = step, False
        return loss, lr, norm

    def by_parts(self, step, lr):
        """The gradient, then its clipping, then what the optimizer makes of it -> (loss, norm)"""
        loss = self.gradient(step)
        norm = clip_grad(self.flat, self.plan.clip)
        if not isfinite(norm):
            raise Diverged(f"the gradient of step {step} is {norm}, "
                           f"lost at {worst(self.flat.views(self.flat.grad))}; {ADVICE}")
        self.torn = True
        self.optimizer.step(lr, step)
        if self.moments:
            self.moments.update(*self.terms)
        return loss, norm

    @np.errstate(all="ignore")
    @one_blas_thread()
    def gradient(self, step):
        """Put the gradient of step 1, 2, … into `flat.grad`; return the loss."""
        x0, ids, given, numbers = self.told(step)
        eps = noise.alike(x0, self.plan.seed, step, purpose=noise.TRAIN_EPS)
        rng = noise.generator(self.plan.seed, step, purpose=noise.DROPOUT)
        loss, bits = self.loss(x0, ids, given, numbers, eps, rng)
        self.terms = numbers.t, bits                      # of L_vlb, should the step be taken
        return play_back(loss, self.flat, step, ADVICE)

    def told(self, step):
        """What step 1, 2, … is made of: x0, ids, what is given beside or None, its Numbers."""
        x0, ids = self.batch(step)
        recipe, predicts, seed = self.recipe, self.model.unet.config.predicts, self.plan.seed
        given = smaller(x0, recipe.upscale, self.schedule, seed, step)    # or None
        x0 = self.autoencoder.latents(x0) if self.autoencoder else x0     # LDM Eq. 2
        return x0, ids, given, objective.numbers(
            self.schedule, len(x0), predicts, seed=seed, step=step,
            weigh=WEIGHTS[recipe.diffusion.weight], times=self.times)

    def loss(self, x0, ids, given, numbers, eps, rng=None):
        """The loss of pictures x0 under noise eps, a Tensor; and bits of L_vlb, or None."""
        unet, schedule = self.model.unet, self.schedule
        draw = objective.drawn(x0, eps, numbers, unet.config.predicts)
        levels = numbers.signal, numbers.noise
        said = self.model(*as_heard(unet, levels, draw.x_t, draw.t), ids, given,
                          rng=rng)                                        # LDM Eq. 3
        return LOSSES[self.recipe.diffusion.loss](said, draw, x0, schedule, unet.config.predicts)

    def batch(self, step):
        """The pictures x0 (N, H, W, C) in [-1, 1] and caption ids (N, L) of step 1, 2, …"""
        t = self.plan
        rng = noise.generator(t.seed, step, purpose=noise.CAPTION)
        lesson = {"simple": 1 - step / t.lessons} if step <= t.lessons else {}
        pictures, texts = self.dataset.batch(t.batch, step - 1, t.seed, t.plain, rng, **lesson)
        ids = np.stack([self.ids(text) for text in texts])
        # CFG Alg. 1, line 3
        ids[rng.random(len(ids)) < t.drop] = self.ids("")         # so that it can draw unprompted
        if self.recipe.data.flip:
            mirrored = rng.random(len(pictures)) < 0.5
            pictures[mirrored] = pictures[mirrored, :, ::-1]
        return images.to_float(alongside(pictures, self.flat.data)), ids      # up go bytes

    def example(self):
        """Options of `Run.generate` without which this model draws nothing, for previews."""
        if self.recipe.upscale.factor == 1:
            return {}
        rng = noise.generator(self.plan.seed, 0, purpose=noise.CAPTION)
        pictures, _ = self.dataset.batch(1, 0, self.plan.seed, 1.0, rng)
        small = shrunk(images.to_float(pictures), self.recipe.upscale.factor)
        return {"init": images.to_uint8(small)[0]}

    def state(self):
        """{path: array}: all the numbers that the next step depends on, and the running mean."""
        buffers = {"model": self.flat.data, "ema": self.ema.data,
                   "adam_m": self.optimizer.m, "adam_v": self.optimizer.v}
        moments = self.moments.state if self.moments else {}
        return {**{f"{kind}/{name}": view for kind, buffer in buffers.items()
                   for name, view in self.flat.views(buffer).items()},
                **{f"moments/{name}": array for name, array in moments.items()}}

    def save(self, path):
        """Write a checkpoint from which `load` goes on bit for bit.

        Raises Diverged, leaving the file alone, rather than write what is no number.
        """
        state = self.state()
        refuse_lost(state, self.steps_done, ADVICE)
        latents = {}
        if self.autoencoder:
            latents = {"autoencoder": asdict(self.autoencoder.config)}
            state |= {f"autoencoder/{name}": p.data
                      for name, p in self.autoencoder.parameters().items()}
        checkpoint.save(path, state, latents | {
            "recipe": self.recipe.toml(), "model": self.model.config(),
            "schedule": self.schedule.config, "shape": list(self.dataset.shape),
            "step": self.steps_done})

    def load(self, path):
        """Go on from a checkpoint of the same recipe.  Raises ValueError naming what differs."""
        arrays, config = read_state(path, self.recipe)
        if config["model"].get("reader") != self.model.config().get("reader"):
            raise ValueError(f"{path} was told texts by another text.encoder than is in its folder "
                             "now; train into another folder")
        put_back(path, {name: array for name, array in arrays.items()
                        if not name.startswith("autoencoder/")}, self.state())
        self.flat.halve()
        self.steps_done = config["step"]


def play_back(loss, flat, step, advice):
    """Put the gradient of a loss into flat.grad; return the loss.  Raises Diverged if lost."""
    if not isfinite(value := loss.item()):
        raise Diverged(f"the loss of step {step} is {value}, "
                       f"lost at {culprit(loss, flat.parameters)}; {advice}")
    flat.grad[...] = 0
    loss.backward()
    return value


def worst(arrays):
    """The path of the first array with what is no number, else of the one with the largest."""
    return max(arrays, key=lambda name: (not np.isfinite(arrays[name]).all(),
                                         np.abs(arrays[name]).max()))


def culprit(loss, parameters):
    """Where the loss was lost; if that names no layer, with the one whose weights are largest."""
    where = first_bad(loss, parameters)
    if where.endswith(tuple(parameters)):
        return where
    return f"{where}, with the largest weights in " + worst(
        {name: p.data for name, p in parameters.items()})


def fit(training, folder, *, stop_at=None, preview=None, show=True):
    """Run the steps that are left; write checkpoint.safetensors, metrics.csv, config.toml.

    An AutoencoderTraining is run likewise, into autoencoder.safetensors and autoencoder.csv.
    Each row is in metrics.csv before its step is saved. stop_at ends the run there as Ctrl-C would,
    with the plan unchanged; the second Ctrl-C is KeyboardInterrupt. preview(training, path) is
    called every `sample_every` steps. Returns "done", "stopped" (stop_at) or "interrupted". Raises
    Diverged, OSError; the last good checkpoint stays.
    """
    recipe, folder = training.recipe, Path(folder)
    t, log = training.plan, folder / training.log
    write_atomically(folder / "config.toml", recipe.toml().encode())
    end = min(t.steps, stop_at or t.steps)
    before = keep_rows(log, training.steps_done)
    started = time.perf_counter()
    with (interruptible() as pressed,
          bar(t.steps, start=training.steps_done, what=training.what, show=show) as progress):
        while training.steps_done < end and not pressed():
            began = time.perf_counter()
            with saved_in(folder, training):
                loss, lr, norm = training.step()
                now, step = time.perf_counter(), training.steps_done
                rate = t.batch / (now - began)
                append(log, f"{step},{loss:.6f},{lr:.6g},{norm:.4f},{rate:.1f},"
                            f"{before + now - started:.2f}\n".encode())
            progress.update()
            progress.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} images/s", refresh=False)
            if step % t.save_every == 0 and step < end:
                training.save(folder / training.file)
            if preview and getattr(t, "sample_every", 0) and step % t.sample_every == 0:
                preview(training, folder / "samples" / f"step-{step:06d}.png")
        training.save(folder / training.file)
    if training.steps_done == t.steps:
        return "done"
    return "interrupted" if pressed() else "stopped"


@contextmanager
def saved_in(folder, training):
    """If the block finds no room to write or compute, or no device, try to save the steps done."""
    fails = OSError, MemoryError, RuntimeError
    try:
        yield
    except fails:
        with suppress(*fails, Diverged):                  # the last good checkpoint stays
            if not training.torn:
                training.save(folder / training.file)
        raise


def keep_rows(path, steps):
    """Cut metrics.csv back to its first `steps` steps; return the seconds they had taken."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = [row for row in re.findall(r"^\d+(?:,[-+.\de]+){5}$", text, re.MULTILINE)
            if int(row.partition(",")[0]) <= steps]
    write_atomically(path, "\n".join([COLUMNS, *rows, ""]).encode())
    return float(rows[-1].rpartition(",")[2]) if rows else 0.0
