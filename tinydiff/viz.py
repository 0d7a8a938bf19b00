"""Seeing: arrays in, a matplotlib Figure out. Nothing here is needed to train or to draw.

A Figure belongs to whoever asked for it: no pyplot, nothing global. A notebook shows it by itself.
`watch` sees inside a network; `mermaid` and `unet_shapes` answer with text.
"""

import io
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from tinydiff import images
from tinydiff.autograd import Tensor, no_grad
from tinydiff.autograd.blame import producers_first
from tinydiff.nn import Module
from tinydiff.replay import one_by_one

DPI, GAP = 72, 2     # dots an inch, so that notebooks stay small; white pixels between pictures


def image_grid(pictures, *, rows=(), columns=(), title="", zoom=2):
    """Pictures (N, H, W, C), uint8 or float in [-1, 1], side by side, row after row, with labels.

    zoom is dots a pixel. Raises ValueError unless N is the number of rows times that of columns.
    """
    if pictures.dtype != np.uint8:
        pictures = images.to_uint8(pictures)
    N, H, W, _ = pictures.shape
    across = len(columns) or N // max(1, len(rows))
    if N == 0 or N % across or (rows and N != len(rows) * across):
        raise ValueError(f"image_grid: {N} pictures do not fill {len(rows) or 'any'} rows and "
                         f"{len(columns) or 'any'} columns")
    sheet = images.grid(pictures, across, GAP)
    height, width = zoom * sheet.shape[0], zoom * sheet.shape[1]                # dots
    left, above = 12 + 6 * max(map(len, rows), default=0), 8 + 14 * bool(columns) + 18 * bool(title)
    total = np.array([left + width + 8, above + height + 8])
    fig = new_figure(*total / DPI, layout=None)
    ax = fig.add_axes((left, 8, width, height) / np.tile(total, 2))      # exactly zoom dots a pixel
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_title(title, fontsize=11)
    ax.set_xticks([(W + GAP) * i + W / 2 for i in range(len(columns))], columns)
    ax.set_yticks([(H + GAP) * i + H / 2 for i in range(len(rows))], rows)
    ax.xaxis.tick_top()
    bare(ax)
    return fig


def trajectory(frames, predictions, times, *, count=9):
    """The first picture on its way: x_t above, below it the estimate of x0 made from it.

    frames: the x_t (N, H, W, C) that were asked about, predictions: the answers, times: their t.
    """
    chosen = np.linspace(0, len(times) - 1, min(count, len(times))).round().astype(int)
    pictures = [frames[i][0] for i in chosen] + [predictions[i].x0[0] for i in chosen]
    return image_grid(np.stack(pictures), rows=("x_t", "x0"),
                      columns=[f"t = {times[i]:g}" for i in chosen])


def curves(x, lines, *, dots=(), xlabel="", ylabel="", log=False):
    """One line for each y (len(x),) in {label: y}, over the same x; dots for labels in `dots`."""
    fig = new_figure(6, 2.8)
    ax = fig.add_subplot(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    for label, y in lines.items():
        ax.plot(x, y, "." if label in dots else "-", label=label)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return fig


def schedule_curves(schedules):
    """Signal and noise of each schedule over t / T, and the logarithm of their squared ratio."""
    fig = new_figure(9, 2.9)
    left = fig.add_subplot(1, 2, 1, xlabel="t / T", title="signal (full) and noise (dashed)")
    right = fig.add_subplot(1, 2, 2, xlabel="t / T", title="log snr")
    for schedule in schedules:
        t = np.arange(1, schedule.T + 1)
        line, = left.plot(t / schedule.T, schedule.signal(t), label=schedule.name)
        left.plot(t / schedule.T, schedule.noise(t), "--", color=line.get_color())
        right.plot(t / schedule.T, schedule.log_snr(t), color=line.get_color())
    right.axhline(0, color="black", linewidth=0.5)
    left.legend(frameon=False)
    return fig


def loss_curve(step, loss, *, window=25):
    """The loss of each step, and its mean over the last `window`: two columns of metrics.csv."""
    mean = [np.mean(loss[max(0, i - window):i]) for i in range(1, len(loss) + 1)]
    fig = curves(step, {"each step": loss, f"mean of {window}": mean}, xlabel="step", ylabel="loss")
    fig.axes[0].lines[0].set(alpha=0.4, linewidth=0.8)
    return fig


def paths(times, walks, *, targets=(), titles=("",)):
    """Numbers on their way from noise to data: each walk (len(times), n) in an axes of its own.

    times fall from left to right; `targets` are the data, as dashed lines.
    """
    fig = new_figure(4.5 * len(walks), 2.9)
    axes = fig.subplots(1, len(walks), sharey=True, squeeze=False)[0]
    for ax, walk, title in zip(axes, walks, titles, strict=True):
        ax.plot(times, walk, linewidth=0.7, alpha=0.7)
        ax.hlines(targets, min(times), max(times), color="black", linewidth=0.8, linestyle="--")
        ax.set(xlabel="t", title=title, xlim=(max(times), min(times)))
    axes[0].set_ylabel("x_t")
    return fig


def heatmap(matrix, *, rows=(), columns=(), title="", low=None, high=None, size=(0.28, 0.28)):
    """A matrix (R, C) as coloured fields of `size` (width, height) inches, with a colour bar."""
    height, width = np.multiply(matrix.shape, size[::-1])
    fig = new_figure(width + 0.09 * max(map(len, rows), default=0) + 1.2,
                     height + 0.09 * max(map(len, columns), default=0) + 0.5)
    ax = fig.add_subplot(title=title)
    fig.colorbar(ax.imshow(matrix, vmin=low, vmax=high, aspect="auto"), ax=ax)
    ax.set_xticks(range(len(columns)), columns, rotation=90, fontsize=min(10, 60 * size[0]))
    ax.set_yticks(range(len(rows)), rows, fontsize=min(10, 60 * size[1]))
    bare(ax)
    return fig


def attention_maps(picture, maps, words):
    """How much each word was heard where: maps (words, h, w) over a picture uint8 (H, W, C)."""
    fig = new_figure(1.25 * (len(words) + 1), 1.6)
    axes = fig.subplots(1, len(words) + 1)
    H, W, _ = picture.shape
    for ax, word in zip(axes, ["", *words], strict=True):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, W, H, 0))
        ax.set_title(word, fontsize=10)
        ax.set_axis_off()
    for ax, weights in zip(axes[1:], maps, strict=True):
        ax.imshow(weights, cmap="magma", alpha=0.65, extent=(0, W, H, 0), interpolation="bilinear")
    return fig


@dataclass(repr=False)
class Mermaid:
    """A diagram as text, which Jupyter draws and everybody else can read."""

    text: str

    def __repr__(self):
        return self.text

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/vnd.mermaid": self.text, "text/plain": self.text}


def mermaid(root, names=None):
    """The graph behind a Tensor, leaves first, as text; before backward, which frees it.

    names {name: Tensor}: what they are called.
    """
    called = {id(tensor): name for name, tensor in (names or {}).items()}
    number, lines = {}, ["flowchart LR"]
    for node in producers_first(root):
        number[id(node)] = me = f"n{len(number)}"
        op = node._vjp.__qualname__.split(".")[0] if node._vjp else "leaf"
        text = called.get(id(node), op) + (f"<br>{node.shape}" if node.shape else "")
        lines.append(f'  {me}("{text}")' if node._vjp else f'  {me}["{text}"]')
        lines += [f"  {number[id(p)]} --> {me}" for p in node._parents if isinstance(p, Tensor)]
    return Mermaid("\n".join(lines))


@dataclass
class Spy:
    """Stands where a layer stood, and notes each call as (path, layer, arguments, answer)."""

    layer: Module
    path: str
    calls: list

    def __call__(self, *args, **options):
        answer = self.layer(*args, **options)
        self.calls.append((self.path, self.layer, args, answer))
        return answer

    def behind(self, norm, x, **options):
        """Two layers called in one: the norm answers with what has its input's shape."""
        answer = self.layer.behind(norm, x, **options)
        self.calls += [(norm.path, norm.layer, (x,), x), (self.path, self.layer, (x,), answer)]
        return answer

    def __getattr__(self, name):
        return getattr(self.layer, name)


@contextmanager
def watch(module):
    """Inside the block, note every call of a layer within `module`, in the order they end.

        with watch(unet) as calls: …          # calls: a list of (path, layer, arguments, answer)
    """
    calls, found = [], list(places(module, ""))
    for owner, key, layer, path in found:
        owner[key] = Spy(layer, path, calls)
    try:
        with one_by_one():                                # a graph on a GPU would call nobody
            yield calls
    finally:
        for owner, key, layer, _ in found:
            owner[key] = layer


def places(value, path):
    """Yield (dict or list, key, layer, path) for every place in a Module that holds a Module."""
    owner = vars(value) if isinstance(value, Module) else value
    for key, inner in owner.items() if isinstance(owner, dict) else enumerate(owner):
        here = f"{path}.{key}" if path else str(key)
        if isinstance(inner, Module):
            yield owner, key, inner, here
        if isinstance(inner, Module | list):
            yield from places(inner, here)


def unet_shapes(unet, x_t, t, context=None, class_labels=None):
    """What each block of a U-Net returns for x_t (N, H, W, C), and its parameters, as text.

    The coarser the picture, the further to the right.
    """
    with no_grad(), watch(unet) as calls:
        unet(x_t, t, context, class_labels)
    lines = [f"{'block':<28}{'output':<22}{'parameters':>12}"]
    for path, layer, _, answer in calls:
        if "." not in path or path.split(".")[-2] == "blocks" or path.endswith("resize"):
            halved = np.log2(x_t.shape[1] / answer.shape[1]) if answer.ndim == 4 else 0
            name = "  " * round(halved) + path
            lines.append(f"{name:<28}{answer.shape!s:<22}{layer.count():>12,}")
    return "\n".join([*lines, f"{'':<50}{unet.count():>12,}"])


def new_figure(width, height, layout="constrained"):
    """An empty Figure of so many inches, with what a notebook needs to show it."""
    from matplotlib.figure import Figure

    fig = Figure((width, height), dpi=DPI, layout=layout)
    fig._repr_png_ = lambda: png(fig)
    return fig


def png(fig):
    """A Figure as the bytes of a PNG file: greys as they are, otherwise at most 256 colours."""
    from PIL import Image

    full, small = io.BytesIO(), io.BytesIO()
    fig.savefig(full, format="png")
    coloured = Image.open(full).convert("RGB")
    grey = coloured.convert("L")
    few = coloured.quantize(256, dither=Image.Dither.NONE)
    (grey if np.array_equal(coloured, grey.convert("RGB")) else few).save(small, "PNG")
    return small.getvalue()


def bare(ax):
    """Labels without ticks, pictures without a frame."""
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
