"""What this GPU can do at most, measured in this run: each kernel's floor is made of these."""

from functools import partial
from statistics import median

from gpu.clock import Clock

SIDES = {"bfloat16": 8192, "float32": 4096}               # of a square product


def items(options):
    return [("bytes", moved), *((dtype, partial(multiplied, dtype)) for dtype in SIDES)]


def moved():
    """Bytes a second of a copy: those read and those written."""
    clock = Clock()
    ms, size = median(clock.times([clock.copy] * 2, 15)), clock.here.nbytes
    return {"per_second": 2 * size / ms * 1e3, "of": f"a copy of {size / 2**30:g} GiB"}


def multiplied(dtype):
    """FLOPs a second of PyTorch's product of random matrices, without TF32."""
    import torch

    from gpu.peers import device
    torch.backends.cuda.matmul.allow_tf32 = False
    n = SIDES[dtype]
    x, y = torch.randn(2, n, n, device=device()).to(getattr(torch, dtype))
    clock = Clock()
    clock.times([lambda: x @ y] * 2, 3)                   # warm
    ms = median(clock.times([lambda: x @ y] * 2, 15))
    return {"per_second": 2 * n**3 / ms * 1e3, "of": f"a product of {n} × {n} matrices"}
