"""The U-Net once more, in PyTorch's own functions and layout, on our parameters taken by path.

p is {path: torch tensor} in our layout: convolutions (K, K, C, O), linear maps (c_in, c_out).
Pictures are (N, C, H, W) inside and (N, H, W, C) at the door.
"""

import torch
import torch.nn.functional as F


def conv(p, path, x, stride=1):
    w = p[f"{path}.w"].permute(3, 2, 0, 1).contiguous()   # (O, C, K, K)
    return F.conv2d(x, w, p[f"{path}.b"], stride=stride, padding=w.shape[-1] // 2)


def linear(p, path, x):
    return F.linear(x, p[f"{path}.w"].T, p[f"{path}.b"])


def group_norm(p, path, x, groups):
    return F.group_norm(x, groups, p[f"{path}.scale"], p[f"{path}.shift"])


def attention(p, path, x, context, heads):
    """x (N, L, D), context (N, M, D')"""
    q, k, v = (linear(p, f"{path}.{name}", a).unflatten(-1, (heads, -1)).transpose(1, 2)
               for name, a in (("q", x), ("k", context), ("v", context)))
    y = F.scaled_dot_product_attention(q, k, v)           # (N, h, L, d)
    return linear(p, f"{path}.out", y.transpose(1, 2).flatten(2))


def res_block(p, path, x, emb, c, resize=lambda x: x):
    h = conv(p, f"{path}.conv1", resize(F.silu(group_norm(p, f"{path}.norm1", x, c.groups))))
    shift = linear(p, f"{path}.shift", F.silu(emb))[:, :, None, None]
    if c.adaptive:
        scale = linear(p, f"{path}.scale", F.silu(emb))[:, :, None, None]
        h = group_norm(p, f"{path}.norm2", h, c.groups) * (1 + scale) + shift
    else:
        h = group_norm(p, f"{path}.norm2", h + shift, c.groups)
    h = conv(p, f"{path}.conv2", F.silu(h))
    return h + (conv(p, f"{path}.skip", x) if f"{path}.skip.w" in p else resize(x))


def attention_block(p, path, x, context, c):
    def tokens(a, norm):
        return group_norm(p, f"{path}.{norm}", a, c.groups).flatten(2).transpose(1, 2)

    def pixels(a):
        return a.transpose(1, 2).unflatten(2, x.shape[2:])

    h = tokens(x, "norm1")
    heads = x.shape[1] // c.head_width if c.head_width else c.heads
    x = x + pixels(attention(p, f"{path}.self_attention", h, h, heads))
    if context is not None:
        h = tokens(x, "norm2")
        x = x + pixels(attention(p, f"{path}.cross_attention", h, context, heads))
    return x


def block(p, path, x, emb, context, c):
    x = res_block(p, f"{path}.res", x, emb, c)
    attends = f"{path}.attention.norm1.scale" in p
    return attention_block(p, f"{path}.attention", x, context, c) if attends else x


def halved(h):
    return F.avg_pool2d(h, 2, ceil_mode=True)             # at an odd edge, of the pixels there are


def unet(p, c, x, waves, context=None, class_labels=None):
    """x (N, H, W, C), waves (N, base): the sinusoids of t; c a UNetConfig -> (N, H, W, C or 2C)"""
    emb = linear(p, "time.linear2", F.silu(linear(p, "time.linear1", waves)))
    if context is not None:
        emb = emb + linear(p, "pooled", context[:, 0])
    if class_labels is not None:
        emb = emb + F.embedding(class_labels, p["label.table"])
    h = conv(p, "conv_in", F.pixel_unshuffle(x.permute(0, 3, 1, 2), c.patch))   # c.channels = 1
    skips = [h]                                                                 # unless patch = 1
    coarsest = len(c.mults) - 1
    for level in range(coarsest + 1):
        for i in range(c.blocks):
            h = block(p, f"down.{level}.blocks.{i}", h, emb, context, c)
            skips.append(h)
        if level < coarsest:
            if c.resample_blocks:
                h = res_block(p, f"down.{level}.resize.res", h, emb, c, halved)
            else:
                h = conv(p, f"down.{level}.resize.conv", h, stride=2)
            skips.append(h)
    h = block(p, "middle1", h, emb, context, c)
    h = block(p, "middle2", h, emb, context, c)
    for level in range(coarsest + 1):
        for i in range(c.blocks + 1):
            h = torch.cat([h, skips.pop()], dim=1)
            h = block(p, f"up.{level}.blocks.{i}", h, emb, context, c)
        if level < coarsest:
            def doubled(h, size=skips[-1].shape[2:]):
                return F.interpolate(h, scale_factor=2, mode="nearest")[:, :, :size[0], :size[1]]

            if c.resample_blocks:
                h = res_block(p, f"up.{level}.resize.res", h, emb, c, doubled)
            else:
                h = conv(p, f"up.{level}.resize.conv", doubled(h))
    h = conv(p, "conv_out", F.silu(group_norm(p, "norm_out", h, c.groups)))
    return F.pixel_shuffle(h, c.patch).permute(0, 2, 3, 1)
