"""Captions say what the picture shows, in many ways, and never what another picture shows."""

from itertools import combinations, pairwise

import pytest

from tinydiff.data import captions

SETS = ["digits", "mnist", "fashion-mnist", "cifar10"]
WORDS = "zero one two three four five six seven eight nine".split()


def everything(name):
    return [captions(name, label) for label in range(10)]


@pytest.mark.parametrize("name", SETS)
def test_no_caption_is_said_twice_or_of_two_labels(name):
    said = everything(name)
    assert all(len(set(own)) == len(own) for own in said)
    assert all(not set(one) & set(other) for one, other in combinations(said, 2))


@pytest.mark.parametrize("name", SETS)
def test_every_label_has_eleven_to_sixteen_captions(name):
    assert {len(own) for own in everything(name)} <= set(range(11, 17))


def test_the_first_caption_is_the_canonical_one():
    assert captions("digits", 7)[0] == captions("mnist", 7)[0] == "a handwritten seven"
    assert captions("cifar10", 3)[0] == "a photo of a cat"
    assert captions("fashion-mnist", 9)[0] == "a photo of an ankle boot"


@pytest.mark.parametrize("label", range(10))
def test_a_digit_is_asked_for_by_word_and_by_numeral_and_by_no_other(label):
    said = captions("digits", label)
    assert {WORDS[label], str(label), f"a handwritten {label}", f"the digit {WORDS[label]}",
            f"the number {label}"} <= set(said)
    for caption in said:
        named = set(caption.split()) & {*WORDS, *"0123456789"}
        assert len(named) == 1
        assert named <= {WORDS[label], str(label)}


@pytest.mark.parametrize("name", SETS)
def test_the_article_fits_the_sound_of_the_next_word(name):
    for caption in sum(everything(name), ()):
        words = caption.split()
        for article, word in pairwise(words):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeio8" and word != "one"), caption


def test_the_bare_name_is_the_thing_without_its_article():
    assert captions("cifar10", 0)[-2:] == ("an airplane", "airplane")
    assert captions("fashion-mnist", 1)[-1] == "trousers"


@pytest.mark.parametrize(("name", "label"), [("digits", 10), ("digits", -1), ("cifar", 0),
                                             ("mnist", "7")])
def test_what_has_no_caption_is_refused(name, label):
    with pytest.raises(ValueError, match="expected a label 0 to 9 of digits, mnist"):
        captions(name, label)
