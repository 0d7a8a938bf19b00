// A convolution of patches in shared memory by mma.sync.  halo.cuh
// holds: HMMA.16816.F32.BF16 LDSM LDGSTS
#include "tiles.cuh"

using BlockSums = Sums;

#include "halo.cuh"
