"""Several ops in one pass over memory, equal to what they replace.

A network's 3 × 3 convolution stands behind a GroupNorm and a SiLU, and before the addition of bias,
time and residual. Taken alone, each of them reads and writes every activation. Here the norm is
only measured; scale, shift and SiLU are applied as the convolution loads its windows, the sums are
made as it stores its results, and skip connections are read where they lie. Backward computes the
activations once more instead of keeping them.
"""

import numpy as np

from tinydiff.autograd.elementwise import add_to_pixels, silu
from tinydiff.autograd.norm import as_line, group_norm
from tinydiff.autograd.product import conv2d
from tinydiff.autograd.shape import concat, upsample
from tinydiff.autograd.tensor import Tensor, op, recording
from tinydiff.backend import contiguous
from tinydiff.kernels import elementwise, is_half, pick


def norm_silu_conv2d(x, scale, shift, w, b, skip=None, late=None, add=None, *, groups, eps=1e-5):
    """conv2d(silu(group_norm(x ‖ skip))) + b + late + add, 3 × 3 windows, the size kept

    x (N, H, W, C1), skip (N, H, W, C2) joins its channels; scale, shift (C,) or, for each image its
    own, (N, C); w (3, 3, C, O), b (O,), late (N, O), add (N, H, W, O) -> y (N, H, W, O).
    """
    refuse_misfits(x, w, b, skip, late, add, groups)
    if not can_fuse(x, scale, shift, w, b, skip, late, add):
        return one_by_one(x, scale, shift, w, b, skip, late, add, groups=groups, eps=eps)
    if skip is not None and x.shape[3] % pick("conv2d", x).SEAM:
        x, skip = concat(x, skip), None                   # the kernels' vectors cross no seam
    return in_one_pass(x, scale, shift, w, b, skip, late, add, groups=groups, eps=eps)


def refuse_misfits(x, w, b, skip, late, add, groups):
    """Refuse shapes that do not fit, with both numbers; the kernels would read past the end."""
    C = x.shape[-1] + (0 if skip is None else skip.shape[-1])
    if x.ndim != 4 or w.shape[:3] != (3, 3, C):
        raise ValueError(f"norm_silu_conv2d: x has {C} channels with skip's, w is {w.shape}: "
                         f"expected x (N, H, W, C) and w (3, 3, {C}, O)")
    N, H, W, _ = x.shape
    O = w.shape[3]
    for name, given, wanted in (("b", b, (O,)), ("late", late, (N, O)), ("add", add, (N, H, W, O)),
                                ("skip", skip, (N, H, W, C - x.shape[3]))):
        if given is not None and given.shape != wanted:
            raise ValueError(f"norm_silu_conv2d: {name} has shape {given.shape}, expected {wanted}")
    if C % groups:
        raise ValueError(f"norm_silu_conv2d: {C} channels cannot be shared out among {groups} "
                         "groups")


def one_by_one(x, scale, shift, w, b, skip, late, add, *, groups, eps):
    """The same, as it is defined."""
    h = x if skip is None else concat(x, skip)
    h = silu(group_norm(h, scale, shift, groups=groups, eps=eps))
    return conv2d_onto(h, w, b, late, add)


@op
def in_one_pass(x, scale, shift, w, b, skip, late, add, *, groups, eps):
    N, _, _, C1 = x.shape
    xs = [contiguous(part) for part in (x, skip) if part is not None]
    conv, norm = pick("conv2d", x), pick("norm", x)
    mean, rstd = norm.measure(xs, groups, eps)            # (N, groups)
    gamma, beta = (np.broadcast_to(p, (N, w.shape[2])) for p in (scale, shift))
    slope, offset = as_line(gamma, beta, mean, rstd)      # norm(x) = x · slope + offset   (N, C)
    base = b if late is None else b + late
    y = conv.fused(xs, w, scale=slope, shift=offset, base=base, add=add,
                   keep=not recording())              # the weights of a sampler stay the same

    def vjp(dy):
        dy = contiguous(dy)
        dw = conv.fused_grad_weight(dy, xs, scale=slope, shift=offset)
        da = conv.fused_grad_input(dy, w, split=C1 if skip is not None else None)
        dxs, dgamma, dbeta = norm.backward(da, xs, gamma, beta, mean, rstd, True)
        db, dlate = bias_gradients(dy, late)
        return dxs[0], dgamma, dbeta, dw, db, dxs[1] if skip is not None else None, dlate, dy

    return y, vjp


def bias_gradients(dy, late):
    """Those of b (O,), and of late (N, O) if there is one"""
    if late is None:
        return elementwise.sum_rows(dy), None
    dlate = elementwise.sum_pixels(dy)
    return dlate.sum(axis=0), dlate


def can_fuse(x, scale, shift, w, b, skip, late, add):
    """Whether the rung in use has it in one pass, and all is of the types that it expects.

    A rung of the CPU takes float32. One of a GPU takes bf16, whose channels fill whole vectors, and
    in float32 what is small: scale, shift, b, late.
    """
    conv = pick("conv2d", x)
    if not hasattr(conv, "fused") or getattr(conv, "FUSES", "float32") != x.dtype.name \
            or w.shape[:2] != (3, 3):
        return False
    large, small = ([a.data if isinstance(a, Tensor) else a for a in some if a is not None]
                    for some in ((x, w, skip, add), (scale, shift, b, late)))
    if is_half(x):
        return all(map(is_half, large)) and all(a.dtype == np.float32 for a in small) and \
            w.shape[2] % conv.SEAM == w.shape[3] % conv.SEAM == 0
    return all(type(a) is np.ndarray and a.dtype == np.float32 for a in large + small)


def conv2d_onto(x, w, b, late=None, add=None):
    """conv2d(x) + b + late + add, 3 × 3 windows, the size kept; shapes as above"""
    refuse_misfits(x, w, b, None, late, add, 1)
    if can_fuse(x, None, None, w, b, None, late, add):
        return in_one_sum(x, w, b, late, add)
    y = conv2d(x, w, b, padding=1)
    y = y if late is None else add_to_pixels(y, late)
    return y if add is None else y + add


@op
def in_one_sum(x, w, b, late, add):
    conv, x = pick("conv2d", x), contiguous(x)
    y = conv.fused([x], w, base=b if late is None else b + late, add=add, keep=not recording())

    def vjp(dy):
        dy = contiguous(dy)
        return (lambda: conv.fused_grad_input(dy, w)[0], lambda: conv.fused_grad_weight(dy, [x]),
                *bias_gradients(dy, late), dy)

    return y, vjp


def upsample_conv2d(x, w, b):
    """conv2d(upsample(x)) + b, 3 × 3 windows, the size kept: (N, H, W, C) -> (N, 2H, 2W, O)"""
    if hasattr(pick("conv2d", x), "upsampled"):
        return in_phases(x, w, b)
    return conv2d(upsample(x), w, b, padding=1)


@op
def in_phases(x, w, b):
    conv = pick("conv2d", x)

    def vjp(dy):
        return (lambda: conv.upsampled_grad_input(dy, w),
                lambda: conv.upsampled_grad_weight(dy, x, w.shape),
                lambda: elementwise.sum_rows(dy))

    return conv.upsampled(x, w, b), vjp
