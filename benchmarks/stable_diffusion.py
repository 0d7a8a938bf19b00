"""A picture of Stable Diffusion's size on the CPU: seconds and memory, against diffusers.

    python benchmarks/stable_diffusion.py --threads 4 --latent 32 --rounds 5

Random weights of Stable Diffusion 1.5's shapes, float32. A picture is one call of the text encoder
for two prompts, 20 calls of the U-Net with guidance, a batch of two, and one of the decoder. Each
part is timed by itself, ours and diffusers' turn about, so that a slow minute of the machine hurts
both alike; every racer lives in a process of its own and sleeps while the other works.

The last line is a JSON object. ratio: our seconds for a whole picture over theirs, of medians.
--peak: also the most memory each side holds, in 10⁹ bytes, at a latent of 64 × 64, which is a
picture of 512 × 512, with all three models in one fresh process; the table then goes into
docs/pretrained.md.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import numpy as np
from cpu_step import PAUSE, peak
from demo_time import POOLS
from machine import in_words, machine
from pages import replace_block

from tinydiff.parallel import cores

ROOT  = Path(__file__).resolve().parents[1]
NAMES = {"text": "text encoder", "unet": "U-Net", "decode": "decoder", "picture": "whole picture"}
CALLS = {"text": 1, "unet": 20, "decode": 1}              # of each part, for one picture
OURS, PEERS = "ours", ("diffusers NCHW", "diffusers channels_last")


class Ours:
    """The three models; each part is called without arguments."""

    def __init__(self, latent, **_):
        from tinydiff import models
        from tinydiff.pretrained.weights import UNSET
        rng = np.random.default_rng(0)
        self.models = {}
        for name, kind in (("text", models.TextEncoder), ("unet", models.UNet),
                           ("decode", models.Autoencoder)):
            config = getattr(models, f"{kind.__name__}Config")
            config = config.clip() if name == "text" else config.stable_diffusion()
            self.models[name] = fill(kind(config, rng=UNSET), rng)
        self.ids, self.z, self.context = inputs(latent)

    def text(self):
        return self.models["text"].encode(self.ids)[0]

    def unet(self):
        return self.models["unet"].predict(np.concatenate([self.z, self.z]), 500, self.context)

    def decode(self):
        return self.models["decode"].decode(self.z)


def fill(model, rng):
    """Small random weights, drawn in place: norms near 1, biases near 0."""
    for path, p in model.parameters().items():
        p.data = rng.random(p.shape, dtype=np.float32)
        p.data -= np.float32(0 if path.endswith("scale") else 0.5)
        if p.data.ndim > 1:
            p.data *= np.float32((12 / np.prod(p.shape[:-1])) ** 0.5)
    return model


class Theirs:
    """The same by diffusers and transformers; arrays are taken and given, as ours are."""

    def __init__(self, latent, threads, layout):
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel
        torch.set_num_threads(threads)
        down, up = ["CrossAttnDownBlock2D"] * 3, ["CrossAttnUpBlock2D"] * 3
        with torch.device("meta"):                        # nothing is drawn twice
            unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8,
                                        down_block_types=[*down, "DownBlock2D"],
                                        up_block_types=["UpBlock2D", *up])
        unet = unet.to_empty(device="cpu")
        with torch.no_grad():
            for p in unet.parameters():
                p.uniform_(-1, 1).mul_((3 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.5)
        vae = AutoencoderKL(down_block_types=["DownEncoderBlock2D"] * 4,
                            up_block_types=["UpDecoderBlock2D"] * 4,
                            block_out_channels=[128, 256, 512, 512], layers_per_block=2)
        clip = CLIPTextModel(CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))
        form = getattr(torch, "channels_last" if layout.endswith("last") else "contiguous_format")
        self.torch, self.vae, self.clip = torch, vae.to(memory_format=form), clip
        self.net, self.form = unet.to(memory_format=form), form
        self.ids, self.z, self.context = map(torch.tensor, inputs(latent))
        self.z = self.z.permute(0, 3, 1, 2).to(memory_format=form)

    def text(self):
        with self.torch.inference_mode():
            return self.clip(self.ids).last_hidden_state.numpy()

    def unet(self):
        with self.torch.inference_mode():
            z = self.torch.cat([self.z, self.z])
            return self.net(z, 500, encoder_hidden_states=self.context).sample.numpy()

    def decode(self):
        with self.torch.inference_mode():
            return self.vae.decode(self.z).sample.numpy()


def inputs(latent):
    """ids (2, 77), z (1, latent, latent, 4), context (2, 77, 768)"""
    rng = np.random.default_rng(1)
    z, context = (rng.standard_normal(shape, dtype=np.float32)
                  for shape in ((1, latent, latent, 4), (2, 77, 768)))
    return rng.integers(0, 49407, (2, 77)), z, context


def work(name, latent, threads):
    """Life as a racer: do the part that each line names, answer with seconds; or with the peak."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)                                         # all else that is printed goes to stderr
    racer = (Ours if name == OURS else Theirs)(latent=latent, threads=threads, layout=name)
    print("ready", file=answers)
    for line in sys.stdin:
        word = line.strip()
        start = perf_counter()
        result = peak() / 1000 if word == "peak" else getattr(racer, word)()
        assert np.isfinite(result).all(), "a number was lost"
        print(result if word == "peak" else perf_counter() - start, file=answers)


class Racer:
    """A process that works when asked and sleeps in between."""

    def __init__(self, name, processes, **job):
        self.name = name
        self.process = processes.enter_context(subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps({"name": name, **job})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | dict.fromkeys(POOLS, str(job["threads"]))))
        self.answer()

    def ask(self, word):
        """Seconds for a part; 10⁹ bytes for "peak"."""
        sleep(PAUSE)
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return float(self.answer())

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with status {self.process.wait()} in the middle of it")
        return line


def race(peer, rounds, **job):
    """{name: {part: seconds, …, picture: seconds}}, medians; one process at a time at work."""
    with ExitStack() as processes:
        racers = [Racer(name, processes, **job) for name in (OURS, peer)]
        found = {racer.name: {} for racer in racers}
        for part in CALLS:
            for racer in racers:
                racer.ask(part)                           # to warm up, not counted
            times = [[racer.ask(part) for racer in racers] for _ in range(rounds)]
            for racer, column in zip(racers, zip(*times)):
                found[racer.name][part] = median(column)
        for parts in found.values():
            parts["picture"] = sum(CALLS[part] * parts[part] for part in CALLS)
        return found


def most(name, threads):
    """The most memory one side holds for a picture of 512 × 512, in 10⁹ bytes."""
    with ExitStack() as processes:
        racer = Racer(name, processes, latent=64, threads=threads)
        for part in CALLS:
            racer.ask(part)
        return racer.ask("peak")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--latent", type=int, default=32, help="height and width of a latent")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each part")
    parser.add_argument("--peak", action="store_true", help="measure memory at 64 × 64 as well")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return work(**given.worker)
    found = {"benchmark": "stable diffusion", "latent": given.latent, "threads": given.threads}
    for peer in PEERS:
        runs = race(peer, given.rounds, latent=given.latent, threads=given.threads)
        ratios = {part: runs[OURS][part] / runs[peer][part] for part in runs[OURS]}
        found[peer] = {"seconds": runs, "ratios": ratios}
        print(f"{peer}: " + ", ".join(f"{part} {ratio:.2f}" for part, ratio in ratios.items()))
    found["ratio"] = max(found[peer]["ratios"]["picture"] for peer in PEERS)
    if given.peak:
        found["peak_gb"] = {name: most(name, given.threads) for name in (OURS, PEERS[0])}
    found["machine"] = machine() | {name: metadata.version(name) for name in ("torch", "diffusers")}
    print(json.dumps(found))
    if given.peak:
        replace_block(ROOT / "docs" / "pretrained.md", "stable-diffusion", page(found, given))


def page(found, given):
    """The table in docs/pretrained.md."""
    on, (first, second) = found["machine"], (found[peer] for peer in PEERS)
    rows = [f"| {name} | {first['seconds'][OURS][part]:.2f} | "
            f"{first['seconds'][PEERS[0]][part]:.2f} | {first['ratios'][part]:.2f} | "
            f"{second['ratios'][part]:.2f} |" for part, name in NAMES.items()]
    ours, theirs = found["peak_gb"].values()
    return "\n".join([
        "| | seconds | diffusers | ratio | ratio, channels_last |", "|---|" + "---:|" * 4,
        *rows, f"""
Stable Diffusion 1.5's shapes with random weights, float32, a latent of {given.latent} ×
{given.latent}, guidance, on {given.threads} threads; a picture is two texts, 20 calls of the U-Net
and one of the decoder. Ours and diffusers' turn about, medians of {given.rounds}. For 512 × 512
pixels ours hold at most {ours:.1f} GB, diffusers {theirs:.1f} GB.
{in_words(on)}, torch {on['torch']}, diffusers {on['diffusers']}: `python
benchmarks/stable_diffusion.py --threads {given.threads} --rounds {given.rounds} --peak`."""])


if __name__ == "__main__":
    main()
