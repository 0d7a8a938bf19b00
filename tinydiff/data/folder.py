"""Pictures of your own: files below a folder, and what they show.

Captions are the lines of the .txt file with the picture's name, else the rows of the folder's .csv
that name it, else the words of its own name; the first is taken for the plainest.
"""

import csv
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from tempfile import TemporaryFile

import numpy as np

from tinydiff.data.batches import captioned
from tinydiff.images import pillow

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FORMATS  = ("PNG", "JPEG", "WEBP", "BMP", "GIF")            # that Pillow may take them for
MOST_PIXELS = 2**26                                         # of a picture as it comes


class OwnPictures:
    """Captioned pictures that are read once, made small, and kept in a temporary file.

    found: yields (name, read), where read() -> (captions, picture file). skipped: {name: why}.
    images: uint8 (N, size, size, C), mapped into memory as needed; C = 1 if all are grey.
    Raises ValueError if no picture can be read.
    """

    def __init__(self, title, found, size, skipped):
        self.wordings, self.skipped, grey = [], skipped, True
        with TemporaryFile() as file:
            for name, said, pixels in looked_at(found, size):
                if said is None:
                    skipped[name] = pixels
                    continue
                self.wordings.append(said)
                file.write(pixels)
                grey = grey and (pixels == pixels[..., :1]).all()
            self.count, self.shape = len(self.wordings), (size, size, 1 if grey else 3)
            self.source = summary(title, self.count, skipped)
            if not self.count:
                raise ValueError(f"expected pictures ({' '.join(SUFFIXES)}), got {self.source}")
            file.flush()
            images = np.memmap(file, np.uint8, "r", shape=(self.count, size, size, 3))
        self.images = images[..., :self.shape[2]]
        self.prompts = tuple(dict.fromkeys(said[0] for said in self.wordings))[:10]

    def corpus(self):
        """All captions."""
        return [text for said in self.wordings for text in said]

    def batch(self, count, step, seed, plain, rng):
        """Pictures uint8 (count, H, W, C) of step 0, 1, 2 …, and a caption of each, as DataSet."""
        return captioned(self.images, self.wordings.__getitem__, count, step, seed, plain, rng)


def open_pictures(path, split="train", size=32):
    """OwnPictures of a folder, of a tar file, or of all that a pattern means.

    Raises FileNotFoundError if nothing is there, ValueError if it holds no picture.
    """
    from tinydiff.data.shards import find_shards, in_shards
    if split != "train":
        raise ValueError(f"pictures of your own have the train split, got {split!r}; "
                         "name another folder")
    skipped, shards = {}, find_shards(path)
    found = in_shards(shards, skipped) if shards else in_folder(os.path.realpath(path), skipped)
    return OwnPictures(path, found, size, skipped)


def in_folder(root, skipped):
    """Yield (name, read) of every file below a folder but captions and what is hidden, sorted."""
    root = Path(root)
    table = csv_captions(root)
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    skipped |= dict.fromkeys(table.keys() - names, "only in the .csv")
    for name in sorted(names):
        if "/." not in f"/{name}" and not name.lower().endswith((".txt", ".csv")):
            yield name, partial(read_file, root / name, root, table.get(name))


def read_file(path, root, said):
    """(captions, path) of a picture file.  ValueError if it is none."""
    if path.suffix.lower() not in SUFFIXES or not is_own(path, root):
        raise ValueError("no picture file of this folder")
    text = path.with_suffix(".txt")
    text = lines(text.read_bytes()) if is_own(text, root) else []
    return text or said or [words(path.stem)], path


def is_own(path, root):
    """Is it a file, and no link that leads out of the folder?"""
    return path.is_file() and Path(os.path.realpath(path)).is_relative_to(root)


def csv_captions(root):
    """{file: captions} from the columns file (or file_name) and caption (or text)."""
    table = {}
    for path in sorted(path for path in root.glob("[!.]*.csv") if is_own(path, root)):
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                for row in csv.DictReader(file, strict=True):
                    name = row.get("file") or row.get("file_name")
                    said = row.get("caption", row.get("text"))
                    if not name or said is None:
                        raise ValueError(f"expected columns file,caption, got {row}")
                    table.setdefault(PurePath(name).as_posix(), []).extend(lines(said.encode()))
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path.name} is no table of captions: {error}") from None
    return table


def looked_at(found, size):
    """(name, captions, uint8 (size, size, 3)) of each (name, read), or (name, None, why not)."""
    def look(one):
        name, read = one
        try:
            said, file = read()
            return name, said, picture(file, size)
        except Exception as error:                          # decoders raise anything on damage
            why = " ".join(str(error).split()) or type(error).__name__
            return name, None, "no known picture" if "cannot identify" in why else why

    with ThreadPoolExecutor(4) as pool:
        while some := [*islice(found, 16)]:                 # no more at a time are in memory
            yield from pool.map(look, some)


def picture(file, size):
    """The middle square of a picture file, uint8 (size, size, 3): upright, on white.

    Raises ValueError if it is huge, and whatever Pillow raises if it is broken.
    """
    Image, ImageOps = pillow("reading pictures")
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} × {image.height} pixels")
        image.draft(None, (2 * size, 2 * size))             # a large JPEG is decoded smaller
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):                      # 16 bits of grey
            image = Image.fromarray((np.array(image) // 257).astype(np.uint8))
        image = ImageOps.fit(image.convert("RGBA"), (size, size), Image.Resampling.BICUBIC)
    white = Image.new("RGBA", image.size, "white")
    return np.array(Image.alpha_composite(white, image).convert("RGB"))


def lines(data):
    return [line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip()]


def words(stem):
    """A file's name as a caption: "red_car-03" says "red car"."""
    parts = re.split(r"[\s_.,()\[\]+-]+", stem.encode(errors="replace").decode())
    return " ".join(part for part in parts if not part.isdigit()).strip()


def summary(title, count, skipped):
    """One line: how many pictures there are, and the first five files that were skipped."""
    named = [f"{name} ({why})" for name, why in sorted(skipped.items())]
    text = f"{title}: {count:,} pictures" + (
        f"; skipped {len(named):,} of {count + len(named):,}: {', '.join(named[:5])}"
        + f", and {len(named) - 5:,} more" * (len(named) > 5)) * bool(named)
    return "".join(c if c.isprintable() else "?" for c in text)
