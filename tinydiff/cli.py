"""The command line: what was typed becomes one call of a story, and every mistake one sentence.

Exit codes: 0 done, 1 failed, 2 typed wrongly, 130 interrupted. Nothing heavy is imported before a
command runs, so that --help answers at once.
"""

import argparse
import re
import sys
from functools import partial

from tinydiff._version import __version__
from tinydiff.commands import (
    Usage,
    do_data,
    do_demo,
    do_estimate,
    do_eval,
    do_export,
    do_info,
    do_kernels,
    do_sample,
    do_train,
)

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
    except MemoryError as error:
        said = str(error).rstrip(".") or "out of memory"
        return complain(f"{said}; take fewer or smaller pictures", 1)
    except (ValueError, ArithmeticError, ModuleNotFoundError) as error:
        return complain(error, 1)
    except RuntimeError as error:
        from tinydiff.backend import of_device
        if not of_device(error):
            raise
        return complain(f"the GPU failed ({error})", 1)


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

    p = command("eval", do_eval, "measure how good a trained model is")
    p.add_argument("model", metavar="RUN", help="a run folder, or the name of a shipped checkpoint")
    p.add_argument("--n", type=positive, default=400, help="pictures at its own guidance (400)")
    p.add_argument("--seed", type=seed, default=0, help="other pictures and prompts (0)")
    p.add_argument("--device", choices=DEVICES, default="auto")
    p.add_argument("--json", action="store_true")

    p = command("estimate", do_estimate, "what training a recipe would cost on this machine")
    p.add_argument("recipe", help="a shipped name or a TOML file")
    p.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                   help="change one value of the recipe; repeats")
    p.add_argument("--json", action="store_true")

    p = command("export", do_export, "write a trained model as a diffusers folder")
    p.add_argument("model", metavar="RUN", help="a run folder, or the name of a shipped checkpoint")
    p.add_argument("folder", help="the folder to write; it must not exist yet")

    p = command("data", do_data, "the data sets: which there are, get one, check one")
    p.add_argument("action", choices=("list", "fetch", "verify"))
    p.add_argument("name", nargs="?")

    rungs_of_kernels(command("kernels", None, "the ladders of kernels, rung by rung"))

    p = command("info", do_info, "versions, cores, and the GPU or the reason there is none")
    p.add_argument("--json", action="store_true")
    return top


def ask_for_pictures(p):
    p.add_argument("model", help="a run or diffusers folder, or the name of a shipped checkpoint")
    p.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="repeats")
    p.add_argument("--n", type=positive, default=1, help="pictures of each prompt (1)")
    p.add_argument("--seed", type=seed, default=0, help="another seed, another picture (0)")
    p.add_argument("--between", type=several, metavar="N",
                   help="N pictures on the way to a second --prompt, or to the noise of --to-seed")
    p.add_argument("--to-seed", type=seed, metavar="SEED", help="where --between leads from --seed")
    p.add_argument("--sampler", metavar="NAME", help="ddim, ddpm, heun, dpmpp_2m … (the recipe's)")
    p.add_argument("--steps", type=positive, help="of the sampler (the recipe's)")
    p.add_argument("--guidance", type=float, metavar="W", help="1: none; more: nearer the prompt")
    p.add_argument("--negative", default="", metavar="TEXT", help="what to lead away from")
    p.add_argument("--size", type=size, metavar="HxW", help="of the pictures (the recipe's)")
    p.add_argument("--init", metavar="FILE", help="a picture to change, or to paint in")
    p.add_argument("--mask", metavar="FILE", help="paint --init anew where this picture is bright")
    p.add_argument("--strength", type=float, metavar="X",
                   help="how much --init changes, above 0 to 1 (0.8; with --mask 1)")
    p.add_argument("--batch", type=positive,
                   help="pictures drawn at a time (64; of a diffusers folder 1)")
    p.add_argument("--device", choices=DEVICES, default="auto")
    p.add_argument("--out", metavar="FILE",
                   help=".png, .gif or .webp (a film), .npy (samples/PROMPT-SEED.png in the run)")


def rungs_of_kernels(p):
    actions = p.add_subparsers(required=True, metavar="ACTION")

    def action(name, says, of=None):
        sub = actions.add_parser(name, help=says, description=says)
        sub.set_defaults(run=partial(do_kernels, name))
        if of:
            sub.add_argument("rung", metavar="LADDER/RUNG", help="as in matmul/cuda_shared")
        return sub

    p = action("list", "the rungs, what they need, where they run, and what is proved of them")
    p.add_argument("--json", action="store_true")

    p = action("run", "run a rung forward and backward, and compare it with the definition", "rung")
    p.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="(the rung's own)")
    p.add_argument("--order", type=turns, metavar="forward|reverse|SEED",
                   help="which thread comes first where a GPU's rung is stepped through")
    p.add_argument("--device", choices=DEVICES, default="auto")
    p.add_argument("--shape", metavar="SIZES", help="as in 33x20x18 (small)")

    p = action("trace", "draw which thread touches which element when, and what it costs", "rung")
    p.add_argument("--function", metavar="NAME", help="(forward)")
    p.add_argument("--array", metavar="NAME", help="the one to draw (the first)")
    p.add_argument("--out", metavar="FILE", help="of the drawing (LADDER-RUNG-ARRAY.png)")
    p.add_argument("--shape", metavar="SIZES", help="as in 33x20x18 (small)")

    p = action("bench", "time the rungs of a ladder, all turn about")
    p.add_argument("ladder")
    p.add_argument("--rungs", metavar="A,B", help="(those that this machine can time)")
    p.add_argument("--shape", metavar="SIZES", help="as in 16384x256x256 (a network's)")
    p.add_argument("--json", action="store_true")


def complain(sentence, code):
    print(f"tinydiff: {sentence}", file=sys.stderr)
    return code


def whole(text, low, high=None):
    value = int(text) if re.fullmatch(r"[+-]?\d+", text) else None
    if value is None or value < low or (high and value > high):
        raise argparse.ArgumentTypeError(f"expected a whole number from {low}"
                                         + f" to {high}" * bool(high) + f", got {text!r}")
    return value


positive, several = partial(whole, low=1), partial(whole, low=2)
seed = partial(whole, low=0, high=2**64 - 1)


def turns(text):
    return text if text in ("forward", "reverse") else several(text)


def size(text):
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"expected HxW, as in 28x28, got {text!r}")
    return tuple(map(int, text.split("x")))
