"""What tests of data share: the complete sets, where they are, and small archives made by hand."""

import io
import os
import struct
import tarfile
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_data(folder):
    """The folder of published data sets that holds `folder`; skips the test where there is none."""
    for root in (os.environ.get("TINYDIFF_DATA_DIR"), BESIDE):
        if root and (Path(root) / folder).is_dir():
            return Path(root)
    pytest.skip(f"{folder} is not here: set TINYDIFF_DATA_DIR to a folder that holds it")


def idx(array):
    """A uint8 array as the bytes of an IDX file."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def python_batch(pixels, labels):
    """A CIFAR-10 batch as Python 2 pickled it: protocol 2, strings of bytes, three NumPy names."""
    def string(data):
        return b"T" + struct.pack("<i", len(data)) + data

    def integer(n):
        return b"J" + struct.pack("<i", n)

    dtype = (b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
             b"(K\x03" + string(b"|") + b"NNN" + integer(-1) + integer(-1) + b"K\x00tb")
    array = (b"cnumpy.core.multiarray\n_reconstruct\n" b"cnumpy\nndarray\n" b"K\x00\x85"
             + string(b"b") + b"\x87R"
             b"(K\x01" + integer(pixels.shape[0]) + integer(pixels.shape[1]) + b"\x86" + dtype
             + b"\x89" + string(pixels.tobytes()) + b"tb")
    listed = b"](" + b"".join(map(integer, labels)) + b"e"
    return (b"\x80\x02}(" + string(b"data") + array + string(b"labels") + listed + b"u.")


def binary_batch(pixels, labels):
    """A CIFAR-10 batch in the binary form: a byte of label before every 3072 of pixels."""
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pixels))


def tar_gz(path, files):
    """Write {name: bytes} as a .tar.gz that begins with its folder, as published ones do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo(next(iter(files)).split("/")[0])
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
