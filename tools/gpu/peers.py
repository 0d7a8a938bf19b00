"""The same operations in PyTorch: whom ours race against and, in float64, the truth.

A peer takes our arrays as tensors and gives a function without arguments, which is timed, eager and
compiled. Pictures are channels_last: their memory is that of our (N, H, W, C), so turning axes
copies nothing, and results have our axes again.
"""

from inspect import signature

import numpy as np
import torch
import torch.nn.functional as F

from gpu import calls
from gpu.child import LeftOut

aten = torch.ops.aten


def pictures(x, skip=None):
    """(N, H, W, C) as (N, C, H, W), with skip's channels behind"""
    x = x.permute(0, 3, 1, 2)
    return x if skip is None else torch.cat([x, skip.permute(0, 3, 1, 2)], dim=1)


def filters(w):
    """(K, K, C, O) as (O, C, K, K)"""
    return w.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def images(x):
    return x.permute(0, 2, 3, 1)


def windows(w):
    return w.permute(2, 3, 1, 0)


def apart(x, split):
    """x (…, C1 + C2) as [(…, C1), (…, C2)] where there is a split, C1"""
    return [x] if split is None else [x[..., :split], x[..., split:]]


def seam(x, skip):
    return None if skip is None else x.shape[-1]


def conv_forward(x, w, b, stride):
    x, w = pictures(x), filters(w)
    b = b.to(x.dtype)
    return lambda: [images(F.conv2d(x, w, b, stride, len(w[0, 0]) // 2))]


def conv_back(dy, x, w, stride, mask):
    pad = [w.shape[2] // 2] * 2
    return aten.convolution_backward(dy, x, w, None, [stride] * 2, pad, [1, 1], False, [0, 0], 1,
                                     mask)


def conv_grad_input(dy, w, x_shape, stride):
    x, dy, w = pictures(dy.new_empty(x_shape)), pictures(dy), filters(w)
    return lambda: [images(conv_back(dy, x, w, stride, [True, False, False])[0])]


def conv_grad_weight(dy, x, w_shape, stride):
    w, dy, x = filters(dy.new_empty(w_shape)), pictures(dy), pictures(x)
    return lambda: [windows(conv_back(dy, x, w, stride, [False, True, False])[1])]


def group_norm(x, gamma, beta, groups):
    """gamma and beta (C,), or for each image its own, (N, C)"""
    gamma, beta = gamma.to(x.dtype), beta.to(x.dtype)
    if gamma.ndim == 1:
        return F.group_norm(x, groups, gamma, beta, calls.EPS)
    z = F.group_norm(x, groups, eps=calls.EPS)
    return z * gamma[:, :, None, None] + beta[:, :, None, None]


def norm_conv(x, skip, w, base, gamma, beta, add, groups):
    w, add, base = filters(w), pictures(add), base.to(x.dtype)[:, :, None, None]

    def run():
        z = F.silu(group_norm(pictures(x, skip), gamma, beta, groups))
        return [images(F.conv2d(z, w, padding=1) + base + add)]
    return run


def fused_grad_input(dy, w, split):
    x = pictures(dy.new_empty((*dy.shape[:3], w.shape[2])))
    dy, w = pictures(dy), filters(w)
    return lambda: apart(images(conv_back(dy, x, w, 1, [True, False, False])[0]), split)


def fused_grad_weight(dy, x, skip, gamma, beta, groups):
    """What the norm made is kept."""
    z = F.silu(group_norm(pictures(x, skip), gamma, beta, groups))
    w = filters(dy.new_empty((3, 3, z.shape[1], dy.shape[3])))
    dy = pictures(dy)
    return lambda: [windows(conv_back(dy, z, w, 1, [False, True, False])[1])]


def upsampled(x, w, b):
    x, w, b = pictures(x), filters(w), b.to(x.dtype)
    return lambda: [images(F.conv2d(F.interpolate(x, scale_factor=2), w, b, padding=1))]


def upsampled_grad_input(dy, w):
    x = pictures(dy.new_empty((*dy.shape[:3], w.shape[2])))
    dy, w = pictures(dy), filters(w)

    def run():
        dx = conv_back(dy, x, w, 1, [True, False, False])[0]
        return [images(F.avg_pool2d(dx, 2, divisor_override=1))]          # the sums of four
    return run


def upsampled_grad_weight(dy, x, w_shape):
    """The large picture is kept."""
    w, dy = filters(dy.new_empty(w_shape)), pictures(dy)
    large = F.interpolate(pictures(x), scale_factor=2)
    return lambda: [windows(conv_back(dy, large, w, 1, [False, True, False])[1])]


def side_by_side(x, skip):
    return x if skip is None else torch.cat([x, skip], dim=1)


def product_forward(x, skip, w, b, add):
    w, b = w.T.contiguous(), b.to(x.dtype)
    return lambda: [F.linear(side_by_side(x, skip), w, b) + add]


def product_grad_input(dy, w, split):
    w = w.T.contiguous()
    return lambda: apart(dy @ w, split)


def product_grad_weight(dy, x, skip):
    whole = side_by_side(x, skip)
    return lambda: [(dy.T @ whole).T]


def attend(q, k, v, mask):
    q, k, v = (a.transpose(1, 2) for a in (q, k, v))
    return lambda: [F.scaled_dot_product_attention(q, k, v, mask)]


def attend_back(dy, q, k, v, mask):
    q, k, v = (a.transpose(1, 2).detach().requires_grad_() for a in (q, k, v))
    y, dy = F.scaled_dot_product_attention(q, k, v, mask), dy.transpose(1, 2)
    return lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)


def norm_forward(x, skip, gamma, beta, groups):
    split = seam(x, skip)
    return lambda: apart(images(F.silu(group_norm(pictures(x, skip), gamma, beta, groups))), split)


def norm_backward(dy, dskip, x, skip, gamma, beta, groups):
    """What autograd calls, on what it keeps"""
    split, whole, dy = seam(x, skip), pictures(x, skip), pictures(dy, dskip)
    if gamma.ndim == 2:
        return slow_norm_backward(dy, whole, split, gamma, beta, groups)
    N, C, H, W = whole.shape
    gamma, beta = gamma.to(x.dtype), beta.to(x.dtype)
    z, mean, rstd = aten.native_group_norm(whole, gamma, beta, N, C, H * W, groups, calls.EPS)

    def run():
        dz = aten.silu_backward(dy, z)
        dx, dgamma, dbeta = aten.native_group_norm_backward(
            dz, whole, mean, rstd, gamma, N, C, H * W, groups, [True] * 3)
        return [*apart(images(dx), split), dgamma, dbeta]
    return run


def slow_norm_backward(dy, x, split, gamma, beta, groups):
    """The same where each image has a gamma and beta of its own, for which there is no kernel"""
    x, gamma, beta = (a.detach().requires_grad_() for a in (x, gamma, beta))
    y = F.silu(group_norm(x, gamma, beta, groups))

    def run():
        dx, dgamma, dbeta = torch.autograd.grad(y, (x, gamma, beta), dy, retain_graph=True)
        return [*apart(images(dx), split), dgamma, dbeta]
    return run


def rows(x, scale, shift):
    scale, shift = scale.to(x.dtype), shift.to(x.dtype)
    return lambda: [F.layer_norm(x, x.shape[-1:], scale, shift, calls.EPS)]


def adamw(data, grad, m, square, ema, half):
    """One kernel for the one parameter, and three for what torch.optim does not do"""
    how = calls.HOW
    data.grad = grad
    optimizer = torch.optim.AdamW([data], lr=how["lr"], betas=(how["beta1"], how["beta2"]),
                                  eps=how["eps"], weight_decay=how["decay"], fused=True)

    def run():
        optimizer.step()
        ema.lerp_(data, 1 - how["ema_decay"])
        half.copy_(data[:len(half)])
        grad.zero_()
        return [data]
    return run


def adamw_in_words(data, grad, m, square, ema, half):
    """The formula, of which the compiler makes one kernel"""
    how = calls.HOW
    rate = how["lr"] / (1 - how["beta1"] ** how["step"])
    v_scale = 1 / (1 - how["beta2"] ** how["step"])

    def run():
        m.lerp_(grad, 1 - how["beta1"])
        square.lerp_(grad * grad, 1 - how["beta2"])
        data.mul_(1 - how["lr"] * how["decay"])
        data.sub_(rate * m / ((square * v_scale).sqrt() + how["eps"]))
        ema.lerp_(data, 1 - how["ema_decay"])
        half.copy_(data[:len(half)])
        grad.zero_()
        return [data]
    return run


PEERS = {
    "conv2d.forward": conv_forward, "conv2d.grad_input": conv_grad_input,
    "conv2d.grad_weight": conv_grad_weight, "conv2d.fused": norm_conv,
    "conv2d.fused_grad_input": fused_grad_input, "conv2d.fused_grad_weight": fused_grad_weight,
    "conv2d.upsampled": upsampled, "conv2d.upsampled_grad_input": upsampled_grad_input,
    "conv2d.upsampled_grad_weight": upsampled_grad_weight,
    "matmul.forward": product_forward, "matmul.grad_input": product_grad_input,
    "matmul.grad_weight": product_grad_weight,
    "attention.forward": attend, "attention.backward": attend_back,
    "norm.forward": norm_forward, "norm.backward": norm_backward, "norm.rows": rows,
    "optimizer.step": adamw,
    "elementwise.add": lambda x, y: lambda: [x + y],
    "elementwise.silu": lambda x: lambda: [F.silu(x)],
    "elementwise.silu_backward": lambda x, y: lambda: [aten.silu_backward(y, x)],
    "noise.normal": lambda like, x_shape: lambda: [like.new_empty(x_shape).normal_()],
}
TO_COMPILE = PEERS | {"optimizer.step": adamw_in_words}
NO_TRUTH = {"optimizer.step", "noise.normal"}             # its moments begin at 0; other numbers


def device():
    """The GPU.  LeftOut where PyTorch sees none: nobody races against its CPU."""
    if not torch.cuda.is_available():
        raise LeftOut("PyTorch sees no GPU; install one that is made for CUDA")
    return "cuda"


def by_torch(name, arrays):
    """[results] of an operation in float64, computed on the GPU, as NumPy arrays."""
    tensors = {key: torch.from_numpy(a if a.dtype == bool else a.astype(np.float64)).to(device())
               if hasattr(a, "dtype") else a for key, a in arrays.items()}
    return [y.cpu().numpy() for y in given(PEERS[name], tensors)()]


def given(peer, tensors):
    """The peer's function for these tensors, of which it takes those it names."""
    return peer(*(tensors[key] for key in signature(peer).parameters))
