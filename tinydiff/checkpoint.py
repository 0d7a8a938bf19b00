"""Checkpoints: arrays by name and a config, in one safetensors file, whole or not at all.

    8 bytes    N, little-endian
    N bytes    JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {…}}
    the rest   the arrays, little-endian, row-major, one after another

`__metadata__` holds strings: our format, the config as JSON, and the sha256 of all that matters:
the header without the sha256 itself, then the arrays. There is no time, date or path inside, so
the same arrays give the same bytes. Nothing is ever unpickled.
"""

import hashlib
import json
import math
import os
import struct

import numpy as np

from tinydiff.backend import to_host
from tinydiff.files import replace_atomically

FORMAT = "tinydiff 1"
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "|b1",
          "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
          "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1"}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BITS = {**DTYPES, "BF16": "<u2"}                            # what is read; NumPy has no bfloat16
LONGEST = 16 << 20                                          # bytes of a header: 100,000 arrays
STRANGERS = {b"PK": "a zip archive, as PyTorch and np.savez write",
             b"\x80": "a pickle, as older PyTorch wrote",
             b"version https://git-lfs": "a Git LFS pointer, not the file it stands for"}


def save(path, arrays, config):
    """Write {name: array} and a JSON-able dict; strided, 0-d, empty and device arrays are welcome.

    Raises ValueError for a dtype that safetensors or NumPy lacks, OSError if the disk is full.
    """
    metadata = {"format": FORMAT, "config": _json(config)}
    digest = hashlib.sha256(_json(_header(path, arrays, metadata)).encode())
    for name in sorted(arrays):
        digest.update(_bytes(_plain(arrays[name])))         # one array is copied at a time
    write(path, arrays, {**metadata, "sha256": digest.hexdigest()})


def write(path, arrays, metadata):
    """Write {name: array} with metadata, {str: str}, in the way of `save`, and no digest."""
    text = _json(_header(path, arrays, metadata)).encode()
    text += b" " * (-len(text) % 8)                         # the arrays start at a multiple of 8
    with replace_atomically(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(arrays):
            file.write(_bytes(_plain(arrays[name])))


def _header(path, arrays, metadata):
    """What the file says of its arrays, in the order of their names."""
    header, end = {"__metadata__": metadata}, 0
    for name in sorted(arrays):
        array = arrays[name]
        dtype = array.dtype.newbyteorder("<").str
        if dtype not in NAMES:
            raise ValueError(f"{path}: {name} has dtype {array.dtype}, expected one of "
                             f"{', '.join(DTYPES)}")
        if name in header:
            raise ValueError(f"{path}: no array may be called {name}, the format's own name")
        header[name] = {"dtype": NAMES[dtype], "shape": list(array.shape),
                        "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    return header


def load(path):
    """Read ({name: array}, config); BF16 becomes float32; the config of another's file is {}.

    Raises ValueError in one sentence if the file is not what it says, altered or cut short.
    """
    with open(path, "rb") as file:
        header, metadata = read_header(path, file)
        written_as = metadata.get("format", "no format")
        ours = "tinydiff" in written_as or {"config", "sha256"} <= metadata.keys()
        if ours and written_as != FORMAT:
            raise ValueError(f"{path} says {written_as!r}, this version reads {FORMAT!r}: if a "
                             "newer tinydiff wrote it, pip install --upgrade tinydiff")
        if ours and not {"config", "sha256"} <= metadata.keys():
            raise ValueError(f"{path} has lost its config or its sha256; save it again")
        expected = metadata.pop("sha256", None)
        digest = hashlib.sha256(_json({**header, "__metadata__": metadata}).encode())
        arrays = {}
        for name, entry in header.items():
            bits = read_bits(path, file, entry["dtype"], entry["shape"])
            digest.update(_bytes(bits))
            arrays[name] = numbers(bits, entry["dtype"])
    if ours and digest.hexdigest() != expected:
        raise ValueError(f"{path} is damaged: expected sha256 {expected}, found "
                         f"{digest.hexdigest()}; copy it again or save it again")
    return arrays, json.loads(metadata["config"]) if ours else {}


def read_header(path, file):
    """({name: {"dtype", "shape", "data_offsets"}} in the order of the bytes, the metadata).

    `file`, just opened, is left at the first byte of the arrays. Raises ValueError unless every
    array has a dtype, a shape and a place of its own, which fill the file without a gap.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(32)
    if start[8:9] != b"{":
        found = next((what for mark, what in STRANGERS.items() if start.startswith(mark)),
                     f"{size} bytes that begin {start[:8].hex(' ')}" if start else "an empty file")
        raise ValueError(f"{path} is not a safetensors file but {found}; tinydiff reads "
                         "safetensors only and never unpickles")
    (length,) = struct.unpack("<Q", start[:8])
    if length > size - 8:
        raise ValueError(f"{path} is cut short: its header takes {length} bytes, "
                         f"{size - 8} are left in the file")
    if length > LONGEST:
        raise ValueError(f"{path} has a header of {length} bytes, expected at most {LONGEST}")
    file.seek(8)
    try:
        header = parsed(file.read(length))
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("__metadata__ must hold strings")
        layout, end = {}, 0
        for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
            layout[name] = header[name]
            end = _end(name, header[name], end)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = " ".join(str(error).split())[:300]            # a hostile name may be long
        raise ValueError(f"{path} has a damaged header ({why}); copy it again") from None
    if size != 8 + length + end:
        state = "cut short" if size < 8 + length + end else "too long"
        raise ValueError(f"{path} is {state}: its arrays take {end} bytes, the file has "
                         f"{size - 8 - length}; copy it again")
    return layout, metadata


def _end(name, entry, begin):
    """The byte behind an array that should begin at `begin`; ValueError where it does not."""
    dtype, shape, offsets = (entry[key] for key in ("dtype", "shape", "data_offsets"))
    if dtype not in BITS:
        raise ValueError(f"{name} has the unknown dtype {dtype!r}")
    if type(shape) is not list or not all(type(n) is int for n in (*shape, *offsets)):
        raise ValueError(f"{name} has shape {shape} and lies at bytes {offsets}")
    np.broadcast_to(0.0, shape)                             # raises if no array has this shape
    end = begin + math.prod(shape) * np.dtype(BITS[dtype]).itemsize
    if offsets != [begin, end]:
        raise ValueError(f"{name} should lie at bytes {begin} to {end}, not {offsets}")
    return end


def parsed(text):
    """The object, a dict, in the bytes of a JSON text.  ValueError also for a name said twice."""
    def unrepeated(pairs):
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("an object says the same name twice")
        return found

    try:
        value = json.loads(text.decode(), object_pairs_hook=unrepeated)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def read_bits(path, file, dtype, shape):
    """The next array of an open file, as stored.  ValueError if the file has shrunk meanwhile."""
    bits = np.empty(shape, BITS[dtype])
    if file.readinto(_bytes(bits)) < bits.nbytes:
        raise ValueError(f"{path} was cut short while it was read; copy it again")
    return bits


def numbers(bits, dtype):
    """What was stored, as NumPy can hold it: bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else bits


def tuples(config):
    """The values of a dataclass, of whose tuples JSON made lists."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}


def _plain(array):
    """The array on the host, row-major and little-endian; a copy only where it is not."""
    array = to_host(array)
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def _bytes(array):
    """The memory of a contiguous array, uint8 (bytes,)."""
    return array.reshape(-1).view(np.uint8)


def _json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
