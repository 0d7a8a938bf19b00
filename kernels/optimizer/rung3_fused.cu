// AdamW, the weights' running mean, their copy in bf16 and a zeroed gradient, in one pass.
//
// What changes from step to step stands in `numbers`, in the GPU's memory: a captured graph, which
// is replayed as it is, finds new ones there.
// adamw holds: LDG.E.128 STG.E.128
// squares holds: LDG.E.128
#include "vector.cuh"

// Places in numbers
enum { SCALE, NEW1, NEW2, RATE, V_SCALE, EPS, SHRINK, NEW_EMA };


// data, grad, m and v of a number, one step on.  Kingma & Ba, Alg. 1; Loshchilov & Hutter, Alg. 2
DEVICE void step(float& x, float g, float& m, float& v, float shrink, const float* numbers) {
    g *= numbers[SCALE];
    m += numbers[NEW1] * (g - m);                         // 1 − β₁
    v += numbers[NEW2] * (g * g - v);                     // 1 − β₂
    x += shrink * x;                                      // −lr · decay, or 0
    x -= numbers[RATE] * m / (sqrtf(v * numbers[V_SCALE]) + numbers[EPS]);
}

// Four numbers a thread, 16 bytes of each buffer. Of data the first `decaying` decay, the first
// `halves` have a copy. Where the scale is no number, everything stays as it is.
KERNEL(256) adamw(const float* __restrict__ numbers, float* __restrict__ data,
                  float* __restrict__ grad, float* __restrict__ m, float* __restrict__ v,
                  float* __restrict__ ema, bf16* __restrict__ half, long decaying, long halves,
                  long n) {
    long i = (blockIdx.x * 256l + threadIdx.x) * 4;
    if (i >= n || numbers[SCALE] != numbers[SCALE])
        return;
    int count = n - i < 4 ? n - i : 4;
    bool whole = count == 4 && aligned(data) && aligned(grad) && aligned(m) && aligned(v);
    float x[4], g[4], m_i[4], v_i[4], zeros[4] = {};
    load(x, data + i, count, whole);
    load(g, grad + i, count, whole);
    load(m_i, m + i, count, whole);
    load(v_i, v + i, count, whole);
    #pragma unroll
    for (int k = 0; k < 4; k++)
        step(x[k], g[k], m_i[k], v_i[k], i + k < decaying ? numbers[SHRINK] : 0, numbers);
    store(data + i, x, count, whole);
    store(grad + i, zeros, count, whole);
    store(m + i, m_i, count, whole);
    store(v + i, v_i, count, whole);
    if (ema) {
        float mean[4];
        whole = count == 4 && aligned(ema);
        load(mean, ema + i, count, whole);
        #pragma unroll
        for (int k = 0; k < 4; k++)
            mean[k] += numbers[NEW_EMA] * (x[k] - mean[k]);
        store(ema + i, mean, count, whole);
    }
    if (i + 4 <= halves && reinterpret_cast<unsigned long long>(half) % 8 == 0) {
        uint2 four = {pack(x[0], x[1]), pack(x[2], x[3])};
        *reinterpret_cast<uint2*>(half + i) = four;
    } else {
        for (int k = 0; k < 4 && i + k < halves; k++)
            half[i + k] = to_bf16(x[k]);
    }
}

KERNEL(32) put(float* numbers, float scale, float new1, float new2, float rate, float v_scale,
               float eps, float shrink, float new_ema) {
    if (threadIdx.x == 0) {
        numbers[SCALE] = scale;
        numbers[NEW1] = new1;
        numbers[NEW2] = new2;
        numbers[RATE] = rate;
        numbers[V_SCALE] = v_scale;
        numbers[EPS] = eps;
        numbers[SHRINK] = shrink;
        numbers[NEW_EMA] = new_ema;
    }
}


struct Sums { double of[8]; };                            // of a block's warps

// The sum over 256 threads, for all of them
DEVICE double block_sum(double x) {
    auto& sums = shared<Sums>().of;
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0)
        sums[threadIdx.x / 32] = x;
    __syncthreads();
    double total = 0;
    for (double sum : sums)
        total += sum;
    return total;
}

// sums[block] = Σ x² over a block's `each` numbers, a multiple of four
KERNEL(256) squares(const float* __restrict__ x, double* sums, long each, long n) {
    long first = blockIdx.x * each, end = first + each < n ? first + each : n;
    double total = 0;
    for (long i = first + threadIdx.x * 4; i < end; i += 1024) {
        float four[4];
        int count = end - i < 4 ? end - i : 4;
        load(four, x + i, count, count == 4 && aligned(x));
        #pragma unroll
        for (int k = 0; k < 4; k++)
            total += static_cast<double>(four[k]) * four[k];
    }
    total = block_sum(total);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = total;
}

// norm[0] = √Σ sums, by one block
KERNEL(256) root(const double* __restrict__ sums, double* norm, int count) {
    double total = 0;
    for (int i = threadIdx.x; i < count; i += 256)
        total += sums[i];
    total = block_sum(total);
    if (threadIdx.x == 0)
        norm[0] = sqrt(total);
}

// The scale that makes a longer gradient `largest` long; none for one without a finite norm
KERNEL(32) clip(float* numbers, const double* __restrict__ norm, float largest) {
    double nothing = norm[0] - norm[0];                   // 0, or no number
    if (threadIdx.x == 0)
        numbers[SCALE] = nothing + (norm[0] > largest ? largest / norm[0] : 1);
}
