"""The text encoder: right gradients in every form, and each form what its paper says, by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tinydiff.autograd import Tensor
from tinydiff.models import TextEncoder, TextEncoderConfig
from tinydiff.models.text_forms import distances
from tinydiff.models.tokenizer import PAD
from tinydiff.pretrained.weights import UNSET

SMALL = TextEncoderConfig(vocabulary=300, length=8, width=6, depth=2, heads=2)
FORMS = {
    "masked":       SMALL,
    "near":         replace(SMALL, form="near"),
    "clip":         replace(SMALL, form="clip", activation="gelu_quick", end=2, hidden=10),
    "bert":         replace(SMALL, form="bert", activation="gelu", eps=1e-12, hidden=10),
    "bert, wide":   replace(SMALL, form="bert", activation="gelu_tanh", kinds=1, inner=8),
    "t5":           replace(SMALL, form="t5", activation="relu", inner=8, length=0, buckets=6,
                            farthest=5),
    "t5, gated":    replace(SMALL, form="t5", activation="silu", gated=True, hidden=10, length=0),
}
each_form = pytest.mark.parametrize("form", FORMS)


def randomised(module, rng):
    """The module in float64, every parameter off its start: zeros would hide what they scale."""
    for p in module.astype(np.float64).parameters().values():
        p.data += 0.3 * rng.standard_normal(p.shape)
    return module


@each_form
def test_the_text_encoder_has_the_right_slope_along_random_directions(form, rng):
    encoder = randomised(TextEncoder(replace(FORMS[form], pooler=False), rng=rng), rng)
    ids = rng.integers(0, 300, (2, 7))
    dy = rng.standard_normal((2, 7, 6))
    loss = lambda: (encoder(ids).data * dy).sum()
    encoder(ids).backward(dy)
    parameters = encoder.parameters().values()
    norm = np.sqrt(sum((p.grad**2).sum() for p in parameters))
    for _ in range(8):
        direction = [rng.standard_normal(p.shape) for p in parameters]
        ends = []
        for step in (1e-6, -2e-6, 1e-6):
            for p, d in zip(parameters, direction):
                p.data += step * d
            ends.append(loss())
        exact = sum((p.grad * d).sum() for p, d in zip(parameters, direction))
        assert (ends[0] - ends[1]) / 2e-6 / norm == pytest.approx(exact / norm, abs=1e-6)


def test_without_positions_words_in_another_order_are_the_same_words(rng):
    encoder = randomised(TextEncoder(SMALL, rng=rng), rng)
    ids, order = rng.integers(0, 300, (2, 7)), np.array([3, 0, 6, 1, 2, 5, 4])
    moved = np.abs(encoder(ids[:, order]).data - encoder(ids).data[:, order]).max()
    encoder.position.table.data[...] = 0
    np.testing.assert_allclose(encoder(ids[:, order]).data, encoder(ids).data[:, order], atol=1e-12)
    assert moved > 0.1                                    # with positions the order counts


def test_padding_is_neither_seen_nor_shown(rng):
    encoder = randomised(TextEncoder(SMALL, rng=rng), rng)
    ids = rng.integers(0, PAD, (2, 8))
    ids[:, 5:] = PAD
    context = encoder(ids).data
    np.testing.assert_array_equal(context[:, 5:], 0)
    np.testing.assert_allclose(encoder(ids[:, :5]).data, context[:, :5], atol=1e-12)


def test_the_near_form_shows_the_text_over_and_over_behind_the_mean_of_all(rng):
    encoder = randomised(TextEncoder(replace(SMALL, form="near"), rng=rng), rng)
    ids = rng.integers(0, PAD, (2, 8))
    ids[0, 3:], ids[1, 5:] = PAD, PAD
    context, known = encoder(ids).data, encoder.norm(encoder.states(ids)[-1]).data
    for row, n in zip(range(2), (3, 5), strict=True):
        shown = known[row, np.arange(8) % n]
        np.testing.assert_allclose(context[row, 1:], shown[1:], atol=1e-12)
        np.testing.assert_allclose(context[row, 0], shown.mean(axis=0), atol=1e-12)


def test_near_heads_look_back_or_ahead_and_sooner_near_than_far(rng):
    encoder = TextEncoder(replace(SMALL, form="near", heads=6), rng=rng).astype(np.float64)
    x, bias = encoder.form.place(encoder, Tensor(np.zeros((1, 4, 6))))
    assert not x.data.any()                               # nothing is added to a word
    ahead, behind = np.triu(np.ones((4, 4), bool), 1), np.tri(4, k=-1, dtype=bool)
    far = abs(np.arange(4) - np.arange(4)[:, None])
    for head, slope in enumerate((1, 1, 1/4, 1/4, 1/16, 1/16)):
        seen, hidden = (ahead, behind) if head % 2 else (behind, ahead)
        assert (bias.data[head][hidden] < -1000).all()
        np.testing.assert_allclose(bias.data[head][seen], -slope * far[seen])
        assert not np.diag(bias.data[head]).any()


def test_in_the_near_form_a_word_knows_its_neighbours_but_no_place(rng):
    encoder = randomised(TextEncoder(replace(SMALL, form="near"), rng=rng), rng)
    words = rng.integers(0, PAD, 5)
    one, two = words[[0, 1, 2, 3]], words[[0, 1, 3, 2]]
    moved = np.abs(encoder(one[None]).data[0, 0] - encoder(two[None]).data[0, 0]).max()
    assert moved > 1e-3                                   # the order counts
    assert not any("position" in name for name in encoder.parameters())


def test_each_text_is_read_by_itself(rng):
    encoder = randomised(TextEncoder(SMALL, rng=rng), rng)
    ids = rng.integers(0, 300, (4, 8))
    context = encoder(ids).data
    for k in range(4):
        np.testing.assert_allclose(encoder(ids[k:k + 1]).data[0], context[k], atol=1e-12)


def gelu(x, form):
    if form == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if form == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-1.702 * x))


def by_hand(encoder, ids, mask):
    """The last state and the summary of one text (L,), a query at a time, as the papers have it."""
    c, p = encoder.config, {name: p.data for name, p in encoder.parameters().items()}
    act = {"relu": lambda x: np.maximum(x, 0), "silu": lambda x: x / (1 + np.exp(-x))}.get(
        c.activation, lambda x: gelu(x, c.activation))
    L, inner = len(ids), c.inner or c.width
    d = inner // c.heads

    def linear(x, name):
        return x @ p[f"{name}.w"] + (p[f"{name}.b"] if c.form != "t5" else 0)

    def norm(x, name):
        if c.form == "t5":
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.eps) * p[f"{name}.scale"]
        return ((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.eps)
                * p[f"{name}.scale"] + p[f"{name}.shift"])

    def attend(x, name):
        q, k, v = (linear(x, f"{name}.{part}") for part in "qkv")
        y = np.zeros((L, inner))
        for h, i in np.ndindex(c.heads, L):
            own = slice(h * d, h * d + d)
            seen = [j for j in range(L) if mask[j] and (c.form != "clip" or j <= i)]
            s = np.array([q[i, own] @ k[j, own] for j in seen])
            if c.form == "t5":
                s = s + [p["position.table"][row(j - i, c), h] for j in seen]
            else:
                s = s / math.sqrt(d)
            if c.form == "near":
                s = s - [abs(i - j) / 4**(h // 2) if (j - i) * (-1)**h <= 0 else 1e4 for j in seen]
            with np.errstate(under="ignore"):
                weights = np.exp(s - s.max())
            y[i, own] = weights @ v[seen, own] / weights.sum()
        return linear(y, f"{name}.out")

    def think(x, name):
        if c.gated:
            return linear(act(linear(x, f"{name}.mlp.gate")) * linear(x, f"{name}.mlp.value"),
                          f"{name}.mlp.out")
        return linear(act(linear(x, f"{name}.linear1")), f"{name}.linear2")

    x = p["token.table"][ids] + (0 if c.form in ("t5", "near") else p["position.table"][:L])
    if c.form == "bert":
        x = norm(x + p["kind.table"][0], "norm")
    for block in (f"blocks.{i}" for i in range(c.depth)):
        if c.form == "bert":
            x = norm(x + attend(x, f"{block}.attention"), f"{block}.norm1")
            x = norm(x + think(x, block), f"{block}.norm2")
        else:
            x = x + attend(norm(x, f"{block}.norm1"), f"{block}.attention")
            x = x + think(norm(x, f"{block}.norm2"), block)
    if c.form != "bert":
        x = norm(x, "norm")
    if c.form == "near":
        x = np.stack([x.mean(axis=0), *x[1:]])
    summary = {"bert": lambda: np.tanh(linear(x[0], "pooler")), "clip": lambda: x[ids.argmax()]}
    return x, summary.get(c.form, lambda: None)()


def row(ahead, c):
    """T5's table: exact up to a quarter of its rows, then by the logarithm; more if ahead."""
    half, size = c.buckets // 2, abs(ahead)
    near = half // 2
    if size >= near:
        size = min(half - 1, near + int(math.log(size / near) / math.log(c.farthest / near)
                                        * (half - near)))
    return size + half * (ahead > 0)


@pytest.mark.parametrize("quiet", [1, 0.01])
@each_form
def test_each_form_is_what_its_paper_says(form, quiet, rng):
    encoder = randomised(TextEncoder(FORMS[form], rng=rng), rng)
    for name, p in encoder.parameters().items():
        p.data *= 1 if name.endswith("scale") else quiet
    ids, mask = rng.integers(0, PAD, (3, 8)), np.ones((3, 8), int)
    mask[0, 5:] = mask[1, :0 if form == "clip" else 3] = 0    # who comes first must see himself
    if form not in ("masked", "near"):
        ids[2, 6] = PAD                                   # an id like any other
    hidden, pooled = encoder.encode(ids, mask)
    for i in range(3):
        want, summary = by_hand(encoder, ids[i], mask[i])
        np.testing.assert_allclose(hidden[i], want, rtol=0, atol=1e-12 * np.abs(want).max())
        if summary is None:
            assert pooled is None
        else:
            np.testing.assert_allclose(pooled[i], summary, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(encoder(ids, mask).data, hidden)
    np.testing.assert_allclose(encoder.encode(ids[2:])[0], hidden[2:], rtol=0, atol=1e-14)


@each_form
def test_a_float32_encoder_stays_float32_and_close(form, rng):
    encoder = randomised(TextEncoder(FORMS[form], rng=rng), rng)
    ids = rng.integers(0, PAD, (3, 8))
    exact, pooled = encoder.encode(ids)
    hidden, rough = encoder.astype(np.float32).encode(ids)
    assert hidden.dtype == np.float32
    np.testing.assert_allclose(hidden, exact, atol=2e-5)
    if pooled is not None:
        assert rough.dtype == np.float32
        np.testing.assert_allclose(rough, pooled, atol=2e-5)


def test_clips_tokens_do_not_see_what_follows(rng):
    encoder = randomised(TextEncoder(FORMS["clip"], rng=rng), rng)
    ids = rng.integers(0, 300, (1, 8))
    before = encoder.encode(ids)[0]
    ids[0, 5] += 1
    moved = np.abs(encoder.encode(ids)[0] - before).max(axis=2)[0]
    assert (moved[:5] == 0).all()
    assert (moved[5:] > 1e-3).all()


@pytest.mark.parametrize(("form", "apart"), [("t5", False), ("bert", True)])
def test_padding_on_the_left_moves_berts_positions_but_not_t5s(form, apart, rng):
    encoder = randomised(TextEncoder(FORMS[form], rng=rng), rng)
    ids = rng.integers(0, 300, (2, 8))
    padded = encoder.encode(ids, np.arange(8) * np.ones((2, 1)) >= 3)[0][:, 3:]
    assert (np.abs(padded - encoder.encode(ids[:, 3:])[0]).max() > 1e-3) == apart


def test_t5s_rows_are_those_of_its_paper():
    rows = distances(200, 32, 128)
    assert rows[0, :9].tolist() == [0, *range(17, 24), 24]
    assert rows[:9, 0].tolist() == list(range(9))
    new = [j for j in range(1, 200) if rows[j, 0] != rows[j - 1, 0]]
    assert new == [*range(1, 9), 12, 16, 23, 32, 46, 64, 91]
    np.testing.assert_array_equal(rows[5, 6:], rows[0, 1:-5])
    c = TextEncoderConfig.t5()
    assert rows[70].tolist() == [row(j - 70, c) for j in range(200)]


def test_published_encoders_have_their_number_of_parameters():
    for config, count in ((TextEncoderConfig.clip(), 123_060_480),
                          (TextEncoderConfig.bert(), 109_482_240),
                          (TextEncoderConfig.t5(), 35_330_816)):
        assert TextEncoder(config, rng=UNSET).count() == count


@pytest.mark.parametrize(("end", "place"), [(2, 4), (7, 1), (300, 0), (None, None)])
def test_clips_summary_is_the_first_end_or_the_highest_id(end, place, rng):
    encoder = TextEncoder(replace(FORMS["clip"], end=end), rng=rng)
    hidden, pooled = encoder.encode(np.array([[5, 7, 2, 7, 9, 9]]))
    if place is None:
        assert pooled is None
    else:
        np.testing.assert_array_equal(pooled, hidden[:, place])


@each_form
def test_skipping_blocks_is_an_encoder_without_them(form, rng):
    encoder, ids = TextEncoder(FORMS[form], rng=rng), rng.integers(0, 300, (2, 8))
    hidden, pooled = encoder.encode(ids, skip=1)
    np.testing.assert_equal(pooled, encoder.encode(ids)[1])    # the summary leaves nothing out
    with pytest.raises(ValueError, match="expected a skip of 0 to 2, got 3"):
        encoder.encode(ids, skip=3)
    encoder.blocks.pop()
    np.testing.assert_array_equal(hidden, encoder.encode(ids)[0])


@pytest.mark.parametrize(("mask", "message"), [
    (np.ones((2, 4)), r"expected a mask \(2, 5\) .* got \(2, 4\)"),
    (np.ones(5), r"expected a mask \(2, 5\) .* got \(5,\)"),
    ([[0] * 5, [1] * 5], r"something to see in each row, got \(2, 5\) with \[0 5\]"),
])
def test_masks_that_do_not_fit_or_hide_all_are_refused(mask, message, rng):
    with pytest.raises(ValueError, match=message):
        TextEncoder(SMALL, rng=rng).encode(np.zeros((2, 5), int), mask)


@pytest.mark.parametrize(("wrong", "message"), [
    (dict(form="gpt"), "form is one of masked, near, clip, bert, t5, not 'gpt'"),
    (dict(activation="erf"), "activation is one of gelu, .*, not 'erf'"),
])
def test_forms_that_do_not_exist_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TextEncoderConfig(**wrong)


@pytest.mark.parametrize(("ids", "message"), [
    (np.zeros((2, 9), int), r"expected ids \(N, 1 to 8\), got \(2, 9\)"),
    (np.zeros(8, int), r"expected ids \(N, 1 to 8\), got \(8,\)"),
    (np.zeros((2, 0), int), r"expected ids \(N, 1 to 8\), got \(2, 0\)"),
    (np.zeros((2, 8)), r"got \(2, 8\) of float64"),
    (np.full((1, 8), 300), "ids from 300 to 300, the table has rows 0 to 299"),
])
def test_ids_that_do_not_fit_are_refused(ids, message, rng):
    with pytest.raises(ValueError, match=message):
        TextEncoder(SMALL, rng=rng)(ids)


@each_form
def test_texts_without_a_token_are_refused(form, rng):
    with pytest.raises(ValueError, match=r"expected ids \(N, 1 to .*\), got \(1, 0\) of int64"):
        TextEncoder(FORMS[form], rng=rng).encode(np.zeros((1, 0), int))
