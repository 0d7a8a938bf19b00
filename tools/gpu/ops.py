"""Every operation that a GPU's rung does: which arrays it takes, and how it is called.

    arrays = draw("conv2d.forward", (2, 9, 7, 72, 40, 3, 1), "bfloat16", rng)     # on the host
    y, = results("conv2d.forward", rung, arrays)          # wherever they lie

An operation is named after its folder in kernels/ and its function. Its call, in calls.py, takes
the rung, and arrays by the names of its arguments. A stride or a shape goes as it is; an array that
would hold no number is None.
"""

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from math import prod
from typing import NamedTuple

import numpy as np
from tinydiff_kernels.gpu.arrays import bfloat16

from gpu import calls

SINGLE = {"b", "base", "gamma", "beta", "scale", "shift"}             # float32, even beside bf16
IN_PYTHON = {"conv2d": "cuda_naive cuda_tiled", "norm": "cuda_twopass cuda_shuffle",
             "matmul": "cuda_naive cuda_coalesced cuda_shared cuda_register",
             "attention": "cuda_naive cuda_online cuda_tiled", "optimizer": "cuda_elementwise"}


def in_python(name, idea):
    """Whether the rung's kernels are Python: slow to compile, and slower to step through."""
    return idea in IN_PYTHON.get(name.split(".")[0], "").split()


class Op(NamedTuple):
    shapes: Callable                      # sizes -> {argument: its shape, or what is no array}
    rungs: dict                           # {type: rungs}
    call: Callable                        # (rung, …) -> [results]
    before: Callable = None               # (rung, …) -> {argument: array} that the call needs
    flops: Callable = lambda *sizes: 0
    gradient: bool = False
    over: tuple = ()                      # the arguments that are written over


def conv(N, H, W, C, O, K, stride):
    x_shape, w_shape = (N, H, W, C), (K, K, C, O)
    return {"x": x_shape, "w": w_shape, "b": (O,), "dy": (N, -(-H // stride), -(-W // stride), O),
            "x_shape": x_shape, "w_shape": w_shape, "stride": stride}


def fused(N, H, W, C1, C2, O, groups):
    C = C1 + C2
    return {"x": (N, H, W, C1), "skip": (N, H, W, C2), "w": (3, 3, C, O), "base": (N, O),
            "gamma": (N, C), "beta": (N, C), "add": (N, H, W, O), "dy": (N, H, W, O),
            "groups": groups, "split": C1 if C2 else None}


def upsampled(N, H, W, C, O):
    return {"x": (N, H, W, C), "w": (3, 3, C, O), "b": (O,), "dy": (N, 2 * H, 2 * W, O),
            "w_shape": (3, 3, C, O)}


def product(P, C1, C2, O):
    return {"x": (P, C1), "skip": (P, C2), "w": (C1 + C2, O), "b": (O,), "add": (P, O),
            "dy": (P, O), "split": C1 if C2 else None}


def heads(N, h, L, M, d, masked):
    return {"q": (N, L, h, d), "k": (N, M, h, d), "v": (N, M, h, d), "dy": (N, L, h, d),
            "mask": (N, 1, L, M * masked)}


def images(N, H, W, C1, C2, groups):
    C = C1 + C2
    return {"x": (N, H, W, C1), "skip": (N, H, W, C2), "dy": (N, H, W, C1), "dskip": (N, H, W, C2),
            "gamma": (N, C), "beta": (N, C), "groups": groups}


def rows(P, D):
    return {"x": (P, D), "dy": (P, D), "scale": (D,), "shift": (D,)}


def buffers(n):
    return {**dict.fromkeys(("data", "grad", "m", "square", "ema"), (n,)), "half": (n - n // 8,)}


def pixels(N, H, W, C):
    return {"x": (N, H, W, C), "y": (N, H, W, C), "out": (N, H, W, C), "state": (2,),
            "like": (1,), "x_shape": (N, H, W, C)}


def conv_flops(N, H, W, C, O, K, stride):
    return 2 * K * K * C * prod(conv(N, H, W, C, O, K, stride)["dy"])


def fused_flops(N, H, W, C1, C2, O, groups):
    return conv_flops(N, H, W, C1 + C2, O, 3, 1)


def phase_flops(N, H, W, C, O):
    """Four phases of 2 × 2 taps"""
    return 4 * conv_flops(N, H, W, C, O, 2, 1)


def product_flops(P, C1, C2, O):
    return 2 * P * (C1 + C2) * O


def head_flops(N, h, L, M, d, masked):
    return 4 * N * h * L * M * d


def head_back_flops(*sizes):
    return 2.5 * head_flops(*sizes)


def at(call, shapes, float32="", bfloat16="", **more):
    """An operation with its rungs; those in Python are float32's."""
    return Op(shapes, {"float32": float32.split(), "bfloat16": bfloat16.split()}, call, **more)


def of_conv(call, bfloat16, **more):
    return at(call, conv, IN_PYTHON["conv2d"], bfloat16, flops=conv_flops, **more)


def of_fused(call, **more):
    return at(call, fused, "", "halo wgmma", flops=fused_flops, **more)


def of_phase(call, **more):
    return at(call, upsampled, "", "phase", flops=phase_flops, **more)


def of_product(call, **more):
    return at(call, product, IN_PYTHON["matmul"], "mma wgmma", flops=product_flops, **more)


def of_heads(call, **more):
    return at(call, heads, IN_PYTHON["attention"], "flash", **more)


def of_norm(call, shapes, **more):
    return at(call, shapes, IN_PYTHON["norm"] + " vector", "vector", **more)


def of_pixels(call, **more):
    return at(call, pixels, "on_device", "on_device", **more)


back = {"gradient": True}
step = {"over": ("data", "grad", "m", "square", "ema", "half")}
OPS = {
    "conv2d.forward":     of_conv(calls.conv_forward, "mma halo wgmma"),
    "conv2d.grad_input":  of_conv(calls.conv_grad_input, "mma halo wgmma", **back),
    "conv2d.grad_weight": of_conv(calls.conv_grad_weight, "mma wgmma", **back),

    "conv2d.fused":             of_fused(calls.norm_conv),
    "conv2d.fused_moments":     of_fused(calls.norm_conv_norm),
    "conv2d.fused_grad_input":  of_fused(calls.fused_grad_input, **back),
    "conv2d.fused_grad_weight": of_fused(calls.fused_grad_weight, before=calls.as_lines, **back),

    "conv2d.upsampled":             of_phase(calls.upsampled),
    "conv2d.upsampled_grad_input":  of_phase(calls.upsampled_grad_input, **back),
    "conv2d.upsampled_grad_weight": of_phase(calls.upsampled_grad_weight, **back),

    "matmul.forward":     of_product(calls.product_forward),
    "matmul.grad_input":  of_product(calls.product_grad_input, **back),
    "matmul.grad_weight": of_product(calls.product_grad_weight, **back),

    "attention.forward":  of_heads(calls.attend, flops=head_flops),
    "attention.backward": of_heads(calls.attend_back, flops=head_back_flops,
                                   before=calls.attended, **back),

    "norm.forward":       of_norm(calls.norm_forward, images),
    "norm.backward":      of_norm(calls.norm_backward, images, before=calls.measured,
                                  over=("dy", "dskip"), **back),
    "norm.rows":          of_norm(calls.rows, rows),
    "norm.rows_backward": of_norm(calls.rows_backward, rows, **back),

    "optimizer.step":         at(calls.adamw, buffers, "cuda_elementwise fused", **step),
    "optimizer.clipped_step": at(calls.clipped_adamw, buffers, "fused", **step),
    "optimizer.norm":         at(calls.grad_norm, buffers, "cuda_elementwise fused"),

    "elementwise.add":  of_pixels(lambda rung, x, y: [rung.add(x, y)]),
    "elementwise.mul":  of_pixels(lambda rung, x, y: [rung.mul(x, y)]),
    "elementwise.gelu": of_pixels(lambda rung, x: [rung.gelu(x)]),
    "elementwise.silu": of_pixels(lambda rung, x: [rung.silu(x)]),
    "elementwise.gelu_backward": of_pixels(lambda rung, x, y: [rung.gelu_backward(y, x)], **back),
    "elementwise.silu_backward": of_pixels(lambda rung, x, y: [rung.silu_backward(y, x)], **back),

    "elementwise.upsample2":          of_pixels(lambda rung, x: [rung.upsample2(x)]),
    "elementwise.upsample2_backward": of_pixels(lambda rung, x: [rung.upsample2_backward(x)],
                                                **back),
    "elementwise.sum_pixels":         of_pixels(lambda rung, x: [rung.sum_pixels(x)], **back),
    "elementwise.cast":               at(calls.cast, pixels, "", "on_device"),

    "noise.normal":      Op(pixels, {"float32": ["philox"], "float64": ["philox"]}, calls.normal),
    "noise.normal_into": at(calls.normal_into, pixels, "philox", over=("out",)),
    "noise.keep":        at(calls.keep, pixels, "mask", "mask"),
}


def draw(name, sizes, dtype, rng):
    """{argument: an array of normal numbers, on the host}"""
    return made(name, sizes, lambda argument, shape: numbers(argument, shape, dtype, rng))


def made(name, sizes, make):
    """{argument: make(argument, its shape)} for a call and for what comes before it."""
    op = OPS[name]
    names = {*arguments(op.call), *(arguments(op.before) if op.before else ())}
    return {argument: shape if argument.endswith("_shape") or not isinstance(shape, tuple) else
            make(argument, shape) if prod(shape) else None
            for argument, shape in op.shapes(*sizes).items() if argument in names}


def type_of(argument, dtype):
    """What the numbers of an array are"""
    return "bfloat16" if argument == "half" else "float32" if argument in SINGLE else dtype


def suitable(argument, x):
    """Normal numbers as an argument has them: squares are positive, γ is around 1."""
    return {"square": abs(x), "gamma": 1 + x / 2}.get(argument, x)


def numbers(argument, shape, dtype, rng):
    if argument == "mask":
        mask = rng.random(shape) > 0.3
        mask[..., 0] = True                               # each query sees something
        return mask
    if argument == "state":
        return np.array([calls.SEED, calls.STEP], np.uint64)
    x = rng.standard_normal(shape, np.float32)
    x = suitable(argument, x)
    kind = type_of(argument, dtype)
    return x.astype(bfloat16() if kind == "bfloat16" else kind, copy=False)


def completed(name, rung, arrays):
    """The arrays, and those that must be computed before the call."""
    before = OPS[name].before
    return arrays if before is None else arrays | before(rung, *taken(before, arrays))


def results(name, rung, arrays):
    """[arrays] that the rung makes, or writes over."""
    call = OPS[name].call
    return call(rung, *taken(call, arrays))


def taken(call, arrays):
    """Those that it takes, in its order"""
    return [arrays[argument] for argument in arguments(call)]


def arguments(call):
    """The names of a call's arguments behind the rung."""
    return list(signature(call).parameters)[1:]


def rung_of(name, idea):
    """The module of a rung; elementwise and noise have one each, and no ladder."""
    folder = import_module(f"tinydiff_kernels.{name.split('.')[0]}")
    return folder.LADDER[idea] if hasattr(folder, "LADDER") else import_module(
        f"{folder.__name__}.{idea}")
