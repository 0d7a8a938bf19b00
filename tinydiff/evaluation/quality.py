"""How good a trained model is: `evaluate` draws, judges, and answers with one dict of numbers.

What cannot be measured is None, and a note says why. Fréchet distances, precision, recall and
coverage are in the features of a judge of our own (judging.py): none of them is "FID".
"""

from functools import partial
from pathlib import Path

import numpy as np

from tinydiff import data, images, metrics
from tinydiff.backend import alongside, to_host
from tinydiff.diffusion import ideal_predictor, loss_gap, vlb
from tinydiff.evaluation.judging import JUDGES, load_judge
from tinydiff.evaluation.questions import questions_about, share
from tinydiff.evaluation.real import SAMPLE, real_pictures
from tinydiff.parallel import one_blas_thread
from tinydiff.predictor import denoiser
from tinydiff.progress import bar
from tinydiff.upscale import Cascade

LEAST, GROUP = 40, 20               # pictures of a run at least; prompts drawn with one seed
GUIDANCES = 1.0, 1.5, 2.0, 3.0, 5.0, 8.0        # of the sweep, each with n/4 pictures
SOME, STEPS, DRAWS = 64, 100, 10    # pictures for likelihood and loss; of its chain; of n real ones
NOTHING = dict.fromkeys(
    "prompt_accuracy ci95 by_kind unseen frechet frechet_ci95 frechet_extrapolated frechet_real "
    "precision recall coverage real copies guidance_sweep loss_gap nll_bits_per_dim nll_note"
    .split())


def how_many(run, n):
    """How many pictures `evaluate` draws."""
    name = table_of(run).name
    return n + n // 2 * (name in data.WORLDS) + len(GUIDANCES) * (n // 4) * (name in JUDGES)


def table_of(run):
    """[data] of the stage whose pictures are seen."""
    return (run.large if isinstance(run, Cascade) else run).recipe.data


def evaluate(run, *, n=400, seed=0, show=False):
    """What n pictures of a Run, and others at other guidance, say of it -> a dict for JSON"""
    refuse(run, n)
    table, rng = table_of(run), np.random.default_rng(seed)
    judge = JUDGES.get(table.name) and load_judge(table.name)
    real, told = real_pictures(table)
    found = {"recipe": Path(run.name).name, "data": table.name, "n": n, "seed": seed,
             "sampler": run.own.sampler, "steps": run.own.steps, "guidance": run.own.guidance,
             **NOTHING, "real_pictures": told,
             "judge": judge.told if judge else "no judge knows such pictures: accuracy and all "
             "that is compared in its features is left out"}
    reference = judge.features(real.others) if judge and real else None
    texts = real.captions if real else [""]
    asked = questions_about(table.name, n, seed=seed) if judge else None
    prompts = asked.prompts if judge else [texts[i % len(texts)] for i in range(n)]
    with bar(how_many(run, n), what="draw", show=show) as progress:
        draw = partial(drawn, run, seed=seed, progress=progress)
        pictures = draw(prompts)
        if judge:
            found |= asked.answered(pictures)
            found["guidance_sweep"] = [
                swept(asked, judge, reference, w, draw(prompts[:n // 4], w)) for w in GUIDANCES]
        if table.name in data.WORLDS:
            unseen = questions_about(table.name, n // 2, "unseen", seed=seed)
            found["unseen"] = unseen.answered(draw(unseen.prompts))
    if reference is not None:
        crowd = judge.features(real.known[:DRAWS * n])
        draws = [rng.permutation(crowd)[:n] for _ in range(DRAWS)]
        found |= likeness(judge.features(pictures), reference, rng)
        found["real"] = likeness(draws[0], reference, rng)
        found["frechet_real"] = float(np.mean([metrics.frechet(x, reference) for x in draws]))
    if real:
        found["copies"], found["loss_gap"] = copies(pictures, real), gap(run, real, seed)
        found["nll_bits_per_dim"], found["nll_note"] = bits(run, real, seed)
    return found


def refuse(run, n):
    """ValueError for fewer than 40 pictures, and for a run that only enlarges."""
    if n < LEAST:
        raise ValueError(f"eval: expected at least {LEAST} pictures, got n = {n}")
    if run.recipe.upscale.factor > 1:
        raise ValueError(f"eval: {run.name} enlarges what another model draws and asks for no "
                         "picture itself; evaluate both in a row, as in tinydiff eval shapes")


def drawn(run, prompts, guidance=None, *, seed, progress):
    """A picture of each prompt, uint8 (N, H, W, C); they differ where prompts are the same."""
    pictures = np.empty((len(prompts), *run.shape), np.uint8)
    for start in range(0, len(prompts), GROUP):
        part, own = np.array(prompts[start:start + GROUP]), (seed * 2**20 + start) % 2**64
        texts, times = np.unique(part, return_counts=True)
        for n in np.unique(times).tolist():
            these = texts[times == n].tolist()
            where = np.concatenate([np.flatnonzero(part == text) for text in these])
            pictures[start + where] = run.generate(these, n=n, seed=own, guidance=guidance)
            progress.update(len(where))
    return pictures


def likeness(features, reference, rng):
    """How far drawn features (n, D) are from real ones (N, D), and how they mix with n of these."""
    near = reference[:len(features)]
    return {"frechet": metrics.frechet(features, reference),
            "frechet_ci95": list(metrics.bootstrap(partial(metrics.frechet, reference), features,
                                                   rng=rng, draws=100)),
            "frechet_extrapolated": metrics.frechet_extrapolated(features, reference, rng=rng),
            "precision": metrics.precision(near, features),
            "recall": metrics.recall(near, features), "coverage": metrics.coverage(near, features)}


def swept(asked, judge, reference, w, pictures):
    """Accuracy against variety at guidance w: recall among as many real pictures."""
    near = reference[:len(pictures)] if reference is not None else None
    return {"guidance": w, **share(asked.right(pictures)),
            "recall": None if near is None else metrics.recall(near, judge.features(pictures))}


def copies(pictures, real):
    """The distance to the nearest picture learned from, over what is usual among real ones: that
    of a usual drawn picture and of the closest. Far below 1 they are copies."""
    ours = metrics.nearest(pictures, real.learned)
    theirs = metrics.nearest(real.others[:len(pictures)], real.known)
    usual = np.median(theirs)
    return {"ratio": float(np.median(ours) / usual), "closest": float(ours.min() / usual),
            "closest_real": float(theirs.min() / usual), "among": len(real.learned)}


@one_blas_thread()
def bits(run, real, seed):
    """The bound on −log₂ p of the others given their captions, a number, and a note; or None."""
    if isinstance(run, Cascade) or run.autoencoder:
        return None, "there is no bound for pixels: what is diffused are latents, or two in a row"
    x0 = images.to_float(alongside(real.others[:SOME], run.unet.home))
    steps = min(STEPS, run.schedule.T)
    context = run.contexts(real.captions[:SOME])
    try:
        bound = to_host(vlb(run.predictor(context, context, guidance=1.0), x0, run.schedule,
                            steps=steps, seed=seed).total)
    except (ValueError, ArithmeticError) as error:
        return None, f"the chain has no bound: {error}"
    return float(bound.mean()), (
        f"upper bound, of {steps} steps of a chain of T = {run.schedule.T}, on {len(x0)} pictures "
        f"given their captions; standard error {bound.std() / len(x0)**0.5:.3f}")


@one_blas_thread()
def gap(run, real, seed):
    """The loss in eps at ten times, unprompted, on pictures it learned from, and the least there
    can be: that of the exact predictor of `known` of them."""
    if isinstance(run, Cascade):
        return None
    x0, T = images.to_float(alongside(real.learned[:SAMPLE], run.unet.home)), run.schedule.T
    x0 = run.autoencoder.latents(x0) if run.autoencoder else x0
    context = np.repeat(run.contexts([""]), len(x0[:SOME]), axis=0)
    times = np.unique(np.linspace(T / 10, T, 10).round())
    ours, least = map(to_host, loss_gap(denoiser(run.unet, run.schedule, context),
                                        ideal_predictor(x0, run.schedule), x0[:SOME],
                                        run.schedule, times, seed=seed))
    return {"times": times.tolist(), "loss": ours.tolist(), "bayes": least.tolist(),
            "known": len(x0), "n": len(x0[:SOME])}
