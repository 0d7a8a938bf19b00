"""WordPiece, BERT's tokenizer (Devlin et al. 2018, arXiv 1810.04805): the longest piece first."""

from functools import cache
from string import punctuation
from unicodedata import category, normalize

from tinydiff.pretrained.clip_bpe import small

IDEOGRAPHS = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
              (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)]


class WordPiece:
    """vocab {piece: id}, "##" before pieces inside a word.

    lower: capitals become small letters; bare: accents are dropped; apart: an ideograph is a word.
    """

    def __init__(self, vocab, unknown, *, lower, bare, apart):
        self.vocab, self.unknown = vocab, unknown
        self.lower, self.bare, self.apart = lower, bare, apart

    def normalise(self, text):
        text = "".join(clean(c, self.apart) for c in text)
        if self.bare:
            text = "".join(c for c in normalize("NFD", text) if category(c) != "Mn")
        return small(text) if self.lower else text

    def words(self, text, at_start):
        return "".join(f" {c} " if c in punctuation or category(c)[0] == "P" else c
                       for c in text).split()

    def pieces(self, word):
        ids, start = [], 0
        while start < len(word) <= 100:                   # longer words are unknown
            for end in range(len(word), start, -1):
                if (piece := "##" * (start > 0) + word[start:end]) in self.vocab:
                    break
            else:
                break
            ids.append(self.vocab[piece])
            start = end
        return ids if start == len(word) else [self.unknown]


@cache
def clean(c, apart):
    """What one character becomes: nothing if a control, " " if blank, a word if an ideograph."""
    if c in "\t\n\r" or category(c)[0] == "Z":
        return " "
    if c in "\0\ufffd" or category(c) in ("Cc", "Cf", "Co"):
        return ""
    return f" {c} " if apart and any(a <= ord(c) <= b for a, b in IDEOGRAPHS) else c
