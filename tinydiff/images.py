"""Pictures: bytes and numbers, grids, PNG with provenance, films.

Outside, images are uint8 (N, H, W, C); inside, float32 in [-1, 1].  C = 1 is grey, C = 3 is RGB.
"""

import io
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from tinydiff.backend import to_host
from tinydiff.files import replace_atomically, write_atomically

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR = {1: 0, 3: 2}                        # channels -> PNG's colour type: grey, RGB
ITXT = b"tinydiff" + bytes(5)                # keyword, not compressed, no language, no translation
FILMS = {".gif": "GIF", ".webp": "WEBP"}


def to_float(images):
    """uint8 (...) -> float32 (...) in [-1, 1]: 0 is -1, 255 is 1."""
    if images.dtype != np.uint8:
        raise ValueError(f"to_float: expected uint8 pixels, got {images.dtype}")
    return images.astype(np.float32) / 127.5 - 1            # DDPM §3.3


def to_uint8(x):
    """float (...) in [-1, 1] -> uint8 (...) on the host: the nearest levels, clipped to 0…255.

    Raises ValueError on NaN, which has no colour.
    """
    if (x != x).any():
        raise ValueError(f"to_uint8: {int((x != x).sum())} of {x.size} values are NaN; "
                         "the model that made them has diverged")
    return to_host(((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8))


def grid(images, columns=None, gap=2):
    """Images uint8 (N, H, W, C) side by side as one (H', W', C), `gap` white pixels apart."""
    N, H, W, C = images.shape
    if N == 0:
        raise ValueError("grid: expected at least one image, got none")
    columns = columns or math.ceil(math.sqrt(N))
    rows = -(-N // columns)
    sheet = np.full((rows * columns, H + gap, W + gap, C), 255, np.uint8)
    sheet[:N, :H, :W] = images
    sheet = sheet.reshape(rows, columns, H + gap, W + gap, C).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (H + gap), columns * (W + gap), C)
    return sheet[:len(sheet) - gap, :sheet.shape[1] - gap]


def write_png(path, image, provenance=None):
    """Write uint8 (H, W, C) as a PNG; `provenance`, a dict, stands in it as JSON."""
    H, W, C = _picture("write_png", image).shape
    rows = np.pad(image.reshape(H, W * C), ((0, 0), (1, 0)))        # filter 0 before every row
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", W, H, 8, COLOUR[C], 0, 0, 0)),
              (b"IDAT", zlib.compress(rows.tobytes(), 9)),
              (b"IEND", b"")]
    if provenance is not None:
        text = json.dumps(provenance, sort_keys=True, ensure_ascii=False, allow_nan=False)
        chunks.insert(1, (b"iTXt", ITXT + text.encode()))
    write_atomically(path, SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks))


def read_provenance(path):
    """The dict that `write_png` stored in a PNG.  Raises ValueError if there is none, or damage."""
    data = Path(path).read_bytes()
    if not data.startswith(SIGNATURE):
        raise ValueError(f"{path} is not a PNG file, so it holds no provenance")
    start = len(SIGNATURE)
    while start < len(data):
        length = int.from_bytes(data[start:start + 4], "big")
        kind, body = data[start + 4:start + 8], data[start + 8:start + 8 + length]
        crc = data[start + 8 + length:start + 12 + length]
        if crc != struct.pack(">I", zlib.crc32(kind + body)):
            raise ValueError(f"{path} is damaged or cut short at byte {start} of {len(data)}; "
                             "make the picture again")
        if kind == b"iTXt" and body.startswith(ITXT):
            return json.loads(body[len(ITXT):])
        start += 12 + length
    raise ValueError(f"{path} holds no provenance: tinydiff did not write it, or a program that "
                     "rewrote it dropped the text")


def read_image(path):
    """Any picture file as uint8 (H, W, C): C = 1 for grey files, else 3, transparency dropped.

    Raises FileNotFoundError, or ValueError for a file that is not a whole picture.
    """
    Image, ImageOps = pillow("reading a picture")
    data = Path(path).read_bytes()
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.array(image) // 257).astype(np.uint8))     # 65535 -> 255
        image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    except (OSError, SyntaxError) as error:                 # Pillow's own words for damage
        reason = "no known format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"{path} cannot be read as a picture: {reason}") from None
    pixels = np.array(image)                                # (H, W) or (H, W, 3)
    return pixels.reshape(*pixels.shape[:2], -1)


def with_channels(image, channels):
    """uint8 (H, W, 1 or 3) -> (H, W, channels): colours averaged, or grey thrice."""
    if image.shape[2] == channels:
        return image
    return np.repeat(image.mean(axis=2, keepdims=True).round().astype(np.uint8), channels, axis=2)


def write_film(path, frames, seconds_per_frame=0.08, seconds_of_last=1.5):
    """Write frames, each uint8 (H, W, C), as a looping film: .gif or .webp (exact colours)."""
    suffix = Path(path).suffix.lower()
    if suffix not in FILMS:
        raise ValueError(f"write_film: expected a name that ends in .gif or .webp, got {path}")
    Image, _ = pillow("writing a film")
    frames = [_picture("write_film", frame) for frame in frames]
    pictures = [Image.fromarray(f[:, :, 0] if f.shape[2] == 1 else f) for f in frames]
    if len({picture.size for picture in pictures}) != 1:
        raise ValueError(f"write_film: expected frames of one size, got {len(pictures)} frames of "
                         f"sizes {sorted({picture.size for picture in pictures})}")
    milliseconds = [round(1000 * seconds_per_frame)] * len(pictures)
    milliseconds[-1] = round(1000 * seconds_of_last)
    exact = {"lossless": True} if suffix == ".webp" else {}
    with replace_atomically(path) as file:
        pictures[0].save(file, FILMS[suffix], save_all=True, append_images=pictures[1:], loop=0,
                         duration=milliseconds, **exact)


def write_pictures(path, frames, columns, provenance):
    """The last of the frames, uint8 (N, H, W, C), as .npy or .png, or all as a film, .gif or .webp.

    Several pictures make a grid, with so many columns or, for None, a square one.
    """
    frames, suffix = list(frames), path.suffix.lower()
    if suffix == ".npy":
        memory = io.BytesIO()                             # into a file, np.save hides a full disk
        np.save(memory, frames[-1])
        return write_atomically(path, memory.getvalue())
    sheets = [grid(frame, columns) for frame in frames]
    if suffix == ".png":
        write_png(path, sheets[-1], provenance)
    else:
        write_film(path, sheets)


def _picture(who, image):
    if image.ndim != 3 or image.shape[2] not in COLOUR or image.dtype != np.uint8:
        raise ValueError(f"{who}: expected uint8 (H, W, 1) or (H, W, 3), "
                         f"got {image.dtype} {image.shape}")
    return image


def pillow(purpose):
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{purpose} needs Pillow: pip install pillow "
                                  "(PNG files are written without it)", name="PIL") from None
    return Image, ImageOps
