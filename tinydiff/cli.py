"""The command line: what was typed becomes one call of a story, and every mistake one sentence.

Exit codes: 0 done, 1 failed, 2 typed wrongly, 130 interrupted. Nothing heavy is imported before a
command runs, so that --help answers at once.
"""

import argparse
import json
import os
import platform
import re
import sys
from collections import deque
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tinydiff._version import __version__

DEVICES = ("auto", "cpu", "cuda")


def main(argv=None):
    """Run one command; return its exit code."""
    args = parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except Usage as error:
        return complain(error, 2)
    except KeyboardInterrupt as error:
        return complain(str(error) or "interrupted", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror}" if error.strerror else error, 1)
    except (ValueError, ArithmeticError, ModuleNotFoundError, MemoryError) as error:
        return complain(str(error) or "out of memory", 1)


def parser():
    top = argparse.ArgumentParser(
        prog="tinydiff", description="Text-to-image diffusion from scratch on NumPy.",
        epilog="First: tinydiff demo. Then: tinydiff sample mnist --prompt 'a handwritten seven'")
    top.add_argument("--version", action="version", version=f"tinydiff {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name, run, says):
        sub = commands.add_parser(name, help=says, description=says)
        sub.set_defaults(run=run)
        return sub

    p = command("demo", do_demo, "train on 10,000 handwritten digits and draw the ones you ask for")
    p.add_argument("--out", default="out/demo", help="folder of the run (out/demo)")
    p.add_argument("--seed", type=seed, default=0, help="of training and of the pictures (0)")
    p.add_argument("--stop-at", type=positive, metavar="STEP", help="end there as Ctrl-C would")

    p = command("train", do_train, "train a recipe: a shipped name or a TOML file")
    p.add_argument("recipe", nargs="?", help="see --list")
    p.add_argument("--list", action="store_true", help="name the shipped recipes and stop")
    p.add_argument("--out", metavar="RUN", help="folder of the run (runs/RECIPE)")
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in RUN")
    p.add_argument("--stop-at", type=positive, metavar="STEP", help="end there as Ctrl-C would")
    p.add_argument("--device", choices=DEVICES, default="auto")
    p.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                   help="change one value of the recipe; repeats")

    ask_for_pictures(command("sample", do_sample, "draw what a trained model makes of a prompt"))

    p = command("data", do_data, "the data sets: which there are, get one, check one")
    p.add_argument("action", choices=("list", "fetch", "verify"))
    p.add_argument("name", nargs="?")

    p = command("info", do_info, "versions, cores, and the GPU or the reason there is none")
    p.add_argument("--json", action="store_true")
    return top


def ask_for_pictures(p):
    p.add_argument("model", help="a run folder, or the name of a shipped checkpoint")
    p.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="repeats")
    p.add_argument("--n", type=positive, default=1, help="pictures of each prompt (1)")
    p.add_argument("--seed", type=seed, default=0, help="another seed, another picture (0)")
    p.add_argument("--sampler", metavar="NAME", help="ddim, ddpm, heun, dpmpp_2m … (the recipe's)")
    p.add_argument("--steps", type=positive, help="of the sampler (the recipe's)")
    p.add_argument("--guidance", type=float, metavar="W", help="1: none; more: nearer the prompt")
    p.add_argument("--negative", default="", metavar="TEXT", help="what to lead away from")
    p.add_argument("--size", type=size, metavar="HxW", help="of the pictures (the recipe's)")
    p.add_argument("--batch", type=positive, default=64, help="pictures drawn at a time (64)")
    p.add_argument("--device", choices=DEVICES, default="auto")
    p.add_argument("--out", metavar="FILE",
                   help=".png, .gif or .webp (a film), .npy (samples/PROMPT-SEED.png in the run)")


def do_demo(args):
    from tinydiff.demo import PROMPTS, run_demo
    from tinydiff.report import finish, resumable
    with usage():
        out = a_folder(args.out)
    again = ["demo", "--out", args.out, *["--seed", str(args.seed)] * (args.seed > 0)]
    with resumable(again):
        outcome = run_demo(out, seed=args.seed, stop_at=args.stop_at)
    return finish(outcome, out, again, PROMPTS[7])


def do_train(args):
    from tinydiff import data, recipe
    from tinydiff.report import describe, finish, preview, resumable
    from tinydiff.train import CHECKPOINT, Training, fit
    if args.list:
        print("\n".join(recipe.shipped()))
        return 0
    with usage():
        if not args.recipe:
            raise ValueError(f"train: which recipe? There are {', '.join(recipe.shipped())}")
        on_cpu(args.device)
        plan = recipe.load_recipe(args.recipe).override(args.set)
        out = a_folder(args.out or Path("runs") / Path(args.recipe).stem)
        checkpoint = out / CHECKPOINT
        if args.resume and not checkpoint.exists():
            raise ValueError(f"{checkpoint} does not exist; leave --resume out to start")
        if checkpoint.exists() and not args.resume:
            raise ValueError(f"{out} holds a run already; --resume goes on with it, "
                             "--out names another folder")
    dataset = data.load(plan.data.name, plan.data.split)
    with usage():
        training = Training(plan, dataset)
    if args.resume:
        training.load(checkpoint)
    print(describe(training, out, args.stop_at), flush=True)
    again = ["train", args.recipe, "--out", out, *(f"--set={s}" for s in args.set)]
    with resumable(again, checkpoint):
        outcome = fit(training, out, stop_at=args.stop_at, preview=preview)
    return finish(outcome, out, [*again, "--resume"], data.captions(plan.data.name, 7)[0])


def do_sample(args):
    from tinydiff.files import probe
    from tinydiff.generate import load_run, write_pictures
    from tinydiff.report import as_typed, describe_drawing
    home = Path(args.model) if Path(args.model).is_dir() else Path(args.model).parent
    out = Path(args.out or home / "samples" / f"{slug(args.prompt[0])}-{args.seed}.png")
    suffix = out.suffix.lower()
    with usage():
        on_cpu(args.device)
        if suffix not in (".png", ".gif", ".webp", ".npy"):
            raise ValueError(f"--out {out}: expected a name that ends in .png, .gif, .webp or .npy")
    run = load_run(args.model)
    own = {key: vars(args)[key] for key in "n seed sampler steps guidance negative size".split()}
    with usage():
        asked = run.settings(args.prompt, **own)
        frames = run.denoise(args.prompt, batch=args.batch, show=True, **own)
    probe(out)
    print(describe_drawing(run, asked, out, args.batch), flush=True)
    kept = deque(frames, maxlen=None if suffix in (".gif", ".webp") else 1)
    write_pictures(out, kept, args.n, asked)
    again = ["sample", args.model, "--prompt", args.prompt[0], "--seed", args.seed + 1]
    print(f"wrote {out}; another: {as_typed(again)}")


def do_data(args):
    from tinydiff import data
    if args.action == "list":
        for row in data.available():
            print(f"{row.name:<14} {row.split:<6} {row.count:>7,} pictures  {row.size:>12,} bytes  "
                  f"{row.place}")
        print("get one: tinydiff data fetch NAME")
        return 0
    with usage():
        if not args.name:
            raise ValueError(f"data {args.action}: which data set? tinydiff data list names them")
        data.check_name(args.name)
    if args.action == "fetch":
        for row in data.fetch(args.name):
            print(f"{row.name} {row.split}: {row.count:,} pictures from {row.place}")
        print(f"check them: tinydiff data verify {args.name}")
        return 0
    rows = list(data.verify(args.name))
    for row, problem in rows:
        print(f"{row.name} {row.split}: {problem or 'good'} ({row.place})")
    return int(any(problem for _, problem in rows))


def do_info(args):
    import numpy as np

    from tinydiff.backend import why_no_gpu
    from tinydiff.parallel import cores
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    facts = {"tinydiff": __version__, "python": platform.python_version(), "numpy": np.__version__,
             "blas": f"{blas.get('name')} {blas.get('version')}", "system": platform.system(),
             "machine": platform.machine(), "cores": os.cpu_count(), "threads": cores(),
             "gpu": why_no_gpu() or "found, but the kernels of this version run on the CPU"}
    lines = (f"{name:<9} {fact}" for name, fact in facts.items())
    print(json.dumps(facts) if args.json else "\n".join(lines))


class Usage(Exception):
    """Something was typed wrongly: exit code 2."""


@contextmanager
def usage():
    """What goes wrong in this block is the fault of what was typed."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise Usage(error) from None


def complain(sentence, code):
    print(f"tinydiff: {sentence}", file=sys.stderr)
    return code


def a_folder(path):
    """The Path of a run; ValueError if a file stands there, or further up on the way."""
    for place in (Path(path), *Path(path).parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place}: is a file, expected a folder")
    return Path(path)


def on_cpu(device):
    """Refuse a device that cannot compute."""
    if device == "cuda":
        from tinydiff.backend import why_no_gpu
        raise ValueError("--device cuda: "
                         + (why_no_gpu() or "the kernels of this version run on the CPU")
                         + "; use --device cpu")


def slug(prompt):
    """A prompt as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"


def whole(text, low, high=None):
    value = int(text) if re.fullmatch(r"[+-]?\d+", text) else None
    if value is None or value < low or (high and value > high):
        raise argparse.ArgumentTypeError(f"expected a whole number from {low}"
                                         + f" to {high}" * bool(high) + f", got {text!r}")
    return value


positive, seed = partial(whole, low=1), partial(whole, low=0, high=2**64 - 1)


def size(text):
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"expected HxW, as in 28x28, got {text!r}")
    return tuple(map(int, text.split("x")))
