"""How a pass over the pixels of images is cut into blocks.  columns.cuh"""

from .arrays import is_bf16

THREADS = 256                                             # of a block, at most
BLOCKS = 4 * 132                                          # that an H100 runs at once
VECTORS = 32                                              # of 16 bytes, side by side in a block
FEW = 4 * THREADS // VECTORS                              # pixels of a tile, at least
MOST = 64                                                 # tiles of an image; a thread adds them up


def tiles_of(N, pixels, C):
    """(tiles of an image, pixels of a tile), by the shape alone: so no sum depends on the GPU."""
    each = max(FEW, -(-pixels // MOST), -(-pixels * N * -(-C // 256) // BLOCKS))
    return max(1, -(-pixels // each)), each


def cut(x, N, tiles):
    """(grid, block) for images x (N, …, width) in tiles."""
    vectors = -(-x.shape[-1] * x.dtype.itemsize // 16)
    slabs = -(-vectors // VECTORS)
    across = -(-vectors // slabs)
    return (N * tiles, slabs), (across, THREADS // across)


def of_type(code, name, x):
    """The kernel `name` of a .cu for x's type: name_bf16 or name_float."""
    return getattr(code, f"{name}_{'bf16' if is_bf16(x) else 'float'}")
