"""Where the words of a prompt were heard, and whether that is where their object stands.

In a cross-attention layer each place of the picture shares its attention out among the tokens of
the prompt; the shares of one token make a map (Hertz et al. 2208.01626).
"""

from itertools import pairwise
from math import comb

import numpy as np

from tinydiff.autograd import attention, no_grad
from tinydiff.backend import alongside, to_host
from tinydiff.data.shapes import masks
from tinydiff.evaluation.scene_parser import parse
from tinydiff.models.text_forms import Masked, Near
from tinydiff.viz import watch


def word_maps(run, prompts, *, n=1, **options):
    """Draw as `run.generate` does and listen -> pictures uint8 (N, H, W, C), N (words, maps)

    maps (steps, words, h, w), as high and wide as x_t, are the attention that each place had for a
    word in a step: for all its tokens, the mean over layers and heads. With guidance only the
    branch with the prompt is heard. ValueError as of `generate`, and where no layer sees words.
    """
    frames, steps, told = run.denoise(prompts, n=n, batch=1 << 30, **options), [], []
    asked = np.repeat(run.contexts(prompts), n, axis=0)               # (N, M, D)
    next(frames)                                                      # x_T answers nobody
    with watch(run.unet) as calls:
        for x_t in frames:
            steps.append(heard(calls, asked, x_t.shape[1:3]))
            calls.clear()
    model = getattr(run, "model", run)
    form = getattr(getattr(model, "text_encoder", None), "form", Masked)
    repeats = issubclass(form, Near)
    tokenizer = model.tokenizer
    for i, maps in enumerate(np.stack(steps, axis=1)):                # (steps, M, h, w)
        words = prompts[i // n].split()
        spelled = [maps[:, span].sum(axis=1) for span in spans(tokenizer, words, repeats)]
        told.append((words, np.stack(spelled, axis=1) if words else maps[:, :0]))
    return run.pixels(x_t), told


def heard(calls, asked, size):
    """Of one step's calls the tokens' maps (N, M, *size), those where `asked` was the context."""
    N, layers = len(asked), []
    for path, layer, (x, *context), _ in calls:
        if path.endswith("cross_attention") and np.array_equal(context[0][:N], asked):
            each = to_host(shares(layer, x[:N], asked)).mean(axis=1).swapaxes(1, 2)   # (N, M, L)
            h = round((x.shape[1] * size[0] / size[1]) ** 0.5)
            layers.append(enlarged(each.reshape(*each.shape[:2], h, -1), size))
    if not layers:
        raise ValueError("word_maps: expected a U-Net with cross-attention, got one without")
    return np.mean(layers, axis=0)


def shares(layer, x, context):
    """How an Attention shares out: x (N, L, c), context (N, M, D) -> (N, heads, L, M), sums of 1.

    What a place hears if each token says nothing but its own name.
    """
    with no_grad():
        q, k = layer.split(layer.q(x)), layer.split(layer.k(context))
        names = np.tile(np.eye(k.shape[2], dtype=np.float32), (*k.shape[:2], 1, 1))
        return attention(q, k, alongside(names, k)).data


def spans(tokenizer, words, repeats=False):
    """For each word of a text the indices of its tokens; what begins, ends and pads is of none.

    repeats: those of its repetitions too, where the encoder shows the text over and over.
    """
    ids = [tokenizer.encode([" ".join(words[:i])])[0] for i in range(len(words) + 1)]
    spoken = [np.flatnonzero(np.isin(row, ids[0], invert=True)) for row in ids]
    own = [spoken[-1][len(before):len(upto)] for before, upto in pairwise(spoken)]
    if not repeats:
        return own
    places = np.arange(len(ids[0])) % (1 + len(spoken[-1]))           # BEGIN, and the text
    return [np.flatnonzero(np.isin(places, span)) for span in own]


def pointing(run, prompts, **options):
    """Do words point at their objects? -> rows (…, 4): own, colour, shape, chance

    Each object of shapes that is named and drawn has a row with each object of its picture: how
    well that one's mask is hit (`iou`, `chance`) by the maps, their mean over steps, of the first
    one's colour word and shape word. own is 1 where the two are one.
    """
    (pictures, told), rows = word_maps(run, prompts, **options), []
    for picture, (words, maps) in zip(pictures, told, strict=True):
        if scene := parse(picture):
            heat, drawn = maps.mean(axis=0), [(o.colour, o.shape) for o in scene.objects]
            objects = list(zip(drawn, masks([scene], len(picture))[0]))
            rows += [(named == other, iou(heat[i], mask), iou(heat[i + 1], mask), chance(mask))
                     for i, named in enumerate(pairwise(word.strip(",") for word in words))
                     if named in drawn for other, mask in objects]
    return np.array(rows, float).reshape(-1, 4)


def iou(heat, mask):
    """The overlap over the union of a mask and as many of the map's hottest pixels, 0 to 1.

    heat (h, w) is enlarged to mask (H, W), a coverage, of which pixels from ½ on count.
    """
    inside = mask.ravel() >= 0.5
    hottest = np.argsort(-enlarged(heat, mask.shape), axis=None, kind="stable")[:inside.sum()]
    both = inside[hottest].sum()
    return float(both / (2 * inside.sum() - both))


def chance(mask):
    """The mean of `iou` over all ways to choose as many pixels: a map that knows nothing."""
    n, k = mask.size, int((mask >= 0.5).sum())
    return sum(comb(k, both) * comb(n - k, k - both) / comb(n, k) * both / (2 * k - both)
               for both in range(k + 1))                              # hypergeometric


def enlarged(maps, size):
    """maps (…, h, w) -> (…, *size), between the centres of its nearest four a straight mean."""
    down, across = (hats(new, old) for new, old in zip(size, maps.shape[-2:], strict=True))
    return down @ maps @ across.T


def hats(new, old):
    """(new, old): how much each of `old` centres counts at each of `new`, on the same length."""
    at = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
    return np.maximum(0, 1 - abs(at[:, None] - np.arange(old))).astype(np.float32)
