"""Print the reading order into README: what to read first, and how long it takes.

    python tools/reading.py           replace the table in README.md
    python tools/reading.py --check   exit 1 if README.md does not show the table as it would be

A minute is 12 lines that are not blank: source is read slowly.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from pages import replace_block  # noqa: E402

LINES_A_MINUTE = 12
ORDER = [
    ("tinydiff/autograd/tensor.py",            "how a result remembers how it was computed"),
    ("tinydiff/autograd/elementwise.py",       "ops: forward and backward face to face"),
    ("tinydiff/autograd/product.py",           "matrix product, convolution, attention"),
    ("kernels/conv2d/rung0_loops.py",          "convolution as its formula stands"),
    ("kernels/conv2d/rung1_im2col.py",         "and as one matrix product"),
    ("tinydiff/autograd/fused.py",             "several ops in one pass over memory"),
    ("tinydiff/diffusion/process.py",          "what noising is"),
    ("tinydiff/diffusion/schedule.py",         "how fast a picture drowns in it"),
    ("tinydiff/diffusion/prediction.py",       "what a network may say about it"),
    ("tinydiff/diffusion/samplers/implicit.py", "from noise to picture: DDIM"),
    ("tinydiff/diffusion/samplers/ancestral.py", "and DDPM"),
    ("tinydiff/diffusion/samplers/sigma_space.py", "the same as an ODE: Euler, Heun, EDM"),
    ("tinydiff/diffusion/samplers/exponential.py", "fewer steps: DPM-Solver++"),
    ("tinydiff/diffusion/ideal.py",            "the best possible predictor, without a network"),
    ("tinydiff/diffusion/guidance.py",         "closer to the prompt"),
    ("tinydiff/diffusion/likelihood.py",       "how probable a picture is, in bits"),
    ("tinydiff/diffusion/editing.py",          "pictures from pictures"),
    ("tinydiff/diffusion/noise.py",            "random numbers with an address"),
    ("tinydiff/nn/module.py",                  "parameters are found by walking"),
    ("tinydiff/nn/layers.py",                  "the layers with weights"),
    ("tinydiff/nn/attention.py",               "several heads"),
    ("tinydiff/models/blocks.py",              "what a U-Net is built of"),
    ("tinydiff/models/transformer.py",         "and where it looks at words"),
    ("tinydiff/models/unet.py",                "down, across and up again"),
    ("tinydiff/models/autoencoder.py",         "pictures made small, and large again"),
    ("tinydiff/models/tokenizer.py",           "text as pieces"),
    ("tinydiff/models/text_forms.py",          "what text encoders do in their own ways"),
    ("tinydiff/models/text_encoder.py",        "pieces as a context"),
    ("tinydiff/diffusion/objective.py",        "Algorithm 1, its random half"),
    ("tinydiff/criterion.py",                  "and what it makes small"),
    ("tinydiff/optim.py",                      "AdamW, Muon and EMA on one flat buffer"),
    ("tinydiff/train.py",                      "training, told straight"),
    ("tinydiff/autoencoding.py",               "before it: training what makes latents"),
    ("tinydiff/predictor.py",                  "where the towers meet"),
    ("tinydiff/generate.py",                   "generating, told straight"),
    ("tinydiff/upscale.py",                    "and made larger by a second network"),
    ("tinydiff/data/scenes.py",                "a world that has exact answers"),
    ("tinydiff/evaluation/scene_parser.py",    "did it draw what I asked?"),
    ("tinydiff/evaluation/attention.py",       "which word was heard where"),
    ("tinydiff/pretrained/weights.py",         "published numbers, turned into ours"),
    ("tinydiff/pretrained/unet.py",            "their words for our U-Net"),
    ("tinydiff/pretrained/pipeline.py",        "Stable Diffusion, all of it"),
]


def minutes(path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return max(1, round(sum(bool(line.strip()) for line in lines) / LINES_A_MINUTE))


def table():
    rows = [f"| [{path.removeprefix('tinydiff/')}]({path}) | {what} | {minutes(path)} |"
            for path, what in ORDER]
    hours = sum(minutes(path) for path, _ in ORDER) / 60
    return "\n".join(["| file | what it tells | minutes |", "|---|---|---:|", *rows,
                      f"| all of these | | {hours:.1f} hours |"])


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if table() in (ROOT / "README.md").read_text(encoding="utf-8")
                 else "README.md: the reading order is out of date; run python tools/reading.py")
    replace_block(ROOT / "README.md", "reading", table())
