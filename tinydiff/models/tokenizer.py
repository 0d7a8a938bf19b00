"""Byte-pair encoding: text as the longest pieces that were common in the captions.

Every byte is a token, so any text can be written; learning then merges the pair of neighbours seen
most often into a new token, again and again (Sennrich et al. 2016, arXiv 1508.07909).
"""

from collections import Counter
from itertools import pairwise

import numpy as np

PAD, BEGIN = 256, 257                                     # after the 256 bytes
FIRST_MERGE = 258


class Tokenizer:
    """texts -> ids (N, length): BEGIN, the pieces, then PAD.

    merges: pairs of ids, the k-th of which makes token 258 + k. Capitals become small letters,
    and blanks count only between words.
    """

    def __init__(self, merges, length):
        self.merges = [tuple(pair) for pair in merges]
        self.length = length
        self.rank = {pair: k for k, pair in enumerate(self.merges)}
        self.size = FIRST_MERGE + len(self.merges)

    @classmethod
    def learn(cls, texts, size, length):
        """At most `size` tokens, learned from texts; fewer when no pair occurs twice."""
        words = Counter(word for text in texts for word in split(text))
        spelling = {word: list(word.encode()) for word in words}
        merges = []
        while FIRST_MERGE + len(merges) < size:
            pairs = Counter()
            for word, n in words.items():
                for pair in pairwise(spelling[word]):
                    pairs[pair] += n
            best = max(pairs, key=lambda pair: (pairs[pair], pair), default=None)
            if best is None or pairs[best] < 2:
                break
            for word in words:
                spelling[word] = merge(spelling[word], best, FIRST_MERGE + len(merges))
            merges.append(best)
        return cls(merges, length)

    def encode(self, texts):
        """texts, a list of str -> ids (N, length) int64.  ValueError for a text too long."""
        if isinstance(texts, str):
            raise ValueError(f"encode: expected a list of texts, got the text {texts!r}")
        ids = np.full((len(texts), self.length), PAD, dtype=np.int64)
        for row, text in zip(ids, texts, strict=True):
            pieces = [BEGIN, *(token for word in split(text) for token in self.pieces(word))]
            if len(pieces) > self.length:
                raise ValueError(f"prompt {text!r} is {len(pieces)} tokens long, "
                                 f"the text encoder reads at most {self.length}; shorten it")
            row[:len(pieces)] = pieces
        return ids

    def pieces(self, word):
        """One word's tokens: its bytes, merged in the order in which the merges were learned."""
        tokens = list(word.encode())
        while len(tokens) > 1:
            first = min(pairwise(tokens), key=lambda pair: self.rank.get(pair, len(self.merges)))
            if first not in self.rank:
                break
            tokens = merge(tokens, first, FIRST_MERGE + self.rank[first])
        return tokens

    def decode(self, ids):
        """The text that a row of ids stands for."""
        return b"".join(map(self.spell, ids)).decode(errors="replace").strip()

    def spell(self, token):
        """The bytes behind one token."""
        if token < PAD:
            return bytes([token])
        if token < FIRST_MERGE:
            return b""
        return b"".join(map(self.spell, self.merges[token - FIRST_MERGE]))


def split(text):
    """Words, each with the blank in front of it, so that nothing is lost when they are joined."""
    return [" " + word for word in text.lower().split()]


def merge(tokens, pair, new):
    """`tokens` with every occurrence of `pair` replaced by `new`, from the left."""
    out, i = [], 0
    while i < len(tokens):
        if tuple(tokens[i:i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(tokens[i])
            i += 1
    return out
