"""Text: byte pairs that lose nothing, and what they are trained with under one roof."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tinydiff.models import TextEncoderConfig, TextToImage, Tokenizer, UNetConfig
from tinydiff.models.tokenizer import BEGIN, FIRST_MERGE, PAD

DIGITS = "zero one two three four five six seven eight nine".split()
CAPTIONS = [text for i, word in enumerate(DIGITS) for text in (
    f"a handwritten {word}", f"the digit {i}", f"a drawing of the number {word}")]
LEARNED = Tokenizer.learn(CAPTIONS, 330, 300)
BYTES = Tokenizer([], 300)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def length(tokenizer, text):
    return int((tokenizer.encode([text]) != PAD).sum())


def replay(tokenizer, word):
    """Byte-pair encoding as published: every merge in the order in which it was learned."""
    tokens = list(word.encode())
    for new, pair in enumerate(tokenizer.merges, start=FIRST_MERGE):
        i = 0
        while i < len(tokens) - 1:
            if (tokens[i], tokens[i + 1]) == pair:
                tokens[i:i + 2] = [new]
            i += 1
    return tokens


def test_merges_by_hand():
    tokenizer = Tokenizer.learn(["abab", "abc"], 999, 8)
    ab, blank_ab = 258, 259               # "ab" occurs three times, then " ab" twice, then nothing
    assert tokenizer.merges == [(ord("a"), ord("b")), (ord(" "), ab)]
    assert tokenizer.size == 260
    np.testing.assert_array_equal(tokenizer.encode(["ababc", ""]), [
        [BEGIN, blank_ab, ab, ord("c"), PAD, PAD, PAD, PAD], [BEGIN] + [PAD] * 7])


@given(text=ANY_TEXT, tokenizer=st.sampled_from([LEARNED, BYTES]))
def test_any_text_comes_back_in_small_letters_with_single_blanks(text, tokenizer):
    [ids] = tokenizer.encode([text])
    assert tokenizer.decode(ids) == " ".join(text.lower().split())


@given(text=ANY_TEXT)
def test_ids_are_in_range_and_the_same_text_gives_the_same_ids(text):
    ids = LEARNED.encode([text, text])
    np.testing.assert_array_equal(ids[0], ids[1])
    assert ids.dtype == np.int64
    assert ids.shape == (2, 300)
    assert ids[0, 0] == BEGIN
    assert 0 <= ids.min() <= ids.max() < LEARNED.size


@given(word=st.text("adhginretwsv ", min_size=1, max_size=20) | ANY_TEXT)
def test_encoding_is_replaying_the_merges(word):
    assert LEARNED.pieces(word) == replay(LEARNED, word)


def test_learning_is_deterministic_and_blind_to_order():
    again = Tokenizer.learn(CAPTIONS[::-1], 330, 300)
    assert again.merges == LEARNED.merges
    assert again.size <= 330


def test_merges_learned_on_captions_shorten_them():
    assert sum(length(LEARNED, text) for text in CAPTIONS) < 0.3 * sum(
        length(BYTES, text) for text in CAPTIONS)
    assert length(LEARNED, "a handwritten seven") == 4    # BEGIN and three words


def test_capitals_and_outer_blanks_make_no_difference():
    one, other = LEARNED.encode(["A  Handwritten\tSEVEN ", "a handwritten seven"])
    np.testing.assert_array_equal(one, other)


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers():
    tokenizer = Tokenizer([], 5)
    assert length(tokenizer, "abc") == 5                  # BEGIN and a blank
    with pytest.raises(ValueError, match=r"'abcd' is 6 tokens long, .* reads at most 5"):
        tokenizer.encode(["abc", "abcd"])


SMALL = TextEncoderConfig(vocabulary=300, length=8, width=6, depth=2, heads=2)


def test_a_model_built_again_from_its_config_gives_the_same_picture(rng):
    tokenizer = Tokenizer.learn(CAPTIONS, 300, 8)
    unet = replace(UNetConfig.tiny(context_width=6), patch=2, predicts="v")
    model = TextToImage(tokenizer, replace(SMALL, vocabulary=tokenizer.size), unet, rng=rng)
    for p in model.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape, dtype=np.float32)
    config = json.loads(json.dumps(model.config()))       # as it goes through a file
    again = TextToImage.from_config(config, rng=np.random.default_rng(99))
    again.load({name: p.data for name, p in model.parameters().items()})
    assert again.unet.config == unet
    prompts = ["a handwritten seven", "the digit 3"]
    x, t = rng.standard_normal((2, 8, 6, 1), dtype=np.float32), np.array([10, 900])
    pictures = [m(x, t, m.tokenizer.encode(prompts)).data for m in (model, again)]
    np.testing.assert_array_equal(*pictures)
    assert np.abs(pictures[0]).max() > 0.01
    swapped = model(x, t, tokenizer.encode(prompts[::-1])).data
    assert np.abs(swapped - pictures[0]).max() > 1e-4     # and the prompt is heard


def test_the_parts_of_a_model_are_the_first_word_of_its_parameters_names(rng):
    model = TextToImage(Tokenizer([], 8), SMALL, UNetConfig.tiny(context_width=6), rng=rng)
    assert {name.partition(".")[0] for name in model.parameters()} == {"text_encoder", "unet"}
    assert model.count() == model.text_encoder.count() + model.unet.count()


def test_one_text_alone_is_not_taken_for_a_list_of_letters():
    with pytest.raises(ValueError, match="expected a list of texts"):
        Tokenizer([], 8).encode("a seven")
