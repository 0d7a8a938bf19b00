"""What an autoencoder loses: pictures it never saw beside what is left of them, and in numbers.

    python benchmarks/reconstructions.py runs/shapes-latent runs/mnist-latent

Reads each run's autoencoder.safetensors, prints a row of Markdown a run, puts the table into
docs/shapes.md, and writes docs/NAME-reconstructions.png: pictures, their reconstructions, and the
difference, 4 times as large. NAME is the folder's. No perceptual distance is measured: there is no
network for it here.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from machine import in_words, machine
from pages import replace_block

from tinydiff import checkpoint, data, images
from tinydiff.autoencoding import load_autoencoder
from tinydiff.evaluation.scene_parser import parse
from tinydiff.recipe import Recipe

DOCS   = Path(__file__).resolve().parents[1] / "docs"
SHOWN  = 12                                               # pictures a row
COUNT  = 512                                              # pictures measured
OTHERS = {"mnist": "test", "fashion-mnist": "test", "cifar10": "test"}     # never trained on
HEAD   = ("| run | latents | parameters | PSNR, dB | worst | readable | encode, ms | decode, ms |\n"
          "|---|---|---|---|---|---|---|---|")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs with an autoencoder")
    runs = parser.parse_args().runs
    text = "\n".join([HEAD, *map(row, runs), "", *map(figure, runs), about(runs)])
    print(text)
    replace_block(DOCS / "shapes.md", "reconstructions", text)


def row(folder):
    file = folder / "autoencoder.safetensors"
    name = Recipe.parse(checkpoint.load(file)[1]["recipe"]).data.name
    model = load_autoencoder(file)
    dataset = data.load(name, OTHERS.get(name, "train"))
    pictures, _ = dataset.batch(COUNT, 0, 1, 1.0, np.random.default_rng(1))
    x = images.to_float(pictures)
    z0, encode = timed(model.latents, x)
    y, decode = timed(model.pictures, z0)
    left = images.to_uint8(y)
    write_figure(DOCS / f"{folder.name}-reconstructions.png", pictures[:SHOWN], left[:SHOWN])
    each = psnr(pictures, left)
    readable = f"{np.mean([parse(p) is not None for p in left]):.1%}" if "shapes" in name else "–"
    return (f"| {folder.name} | {' × '.join(map(str, z0.shape[1:]))} | {model.count():,} | "
            f"{each.mean():.1f} | {each.min():.1f} | {readable} | {encode:.2f} | {decode:.2f} |")


def figure(folder):
    return f"![pictures, what is left of them, the difference]({folder.name}-reconstructions.png)\n"


def about(runs):
    return (f"Of {COUNT} pictures never learned from. *Readable*: the parser still finds a scene. "
            f"Measured on {in_words(machine())}:\n"
            f"`python benchmarks/reconstructions.py {' '.join(map(str, runs))}`.")


def timed(function, x):
    """function(x), and its milliseconds a picture, the best of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        y = function(x)
        seconds.append(time.perf_counter() - start)
    return y, 1000 * min(seconds) / len(x)


def psnr(a, b):
    """10 log₁₀ (255² / mean squared error) of each picture, in dB, at most 99: uint8 -> (N,)"""
    error = ((a.astype(float) - b) ** 2).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 255**2 / 10**9.9))


def write_figure(path, pictures, left):
    difference = np.clip(4 * abs(pictures.astype(int) - left), 0, 255).astype(np.uint8)
    rows = np.concatenate([pictures, left, difference])
    images.write_png(path, images.grid(rows, columns=SHOWN).repeat(2, axis=0).repeat(2, axis=1))


if __name__ == "__main__":
    main()
