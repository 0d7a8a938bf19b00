"""Unigram, T5's tokenizer (Kudo 2018, arXiv 1804.10959): the likeliest way to cut a word."""

import re
from base64 import b64decode
from functools import lru_cache
from itertools import groupby
from unicodedata import category

import numpy as np

from tinydiff.pretrained.clip_bpe import BLANK
from tinydiff.pretrained.tensors import named

JOINERS = "\u200c\u200d\uff9e\uff9f"                      # marks, though their category is not M
CONTROLS = "Cc", "Cf", "Zl", "Zp"


class Unigram:
    """vocab {piece: id}, scores {piece: log p}; unknown: an id or None; to_bytes: spell unknowns.

    `normaliser` and `splitter` as in a tokenizer.json; ValueError where T5 has no such step.
    """

    def __init__(self, vocab, scores, unknown, to_bytes, normaliser, splitter):
        self.vocab, self.scores, self.unknown, self.to_bytes = vocab, scores, unknown, to_bytes
        self.least, self.lengths = min(scores.values()) - 10, {len(piece) for piece in vocab} - {0}
        self.charsmaps = [Charsmap(b64decode(step["precompiled_charsmap"]))
                          for step in steps(normaliser, "Precompiled")]
        self.splits = steps(splitter, "WhitespaceSplit", "Metaspace")
        self.words("a trial", True)                       # bad options are found now

    def normalise(self, text):
        for charsmap in self.charsmaps:
            text = "".join(map(charsmap.replace, clusters(text)))
        return text

    def words(self, text, at_start):
        parts = [(not at_start, text)] if text else []    # where it begins (0: the text), itself
        for split in self.splits:
            if split["type"] == "WhitespaceSplit":
                parts = [(start + found.start(), found[0]) for start, part in parts
                         for found in re.finditer(f"[^{BLANK}]+", part)]
            else:
                parts = [word for part in parts for word in metaspace(*part, **split)]
        return [part for _, part in parts if part]

    def pieces(self, word):
        """Viterbi: best[j] is the best score of word[:j] and where its last piece begins."""
        best = [(0.0, 0)] + [(None, 0)] * len(word)
        for i in range(len(word)):
            ends = {i + 1: self.least} | {i + len(piece): self.scores[piece] for n in self.lengths
                                          if (piece := word[i:i + n]) in self.scores}
            for j, score in ends.items():
                if best[j][0] is None or score + best[i][0] > best[j][0]:
                    best[j] = score + best[i][0], i
        path, j = [], len(word)
        while j:
            path.append(word[best[j][1]:j])
            j = best[j][1]
        known = lambda piece: self.vocab.get(piece, self.unknown) != self.unknown
        return [i for knows, run in groupby(reversed(path), known)
                for piece in (run if knows else ["".join(run)]) for i in self.look_up(piece)]

    def look_up(self, piece):
        """A piece's id; of unknowns in a row those of their bytes, or one `unknown`."""
        spelled = [self.vocab.get(f"<0x{byte:02X}>") for byte in piece.encode()]
        if piece not in self.vocab and self.to_bytes and None not in spelled:
            return spelled
        if (i := self.vocab.get(piece, self.unknown)) is None:
            raise ValueError(f"encode: {named(piece)} is not in the vocabulary, which lacks <unk>")
        return [i]


def steps(config, *kinds):
    """The steps of a normaliser or a pre-tokenizer, which may be a sequence of others."""
    if config is None or config["type"] in kinds:
        return [config] if config else []
    if config["type"] != "Sequence":
        raise ValueError(f"the step {named(config['type'])} is not supported, only {kinds}")
    [inside] = config.keys() - {"type"}
    return [step for inner in config[inside] for step in steps(inner, *kinds)]


def metaspace(start, text, *, replacement, prepend_scheme=None, add_prefix_space=True, split=True,
              **_):
    """[(start, word)]: blanks become "▁", one stands before the text, and each begins a word."""
    scheme = prepend_scheme or ("always" if add_prefix_space else "never")
    if scheme not in ("always", "first", "never") or len(replacement) != 1:
        raise ValueError(f"Metaspace with {named([scheme, replacement])} is not supported")
    text = text.replace(" ", replacement)
    if not text.startswith(replacement) and (scheme == "always" or (scheme, start) == ("first", 0)):
        text = replacement + text
    words = re.split(f"(?={re.escape(replacement)})", text) if split else [text]
    return [(start + k, word) for k, word in enumerate(words)]


class Charsmap:
    """SentencePiece's table of replacements: a trie as a double array, then the texts."""

    def __init__(self, data):
        size = int.from_bytes(data[:4], "little")
        if size % 4 or not 0 < size <= len(data) - 4:
            raise ValueError("the precompiled_charsmap is cut short")
        self.units, self.texts = np.frombuffer(data, "<u4", size // 4, 4).tolist(), data[4 + size:]
        self.replace = lru_cache(1 << 16)(self.replace)

    def replace(self, cluster):
        """A short cluster as a whole where the table has it, else character by character."""
        new = self.find(cluster.encode()) if len(cluster.encode()) < 6 else None
        if new is None and len(cluster) > 1:
            return "".join(map(self.replace, cluster))
        return cluster if new is None else new

    def find(self, text):
        """What stands for the shortest beginning of the bytes `text` in the trie, or None."""
        at = lambda place: self.units[place] if place < len(self.units) else 0
        below = lambda unit: unit >> 10 << ((unit & 512) >> 6)    # how far its children are off
        place = below(at(0))
        for byte in text:
            unit = at(place := place ^ byte)
            if unit & 0x800000FF != byte:
                return None
            place ^= below(unit)
            if unit & 256:
                return self.texts[at(place) & 0x7FFFFFFF:].partition(b"\0")[0].decode()
        return None


def clusters(text):
    """Characters with the marks on them; a control carries none."""
    found = []
    for c in text:
        base, mark = found[-1][0] if found else "", c in JOINERS or category(c)[0] == "M"
        if base and mark and (base in JOINERS or category(base) not in CONTROLS):
            found[-1] += c
        elif found[-1:] == ["\r"] and c == "\n":
            found[-1] += c
        else:
            found.append(c)
    return found
