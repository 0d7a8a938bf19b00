// The products of a linear layer by mma.sync.  products.cuh
// holds: HMMA.16816.F32.BF16 LDSM LDGSTS
#include "tiles.cuh"

using BlockSums = Sums;

#include "products.cuh"
