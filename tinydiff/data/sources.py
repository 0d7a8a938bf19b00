"""Where data files come from: your folder, the package, the cache, the network, in this order.

TINYDIFF_DATA_DIR names your folder; it is read and never written. Downloads go to pooch's cache.
Whatever the way, the hash of a file is compared with the published one before it is opened.
"""

import gzip
import hashlib
import lzma
import os
import zlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

OWN, EMBEDDED, CACHE, DOWNLOAD = "TINYDIFF_DATA_DIR", "embedded", "cache", "download"
PACKAGED = Path(__file__).with_name("embedded")           # MNIST's test files, and no others
REMEDY = {OWN: "replace it in that folder",
          EMBEDDED: "install tinydiff again",
          CACHE: "`tinydiff data fetch` downloads it again"}


@dataclass(frozen=True)
class Published:
    """A file as its authors published it."""

    path: str                       # below a data folder: "mnist/train-images-idx3-ubyte.gz"
    size: int                       # bytes
    checksum: str                   # of the file: "sha256:…", or "md5:…" where only that is known
    urls: tuple[str, ...]           # the same file on several hosts
    unpacked: str = ""              # checksum of what it decompresses to


class Found(NamedTuple):
    """A file that is on this machine."""

    place: str                      # OWN, EMBEDDED or CACHE
    path: Path


def find(*names):
    """The first of `names` ("mnist/t10k-images-idx3-ubyte.gz") that is here, as Found, or None."""
    for place, folder in _folders():
        for name in names:
            path = folder / (name.removeprefix("mnist/") if place == EMBEDDED else name)
            if path.is_file():
                return Found(place, path)
    return None


def contents(found, checksum):
    """The bytes of a file, decompressed as its name says, once they have the checksum.

    Raises ValueError with the expected and the found hash.
    """
    data = found.path.read_bytes()
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(found.path.suffix, bytes)
    try:
        data = unpack(data)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        pass                        # a broken stream: let its own bytes fail the comparison
    return check(data, checksum, found)


def check(data, checksum, found):
    """`data`, if it has the checksum; else ValueError with both hashes and what to do."""
    kind, _, expected = checksum.partition(":")
    actual = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
    if actual != expected:
        raise ValueError(f"{found.path.name} ({found.place}) is damaged: expected {kind} "
                         f"{expected}, found {actual}; {REMEDY[found.place]}")
    return data


def download(file):
    """Bring a file into the cache from the first host that sends it whole, as Found.

    Raises OSError in one sentence if no host does, or pooch is not installed.
    """
    by_hand = (f"put the file with {file.checksum.replace(':', ' ')} as {file.path} into the "
               f"folder that the variable {OWN} names; the set `digits` needs no network")
    pooch = _library("pooch")
    if pooch is None:
        raise FileNotFoundError(f"{file.path} is not here, and pooch, which downloads it, is not "
                                f"installed: pip install pooch, or {by_hand}")
    from requests import RequestException

    bar = _library("tqdm") is not None
    fetch_url = pooch.HTTPDownloader(progressbar=bar, timeout=20)       # seconds
    target = pooch.os_cache("tinydiff") / file.path
    refusals = []
    for url in file.urls:
        try:
            pooch.retrieve(url, file.checksum, target.name, target.parent, downloader=fetch_url)
            return Found(CACHE, target)
        except RequestException as error:
            refusals.append(f"{url.split('/')[2]} ({type(error).__name__})")
        except ValueError:          # pooch compared the hashes
            refusals.append(f"{url.split('/')[2]} (sent another file)")
    raise ConnectionError(f"{file.path} ({file.size / 1e6:.1f} MB) could not be downloaded, tried "
                          f"{' and '.join(refusals)}: go online, or {by_hand}")


def describe(found):
    """One line on where files came from, without a path."""
    if {place for place, _ in found} == {EMBEDDED}:
        return "embedded: MNIST's 10,000 test images"
    places = " and ".join(dict.fromkeys(place for place, _ in found))
    return f"{places}: {', '.join(path.name for _, path in found)}"


def _folders():
    """Yield (place, folder) in the order in which they are looked into."""
    if own := os.environ.get(OWN):
        if not Path(own).is_dir():
            raise FileNotFoundError(f"{OWN} names {own}, which is not a folder; set it to a "
                                    "folder that holds mnist/ or cifar-10/, or unset it")
        yield OWN, Path(own)
    yield EMBEDDED, PACKAGED
    if pooch := _library("pooch"):
        yield CACHE, pooch.os_cache("tinydiff")


def _library(name):
    """A library that is imported only when needed, or None if it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None
