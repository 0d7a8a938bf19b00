"""Pretrained tokenizers: the ids of transformers and tokenizers, on trained vocabularies."""

import json
from base64 import b64decode
from unicodedata import category, normalize

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizer_helpers import charsmap, unigram, written

from tinydiff.pretrained.tokens import load_tokenizer

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
from tokenizers import models, pre_tokenizers, trainers  # noqa: E402

CORPUS = ["a photo of a cat, its dog's number 123!", "the quick brown fox's jumps: (lazy) dogs",
          "é ü ﬁ 日本 한국어 ΑΣ σ ½ 🎉 कि", "x xx xxx we'll don't we've I'd I'm they're"] * 3
PIECES = [*" \n\t\x1c\x85\xa0\0_!?$<|>~`", "  ", "It's", "we'LL", "ΑΣ Σ", "İ", "ß", "é", "e\u0301",
          "ª\u0301", "①\u0301", "\u200c\u0301", "\u200b", "\u200d", "\r\n", "日本", "𠀀", "豈",
          "한국어", "🎉", "👩‍👧", "½", "²", "Ⅷ", "१२", "''s", "\u3000", "ﬁ", "▁", "x" * 101,
          "a photo of", "kitten", "<|endoftext|>", "<|ENDOFTEXT|>!!", "!<|StartOfText|>", "[SEP]",
          "[MASK]", "[mask]", " [PAD] ", "</s>", "<unk>", "<extra_id_0>"]
KNOWN = st.characters(max_codepoint=0x2FF, exclude_categories=["Cn", "Cs"])     # in every Unicode
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(KNOWN, max_size=3), max_size=8).map("".join)
MAP = {c: normalize("NFKC", c) for c in map(chr, range(0x80, 0x3000))
       if category(c) not in ("Cn", "Sk") and normalize("NFKC", c) != c}
MAP |= {"e\u0301": "é", "\x01": "", "ﬁ": "fi"} | dict.fromkeys("\u200c\u200b\t\n\r", " ")


def trained(model, trainer, splitter, special, **options):
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    tokenizer.train_from_iterator(CORPUS, trainer(special_tokens=special, show_progress=False,
                                                  **options))
    return json.loads(tokenizer.to_str())["model"]


def clip_files(folder, alphabet, **config):
    model = trained(models.BPE(end_of_word_suffix="</w>"), trainers.BpeTrainer,
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                    ["!", "<|startoftext|>", "<|endoftext|>"], vocab_size=700,
                    initial_alphabet=alphabet, end_of_word_suffix="</w>")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    return written(folder, vocab_dot_json=model["vocab"], merges_dot_txt="\n".join(lines) + "\n",
                   tokenizer_config_dot_json={"model_max_length": 20} | config)


def bert_vocabulary():
    return trained(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer,
                   pre_tokenizers.BertPreTokenizer(),
                   ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], vocab_size=130)["vocab"]


def t5_vocabulary():
    """Scores in 1/64, of which sums are exact: Rust's reader of JSON is wrong in the last bit."""
    vocab = trained(models.Unigram(), trainers.UnigramTrainer, pre_tokenizers.Metaspace(),
                    ["<pad>", "</s>", "<unk>"], vocab_size=120, unk_token="<unk>")["vocab"]
    return [[piece, round(64 * score) / 64] for piece, score in vocab]


def check(ours, ids):
    """Ask for a few hundred texts whether ours.encode gives what ids(text) does."""
    @settings(max_examples=300)
    @given(text=TEXTS)
    def same(text):
        assert ours.encode([text])[0].tolist() == ids(text)
    same()


def old_sign(text):
    return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True,
            "rstrip": False, "single_word": False}


@pytest.mark.parametrize("alphabet", [[], pre_tokenizers.ByteLevel.alphabet()])
@pytest.mark.parametrize("config", [
    {"bos_token": old_sign("<|startoftext|>"), "eos_token": old_sign("<|endoftext|>"),
     "unk_token": old_sign("<|endoftext|>"), "pad_token": "<|endoftext|>"},          # SD 1.x
    {"pad_token": "!"},                                                              # SD 2.x
    {"added_tokens_decoder": {"0": {"content": "!", "special": True, "normalized": False},
                              "9000": {"content": "Photo of", "normalized": True}}}])
def test_clip(tmp_path, alphabet, config):
    folder = clip_files(tmp_path, alphabet, **config)
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    ids = lambda text: theirs(text, padding="max_length", truncation=True).input_ids
    check(load_tokenizer(folder), ids)
    theirs.save_pretrained(tmp_path / "again")            # now a tokenizer.json
    check(load_tokenizer(tmp_path / "again"), ids)


def test_clip_with_its_signs_in_a_file_of_their_own(tmp_path):
    folder = clip_files(tmp_path, [])
    written(folder, special_tokens_map_dot_json={
        "pad_token": "!", "eos_token": {"content": "<|endoftext|>", "normalized": False,
                                        "lstrip": False, "rstrip": False, "single_word": False}})
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    assert ours.pad == theirs.pad_token_id == 0
    check(ours, lambda text: theirs(text, padding="max_length", truncation=True).input_ids)


@pytest.mark.parametrize("options", [
    {}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False},
    {"do_lower_case": False, "strip_accents": True}])
def test_bert(tmp_path, options):
    vocab = bert_vocabulary()
    theirs = transformers.BertTokenizer(vocab=vocab, **options)
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    check(ours, lambda text: theirs(text).input_ids)
    lines = "\n".join(sorted(vocab, key=vocab.get)) + "\n"
    older = load_tokenizer(written(tmp_path / "older", vocab_dot_txt=lines,
                                   tokenizer_config_dot_json=options))
    texts = ["".join(PIECES[k::7]) for k in range(7)]
    np.testing.assert_array_equal(older.encode(texts), ours.encode(texts))
    batch = theirs(texts, padding=True, truncation=True, max_length=9)
    ids = ours.encode(texts, length=9)
    np.testing.assert_array_equal(ids, batch.input_ids)
    np.testing.assert_array_equal(ids != ours.pad, np.bool_(batch.attention_mask) & (ids != 0))


def test_a_sign_that_the_vocabulary_lacks_gets_the_next_id(tmp_path):
    names = [name for name in bert_vocabulary() if name != "[MASK]"]
    theirs = transformers.BertTokenizer(vocab={name: k for k, name in enumerate(names)})
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.size == len(theirs) == len(names) + 1
    check(ours, lambda text: theirs(text).input_ids)


@pytest.mark.parametrize("table", [None, MAP])
def test_t5(tmp_path, table):
    theirs = transformers.T5Tokenizer(
        vocab=[tuple(entry) for entry in t5_vocabulary()],
        _spm_precompiled_charsmap=table and b64decode(charsmap(table)))
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.size == len(theirs)
    check(ours, lambda text: theirs(text).input_ids)


@pytest.mark.parametrize("to_bytes", [False, True])
@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("by_blanks", [True, False])
def test_unigram(tmp_path, to_bytes, scheme, split, by_blanks):
    vocab = t5_vocabulary() + [[f"<0x{byte:02X}>", -3.0] for byte in range(256)] * to_bytes
    splitter = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
    if by_blanks:
        splitter = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, splitter]}
    table = {"type": "Precompiled", "precompiled_charsmap": charsmap(MAP)}
    state = unigram(vocab, splitter=splitter, normaliser=table, to_bytes=to_bytes)
    folder = written(tmp_path, tokenizer_dot_json=state)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    check(load_tokenizer(folder), lambda text: theirs.encode(text).ids)


def test_unigram_with_many_ties(tmp_path, rng):
    for k in range(10):
        pieces = {"".join(rng.choice([*"▁abc"], rng.integers(1, 5))) for _ in range(40)}
        scores = -rng.integers(1, 50, len(pieces)) / (8 if k % 2 else 1)
        vocab = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0],
                 *map(list, zip(sorted(pieces), scores.tolist(), strict=True))]
        splitter = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                    "split": bool(k % 3)}
        folder = written(tmp_path / str(k), tokenizer_dot_json=unigram(vocab, splitter=splitter))
        ours = load_tokenizer(folder)
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        for _ in range(200):
            text = "".join(rng.choice([*"abcd "], rng.integers(1, 40)))
            assert ours.encode([text])[0].tolist() == theirs.encode(text).ids
