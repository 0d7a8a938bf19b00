"""The demo: the whole story on one screen, and a page to look at afterwards."""

import html
from base64 import b64encode
from pathlib import Path

from tinydiff import data, images
from tinydiff.data.mnist import DIGITS as WORDS
from tinydiff.files import write_atomically
from tinydiff.recipe import load_recipe
from tinydiff.report import describe, distance_from_best, preview
from tinydiff.runs import training_run
from tinydiff.train import CHECKPOINT, Training, fit

PROMPTS = [data.captions("digits", digit)[0] for digit in range(len(WORDS))]


def run_demo(out, *, seed=0, stop_at=None):
    """Train on the digits that ship with tinydiff, then draw ten prompts and a film into `out`.

    An interrupted demo goes on where it stopped. -> how it ended, as `fit` says it
    """
    recipe = load_recipe("demo").set("train.seed", seed)
    training = Training(recipe, data.load(recipe.data.name, recipe.data.split))
    if (out / CHECKPOINT).exists():
        training.load(out / CHECKPOINT)
    print(describe(training, out, stop_at), flush=True)
    outcome = fit(training, out, stop_at=stop_at, preview=preview)
    if outcome != "interrupted":
        draw(training, out, seed)
        print(f"look at {out / 'index.html'}")
    return outcome


def draw(training, out, seed):
    """digits.png: a column for each prompt, five rows. denoising.gif: the first row, from noise."""
    run, rows = training_run(training, str(out)), 5
    frames = [by_row(images.to_uint8(x_t), rows)
              for x_t in run.denoise(PROMPTS, n=rows, seed=seed, show=True)]
    columns = len(PROMPTS)
    images.write_png(out / "digits.png", larger(images.grid(frames[-1], columns)),
                     run.settings(PROMPTS, n=rows, seed=seed))
    images.write_film(out / "denoising.gif",
                      [larger(images.grid(frame[:columns], columns)) for frame in frames])
    write_atomically(out / "index.html", page(training, out).encode())


def by_row(pictures, rows):
    """From all of the first prompt first to the first of each prompt first."""
    return pictures.reshape(-1, rows, *pictures.shape[1:]).swapaxes(0, 1).reshape(pictures.shape)


def larger(sheet, factor=2):
    """Each pixel as factor × factor pixels."""
    return sheet.repeat(factor, axis=0).repeat(factor, axis=1)


def page(training, out):
    """One HTML page with everything inside it."""
    looks = training.steps_done * training.recipe.train.batch
    rows = (out / "metrics.csv").read_text(encoding="utf-8").splitlines()[1:]
    losses = [float(row.split(",")[1]) for row in rows]
    T = training.schedule.T
    times = [T // 10, T // 2, 9 * T // 10]
    gaps = "; ".join(f"{ours:.2g} and {least:.2g} at t = {t}" for t, ours, least in zip(
        times, *distance_from_best(training, times), strict=True))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>tinydiff demo</title>
<style>
  body {{ font: 17px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto;
         padding: 0 1rem; color: #222; background: #fff }}
  img, svg {{ width: 100%; image-rendering: pixelated; background: #fff }}
  figure {{ margin: 2rem 0 }}  figcaption {{ color: #666 }}
  code {{ background: #f2f2f2; padding: .1em .3em }}
</style>
<h1>Digits that nobody wrote</h1>
<p>A network learned from {looks:,} looks at handwritten digits how to take a little noise away.
Asked to do that {training.recipe.sample.steps} times in a row, from nothing but noise and a prompt,
it draws.</p>
<figure><img src="{inline(out / 'denoising.gif')}" alt="noise turning into digits">
<figcaption>From noise to {PROMPTS[0]} … {PROMPTS[-1]}.</figcaption></figure>
<figure><img src="{inline(out / 'digits.png')}" alt="five pictures of each digit">
<figcaption>A column for each prompt; each row starts from the same noise.</figcaption></figure>
<figure>{curve(losses)}<figcaption>The loss over {len(losses):,} steps.</figcaption></figure>
<p>How far is that from the best possible? The mean squared error of its guess at the noise,
unprompted, on digits it learned from, and the least anyone could have who knows all
{len(training.dataset.images):,} by heart: {gaps}, of T = {T:,}. One who reached the least would
draw copies.</p>
<p>Next: <code>tinydiff sample {html.escape(str(out))} --prompt "the digit 7" --seed 1</code></p>
</html>
"""


def inline(path):
    """A picture file as a data URL."""
    return f"data:image/{path.suffix[1:]};base64,{b64encode(Path(path).read_bytes()).decode()}"


def curve(losses, width=700, height=180):
    """The running mean of the loss as an SVG line; its left end is the first step, the bottom 0."""
    mean, points = 0.0, []
    for i, loss in enumerate(losses):
        mean += (loss - mean) / min(i + 1, 20)
        points.append(f"{i * width / max(1, len(losses) - 1):.1f},"
                      f"{height * (1 - min(mean / losses[0], 1)):.1f}")
    return (f'<svg viewBox="0 0 {width} {height}"><polyline points="{" ".join(points)}" '
            'fill="none" stroke="#2a6fdb" stroke-width="2"/></svg>')
