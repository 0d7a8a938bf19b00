"""Which vectors this machine has: how wide they are and how many of them a product may use.

A CPU adds and multiplies whole registers of floats at once. Three numbers describe what the
kernels need to know of it; everything else follows from them.
"""

import os
from functools import cache
from typing import NamedTuple


class ISA(NamedTuple):
    """A kind of vector unit, and the block of results its registers can hold."""

    name:    str
    width:   int       # floats in a register
    rows:    int       # rows of a product held in registers at once
    vectors: int       # registers a row is wide

    @property
    def panel(self):
        """Columns of a product held in registers at once."""
        return self.width * self.vectors


AVX512 = ISA("avx512", width=16, rows=8, vectors=2)       # 32 registers: 16 sums, 2 + 1 to load
AVX2   = ISA("avx2",   width=8,  rows=6, vectors=2)       # 16 registers: 12 sums, 2 + 1 to load
NEON   = ISA("neon",   width=4,  rows=8, vectors=2)       # 32 registers: 16 sums, 2 + 1 to load
CHOICE = "TINYDIFF_ISA"                                   # environment: take this one instead


@cache
def host():
    """The ISA of this machine, or the one that TINYDIFF_ISA names.  ValueError for any other."""
    known = {isa.name: isa for isa in (AVX512, AVX2, NEON)}
    asked = os.environ.get(CHOICE)
    if asked:
        if asked not in known:
            raise ValueError(f"{CHOICE}: there is no {asked!r}; there are {', '.join(known)}")
        return known[asked]
    from llvmlite import binding
    features = binding.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        return AVX512
    return AVX2 if features.get("avx2") and features.get("fma") else NEON
