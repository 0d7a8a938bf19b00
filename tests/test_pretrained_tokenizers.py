"""Pretrained tokenizers: ids by hand, by the definition in its slowest form, and bad files."""

import contextlib
import json
from base64 import b64decode
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st
from tokenizer_helpers import charsmap, unigram, written

from tinydiff.models.tokenizer import merged
from tinydiff.pretrained.clip_bpe import HIDDEN, SYMBOL, BytePairs
from tinydiff.pretrained.tokens import load_tokenizer
from tinydiff.pretrained.unigram import Charsmap, Unigram, clusters

BYTES = [chr(SYMBOL.get(byte, byte)) for byte in range(256)]
MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "do n</w>", "' t</w>", "4 2</w>", "! !</w>"]
CLIP = {token: k for k, token in enumerate(
    [*BYTES, *(symbol + "</w>" for symbol in BYTES), *(m.replace(" ", "") for m in MERGES),
     "<|startoftext|>", "<|endoftext|>"])}
BEGIN, END = CLIP["<|startoftext|>"], CLIP["<|endoftext|>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "##a", "aff", "cafe",
        "CAFE", "café", "Café", "日", "本", "日本", "!", "?", "$", "σας", "σασ", "aaaaa", "##aaaaa"]
T5 = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -2.0], ["▁a", -3.0], ["a", -2.5],
      ["b", -3.0], ["ab", -4.0], ["bc", -4.0], ["c", -3.5], ["▁ab", -6.5]]
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
T5_SPLIT = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]}


def clip(folder, **config):
    return load_tokenizer(written(
        folder, vocab_dot_json=CLIP, merges_dot_txt="#version: 0.2\n" + "\n".join(MERGES) + "\n",
        tokenizer_config_dot_json={"model_max_length": 10} | config))


def bert(folder, **config):
    return load_tokenizer(written(folder, vocab_dot_txt="\n".join(BERT) + "\n",
                                  tokenizer_config_dot_json=config))


def t5(folder, **options):
    options = {"splitter": T5_SPLIT} | options
    return load_tokenizer(written(folder, tokenizer_dot_json=unigram(T5, **options)))


def spelled(vocab, ids):
    names = {i: piece for piece, i in vocab.items()}
    return [names[i] for i in ids]


def by_definition(tokens, merges):
    """Byte pairs in their slowest form: look through all, merge the lowest, look again."""
    tokens = list(tokens)
    while found := [(merges[pair], i) for i, pair in enumerate(pairwise(tokens)) if pair in merges]:
        (_, new), i = min(found)
        tokens[i:i + 2] = [new]
    return tokens


@given(tokens=st.lists(st.integers(0, 1), max_size=30), data=st.data())
def test_the_heap_merges_what_the_definition_merges_in_any_order_of_ranks(tokens, data):
    pairs = data.draw(st.permutations([*np.ndindex(4, 4)]))[:10]
    merges = {pair: (k, 2 + k % 2) for k, pair in enumerate(pairs)}
    assert merged(tokens, merges) == by_definition(tokens, merges)


def test_a_hundred_thousand_letters_are_merged_within_seconds(rng):
    letters = rng.integers(0, 4, 100_000).tolist()        # each look through all would be minutes
    merges = {(a, b): (k, 4 + k) for k, (a, b) in enumerate(np.ndindex(4, 4))}
    merges |= {(a, b): (16 + k, 20 + k) for k, (a, b) in enumerate(np.ndindex(20, 20))}
    assert len(merged(letters, merges)) < 60_000


def test_clip_cuts_words_as_its_pattern_says_and_marks_their_ends(tmp_path):
    tokenizer = clip(tmp_path)
    ids = tokenizer.row("Cat  DON'T\t42!! cat_a é")
    assert spelled(CLIP, ids) == [
        "cat</w>", "don</w>", "'t</w>", "4</w>", "2</w>", "!!</w>", "cat</w>", "_</w>", "a</w>",
        "Ã", "©</w>"]                                     # é is two bytes, C3 A9
    assert tokenizer.size == len(CLIP)


def test_bytes_without_a_sign_of_their_own_are_the_next_letters():
    assert len(HIDDEN) == 68
    assert [BYTES[0], BYTES[32], BYTES[127], BYTES[173]] == ["Ā", "Ġ", "ġ", "Ń"]
    assert len(set(BYTES)) == 256


def test_clip_pads_with_its_end_and_cuts_before_it(tmp_path):
    dog, cat = CLIP["dog</w>"], CLIP["cat</w>"]
    ids = clip(tmp_path).encode(["dog cat", "", "dog " * 20])
    np.testing.assert_array_equal(ids, [[BEGIN, dog, cat] + [END] * 7, [BEGIN] + [END] * 9,
                                        [BEGIN] + [dog] * 8 + [END]])
    assert ids.dtype == np.int64
    assert clip(tmp_path, pad_token="!").encode(["", "a!"])[:, 1:4].tolist() == [
        [END, 33, 33], [CLIP["a</w>"], 33, END]]          # SD 2: "!" as a sign is the bare byte
    assert clip(tmp_path).encode(["dog"], length=4).shape == (1, 4)


def test_special_tokens_in_a_text_stand_for_themselves_in_their_own_case(tmp_path):
    tokenizer = clip(tmp_path)
    assert tokenizer.row("a<|endoftext|>b") == [CLIP["a</w>"], END, CLIP["b</w>"]]
    assert END not in tokenizer.row("a<|EndOfText|>b")
    sign = {"content": "<|startoftext|>", "normalized": True}
    assert clip(tmp_path, bos_token=sign).row("<|StartOfText|>b") == [BEGIN, CLIP["b</w>"]]


def test_of_two_special_tokens_the_longer_is_found(tmp_path):
    assert clip(tmp_path, additional_special_tokens=["ca", "cat"]).row("cat") == [len(CLIP)]


def test_the_file_of_signs_counts_unless_the_config_lists_added_tokens(tmp_path):
    written(tmp_path, special_tokens_map_dot_json={"pad_token": "!"})
    assert clip(tmp_path).pad == CLIP["!"]
    assert clip(tmp_path, added_tokens_decoder={}).pad == END


def test_an_unknown_byte_is_the_unknown_token_each_time():
    pairs = BytePairs({"a": 0, "a</w>": 1, "?": 2}, [], 2)
    assert pairs.pieces("éa") == [2, 2, 1]


def test_wordpiece_takes_the_longest_piece_and_gives_a_word_up_as_a_whole(tmp_path):
    row = bert(tmp_path).row
    words = {"unaffable": [5, 6, 7], "unaff": [5, 6], "unaffx": [1], "aff!?": [9, 17, 18],
             "aff$aff": [9, 19, 9], "日本": [14, 15], "CAFÉ": [10], "ΣΑΣ": [21], "": [],
             "aff\u200b\x0bable\x85!": [9, 7, 17], "a" * 100: [22] + [23] * 19, "a" * 101: [1],
             "aff[SEP]aff [sep]": [9, 3, 9, 1, 1, 1]}
    assert {text: row(text) for text in words} == words


def test_wordpiece_heeds_case_accents_and_ideographs(tmp_path):
    text = "CAFE Café cafe 日本"
    rows = {(lower, bare, apart): bert(tmp_path, do_lower_case=lower, strip_accents=bare,
                                       tokenize_chinese_chars=apart).row(text)
            for lower, bare, apart in [(True, None, True), (False, None, True), (True, False, True),
                                       (False, True, False)]}
    assert list(rows.values()) == [[10, 10, 10, 14, 15], [11, 13, 10, 14, 15],
                                   [10, 12, 10, 14, 15], [11, 1, 10, 16]]


def test_bert_pads_to_the_longest_or_to_a_length_and_keeps_its_signs(tmp_path):
    tokenizer = bert(tmp_path, model_max_length=5)
    np.testing.assert_array_equal(tokenizer.encode(["aff", "", "aff ! ? cafe"]),
                                  [[2, 9, 3, 0, 0], [2, 3, 0, 0, 0], [2, 9, 17, 18, 3]])
    assert tokenizer.encode(["aff", ""]).tolist() == [[2, 9, 3], [2, 3, 0]]
    assert tokenizer.encode(["aff !"], length=3).tolist() == [[2, 9, 3]]
    assert tokenizer.encode([]).shape == (0, 0)


def all_cuts(word):
    if not word:
        yield []
    for n in range(1, len(word) + 1):
        for rest in all_cuts(word[n:]):
            yield [word[:n], *rest]


@given(word=st.text("abc?", min_size=1, max_size=9), data=st.data())
def test_viterbi_finds_the_best_of_all_ways_to_cut(word, data):
    texts = data.draw(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, unique=True))
    scores = {text: -data.draw(st.integers(1, 64)) / 8 for text in texts}      # exact sums
    pieces = {text: k for k, text in enumerate(texts)}
    model = Unigram(pieces, scores, -1, False, None, None)
    cost = lambda cut: sum(scores[p] if p in scores else min(scores.values()) - 10 for p in cut)
    allowed = [cut for cut in all_cuts(word) if all(
        p in scores or (len(p) == 1 and p not in scores) for p in cut)]
    ids = model.pieces(word)
    fused = lambda cut: [i for k, i in enumerate(cut) if i != -1 or k == 0 or cut[k - 1] != -1]
    best = max(map(cost, allowed))
    assert ids in [fused([pieces.get(p, -1) for p in cut]) for cut in allowed if cost(cut) == best]


def test_of_equal_scores_the_longest_last_piece_wins():
    model = Unigram({"a": 0, "ab": 1, "bc": 2, "c": 3, "aa": 4}, {
        "a": -3.0, "ab": -4.0, "bc": -4.0, "c": -3.0, "aa": -6.0}, None, False, None, None)
    assert model.pieces("abc") == [0, 2]
    assert model.pieces("aaa") == [0, 4]
    with pytest.raises(ValueError, match="z is not in the vocabulary"):
        model.pieces("az")


def test_t5_marks_words_and_fuses_unknowns_into_one(tmp_path):
    assert t5(tmp_path).encode(["a  ab\n", "", "zzab z"]).tolist() == [
        [4, 3, 7, 1, 0, 0], [1, 0, 0, 0, 0, 0], [3, 2, 7, 3, 2, 1]]


@pytest.mark.parametrize(("scheme", "split", "ids"), [
    ("always", True, [4, 4, 1, 4]), ("first", True, [4, 4, 1, 5]), ("never", True, [5, 4, 1, 5])])
def test_metaspace_stands_before_texts_as_its_scheme_says(tmp_path, scheme, split, ids):
    splitter = METASPACE | {"prepend_scheme": scheme, "split": split}
    assert t5(tmp_path, splitter=splitter, end=None).row("a a</s>a") == ids


def test_bytes_spell_an_unknown_if_all_of_them_are_pieces():
    vocab = {"a": 0, "<unk>": 1, "<0xC3>": 2, "<0xA9>": 3}
    for to_bytes, ids in [(True, [0, 2, 3]), (False, [0, 1])]:
        model = Unigram(vocab, dict.fromkeys(vocab, -1.0), 1, to_bytes, None, None)
        assert model.pieces("aé") == ids
        assert model.pieces("aéz") == [0, 1]              # z has no byte, and é is in its run


MAP = {"ª": "a", "ﬁ": "fi", "①": "1", "\x01": "", "\u200c": " ", "\r": " ", "é": "é", "e": "E"}


def test_a_charsmap_replaces_short_clusters_as_a_whole_and_else_characters():
    table = Charsmap(b64decode(charsmap(MAP)))
    texts = {"ﬁx": "fix", "ª\u0301b": "ab", "①\u0301": "1", "①\u0301\u0301": "1\u0301\u0301",
             "\x01\u0301": "\u0301", "\u200c\u0301": " ", "\r\n": " ", "\n\r": "\n ", "é": "é",
             "ª\u0903": "a", "①\u20dd": "1\u20dd"}     # five bytes and six
    assert {text: "".join(map(table.replace, clusters(text))) for text in texts} == texts


@given(data=st.binary(max_size=99), text=st.text(max_size=6))
def test_a_charsmap_of_noise_never_reads_outside_itself(data, text):
    size = len(data) // 8 * 4 + 4
    table = Charsmap(size.to_bytes(4, "little") + data + b"\0" * 8)
    with contextlib.suppress(UnicodeDecodeError):
        "".join(map(table.replace, clusters(text)))


@given(text=st.text("xª①e\u0301\r\n\x01\u200c", max_size=12))
def test_clusters_lose_nothing(text):
    assert "".join(clusters(text)) == text


def test_half_a_character_and_one_text_alone_are_refused(tmp_path):
    for tokenizer in (clip(tmp_path / "1"), bert(tmp_path / "2"), t5(tmp_path / "3")):
        for half in "\ud800\udbff\udc00\udfff":
            with pytest.raises(ValueError, match=r"^encode: .* got half of one in 'a\\ud"):
                tokenizer.encode([f"a{half}"])
        tokenizer.encode(["a\ud7ff\ue000\U0001f600"])                    # their neighbours
        for texts in ("a cat", [3], [None], None, 3, b"a", np.array("a"), iter([3])):
            with pytest.raises(ValueError, match="expected a list of texts"):
                tokenizer.encode(texts)
        for length in (-1, 10**12, 7.0, "7"):
            with pytest.raises(ValueError, match=f"expected length [12] to 1048576, got {length}"):
                tokenizer.encode(["a"], length=length)
    with pytest.raises(ValueError, match="expected length 2 to 1048576, got 1"):
        bert(tmp_path / "2").encode(["a"], length=1)


def test_texts_come_one_by_one_or_in_an_array(tmp_path):
    for tokenizer in (clip(tmp_path / "1"), bert(tmp_path / "2"), t5(tmp_path / "3")):
        ids = tokenizer.encode(["a", "a b"], length=np.int64(7))
        assert ids.shape == (2, 7)
        for texts in (iter(["a", "a b"]), (text for text in ("a", "a b")), np.array(["a", "a b"])):
            np.testing.assert_array_equal(tokenizer.encode(texts, length=7), ids)


def clip_state(**model):
    return {"model": {"type": "BPE", "vocab": CLIP, "merges": MERGES} | model}


def bert_state(**state):
    vocab = {piece: k for k, piece in enumerate(BERT)}
    return {"model": {"type": "WordPiece", "vocab": vocab}} | state


def t5_state(**options):
    return unigram(T5, **{"splitter": T5_SPLIT} | options)


@pytest.mark.parametrize(("state", "config", "message"), [
    (clip_state(merges=["c a", "c a t"]), {}, "merge 2, c a t, should join two tokens"),
    (clip_state(merges=["c a", ["x", "y"]]), {}, "merge 2, .*should join two tokens"),
    (clip_state(merges=["c a", 3]), {}, "not laid out"),
    (clip_state(vocab=CLIP | {"new": 7}), {}, "should have the ids 0 to 522, once"),
    (clip_state(vocab=CLIP | {"new": 2.5}), {}, "should have the ids"),
    (clip_state(vocab=CLIP | {"new": "x"}), {}, "not laid out"),
    (clip_state(vocab={}), {}, "0 tokens"),
    (clip_state(vocab=3), {}, "not laid out"),
    (clip_state(end_of_word_suffix=""), {}, "a BPE tokenizer of class .* is not supported"),
    (clip_state(), {"tokenizer_class": "GPT2Tokenizer"}, "of class GPT2Tokenizer is not supported"),
    (clip_state(type="WordLevel"), {}, "a WordLevel tokenizer"),
    (clip_state(type="A\nB" * 999), {}, r"a 'A\\nBA.*\.\.\. tokenizer"),
    (clip_state(), {"tokenizer_class": "A\nB\x1b[31m"}, r"of class 'A\\nB\\x1b\[31m' is not"),
    (clip_state(), {"tokenizer_class": "ü" * 3000}, r"of class ü{97}\.\.\. is not"),
    (t5_state(normaliser={"type": "\n" * 3000}), {}, r"the step '\\n.*\.\.\. is not supported"),
    (t5_state(splitter=METASPACE | {"replacement": "ü" * 3000}), {}, r"Metaspace with .*\.\.\. is"),
    (t5_state(splitter=METASPACE | {"prepend_scheme": "ü" * 999}), {}, r"Metaspace with .*\.\. is"),
    (t5_state(unknown="ü" * 3000), {}, r"unk_id ü{97}\.\.\. is not in the vocabulary"),
    (clip_state(), {"model_max_length": "long"}, "not laid out"),
    (clip_state(), {"model_max_length": 0}, "a model_max_length from 1 on"),
    (clip_state(), {"padding_side": "left"}, "right as padding_side"),
    (clip_state(), {"pad_token": 7}, "not laid out|pad_token"),
    (bert_state(normalizer={"type": "NFKC"}), {}, "expected a BertNormalizer"),
    (bert_state(), {"do_lower_case": "yes"}, "expected a BertNormalizer, its options true or"),
    (bert_state(added_tokens=[{"id": 3}]), {}, "not laid out.*content"),
    (bert_state(added_tokens=3), {}, "not laid out"),
    (t5_state(normaliser={"type": "NFKC"}), {}, "the step NFKC is not supported"),
    (t5_state(splitter={"type": "ByteLevel"}), {}, "the step ByteLevel is not supported"),
    (t5_state(unknown=99), {}, "unk_id 99 is not in the vocabulary"),
    (t5_state(normaliser={"type": "Precompiled", "precompiled_charsmap": "////"}), {}, "cut short"),
    (t5_state(normaliser={"type": "Precompiled", "precompiled_charsmap": "_"}), {}, ": "),
    (t5_state(normaliser={"type": "Sequence"}), {}, ": "),
    (unigram([["a", 0.0], ["</s>", 0.0], ["b", 0.0]], splitter=None), {}, "expected .*pad_token"),
    (t5_state(splitter={"type": "Metaspace"}), {}, "not laid out.*replacement"),
    (t5_state(splitter=METASPACE | {"prepend_scheme": "last"}), {}, "'last'.* is not supported"),
    (clip_state(), {"bos_token": None}, "expected bos.*_token"),
    (clip_state(), {"unk_token": None}, "expected bos.*_token"),
    ({}, {}, "not laid out.*'model'"),
    ({"model": []}, {}, "not laid out"),
])
def test_a_bad_file_is_named_in_one_sentence(tmp_path, state, config, message):
    folder = written(tmp_path, tokenizer_dot_json=state, tokenizer_config_dot_json=config)
    with pytest.raises(ValueError, match=rf"tokenizer\.json.*{message}") as error:
        load_tokenizer(folder)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_missing_cut_and_nested_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocab\.json is missing"):
        load_tokenizer(tmp_path)
    text = json.dumps(CLIP)
    for bad in (text[:-1], "[" * 200_000, "\xff", "[]", ""):
        written(tmp_path, vocab_dot_json=bad)
        with pytest.raises(ValueError, match=r"vocab\.json is not what it should be"):
            load_tokenizer(tmp_path)
    written(tmp_path, vocab_dot_json=text)
    with pytest.raises(FileNotFoundError, match=r"merges\.txt is missing"):
        load_tokenizer(tmp_path)
    for merges, message in [("c a\nc\n", "merge 2, c, should"), ("c a\n\nd o\n", "merge 2"),
                            ("c a\nca  t</w>\n", "merge 2"), ("d o\nq q q\n", "merge 2, q q q")]:
        written(tmp_path, merges_dot_txt=merges)
        with pytest.raises(ValueError, match=rf"merges\.txt: {message}"):
            load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"merges\.txt is not what it should be"):
        load_tokenizer(tmp_path)
    written(tmp_path / "bert", vocab_dot_txt="[PAD]\n[UNK]\na\na\n")
    with pytest.raises(ValueError, match=r"vocab\.txt: the 4 tokens of the vocabulary"):
        load_tokenizer(tmp_path / "bert")
