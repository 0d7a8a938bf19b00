// A convolution, gathered tile by tile, by mma.sync.  gather.cuh
// holds: HMMA.16816.F32.BF16 LDSM LDGSTS
#include "tiles.cuh"

using BlockSums = Sums;

#include "gather.cuh"
