"""Rung 3, fused: one kernel, which reads every number once, 16 bytes at a time, and writes it once.

Since rung 2: a thread keeps its four numbers in registers from the gradient to the mean, and to the
copy in bf16 that the next step's products want. Prediction: 42 bytes a parameter for rung 2's 78,
five buffers read and written, and the copy: half a millisecond for 35 million at 3 TB/s.

For a captured graph a step's parts are there one by one, and none of them waits for the GPU:

    put(numbers, numbers_of(lr=…, …))                     # before each replay
    norm_into(norm, grad); clip_into(numbers, norm, largest); step_with(numbers, data, …)

numbers (8,) float32 and norm (1,) float64 are on the device. Where the norm is not finite,
step_with leaves everything as it is, the gradient too: what went wrong can be told later.
"""

import numpy as np

from ..gpu.arrays import empty
from ..gpu.source import Source
from . import rung0_numpy
from .rung2_cuda_elementwise import single_and_flat

code = Source(__file__)
BLOCKS, EACH = 1024, 4096                                 # blocks at most, numbers of one at least


def step(data, grad, m, v, ema, *, half=None, decaying, **how):
    if not single_and_flat(data, grad, m, v, ema):
        rung0_numpy.step(data, grad, m, v, ema, half=half, decaying=decaying, **how)
        return
    numbers = empty(8, np.float32, like=data)
    put(numbers, numbers_of(**how))
    step_with(numbers, data, grad, m, v, ema, half, decaying)


def norm(grad):
    if not single_and_flat(grad):
        return rung0_numpy.norm(grad)
    out = empty(1, np.float64, like=grad)
    norm_into(out, grad)
    return float(out[0])


def numbers_of(*, lr, beta1, beta2, eps, decay, step, ema_decay, scale=1.0):
    """What a step needs to know, as the kernel has it: (8,) float32 on the host."""
    return np.array([scale, 1 - beta1, 1 - beta2, lr / (1 - beta1**step), 1 / (1 - beta2**step),
                     eps, -lr * decay, 1 - ema_decay], np.float32)


def put(numbers, values):
    """values (8,), on the host, into numbers, on the device; they travel with the launch."""
    code.put[1, 32](numbers, *values)


def step_with(numbers, data, grad, m, v, ema, half, decaying):
    """The step; ema and half may be None, and half shorter than data."""
    code.adamw[-(-data.size // 1024), 256](numbers, data, grad, m, v, ema, half, decaying,
                                           0 if half is None else half.size, data.size)


def norm_into(out, grad):
    """out (1,) float64 = √Σ grad², summed in float64 in an order that depends on the size alone."""
    blocks = min(BLOCKS, -(-grad.size // EACH))
    each = -(-grad.size // (4 * blocks)) * 4
    sums = empty(blocks, np.float64, like=grad)
    code.squares[blocks, 256](grad, sums, each, grad.size)
    code.root[1, 256](sums, out, blocks)


def clip_into(numbers, norm, largest):
    """Let the step scale a gradient of this norm (1,) down to `largest`, if it is longer."""
    code.clip[1, 32](numbers, norm, largest)
