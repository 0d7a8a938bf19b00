"""Does a classifier's gradient make an unconditional model draw what is asked for?  ADM §4

    python benchmarks/classifier_guidance.py [--n 200] [--page docs/theory.md]

The shipped `mnist` draws with the empty prompt: it chooses the digit. A NoisyClassifier learns
from the packaged digits and leads it to n/10 of each digit, in both forms: the ancestral sampler
(ADM Alg. 1) and DDIM (Alg. 2), at rising scales from the same noise. The judge of digit_quality.py,
another network that learned from MNIST's training digits and never saw a noisy one, says how many
show what was asked for.

    recognised       share of pictures whose most probable class is the one asked for
    variety          mean pixel distance of two drawn pictures of one digit, over that of two real
                     ones: 1 varies as real digits do. Above it, several digits are mixed
    frechet_ratio    as in digit_quality.py: 1 is as good as real
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from digit_quality import distances, real_draw, trained_judge
from machine import in_words, machine
from pages import replace_block

import tinydiff as td
from tinydiff import data, images, metrics
from tinydiff.diffusion import classifier_guided, clipped, ddpm_guided
from tinydiff.models import NoisyClassifier, NoisyClassifierConfig, fit_noisy
from tinydiff.parallel import one_blas_thread
from tinydiff.predictor import denoiser, grad_log_prob

ROOT = Path(__file__).resolve().parents[1]
TRAINING, SEED = 2000, 0                    # steps of the noisy classifier, 100 pictures each
SCALES = (0, 1, 2, 5, 10)
STEPS = {"ancestral": 100, "ddim": 50}


def trained_classifier(schedule):
    """A NoisyClassifier of the packaged digits, and what it took: {learned_from, seconds, …}."""
    digits, rng, start = data.load("digits"), np.random.default_rng(SEED), time.perf_counter()
    classifier = NoisyClassifier(NoisyClassifierConfig(), rng=rng)
    fit_noisy(classifier, schedule, digits.images, digits.labels, steps=TRAINING, rng=rng)
    return classifier, {"learned_from": len(digits.images), "parameters": classifier.count(),
                        "steps": TRAINING, "seconds": round(time.perf_counter() - start, 1)}


def drawn(run, gradient, form, scale, n):
    """n digits, n/10 zeros, then n/10 ones, …, from an unconditional model -> uint8 (n, H, W, C)"""
    schedule, y = run.schedule, np.repeat(np.arange(10), n // 10)
    free = denoiser(run.model.unet, schedule, np.repeat(run.contexts([""]), n, axis=0))
    options = {"shape": (n, *run.shape), "schedule": schedule, "steps": STEPS[form], "seed": SEED}
    if form == "ddim":
        towards = classifier_guided(free, gradient, y, schedule, scale=scale)
        x0 = td.sample(td.ddim, clipped(towards, schedule), **options)
    else:
        x0 = td.sample(ddpm_guided, clipped(free, schedule), **options,
                       grad_log_prob=gradient, y=y, scale=scale)
    return images.to_uint8(x0)


def measure(pictures, judge):
    """What the docstring above defines, for uint8 (n, H, W, C): n/10 zeros, then n/10 ones, …"""
    n, rng = len(pictures), np.random.default_rng(SEED)
    real = real_draw(judge.learned, n, rng)
    share = float(np.mean(judge.recognised(pictures)))
    apart = [np.mean([distances(part).mean() for part in np.split(some, judge.classes)])
             for some in (pictures, real)]
    return {"recognised": round(share, 4),
            "ci95": [round(end, 4) for end in metrics.wilson(share, n)],
            "variety": round(float(apart[0] / apart[1]), 3),
            "frechet_ratio": round(judge.frechet(pictures) / judge.frechet(real), 2)}


def table(result):
    """The block for docs/theory.md."""
    by, judge, on, n = (result[key] for key in ("classifier", "judge", "machine", "n"))
    rows = [f"| {scale} | " + " | ".join(
        f"{r['recognised']:.1%} ({r['ci95'][0]:.0%} – {r['ci95'][1]:.0%}) | {r['variety']:.2f} "
        f"| {r['frechet_ratio']:.2f}" for r in (result["runs"][form][i] for form in STEPS)) + " |"
        for i, scale in enumerate(SCALES)]
    return "\n".join([
        "| scale | ancestral: recognised (95 %) | variety | Fréchet | DDIM: recognised (95 %) "
        "| variety | Fréchet |", "|---:|---:|---:|---:|---:|---:|---:|", *rows, f"""
{n} digits a row, {n // 10} of each asked for, from the same noise; {STEPS['ancestral']} ancestral
steps (ADM Alg. 1) or {STEPS['ddim']} of DDIM (Alg. 2). The model is the shipped `mnist` with the
empty prompt, so that at scale 0 it draws whatever it likes; x0 is kept inside [-1, 1], in DDIM's
form behind the guidance, whose push on x0 has no bound where signal nears 0. The noisy classifier
({by['parameters']:,} parameters, {by['steps']:,} steps, {by['seconds']:.0f} s) learned from the
{by['learned_from']:,} packaged digits; the judge never saw noise, learned from
{judge['learned_from']:,} digits and reads {judge['accuracy']:.2%} of {judge['held_out']:,} others.
*Variety*: the mean pixel distance of two drawn pictures of one digit over that of two real ones.
*Fréchet*: the distance from the held-out digits over that of as many real ones; 1 is as good as
real. {in_words(on)}:
`python benchmarks/classifier_guidance.py --n {n}`, {result['seconds']:.0f} s."""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="how many pictures a row")
    parser.add_argument("--page", default=ROOT / "docs" / "theory.md", help="where the table goes")
    options = parser.parse_args()
    if options.n < 20 or options.n % 10:
        parser.error(f"--n: expected a multiple of 10 from 20 on, got {options.n}")
    judge, run, start = trained_judge(), td.load_run("mnist"), time.perf_counter()
    with one_blas_thread():
        classifier, took = trained_classifier(run.schedule)
        gradient = grad_log_prob(classifier)
        runs = {form: [] for form in STEPS}
        for form in STEPS:
            for scale in SCALES:
                runs[form].append(measure(drawn(run, gradient, form, scale, options.n), judge))
                print(form, scale, runs[form][-1], file=sys.stderr)
    result = {"benchmark": "classifier guidance", "machine": machine(), "n": options.n,
              "scales": SCALES, "classifier": took, "runs": runs,
              "seconds": round(time.perf_counter() - start, 1), "judge": {
                  "accuracy": judge.accuracy(judge.held_out.images, judge.held_out.labels),
                  "learned_from": len(judge.learned.images),
                  "held_out": len(judge.held_out.images)}}
    print(json.dumps(result, ensure_ascii=False))
    replace_block(options.page, "classifier-guidance", table(result))


if __name__ == "__main__":
    main()
