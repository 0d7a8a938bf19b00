// Both kinds of convolution by wgmma: tiles gathered on the way, and patches in shared memory.
// gather.cuh, halo.cuh
// needs: sm_90a
// holds: HGMMA.64x128x16.F32.BF16 LDGSTS
// fused holds: LDSM
// fused_grad_input holds: LDSM
#include "wgmma.cuh"

using BlockSums = GroupSums;

#include "gather.cuh"
#include "halo.cuh"
