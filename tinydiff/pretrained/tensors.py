"""Tensors by key, from one safetensors file or several: headers in memory, numbers on disk.

A file is read a few rows at a time into a buffer and never mapped: where another program cuts a
mapped file short, touching the lost page ends the process (SIGBUS).
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinydiff.checkpoint import BITS, STRANGERS, numbers, parsed, read_bits, read_header

FLOATS = ("F64", "F32", "F16", "BF16")
FORMS = (r"\.safetensors", r"\.safetensors\.index\.json",               # whole, or in shards;
         r"\.\w+\.safetensors", r"\.safetensors\.index\.\w+\.json")     # then variants, as .fp16
OTHERS = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".h5", ".msgpack", ".onnx", ".gguf")
LIMIT = 24 << 20    # bytes of a JSON file; the largest tokenizer.json have 17 MB


class Entry(NamedTuple):
    """Where a tensor stands: `start` in bytes from the beginning of its file."""

    file: Path
    start: int
    dtype: str      # as safetensors calls it
    shape: tuple


class Tensors(dict):
    """{key: Entry}, and the file that says which there are."""

    def __init__(self, file, entries):
        super().__init__(entries)
        self.file = file

    def read(self, key, rows=slice(None)):
        """A tensor, or some rows of its first axis: float32, or int64 where it holds integers.

        Raises ValueError where the file has become shorter.
        """
        path, start, dtype, shape = self[key]
        rows = range(shape[0] if shape else 1)[rows]
        with open(path, "rb") as file:
            file.seek(start + rows.start * np.dtype(BITS[dtype]).itemsize * math.prod(shape[1:]))
            bits = read_bits(path, file, dtype, (len(rows), *shape[1:]) if shape else ())
        with np.errstate(all="ignore"):                 # a float64 beyond float32 becomes ±inf
            return numbers(bits, dtype).astype(np.float32 if dtype in FLOATS else np.int64,
                                               copy=False)


def open_tensors(folder, base):
    """The Tensors of `base`.safetensors in a folder, of its shards, or of a variant (.fp16).

    Raises FileNotFoundError where there are none; ValueError for another format, for a damaged
    file, and for an index that leaves the folder or differs from its shards.
    """
    names = sorted(path.name for path in Path(folder).glob("*") if path.is_file())
    for form in FORMS:
        for name in names:
            if re.fullmatch(re.escape(base) + form, name):
                return (_sharded if "index" in form else _whole)(Path(folder, name))
    for name in names:
        if name.endswith(OTHERS):
            raise ValueError(f"{Path(folder, name)} is not safetensors, and tinydiff never "
                             "unpickles; load it in diffusers or transformers and save it with "
                             "save_pretrained(FOLDER, safe_serialization=True)")
    raise FileNotFoundError(f"{folder} lacks {base}.safetensors; download it into this folder")


def _whole(path):
    with open(path, "rb") as file:
        header, start = read_header(path, file)[0], file.tell()
    return Tensors(path, {key: Entry(path, start + entry["data_offsets"][0], entry["dtype"],
                                     tuple(entry["shape"])) for key, entry in header.items()})


def _sharded(index):
    """The tensors that an index shares out among files beside it, {"weight_map": {key: file}}."""
    shares, entries = {}, {}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: weight_map is {named(weight_map)}, expected {{key: file}}")
    for key, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,200}\.safetensors", name):
            raise ValueError(f"{index}: {named(key)} is said to be in {named(name)}, expected a "
                             ".safetensors file in the same folder")
        shares.setdefault(name, set()).add(key)
    for name, keys in shares.items():
        if not (path := index.with_name(name)).is_file():
            raise FileNotFoundError(f"{path} is missing, though {index.name} names it; download it")
        shard = _whole(path)
        for key in sorted(keys ^ shard.keys()):
            raise ValueError(f"{path} {'lacks' if key in keys else 'also holds'} {named(key)}, "
                             f"unlike {index.name} says; download both again")
        entries |= shard
    return Tensors(index, entries)


def read_json(path, parse=parsed):
    """The object in a JSON file, a dict, or what `parse` makes of the bytes of another small file.

    Raises FileNotFoundError; ValueError where `parse` does, or for an absurdly large file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; download it into its folder")
    with open(path, "rb") as file:
        data = file.read(LIMIT + 1)
    try:
        if len(data) > LIMIT:
            raise ValueError(f"it has more than {LIMIT} bytes")
        for mark, kind in STRANGERS.items():
            if data.startswith(mark):
                raise ValueError(f"it is {kind}")
        return parse(data)
    except ValueError as error:
        raise ValueError(f"{path} is not what it should be: {error}; download it again") from None


def named(value):
    """How a message shows what a file says: on one line, and short."""
    text = value if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
