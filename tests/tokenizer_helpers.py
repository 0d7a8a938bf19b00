"""Small tokenizers as folders: what the tests of the pretrained tokenizers build and share."""

import base64
import json
import struct


def written(folder, **files):
    """The folder with the files given by their names, "." as "_dot_": str as it is, else JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / name.replace("_dot_", ".")).write_text(text, encoding="utf-8")
    return folder


def charsmap(replacements):
    """SentencePiece's precompiled form of {text: replacement}, in base64: a block a trie node."""
    trie, texts = {}, b""
    for key, new in replacements.items():
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node["value"] = len(texts)
        texts += new.encode() + b"\0"
    units, fresh = {}, [1]

    def place(node, at, label):
        aligned = fresh[0] % 3 == 0                       # now and then as a multiple of 256
        base = 256 * fresh[0] + (at & 255 if aligned else 0)
        offset = at ^ base
        units[at] = label | (offset >> 8 << 10 | 512 if aligned else offset << 10)
        if "value" in node:
            units[at] |= 256
            units[base] = node["value"] | 1 << 31
        fresh[0] += 1
        for byte, child in node.items():
            if byte != "value":
                place(child, base ^ byte, byte)

    place(trie, 0, 0)
    array = [units.get(i, 0) for i in range(256 * (fresh[0] + 1))]
    return base64.b64encode(struct.pack(f"<I{len(array)}I", 4 * len(array), *array) + texts
                            ).decode()


def unigram(vocab, *, splitter, normaliser=None, to_bytes=False, unknown=2, end="</s>"):
    """A tokenizer.json of kind Unigram."""
    flags = dict.fromkeys(["normalized", "single_word", "lstrip", "rstrip"], False)
    return {"added_tokens": [{"id": k, "content": text, "special": True, **flags}
                             for k, (text, _) in enumerate(vocab[:3])],
            "normalizer": normaliser, "pre_tokenizer": splitter,
            "post_processor": end and {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": end, "type_id": 0}}],
                "pair": [], "special_tokens": {end: {"id": end, "ids": [1], "tokens": [end]}}},
            "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocab,
                      "byte_fallback": to_bytes}}
