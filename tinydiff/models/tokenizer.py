"""Byte-pair encoding: text as the longest pieces that were common in the captions.

Every byte is a token, so any text can be written; learning then merges the pair of neighbours seen
most often into a new token, again and again (Sennrich et al. 2016, arXiv 1508.07909).
"""

from collections import Counter
from heapq import heappop, heappush
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
        self.table = {pair: (k, FIRST_MERGE + k) for k, pair in enumerate(self.merges)}
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
                spelling[word] = merged(spelling[word], {best: (0, FIRST_MERGE + len(merges))})
            merges.append(best)
        return cls(merges, length)

    def encode(self, texts, *, cut=False):
        """texts, a list of str -> ids (N, length) int64.  ValueError for one too long, unless cut.
        """
        if isinstance(texts, str):
            raise ValueError(f"encode: expected a list of texts, got the text {texts!r}")
        ids = np.full((len(texts), self.length), PAD, dtype=np.int64)
        for row, text in zip(ids, texts, strict=True):
            pieces = [BEGIN, *(token for word in split(text) for token in self.pieces(word))]
            if len(pieces) > self.length and not cut:
                raise ValueError(f"prompt {text[:80]!r} is {len(pieces)} tokens long, "
                                 f"the text encoder reads at most {self.length}; shorten it")
            row[:len(pieces)] = pieces[:self.length]
        return ids

    def pieces(self, word):
        """One word's tokens: its bytes, merged in the order in which the merges were learned."""
        return merged(word.encode(), self.table)

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


def merged(tokens, merges):
    """`tokens` after all that `merges`, {pair: (rank, new)}, can do: lowest rank first, then left.

    The pairs wait in a heap, so n tokens take n log n steps.
    """
    n = len(tokens)
    tokens = [*tokens, None]                              # None: past an end, or merged away
    left, right = [*range(-1, n)], [*range(1, n + 1), n]
    heap = []

    def queue(i):
        if found := merges.get((tokens[i], tokens[right[i]])):
            heappush(heap, (*found, i))

    for i in range(n):
        queue(i)
    while heap:
        *found, i = heappop(heap)
        j = right[i]
        if merges.get((tokens[i], tokens[j])) == tuple(found):    # still the same pair
            tokens[i], tokens[j] = found[1], None
            right[i], left[right[j]] = right[j], i
            queue(left[i])
            queue(i)
    return [token for token in tokens if token is not None]
