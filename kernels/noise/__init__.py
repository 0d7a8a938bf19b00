"""Random numbers with an address, made where they are needed: the same on a GPU as on the CPU.

    normal(seed, images, step, shape, dtype, *, purpose, like) -> (N, *shape), where `like` lives
    normal_into(out, images, state, *, purpose)                the same, of an address in memory
    keep(p, seed, like) -> what dropout multiplies `like` by

Philox4x64-10 over the counter (block, image, step, 0) with the key (seed, purpose) gives four words
a block; Box–Muller in float64 makes four normal numbers of them, which are then rounded.
"""

from .mask import keep
from .philox import normal, normal_into

__all__ = ["keep", "normal", "normal_into"]
