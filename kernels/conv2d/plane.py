"""Prologue: a piece of an image with its border of zeros, in the thread's own memory.

On the way in, the piece may pass through y = silu(x · scale + shift): a GroupNorm that has been
measured but not yet applied, and its SiLU. The result is never written to the network's memory.
"""

from ..simd.functions import WIDTH, at, copy, silu, zero
from ..simd.vector import fma, load, load_part, store, store_part


def fill(plane, channels, x, skip, C1, C2, first, scale, shift, n, top, left, rows, columns, H, W):
    """plane (rows, columns, channels) = channels `first` … of image n, from row top, column left on

    The image is x (N, H, W, C1) with skip (N, H, W, C2) behind it; outside it stands zero. Where
    scale is no null address, scale and shift (N, C1 + C2) and SiLU are applied.
    """
    from_x = max(0, min(C1 - first, channels))            # the rest comes from skip
    C = C1 + C2
    if scale:
        scale, shift = at(scale, n * C + first), at(shift, n * C + first)
    if from_x:
        part(plane, channels, at(x, n * H * W * C1 + first), C1, from_x, scale, shift,
             top, left, rows, columns, H, W)
    if from_x < channels:
        if scale:
            scale, shift = at(scale, from_x), at(shift, from_x)
        part(at(plane, from_x), channels, at(skip, n * H * W * C2 + first + from_x - C1), C2,
             channels - from_x, scale, shift, top, left, rows, columns, H, W)


def part(plane, channels, x, step, C, scale, shift, top, left, rows, columns, H, W):
    """C channels of an image whose pixels are `step` floats apart."""
    before = min(max(0, -left), columns)
    behind = min(max(before, W - left), columns)          # columns before … behind lie inside
    for r in range(rows):
        row, y = at(plane, r * columns * channels), top + r
        if y < 0 or y >= H:
            blank(row, columns, C, channels)
        else:
            blank(row, before, C, channels)
            blank(at(row, behind * channels), columns - behind, C, channels)
            source = at(x, (y * W + left + before) * step)
            if scale:
                active(source, at(row, before * channels), behind - before, C, step, channels,
                       scale, shift)
            else:
                plain(source, at(row, before * channels), behind - before, C, step, channels)


def blank(y, pixels, C, channels):
    if C == channels:
        zero(y, pixels * C)
    else:
        for q in range(pixels):
            zero(at(y, q * channels), C)


def plain(x, y, pixels, C, step, channels):
    if C == channels == step:
        copy(x, y, pixels * C)
    else:
        for q in range(pixels):
            copy(at(x, q * step), at(y, q * channels), C)


def active(x, y, pixels, C, step, channels, scale, shift):
    """y = silu(x · scale + shift), a vector of channels at a time"""
    for c in range(0, C - WIDTH + 1, WIDTH):
        a, b = load(scale, c), load(shift, c)
        for q in range(pixels):
            store(y, q * channels + c, silu(fma(load(x, q * step + c), a, b)))
    n = C % WIDTH
    if n:
        c = C - n
        a, b = load_part(scale, c, n), load_part(shift, c, n)
        for q in range(pixels):
            store_part(y, q * channels + c, silu(fma(load_part(x, q * step + c, n), a, b)), n)
