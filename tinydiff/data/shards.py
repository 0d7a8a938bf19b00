"""Pictures of your own in tar files, the shards of WebDataset, read as a stream.

KEY.jpg (.png, .webp …) stands beside KEY.txt, or KEY.json with "caption" or "text"; KEY is a path
up to the first dot of the file's name. Nothing is unpacked, nothing trusted.
"""

import json
import re
import tarfile
from functools import partial
from glob import glob
from io import BytesIO
from itertools import groupby
from pathlib import Path

from tinydiff.data.folder import SUFFIXES, lines, words

MOST = dict.fromkeys(SUFFIXES, 2**24) | {".txt": 2**16, ".json": 2**16}     # bytes of a member
MOST_SAID = dict.fromkeys((b"x", b"X", b"g", b"L", b"K"), 2**16) | {b"S": -1}   # of headers


def find_shards(path):
    """The tar files that a file, a folder of them, "*.tar" or "{000..009}.tar" means; else [].

    Raises FileNotFoundError naming what is missing.
    """
    found = []
    for place in map(Path, braces(str(path))):
        those = place.glob("[!.]*.tar*") if place.is_dir() else map(Path, glob(str(place)))
        those = [place] if place.is_file() else sorted(those)
        if not those and not place.is_dir():
            raise FileNotFoundError(f"there is no {place}; expected a folder of pictures, or tars")
        found += those
    return found


def braces(pattern):
    """Yield a-000.tar … a-009.tar for a-{000..009}.tar."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not span:
        yield pattern
        return
    for n in range(int(span[1]), int(span[2]) + 1):
        yield from braces(f"{pattern[:span.start()]}{n:0{len(span[1])}}{pattern[span.end():]}")


def in_shards(paths, skipped):
    """Yield (key, read) of all that has a picture, tar after tar; where one ends early is noted."""
    for path in paths:
        try:
            for key, group in groupby(members(path), key=lambda member: member[0]):
                parts = {suffix: data for _, suffix, data in group}
                if parts.keys() & set(SUFFIXES):
                    yield f"{path.name}/{key}", partial(read_sample, key, parts)
        except ValueError as error:
            skipped[path.name] = f"the rest of it: {error}"


def read_sample(key, parts):
    """(captions, picture file) of a sample's {suffix: bytes}.  ValueError if it is too large."""
    if None in parts.values():
        raise ValueError("too many bytes")
    said = lines(parts.get(".txt", b""))
    if not said and ".json" in parts:
        told = json.loads(parts[".json"])
        said = lines((told.get("caption") or told.get("text") or "").encode())
    file = next(parts[suffix] for suffix in SUFFIXES if suffix in parts)
    return said or [words(key.rpartition("/")[2])], BytesIO(file)


class Member(tarfile.TarInfo):
    """A header that may have been written to do harm."""

    _proc_gnusparse_10 = None                               # would read without end

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        """As TarInfo's, but damage does not pass for the end, and no header can fill memory."""
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            end = isinstance(error, tarfile.EOFHeaderError)
            raise error if end else tarfile.ReadError(str(error)) from None
        if member.size > MOST_SAID.get(member.type, member.size):
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def members(path):
    """Yield (key, suffix, bytes) of the files that matter in a tar; None for too many bytes.

    Raises ValueError, in a few words, where it is damaged or cut short.
    """
    with open(path, "rb") as file:
        try:
            tar = tarfile.open(fileobj=file, mode="r|*", tarinfo=Member, encoding="utf-8")
            while member := tar.next():
                tar.members, tar.pax_headers = [], {}       # they would grow without end
                if member.size > 2**32:
                    raise ValueError(f"a member of {member.size:,} bytes")
                key, suffix = re.fullmatch(r"((?:.*/)?[^./]*)([^/]*)", member.name, re.S).groups()
                if member.isreg() and (most := MOST.get(suffix.lower())) and key[-1:] not in "/":
                    data = tar.extractfile(member).read() if member.size <= most else None
                    yield key, suffix.lower(), data
        except Exception as error:                          # tarfile raises anything on damage
            raise ValueError(" ".join(str(error).split())) from None
