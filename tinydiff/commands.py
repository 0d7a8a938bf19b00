"""What each command does: the arguments become one call of a story.

Nothing heavy is imported before a command runs.
"""

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


def do_demo(args):
    from tinydiff.demo import PROMPTS, run_demo
    from tinydiff.report import finish, resumable
    with usage():
        out = a_folder(args.out)
    again = ["demo", "--out", args.out, *["--seed", str(args.seed)] * (args.seed > 0)]
    with resumable(again):
        outcome = run_demo(out, seed=args.seed, stop_at=args.stop_at)
    return finish(outcome, out, again, ["--prompt", PROMPTS[7]])


def do_train(args):
    from tinydiff import data, recipe
    from tinydiff.autoencoding import AutoencoderTraining
    from tinydiff.report import describe, finish, preview, rehearse, resumable, sized
    from tinydiff.train import CHECKPOINT, Training, fit
    if args.list:
        print("\n".join(recipe.shipped()))
        return 0
    with usage():
        if not args.recipe:
            raise ValueError(f"train: which recipe? There are {', '.join(recipe.shipped())}")
        device = device_of(args)
        plan = recipe.load_recipe(args.recipe).override(args.set)
        if plan.train.precision == "bf16" and device == "cpu":
            raise ValueError("train.precision: bf16 is for a GPU, and this would train on the CPU; "
                             "add --device cuda, or --set train.precision=float32")
        out = a_folder(args.out or Path("runs") / Path(args.recipe).stem)
        files = [out / CHECKPOINT, out / AutoencoderTraining.file]
        saved = any(file.exists() for file in files)
        if args.resume and not saved:
            raise ValueError(f"{out / CHECKPOINT} does not exist; leave --resume out to start")
        if saved and not args.resume:
            raise ValueError(f"{out} holds a run already; --resume goes on with it, "
                             "--out names another folder")
    dataset = data.load(plan.data.name, plan.data.split, plan.data.size)
    again = ["train", args.recipe, "--out", out, *(f"--set={s}" for s in args.set)]

    def trained(stage, **options):
        """The stage, after the steps that are left of it, and how it ended."""
        if (out / stage.file).exists():
            stage.load(out / stage.file)
        with (resumable(again, *files), sized(partial(rehearse, stage), stage.plan.batch,
                                              f"--set {stage.what}.batch=")):
            print(describe(stage, out, options.get("stop_at")), flush=True)
            return fit(stage, out, **options)

    autoencoder, outcome = None, "done"
    if plan.autoencoder.steps:
        with usage():
            stage = AutoencoderTraining(plan, dataset, device)
        outcome = trained(stage)
        autoencoder = stage.finished()
    if outcome == "done":
        with usage():
            training = Training(plan, dataset, autoencoder, device)
        outcome = trained(training, stop_at=args.stop_at, preview=preview)
        if reason := training.whole_step.replayed.why_not:
            print(f"each step was launched kernel by kernel, as no graph of it could be recorded: "
                  f"{reason}")
    asks = ["--prompt", dataset.prompts[7 % len(dataset.prompts)]]
    asks += ["--init", "SMALL.png"] if plan.upscale.factor > 1 else []
    return finish(outcome, out, [*again, "--resume"], asks)


def do_sample(args):
    from tinydiff import images
    from tinydiff.files import probe
    from tinydiff.report import as_typed, describe_drawing, rehearse_drawing, sized
    home = Path(args.model) if Path(args.model).is_dir() else Path(args.model).parent
    out = Path(args.out or home / "samples" / f"{slug(args.prompt[0])}-{args.seed}.png")
    suffix = out.suffix.lower()
    with usage():
        device = device_of(args)
        if suffix not in (".png", ".gif", ".webp", ".npy"):
            raise ValueError(f"--out {out}: expected a name that ends in .png, .gif, .webp or .npy")
        refuse_way(args)
    run, prompts, told = open_model(args.model).to(device), args.prompt, {}
    own = {key: vars(args)[key]
           for key in "n seed sampler steps guidance negative size strength".split()}
    if args.init:
        own["init"] = images.with_channels(images.read_image(args.init), run.shape[2])
    if args.mask:
        own["mask"] = images.with_channels(images.read_image(args.mask), 1) // 128
    batch = args.batch or run.batch
    if args.between:
        from tinydiff.variation import along
        run, prompts = along(run, prompts[-1], args.between, args.to_seed), prompts[:1]
        own["n"], to_seed = args.between, args.seed if args.to_seed is None else args.to_seed
        told = {"prompts": args.prompt, "n": 1, "between": args.between, "to_seed": to_seed}
    with usage():
        asked = run.settings(prompts, **own)
        frames = run.denoise(prompts, batch=batch, show=True, **own)
    probe(out)
    film = suffix in images.FILMS
    with sized(partial(rehearse_drawing, run, asked), batch, "--batch "):
        print(describe_drawing(run, asked, out, batch), flush=True)
        frames = deque(frames, maxlen=None if film and not args.between else 1)
    shown = map(run.pixels, frames)
    columns = args.between or (args.n if args.n > 1 < len(prompts) else None)
    if args.between and film:
        shown, columns = next(shown)[:, None], 1          # each picture a frame
    images.write_pictures(out, shown, columns, asked | told)
    again = ["sample", args.model, "--prompt", args.prompt[0], "--seed", args.seed + 1]
    print(f"wrote {out}; another: {as_typed(again)}")


def refuse_way(args):
    """ValueError for what leads nowhere between two pictures."""
    way, seeds = args.between, args.to_seed is not None
    if (way or seeds) and not (way and args.n == 1 and 2 - seeds <= len(args.prompt) <= 2):
        raise ValueError("--between N leads to a second --prompt, or to the noise of --to-seed: "
                         "expected N with two prompts, or one and --to-seed, and without --n")


def open_model(path):
    """What draws: a diffusers folder where there is one, else a run."""
    if (Path(path) / "model_index.json").is_file():
        from tinydiff import pretrained
        return pretrained.load(path)
    from tinydiff.runs import load_run
    return load_run(path)


def do_export(args):
    from tinydiff.pretrained.export import export_run
    from tinydiff.runs import load_run
    run = load_run(args.model)
    with usage():
        print(export_run(run, args.folder))


def do_eval(args):
    from tinydiff.evaluation.quality import GROUP, evaluate, how_many, refuse
    from tinydiff.evaluation.summary import table
    from tinydiff.report import describe_drawing
    from tinydiff.runs import load_run
    run = load_run(args.model, device_of(args))
    with usage():
        refuse(run, args.n)
    asked = run.settings(["a picture"], n=how_many(run, args.n))
    print(describe_drawing(run, asked, "a table", GROUP), file=sys.stderr, flush=True)
    found = evaluate(run, n=args.n, seed=args.seed, show=True)
    print(json.dumps(found, ensure_ascii=False) if args.json else table(found))


def do_estimate(args):
    from tinydiff.evaluation.estimate import TABLES, cost_of, in_words
    from tinydiff.parallel import cores
    from tinydiff.recipe import load_recipe
    from tinydiff.report import as_typed
    with usage():
        plan = load_recipe(args.recipe).override(args.set)
        seconds = 12 * sum(getattr(plan, table).steps > 0 for table in TABLES.values())
        print(f"device: cpu × {cores()} · data: {plan.data.name}\nexpected time: about "
              f"0:{seconds:02} · output: a table", file=sys.stderr, flush=True)
        found = cost_of(plan)
    go = as_typed(["train", args.recipe, *(f"--set={s}" for s in args.set)])
    print(json.dumps(found) if args.json else f"{in_words(found)}; go: {go}")


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


def do_kernels(action, args):
    from tinydiff import kernel_commands
    return getattr(kernel_commands, f"do_{action}")(args)


def do_info(args):
    import numpy as np

    from tinydiff.backend import gpu, why_no_gpu
    from tinydiff.parallel import cores
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    facts = {"tinydiff": __version__, "python": platform.python_version(), "numpy": np.__version__,
             "blas": f"{blas.get('name')} {blas.get('version')}", "system": platform.system(),
             "machine": platform.machine(), "cores": os.cpu_count(), "threads": cores(),
             "gpu": why_no_gpu() or gpu()}
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


def a_folder(path):
    """The Path of a run; ValueError if a file stands there, or further up on the way."""
    for place in (Path(path), *Path(path).parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place}: is a file, expected a folder")
    return Path(path)


def device_of(args):
    """"cpu" or "cuda"; what cannot be is the fault of what was typed."""
    from tinydiff.backend import device_for
    with usage():
        return device_for(args.device)


def slug(prompt):
    """A prompt as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
