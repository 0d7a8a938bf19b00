"""The U-Net of tinydiff/models/unet.py as one writes it in PyTorch: what cpu_step.py races against.

Eager modules on pictures (N, C, H, W), in either memory format. They bear our names, so that
`weights` only has to turn axes. No text, labels, patches or adaptive norms: no race has them.
"""

from math import log

import torch
import torch.nn.functional as F
from torch import nn

LAYOUTS = {"torch NCHW": torch.contiguous_format, "torch channels_last": torch.channels_last}


class TimeEmbedding(nn.Module):
    def __init__(self, c, c_emb):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(c, c_emb), nn.Linear(c_emb, c_emb)
        rate = torch.exp(-log(10_000) / (c // 2) * torch.arange(c // 2))
        self.register_buffer("rate", rate, persistent=False)

    def forward(self, t):                                 # t (N,)
        angle = t[:, None] * self.rate
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        return self.linear2(F.silu(self.linear1(waves)))


class ResBlock(nn.Module):
    def __init__(self, c_in, c_out, c_emb, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.shift = nn.Linear(c_emb, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out)
        self.conv2 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.shift(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.skip(x)


class SelfAttention(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(c, c) for _ in range(3))
        self.out = zero(nn.Linear(c, c))
        self.heads = heads

    def forward(self, x):                                 # x (N, L, c)
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for linear in (self.q, self.k, self.v))            # (N, h, L, d)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    def __init__(self, c, heads, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c)
        self.self_attention = SelfAttention(c, heads)

    def forward(self, x):
        h = self.norm1(x).flatten(2).transpose(1, 2)      # (N, H·W, c)
        h = self.self_attention(h).transpose(1, 2)        # (N, c, H·W)
        return x + h.unflatten(2, x.shape[2:])


class Block(nn.Module):
    def __init__(self, c_in, c_out, c, attend):
        super().__init__()
        self.res = ResBlock(c_in, c_out, c.emb * c.base, c.groups)
        self.attention = AttentionBlock(c_out, c.heads, c.groups) if attend else nn.Identity()

    def forward(self, h, emb):
        return self.attention(self.res(h, emb))


class Downsample(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2, padding=1)

    def forward(self, h):
        return self.conv(h)


class Upsample(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, h, like):
        H, W = like.shape[2:]
        h = F.interpolate(h, scale_factor=2, mode="nearest")
        return self.conv(h if h.shape[2:] == (H, W) else h[:, :, :H, :W])


class Level(nn.Module):
    def __init__(self, blocks, resize):
        super().__init__()
        self.blocks, self.resize = nn.ModuleList(blocks), resize


class UNet(nn.Module):
    """x_t (N, C, H, W) and t (N,) -> eps like x_t; c has the fields of our UNetConfig."""

    def __init__(self, c):
        super().__init__()
        widths = [c.base * mult for mult in c.mults]
        coarsest = len(widths) - 1
        self.time = TimeEmbedding(c.base, c.emb * c.base)
        self.conv_in = nn.Conv2d(c.channels, c.base, 3, padding=1)

        self.down, h, skips = nn.ModuleList(), c.base, [c.base]
        for level, width in enumerate(widths):
            blocks = []
            for _ in range(c.blocks):
                blocks.append(Block(h, width, c, level in c.attend))
                skips.append(h := width)
            self.down.append(Level(blocks, Downsample(h) if level < coarsest else None))
            if level < coarsest:
                skips.append(h)

        self.middle1 = Block(h, h, c, True)
        self.middle2 = Block(h, h, c, False)

        self.up = nn.ModuleList()
        for level in range(coarsest, -1, -1):
            blocks = []
            for _ in range(c.blocks + 1):
                blocks.append(Block(h + skips.pop(), widths[level], c, level in c.attend))
                h = widths[level]
            self.up.append(Level(blocks, Upsample(h) if level else None))

        self.norm_out = nn.GroupNorm(c.groups, h)
        self.conv_out = zero(nn.Conv2d(h, c.channels, 3, padding=1))

    def forward(self, x_t, t):
        emb = self.time(t)
        h = self.conv_in(x_t)
        skips = [h]
        for level in self.down:
            for block in level.blocks:
                h = block(h, emb)
                skips.append(h)
            if level.resize is not None:
                h = level.resize(h)
                skips.append(h)
        h = self.middle1(h, emb)
        h = self.middle2(h, emb)
        for level in self.up:
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), emb)
            if level.resize is not None:
                h = level.resize(h, like=skips[-1])
        return self.conv_out(F.silu(self.norm_out(h)))


class Torch:
    """A training step and a sampling step in PyTorch; the same on arrays as cpu_step.Ours."""

    def __init__(self, config, x_t, t, eps, *, layout, threads, lr, decay):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.unet = UNet(config).to(memory_format=layout)
        self.x_t, self.eps = pictures(x_t, layout), pictures(eps, layout)
        self.t = torch.tensor(t)
        parameters = list(self.unet.parameters())
        self.parameters = sum(p.numel() for p in parameters)
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
             {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0}],
            lr=lr, betas=(0.9, 0.99), fused=True)

    def train(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(self.unet(self.x_t, self.t), self.eps)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def sample(self):
        with torch.inference_mode():
            return self.unet(self.x_t, self.t).permute(0, 2, 3, 1).numpy()


def pictures(x, layout):
    """(N, H, W, C) -> a tensor (N, C, H, W) whose strides say `layout`, even where C = 1."""
    return torch.as_tensor(x).permute(0, 3, 1, 2).to(memory_format=layout)


def weights(arrays):
    """Our {path: array} as a state_dict of UNet."""
    names = {"w": "weight", "b": "bias", "scale": "weight", "shift": "bias"}
    turn = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}          # (K, K, C, O) -> (O, C, K, K)
    state = {}
    for path, array in arrays.items():
        layer, _, name = path.rpartition(".")
        state[f"{layer}.{names[name]}"] = torch.tensor(array).permute(turn[array.ndim])
    return state


def zero(layer):
    """The same layer, silent at first, as in DDPM."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer
