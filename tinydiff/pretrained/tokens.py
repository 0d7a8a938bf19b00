"""Pretrained tokenizers: text to ids by normalise, words, pieces, each algorithm in its own file.

Start with `PretrainedTokenizer.row`, then clip_bpe.py, wordpiece.py, unigram.py.
"""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from tinydiff.models.tokenizer import BEGIN, PAD, Tokenizer
from tinydiff.pretrained.clip_bpe import BytePairs
from tinydiff.pretrained.tensors import named, read_json
from tinydiff.pretrained.unigram import Unigram
from tinydiff.pretrained.wordpiece import WordPiece

END = "<|endoftext|>"
SIGNS = {"BPE":       {"bos": "<|startoftext|>", "eos": END, "unk": END, "pad": END},
         "WordPiece": {name: f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")},
         "Unigram":   {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}}
CLASSES = r"(CLIP|Bert|T5|PreTrained)Tokenizer(Fast)?|TokenizersBackend"
HUGE = 1 << 20                                             # tokens: a length beyond it means none


class PretrainedTokenizer:
    """texts -> ids (N, L) below `size`: begin, pieces, end, then `pad`.

    special: {text: token} to find in a text as they are, or after normalising it; length: the
    longest L, and with fill the only one.
    """

    def __init__(self, algorithm, special, *, begin, end, pad, length, fill):
        self.algorithm, self.begin, self.end, self.pad = algorithm, begin, end, pad
        self.length, self.fill = length, fill
        self.size = len(algorithm.vocab.keys() | special.keys())
        self.pieces = lru_cache(1 << 14)(lambda word: tuple(algorithm.pieces(word)))
        self.raw = {text: t["id"] for text, t in special.items() if not t.get("normalized")}
        self.normal = {algorithm.normalise(text): token["id"] for text, token in special.items()
                       if token.get("normalized")}

    def encode(self, texts, *, length=None):
        """A list of str -> ids (N, L) int64, what is too long cut off before `end`.

        L is `length`, else CLIP's 77, else that of the longest row.  ValueError for other things.
        """
        texts = texts if isinstance(texts, str) or not np.iterable(texts) else list(texts)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"encode: expected a list of texts, got {named(texts)}")
        signs, longest = len(self.begin) + len(self.end), length or self.length or HUGE
        if not (isinstance(longest, int | np.integer) and signs <= longest <= HUGE):
            raise ValueError(f"encode: expected length {signs} to {HUGE}, got {named(longest)}")
        rows = [[*self.begin, *self.row(text)[:longest - signs], *self.end] for text in texts]
        width = length or (self.length if self.fill else max(map(len, rows), default=0))
        return np.array([row + [self.pad] * (width - len(row)) for row in rows],
                        dtype=np.int64).reshape(len(rows), width)

    def row(self, text):
        """One text's ids; special tokens in it are themselves.  ValueError for half a character."""
        if re.search(r"[\ud800-\udfff]", text):
            raise ValueError(f"encode: expected whole characters, got half of one in {named(text)}")
        parts = [part if isinstance(part, int) else self.algorithm.normalise(part)
                 for part in cut([text], self.raw)]
        return [i for k, part in enumerate(cut(parts, self.normal))
                for i in ([part] if isinstance(part, int) else (
                    i for word in self.algorithm.words(part, k == 0) for i in self.pieces(word)))]


def cut(parts, tokens):
    """The texts among `parts` cut at every one of `tokens`, of which the ids are left."""
    pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return [tokens.get(piece, piece) for part in parts for piece in (
        re.split(f"({pattern})", part) if tokens and isinstance(part, str) else [part])]


def load_tokenizer(folder):
    """The tokenizer in a folder: of CLIP (byte pairs), of BERT (WordPiece) or of T5 (Unigram).

    Reads tokenizer.json, or vocab.txt, or vocab.json and merges.txt.  Raises FileNotFoundError
    where there is none of them, ValueError naming the file for other tokenizers and damaged files.
    """
    folder, config = Path(folder), {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file() and "added_tokens_decoder" not in config:
            config |= read_json(folder / name)
    lines = lambda data: [line.rstrip() for line in data.decode().removesuffix("\n").split("\n")]
    if (file := folder / "tokenizer.json").is_file():
        state = read_json(file)
    elif (file := folder / "vocab.txt").is_file():
        state = {"model": {"type": "WordPiece", "vocab": read_json(file, lines)}}
    else:
        vocab, file = read_json(folder / "vocab.json"), folder / "merges.txt"
        state = {"model": {"type": "BPE", "vocab": vocab, "merges": read_json(file, lines)}}
    try:
        return exported(state, config) or build(state, config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"{file} or tokenizer_config.json beside it is not laid out as expected, "
                         f"{type(error).__name__}: {error!s:.80}; download it again") from None


def exported(state, config):
    """Our own Tokenizer, where `export` wrote this tokenizer.json; None where it did not."""
    vocab, merges = state["model"]["vocab"], state["model"].get("merges")
    if not isinstance(vocab, dict) or (vocab.get("<pad>"), vocab.get("<begin>")) != (PAD, BEGIN):
        return None
    return Tokenizer([(vocab[a], vocab[b]) for a, b in merges], int(config["model_max_length"]))


def build(state, config):
    """The tokenizer that tokenizer.json and tokenizer_config.json describe."""
    model, style = state["model"], config.get("tokenizer_class") or "TokenizersBackend"
    kind = model.get("type") or ("Unigram" if isinstance(model["vocab"], list) else
                                 "BPE" if "merges" in model else "WordPiece")
    if kind not in SIGNS or not re.fullmatch(CLASSES, style) or (
            model.get("end_of_word_suffix", "</w>") != "</w>"):
        raise ValueError(f"a {named(kind)} tokenizer of class {named(style)} is not supported, "
                         "expected that of CLIP, BERT or T5")
    vocab, signs = numbered(model["vocab"]), SIGNS[kind]
    if kind == "Unigram" and not style.startswith("T5"):
        signs = dict.fromkeys(signs)                       # none but what the file says
    signs = {name: config.get(f"{name}_token", sign) for name, sign in signs.items()}
    special = special_tokens([
        *state.get("added_tokens", []), *config.get("added_tokens_decoder", {}).values(),
        *{content(sign): sign for sign in signs.values()}.values(),     # the last of equals
        *(config.get("additional_special_tokens") or [])], vocab)
    ids = vocab | {text: token["id"] for text, token in special.items()}
    sign = lambda name: ids.get(content(signs[name]) or f"<{name}>")     # or SentencePiece's own
    if kind == "Unigram":
        single = (state.get("post_processor") or {"single": [None]})["single"]
        begin, end = [], [ids[item["SpecialToken"]["id"]] for item in single[1:]]
    else:
        begin, end = [[sign(name)] for name in (("bos", "eos") if kind == "BPE" else
                                                ("cls", "sep"))]
    length = config.get("model_max_length", HUGE)
    if None in (*begin, *end, sign("pad"), kind == "Unigram" or sign("unk")) or (
            not length >= 1 or config.get("padding_side", "right") != "right"):
        raise ValueError(f"expected {', '.join(signs)}_token, a model_max_length from 1 on, and "
                         "right as padding_side in tokenizer_config.json")
    return PretrainedTokenizer(
        algorithm(kind, state, config, vocab, sign("unk")), special, begin=begin, end=end,
        pad=sign("pad"), fill=kind == "BPE",
        length=int(length) if length < HUGE else 77 if kind == "BPE" else None)


def algorithm(kind, state, config, vocab, unknown):
    """BytePairs, WordPiece or Unigram with the options that the files give it."""
    model, normaliser = state["model"], state.get("normalizer")
    if kind == "BPE":
        return BytePairs(vocab, model["merges"], unknown)
    if kind == "Unigram":
        if (unknown := model.get("unk_id")) not in {None, *vocab.values()}:
            raise ValueError(f"unk_id {named(unknown)} is not in the vocabulary")
        return Unigram(vocab, {piece: score + 0.0 for piece, score in model["vocab"]}, unknown,
                       model.get("byte_fallback", False), normaliser, state.get("pre_tokenizer"))
    form = {"type": "BertNormalizer"} | (normaliser or {})
    lower = config.get("do_lower_case", form.get("lowercase", True))
    bare = config.get("strip_accents", form.get("strip_accents"))
    apart = config.get("tokenize_chinese_chars", form.get("handle_chinese_chars", True))
    if form["type"] != "BertNormalizer" or not {lower, bare, apart} <= {True, False, None}:
        raise ValueError("expected a BertNormalizer, its options true or false")
    return WordPiece(vocab, unknown, lower=lower, bare=lower if bare is None else bare, apart=apart)


def special_tokens(listed, vocab):
    """{text: token} with the ids of the vocabulary, or the next ones."""
    found = {}
    for token in listed:
        if (text := content(token)) and text not in found:
            token = token if isinstance(token, dict) else {}
            found[text] = token | {"id": vocab.get(text, len(vocab.keys() | found.keys()))}
    return found


def content(token):
    """The text of a special token, or None; TypeError for anything else."""
    text = token["content"] if isinstance(token, dict) else token
    if not isinstance(text, str | None):
        raise TypeError(f"a token is {text!r}")
    return text


def numbered(vocab):
    """{piece: id} of a vocabulary that may be a list; the ids are 0, 1, …, each once."""
    n = len(vocab)
    if isinstance(vocab, list):
        vocab = {piece if isinstance(piece, str) else piece[0]: i for i, piece in enumerate(vocab)}
    if n == 0 or sorted(vocab.values()) != list(range(n)):
        raise ValueError(f"the {n} tokens of the vocabulary should have the ids 0 to {n - 1}, once")
    return vocab
