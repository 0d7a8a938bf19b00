"""Maps of words: they are the softmax that was used, point where a layer looks, change nothing."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from tokenizer_helpers import written

import tinydiff as td
from tinydiff import viz
from tinydiff.autograd import Tensor
from tinydiff.data.scenes import Scene, Thing
from tinydiff.data.shapes import draw, masks
from tinydiff.evaluation.attention import chance, enlarged, iou, pointing, shares, spans, word_maps
from tinydiff.models.tokenizer import Tokenizer
from tinydiff.models.transformer import ContextBlock
from tinydiff.nn import Attention, Module
from tinydiff.pretrained.tokens import load_tokenizer

PROMPTS = ["a handwritten seven", "a zigzagging 7"]


@pytest.fixture(scope="module")
def mnist():
    return td.load_run("mnist")


class Pointer(Module):
    """A U-Net whose pixels carry names, each of which looks for the token of that name.

    Behind the first come pixels of half the size, named by the upper left of four.
    """

    def __init__(self, names, sharp=20.0):                # names (h, w) of integers below 8
        rng = np.random.default_rng(0)
        self.fine, self.coarse = (SimpleLayer(8, sharp, rng) for _ in range(2))
        self.names = np.eye(8, dtype=np.float32)[names]   # (h, w, 8)

    def __call__(self, context):
        for layer, names in (self.fine, self.names), (self.coarse, self.names[::2, ::2]):
            layer.cross_attention(Tensor(np.stack([names.reshape(-1, 8)] * len(context))), context)


class SimpleLayer(Module):
    def __init__(self, width, sharp, rng):
        self.cross_attention = Attention(width, heads=1, rng=rng)
        for linear in (self.cross_attention.q, self.cross_attention.k):
            linear.w.data = sharp * np.eye(width, dtype=np.float32)


class Fake:
    """A run that draws nothing, with a Pointer for a U-Net and a number for each token's name."""

    def __init__(self, names, **tokens):
        self.unet, self.tokenizer, self.size = Pointer(names), self, np.shape(names)
        self.tokens = tokens                              # {word: the names of its tokens}

    def encode(self, texts):
        rows = [[7, *(name for word in text.split() for name in self.tokens[word])]
                for text in texts]
        return np.array([row + [7] * (16 - len(row)) for row in rows])

    def contexts(self, texts):
        return np.eye(8, dtype=np.float32)[self.encode(texts)]

    def denoise(self, prompts, *, n, batch, steps=3, guidance=2.0, seed=0):
        x_t, words = np.zeros((len(prompts) * n, *self.size, 1)), self.contexts(prompts)
        yield x_t
        for _ in range(steps):
            self.unet(np.repeat(words, n, axis=0))
            if guidance != 1:                             # the other branch looks the other way
                self.unet(np.roll(np.repeat(words, n, axis=0), 1, axis=2))
            yield x_t

    def pixels(self, x_t):
        return np.zeros(x_t.shape, np.uint8)


@pytest.mark.parametrize(("heads", "M"), [(1, 5), (4, 13)])
def test_shares_are_the_softmax_of_the_layers_own_q_and_k(heads, M, rng):
    layer = Attention(8, heads=heads, context_width=6, rng=rng)
    x, context = rng.standard_normal((2, 9, 8), np.float32), np.ones((2, M, 6), np.float32)
    context[:, 1:] = rng.standard_normal((2, M - 1, 6))
    found = shares(layer, Tensor(x), context)
    q = (x @ layer.q.w.data + layer.q.b.data).reshape(2, 9, heads, -1).transpose(0, 2, 1, 3)
    k = (context @ layer.k.w.data + layer.k.b.data).reshape(2, M, heads, -1).transpose(0, 2, 3, 1)
    e = np.exp(q @ k / np.sqrt(8 / heads))
    assert np.allclose(found, e / e.sum(axis=-1, keepdims=True), atol=1e-6)
    assert np.allclose(found.sum(axis=-1), 1, atol=1e-6)


def test_shares_of_the_values_are_what_the_layer_answers(rng):
    layer = Attention(8, heads=2, context_width=6, rng=rng)
    x, context = (rng.standard_normal(shape, np.float32) for shape in ((2, 9, 8), (2, 5, 6)))
    mixed = shares(layer, Tensor(x), context) @ layer.split(layer.v(context)).data
    answer = layer.out(mixed.transpose(0, 2, 1, 3).reshape(2, 9, 8)).data
    assert np.allclose(answer, layer(Tensor(x), context).data, atol=1e-6)


def test_listening_changes_no_bit_and_leaves_nothing_behind(mnist):
    options = dict(n=2, seed=3, steps=3)
    layers = [(path, layer) for *_, layer, path in viz.places(mnist.unet, "")]
    pictures, told = word_maps(mnist, PROMPTS, **options)
    assert np.array_equal(pictures, mnist.generate(PROMPTS, **options))
    assert [words for words, _ in told] == [p.split() for p in PROMPTS for _ in range(2)]
    assert all(maps.shape == (3, 3, 28, 28) for _, maps in told)
    after = [(path, layer) for *_, layer, path in viz.places(mnist.unet, "")]
    assert [path for path, _ in after] == [path for path, _ in layers]
    assert all(layer is before for (_, layer), (_, before) in zip(after, layers, strict=True))


def test_a_picture_s_maps_do_not_depend_on_the_others_or_on_guidance_that_does_nothing(mnist):
    options = dict(seed=3, steps=2)
    together = word_maps(mnist, PROMPTS, n=2, guidance=1, **options)[1]
    alone = word_maps(mnist, PROMPTS[1:], guidance=1, **options)[1]
    assert np.allclose(alone[0][1], together[2][1], atol=1e-5)
    twice = word_maps(mnist, PROMPTS[1:], guidance=1.0001, **options)[1]
    assert np.allclose(alone[0][1], twice[0][1], atol=1e-3)


@pytest.mark.parametrize("guidance", [1, 2])
def test_a_word_points_at_the_places_that_look_for_it(guidance):
    names = np.zeros((8, 8), int)
    names[:4, 4:], names[6:, :2] = 1, 2
    run = Fake(names, a=[3], red=[1], blue=[2])
    _, told = word_maps(run, ["a red blue", "blue red"], guidance=guidance)
    for words, maps in told:
        assert maps.shape == (3, len(words), 8, 8)
        for word, heat in zip(words, maps.mean(axis=0), strict=True):
            if word != "a":
                assert iou(heat, names == run.tokens[word][0]) == 1
                assert heat[names == run.tokens[word][0]].min() > 0.5 > heat[0, 0]
            else:
                assert heat.max() == pytest.approx(1 / 16, rel=1e-3)   # names nobody has


def test_a_word_has_the_shares_of_all_its_tokens():
    names = np.arange(16).reshape(4, 4) // 8              # zeros above, ones below
    _, told = word_maps(Fake(names, ab=[0, 1], c=[2]), ["ab c"])
    words, maps = told[0]
    assert words == ["ab", "c"]
    assert np.allclose(maps[:, 0], 1, atol=1e-3)


def test_where_no_token_is_preferred_a_word_has_one_share_a_token(mnist):
    """A layer without keys shares out evenly among the 16 tokens."""
    layers = [layer for _, _, layer, path in viz.places(mnist.unet, "")
              if path.endswith("cross_attention")]
    kept = [layer.k.w.data.copy() for layer in layers]
    try:
        for layer in layers:
            layer.k.w.data[...] = 0
        _, told = word_maps(mnist, PROMPTS[1:], steps=1)
    finally:
        for layer, w in zip(layers, kept, strict=True):
            layer.k.w.data[...] = w
    tokens = [len(span) for span in spans(mnist.model.tokenizer, told[0][0])]
    assert tokens[1] > 1
    assert np.allclose(told[0][1], np.array(tokens)[None, :, None, None]
                       / mnist.model.tokenizer.length, atol=1e-5)


def test_each_step_has_its_own_mean_over_layers_and_heads_also_of_wide_pictures(
        mnist, monkeypatch):
    options = dict(prompts=["a 7"], seed=1, steps=2, guidance=1, size=(28, 56))
    layers = [layer for _, _, layer, path in viz.places(mnist.unet, "")
              if path.endswith("cross_attention")]
    for layer in layers:
        monkeypatch.setattr(layer, "heads", 4)
    with viz.watch(mnist.unet) as calls:
        mnist.generate(**options)
    heard = [shares(layer, *args)[0] for _, layer, args, _ in calls if layer in layers]
    tokens = np.array(heard).reshape(2, -1, 7 * 14, 16).mean(axis=1)  # layers · heads at once
    _, told = word_maps(mnist, **options)
    level = tokens[:, :, 1:3].swapaxes(1, 2).reshape(2, 2, 7, 14)     # "a", "7"
    assert np.allclose(told[0][1], enlarged(level, (28, 56)), atol=1e-6)


def test_a_transformers_layers_are_heard_too(rng):
    class Wide(Pointer):
        def __init__(self):
            self.blocks = [ContextBlock(8, heads=2, context_width=8, rng=rng)]

        def __call__(self, context):
            self.blocks[0](Tensor(np.ones((len(context), 6, 8), np.float32)), context)

    run = Fake(np.zeros((2, 3), int), a=[1])
    run.unet = Wide()
    _, told = word_maps(run, ["a a"])
    assert told[0][1].shape == (3, 2, 2, 3)
    with viz.watch(run.unet) as calls:
        run.unet(run.contexts(["a a"]))
    layer, (x, context) = next(c[1:3] for c in calls if c[0].endswith("cross_attention"))
    assert np.allclose(told[0][1][0, 0].ravel(), shares(layer, x, context)[0, :, :, 1].mean(axis=0))


def test_a_prompt_without_words_has_no_maps(mnist):
    assert word_maps(mnist, ["", "a 7"], steps=1)[1][0][1].shape == (1, 0, 28, 28)


def test_a_unet_that_sees_no_words_is_refused_in_a_sentence():
    class Deaf(Module):
        def __call__(self, context):
            pass

    run = Fake(np.zeros((2, 2), int), a=[1])
    run.unet = Deaf()
    with pytest.raises(ValueError, match="expected a U-Net with cross-attention"):
        word_maps(run, ["a"])


@pytest.mark.parametrize("options", [dict(steps=-1), dict(n=0), dict(guidance=float("nan"))])
def test_what_cannot_be_drawn_is_refused_as_generate_does(mnist, options):
    with pytest.raises(ValueError, match="generate: expected"):
        word_maps(mnist, PROMPTS, **options)


def test_the_spans_of_words_spell_them():
    tokenizer = Tokenizer.learn(["a red circle"] * 9, size=300, length=40)
    words = "a red circles, ROUND 八".split()
    ids = tokenizer.encode([" ".join(words)])[0]
    found = spans(tokenizer, words)
    assert [tokenizer.decode(ids[span]) for span in found] == [word.lower() for word in words]
    assert len(found[0]) == len(found[1]) == 1 < len(found[2])
    assert np.array_equal(np.concatenate(found), np.arange(1, 1 + sum(map(len, found))))
    assert spans(tokenizer, []) == []


def test_the_spans_of_a_loaded_tokenizer_leave_out_its_own_signs(tmp_path):
    vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nred\n##dish\ncircle"
    tokenizer = load_tokenizer(written(tmp_path, vocab_dot_txt=vocab))
    found = spans(tokenizer, "a reddish circle".split())
    assert [span.tolist() for span in found] == [[1], [2, 3], [4]]


def test_enlarging_keeps_what_is_straight_and_what_has_the_size_already(rng):
    maps = rng.standard_normal((3, 5, 7)).astype(np.float32)
    assert np.array_equal(enlarged(maps, (5, 7)), maps)
    x, y = (np.arange(4) + 0.5) / 4, (np.arange(6) + 0.5) / 6         # centres, on a side of 1
    slope = lambda x, y: 2 + 3 * x[:, None] - 5 * y
    bigger = enlarged(slope(x, y), (16, 12))
    inner = slope((np.arange(16) + 0.5) / 16, (np.arange(12) + 0.5) / 12)
    assert np.allclose(bigger[2:-2, 1:-1], inner[2:-2, 1:-1], atol=1e-6)
    assert np.allclose(bigger[0], bigger[1])                          # beyond the last centre


def test_iou_of_a_map_is_that_of_as_many_of_its_hottest_pixels():
    mask = np.array([[1.0, 0.9, 0.4], [0.0, 0.6, 0.0]])              # three pixels
    assert iou(mask, mask) == 1
    assert iou(-mask, mask) == 0
    heat = np.array([[9, 8, 7], [0, 1, 0]], float)
    assert iou(heat, mask) == 2 / 4
    assert iou(1000 * heat - 5, mask) == 2 / 4


def test_a_coarse_map_is_compared_at_the_size_of_the_mask():
    mask = np.zeros((16, 16))
    mask[4:8, 8:12] = 1
    heat = np.zeros((4, 4))
    heat[1, 2] = 1
    assert iou(heat, mask) == 1
    assert iou(heat.T, mask) < 0.1


def test_chance_is_the_mean_over_all_ways_to_choose_as_many_pixels(rng):
    mask = np.array([[1, 1, 0], [0, 1, 0]], float)
    inside = set(np.flatnonzero(mask))
    every = [len(inside & set(c)) / len(inside | set(c)) for c in combinations(range(6), 3)]
    assert chance(mask) == pytest.approx(np.mean(every), rel=1e-12)
    wide = np.zeros((20, 20))
    wide[3:9, 5:12] = 1
    drawn = [iou(rng.random((20, 20)), wide) for _ in range(4000)]
    assert chance(wide) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 4000**0.5)


RED  = Thing("circle", "red", "large", 0.3, 0.3, 0.18)
BLUE = Thing("square", "blue", "small", 0.75, 0.7, 0.12)


def painter(*things, **tokens):
    """A Fake that draws these things; pixels of the first are named 1, of the second 2, …"""
    scene = Scene("white", things)
    inside = masks([scene], 32)[0] >= 0.5                             # (3, 32, 32)
    run = Fake((inside * np.arange(1, 4)[:, None, None]).sum(axis=0), **tokens)
    run.pixels = lambda x_t: np.repeat(draw([scene], 32), len(x_t), axis=0)
    return run, inside


def test_words_that_point_at_their_own_object_hit_it_and_no_other():
    run, inside = painter(RED, BLUE, a=[5], left=[5], of=[5], red=[1], circle=[1], blue=[2],
                          **{"square,": [2]})
    rows = pointing(run, ["left of a blue square, a red circle"])
    assert rows[:, 0].tolist() == [0, 1, 1, 0]                        # blue's, then red's
    assert rows[1, 1:3] == pytest.approx(1, abs=0.02)
    assert rows[2, 1:3] == pytest.approx(1, abs=0.02)
    assert (rows[[0, 3], 1:3] < 0.02).all()
    assert np.array_equal(rows[:, 3], [chance(inside[i]) for i in (0, 1, 0, 1)])


def test_the_maps_of_both_words_count_apart():
    run, _ = painter(RED, BLUE, red=[1], circle=[2])
    own, other = pointing(run, ["red circle"])
    assert own[0] > other[0]
    assert own[1] > 0.98 > 0.02 > own[2]
    assert other[2] > 0.98 > 0.02 > other[1]


def test_a_word_that_points_in_the_first_step_only_still_hits():
    run, _ = painter(RED, BLUE, red=[1], circle=[1])

    def fading(prompts, **options):
        for step, x_t in enumerate(Fake.denoise(run, prompts, **options)):
            yield x_t
            if step == 1:
                run.unet.names[...] = np.eye(8)[3]                    # all places look alike

    run.denoise = fading
    assert pointing(run, ["red circle"])[0, 1] > 0.98


def test_objects_that_are_not_drawn_and_pictures_nobody_can_read_have_no_rows(rng):
    run, _ = painter(RED, red=[1], blue=[2], square=[2], circle=[1])
    assert pointing(run, ["blue square", "blue circle"]).shape == (0, 4)
    run.pixels = lambda x_t: rng.integers(256, size=(len(x_t), 32, 32, 3), dtype=np.uint8)
    assert pointing(run, ["red circle"]).shape == (0, 4)


def test_the_benchmark_divides_by_the_chance_of_the_same_masks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import attention_iou

    asked = []

    def pointing(run, prompts, *, seed):
        asked.extend(prompts)
        return np.array([[1, 0.4, 0.2, 0.1], [0, 0.05, 0.03, 0.04]] * len(prompts))

    monkeypatch.setattr(attention_iou, "pointing", pointing)
    found = attention_iou.measure(None, 30, seed=0)
    assert len(set(asked)) == len(asked) == found["prompts"] == found["objects"] == 30
    assert (found["colour_ratio"], found["shape_ratio"], found["other_ratio"]) == (4, 2, 1)
    page = attention_iou.table({"runs": {"shapes": found}, "machine": attention_iou.machine()})
    assert "| `shapes` | 30 | 0.400 (4.0 ×) | 0.200 (2.0 ×) | 0.100 | 1.0 × |" in page


def test_the_figure_shows_each_words_map_beside_what_was_drawn(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import attention_iou

    run, _ = painter(RED, BLUE, red=[1], circle=[1], blue=[2])
    prompts = ["red circle blue", "blue"]
    fig, told = attention_iou.figure(run, prompts), word_maps(run, prompts)[1]
    rows = np.reshape(fig.axes, (2, 4))
    assert [[ax.get_title() for ax in row] for row in rows] == [["", *prompts[0].split()],
                                                                ["", "blue", "", ""]]
    assert np.array_equal(rows[0, 0].images[0].get_array(), run.pixels([0])[0])
    for ax, heat in zip(rows[0, 1:], told[0][1].mean(axis=0), strict=True):
        assert np.array_equal(ax.images[1].get_array(), heat)
        assert ax.images[0].get_extent() == ax.images[1].get_extent()
