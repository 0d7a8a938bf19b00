"""Epilogue: results on their way out take a bias, the time's shift and a residual along."""

from ..simd import isa
from ..simd.functions import WIDTH
from ..simd.vector import load, load_part, store, store_part

PANEL = isa.host().panel


def put(value, y, y2, O1, O, base, add, n, pixel, channel):
    """One vector of channels at `channel` of O, of one pixel of all images, with what is added.

    The first O1 channels go to y (pixels, O1), the others to y2 (pixels, O − O1); base (N, O up to
    whole panels) is added to every pixel of image n, add (pixels, O), if not null, pixel by pixel.
    """
    target, width, c = y, O1, channel
    if channel >= O1:
        target, width, c = y2, O - O1, channel - O1
    lanes = width - c
    if base:
        value = value + load(base, n * ((O + PANEL - 1) // PANEL * PANEL) + channel)
    if lanes >= WIDTH:
        if add:
            value = value + load(add, pixel * O + channel)
        store(target, pixel * width + c, value)
    else:
        if add:
            value = value + load_part(add, pixel * O + channel, lanes)
        store_part(target, pixel * width + c, value, lanes)
