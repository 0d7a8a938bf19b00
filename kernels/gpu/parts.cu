// y[i] = Σ_part x[part, i]
#include "device.cuh"

KERNEL(256) sum_parts(const float* __restrict__ x, float* __restrict__ y, int parts, long n) {
    long i = blockIdx.x * 256l + threadIdx.x;
    if (i >= n)
        return;
    float sum = 0;
    for (int part = 0; part < parts; part++)
        sum += x[part * n + i];
    y[i] = sum;
}
