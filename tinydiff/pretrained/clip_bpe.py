"""CLIP's tokenizer: words in small letters, each word's bytes merged pair by pair."""

import re
from functools import cache
from unicodedata import normalize

from tinydiff.models.tokenizer import merged
from tinydiff.pretrained.tensors import named

BLANK = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's White_Space
HIDDEN = [*range(33), *range(127, 161), 173]               # bytes without a sign of their own
SYMBOL = {byte: 256 + n for n, byte in enumerate(HIDDEN)}  # are written as letters from U+0100 on


class BytePairs:
    """vocab {symbols: id}; merges, pairs of symbols, by rank.  ValueError for a merge of others."""

    def __init__(self, vocab, merges, unknown):
        self.vocab, self.unknown, self.table = vocab, unknown, {}
        for k, merge in enumerate(merges):
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if pair[0] == "#version:" and k == 0:
                continue
            if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
                raise ValueError(f"merge {k + 1}, {named(merge)}, should join two tokens of the "
                                 "vocabulary into a third")
            self.table[vocab[pair[0]], vocab[pair[1]]] = k, vocab["".join(pair)]

    def normalise(self, text):
        return small(re.sub(f"[{BLANK}]+", " ", normalize("NFC", text)))

    def words(self, text, at_start):
        word = word_pattern()
        outer = re.findall(rf"<\|startoftext\|>|<\|endoftext\|>|{word}", text)
        return [part for whole in outer for part in re.findall(word, whole)]   # as the reference

    def pieces(self, word):
        symbols = list(word.encode().decode("latin-1").translate(SYMBOL))
        symbols[-1] += "</w>"
        return merged([self.vocab.get(symbol, self.unknown) for symbol in symbols], self.table)


@cache
def word_pattern():
    """An ending, letters, one digit or other signs; `re` has only letters, numbers and _ as one."""
    numbers = "".join(c for c in map(chr, range(0x110000)) if c.isnumeric() and not c.isalpha())
    return rf"'s|'t|'re|'ve|'m|'ll|'d|[^\W_{numbers}]+|[{numbers}]|(?:[^\w ]|_)+"


def small(text):
    """Small letters, each by itself: Python's sigma depends on what follows."""
    return text.replace("Σ", "σ").lower()
