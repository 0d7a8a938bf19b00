"""What tests of your own pictures share: pictures as files, and tar files of them."""

import io
import tarfile

import numpy as np
from PIL import Image


def encoded(pixels, format="PNG", **options):
    """The bytes of a picture file that shows uint8 (H, W) or (H, W, C)."""
    memory = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(memory, format, **options)
    return memory.getvalue()


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def lay(folder, files):
    """Write {name: bytes or text} below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def tar(path, files, mode="w", **options):
    """Write {name: bytes or text}, or pairs of them, as a tar file."""
    with tarfile.open(path, mode, **options) as archive:
        for name, data in getattr(files, "items", lambda: files)():
            data = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def every(source):
    """All pictures of a source and the plainest caption of each, {caption: pixels}."""
    pixels, said = source.batch(source.count, 0, 0, 1.0, np.random.default_rng(0))
    return dict(zip(said, pixels, strict=True))
