// The products of a linear layer by wgmma.  products.cuh
// needs: sm_90a
// holds: HGMMA.64x128x16.F32.BF16 LDGSTS
#include "wgmma.cuh"

using BlockSums = GroupSums;

#include "products.cuh"
