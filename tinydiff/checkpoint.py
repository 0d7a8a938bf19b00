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
STRANGERS = {b"PK": "a zip archive, as PyTorch and np.savez write",
             b"\x80": "a pickle, as older PyTorch wrote",
             b"version https://git-lfs": "a Git LFS pointer, not the file it stands for"}


def save(path, arrays, config):
    """Write {name: array} and a JSON-able dict; strided, 0-d, empty and device arrays are welcome.

    Raises ValueError for a dtype that safetensors or NumPy lacks, OSError if the disk is full.
    """
    header, end = {}, 0
    for name in sorted(arrays):
        array = _plain(arrays[name])
        if array.dtype.str not in NAMES:
            raise ValueError(f"{path}: {name} has dtype {array.dtype}, expected one of "
                             f"{', '.join(DTYPES)}")
        header[name] = {"dtype": NAMES[array.dtype.str], "shape": list(array.shape),
                        "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    metadata = {"format": FORMAT, "config": _json(config)}
    if "__metadata__" in header:
        raise ValueError(f"{path}: no array may be called __metadata__, the format's own name")
    header["__metadata__"] = metadata
    digest = hashlib.sha256(_json(header).encode())
    for name in sorted(arrays):
        digest.update(_bytes(_plain(arrays[name])))         # one array is copied at a time
    metadata["sha256"] = digest.hexdigest()
    text = _json(header).encode()
    text += b" " * (-len(text) % 8)                         # the arrays start at a multiple of 8
    with replace_atomically(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(arrays):
            file.write(_bytes(_plain(arrays[name])))


def load(path):
    """Read ({name: array}, config); BF16 becomes float32; the config of another's file is {}.

    Raises ValueError in one sentence if the file is not what it says, altered or cut short.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = _header(path, file, size)
        metadata = header.pop("__metadata__", {})
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
        for name, (dtype, shape) in _layout(path, header, size - file.tell()).items():
            array = np.empty(shape, DTYPES.get(dtype, "<u2"))
            file.readinto(_bytes(array))
            digest.update(_bytes(array))
            arrays[name] = _from_bfloat16(array) if dtype == "BF16" else array
    if ours and digest.hexdigest() != expected:
        raise ValueError(f"{path} is damaged: expected sha256 {expected}, found "
                         f"{digest.hexdigest()}; copy it again or save it again")
    return arrays, json.loads(metadata["config"]) if ours else {}


def _header(path, file, size):
    """The JSON header as a dict, with `file` left at the first byte of the arrays."""
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
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                if not all(isinstance(text, str) for text in entry.values()):
                    raise ValueError("__metadata__ must hold strings")
            elif entry["dtype"] not in {*DTYPES, "BF16"}:
                raise ValueError(f"{name} has the unknown dtype {entry['dtype']!r}")
            elif [type(n) for n in entry["data_offsets"]] != [int, int]:
                raise ValueError(f"{name} lies at bytes {entry['data_offsets']}")
            else:
                np.broadcast_to(0.0, entry["shape"])        # raises if no array has this shape
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header ({error}); copy it again") from None
    return header


def _layout(path, header, size):
    """{name: (dtype, shape)} in the order of the bytes, which must fill `size` without a gap."""
    layout, end = {}, 0
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        dtype, shape, offsets = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
        nbytes = math.prod(shape) * np.dtype(DTYPES.get(dtype, "<u2")).itemsize
        if offsets != [end, end + nbytes]:
            raise ValueError(f"{path} has a damaged header: {name} should lie at bytes {end} to "
                             f"{end + nbytes}, the header says {offsets}; copy it again")
        layout[name], end = (dtype, shape), end + nbytes
    if size != end:
        raise ValueError(f"{path} is {'cut short' if size < end else 'too long'}: its arrays take "
                         f"{end} bytes, the file has {size}; copy it again")
    return layout


def _plain(array):
    """The array on the host, row-major and little-endian; a copy only where it is not."""
    array = to_host(array)
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def _bytes(array):
    """The memory of a contiguous array, uint8 (bytes,)."""
    return array.reshape(-1).view(np.uint8)


def _from_bfloat16(bits):
    """bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
