"""IDX, the format of MNIST: a big-endian header, then unsigned bytes in C order.

    2 bytes    0
    1 byte     8: unsigned bytes follow
    1 byte     the number of axes
    4 bytes    the length of an axis, for each axis
"""

import math
import struct

import numpy as np


def read_idx(data, name):
    """The array uint8 that the bytes `data` of the file `name` hold; read-only.

    Raises ValueError if they are not IDX, or too few or too many.
    """
    zero, kind, axes = struct.unpack_from(">HBB", data.ljust(4, b"\xff"))
    start = 4 + 4 * axes
    if (zero, kind) != (0, 8) or len(data) < start:
        raise ValueError(f"{name} is not an IDX file of unsigned bytes: expected it to begin "
                         f"00 00 08, got {data[:3].hex(' ') or 'an empty file'}")
    shape = struct.unpack_from(f">{axes}I", data, 4)
    if len(data) - start != math.prod(shape):
        raise ValueError(f"{name} announces {math.prod(shape)} bytes for shape {shape}, "
                         f"but holds {len(data) - start}; get the file again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
