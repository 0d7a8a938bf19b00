// The way back through GroupNorm and SiLU, cut as the way there.  rung4_vector.cu, columns.cuh
//
//     dz = dy · silu'(z)      dshift = Σ dz      dscale = rstd · Σ dz · d           d = x − mean
//     dx = rstd · (γ dz − mean(γ dz) − x̂ · mean(γ dz x̂)) = γ rstd · dz + slope · d + offset
//
// An input x (N, pixels, width) has channels first … first + width − 1 of all C; what is left of
// them is in the other input, which gets its own launch. γ and β of the next image are `step` numbers
// on: 0, where all images share them.
// sums* holds: LDG.E.128
// gradient* holds: LDG.E.128 STG.E.128
#include "columns.cuh"

// y[v] = values[group of channel c + v], groups being of `size` channels
template <int V>
DEVICE void spread(float (&y)[V], const float* values, int c, int count, int size) {
    int g = c / size, next = g * size + size;
    #pragma unroll
    for (int v = 0; v < V; v++) {
        if (c + v == next) {
            g++;
            next += size;
        }
        y[v] = v < count ? values[g] : 0;
    }
}

// What a thread knows of its channels: z = d · scale + shift
template <int V>
struct Line {
    float mean[V], scale[V], shift[V];

    DEVICE Line(const float* gamma, const float* beta, int step, const float* means,
                const float* rstds, int n, int c, int count, int C, int groups) {
        float rstd[V];
        long channel = static_cast<long>(n) * step + c;
        load_floats(scale, gamma + channel, count);
        load_floats(shift, beta + channel, count);
        spread(mean, means + n * groups, c, count, C / groups);
        spread(rstd, rstds + n * groups, c, count, C / groups);
        #pragma unroll
        for (int v = 0; v < V; v++)
            scale[v] *= rstd[v];
    }

    // dz of channel v; d silu / dz = σ (1 + z (1 − σ))
    DEVICE float dz(int v, float d, float dy, bool active) const {
        if (!active)
            return dy;
        float z = d * scale[v] + shift[v], s = sigmoid(z);
        return dy * s * (1 + z * (1 - s));
    }
};


// out (N, tiles, C, 2): Σ dz and Σ dz · d over a tile's pixels
template <class T>
DEVICE void sum_gradients(const T* dy, const T* x, const float* gamma, const float* beta, int step,
                          const float* mean, const float* rstd, float* out, int pixels, int width,
                          int first, int C, int groups, int each, int tiles, bool active) {
    constexpr int V = LANES<T>;
    Share<T> share(blockIdx.x, pixels, width, each, tiles, x, dy);
    Line<V> line(gamma, beta, step, mean, rstd, share.n, first + share.c, share.count, C, groups);
    float sums[2][V] = {};
    for (int p = share.pixel; p < share.end; p += 2 * blockDim.y) {
        float here[2][V], above[2][V];                    // zeros beyond the last pixel
        share.load(here, x, p);
        share.load(above, dy, p);
        #pragma unroll
        for (int i = 0; i < 2; i++)
            #pragma unroll
            for (int v = 0; v < V; v++) {
                float d = here[i][v] - line.mean[v], dz = line.dz(v, d, above[i][v], active);
                sums[0][v] += dz;
                sums[1][v] += dz * d;
            }
    }
    float* row = out + ((static_cast<long>(share.n) * tiles + share.tile) * C + first) * 2;
    sum_down(share, sums, [&](int c, const float (&sum)[2]) {
        row[2 * c] = sum[0];
        row[2 * c + 1] = sum[1];
    });
}

KERNEL(256) sums_float(const float* __restrict__ dy, const float* __restrict__ x,
                       const float* __restrict__ gamma, const float* __restrict__ beta, int step,
                       const float* __restrict__ mean, const float* __restrict__ rstd, float* out,
                       int pixels, int width, int first, int C, int groups, int each, int tiles,
                       int active) {
    sum_gradients(dy, x, gamma, beta, step, mean, rstd, out, pixels, width, first, C, groups, each,
                  tiles, active);
}

KERNEL(256) sums_bf16(const bf16* __restrict__ dy, const bf16* __restrict__ x,
                      const float* __restrict__ gamma, const float* __restrict__ beta, int step,
                      const float* __restrict__ mean, const float* __restrict__ rstd, float* out,
                      int pixels, int width, int first, int C, int groups, int each, int tiles,
                      int active) {
    sum_gradients(dy, x, gamma, beta, step, mean, rstd, out, pixels, width, first, C, groups, each,
                  tiles, active);
}


// dshift and dscale (N, C), and slope and offset (N, groups), of such sums; a warp has a group
KERNEL(256) means(const float* __restrict__ sums, const float* __restrict__ gamma, int step,
                  const float* __restrict__ rstd, float* dscale, float* dshift, float* slope,
                  float* offset, int N, int pixels, int tiles, int C, int groups) {
    int group = blockIdx.x * 8 + threadIdx.x / 32, n = group / groups, size = C / groups;
    if (n >= N)
        return;
    double r = rstd[group], s = 0, t = 0;                 // Σ γ dz, Σ γ dz d
    for (int i = threadIdx.x % 32; i < size; i += 32) {
        int c = group % groups * size + i;
        double dz = 0, dz_d = 0;
        for (int tile = 0; tile < tiles; tile++) {
            const float* pair = sums + ((static_cast<long>(n) * tiles + tile) * C + c) * 2;
            dz += pair[0];
            dz_d += pair[1];
        }
        dshift[n * C + c] = dz;
        dscale[n * C + c] = r * dz_d;                     // x̂ = r · d
        s += gamma[static_cast<long>(n) * step + c] * dz;
        t += gamma[static_cast<long>(n) * step + c] * dz_d;
    }
    s = warp_sum(s), t = warp_sum(t);
    if (threadIdx.x % 32 == 0) {
        double count = static_cast<double>(pixels) * size;
        offset[group] = -r * s / count;
        slope[group] = -r * r * r * t / count;
    }
}


// dy becomes dx. From the last tile to the first: of that the L2 cache still has most.
template <class T>
DEVICE void gradient(T* dy, const T* x, const float* gamma, const float* beta, int step,
                     const float* mean, const float* rstd, const float* slopes,
                     const float* offsets, int pixels, int width, int first, int C, int groups,
                     int each, int tiles, bool active) {
    constexpr int V = LANES<T>;
    Share<T> share(gridDim.x - 1 - blockIdx.x, pixels, width, each, tiles, x, dy);
    int c = first + share.c;
    Line<V> line(gamma, beta, step, mean, rstd, share.n, c, share.count, C, groups);
    float slope[V], offset[V];
    spread(slope, slopes + share.n * groups, c, share.count, C / groups);
    spread(offset, offsets + share.n * groups, c, share.count, C / groups);
    for (int p = share.pixel; p < share.end; p += 2 * blockDim.y) {
        float here[2][V], above[2][V];
        share.load(here, x, p);
        share.load(above, dy, p);
        #pragma unroll
        for (int i = 0; i < 2; i++)
            #pragma unroll
            for (int v = 0; v < V; v++) {
                float d = here[i][v] - line.mean[v], dz = line.dz(v, d, above[i][v], active);
                above[i][v] = dz * line.scale[v] + (d * slope[v] + offset[v]);
            }
        share.store(dy, above, p);
    }
}

KERNEL(256) gradient_float(float* dy, const float* __restrict__ x,
                           const float* __restrict__ gamma, const float* __restrict__ beta,
                           int step, const float* __restrict__ mean, const float* __restrict__ rstd,
                           const float* __restrict__ slope, const float* __restrict__ offset,
                           int pixels, int width, int first, int C, int groups, int each,
                           int tiles, int active) {
    gradient(dy, x, gamma, beta, step, mean, rstd, slope, offset, pixels, width, first, C, groups,
             each, tiles, active);
}

KERNEL(256) gradient_bf16(bf16* dy, const bf16* __restrict__ x,
                          const float* __restrict__ gamma, const float* __restrict__ beta, int step,
                          const float* __restrict__ mean, const float* __restrict__ rstd,
                          const float* __restrict__ slope, const float* __restrict__ offset,
                          int pixels, int width, int first, int C, int groups, int each,
                          int tiles, int active) {
    gradient(dy, x, gamma, beta, step, mean, rstd, slope, offset, pixels, width, first, C, groups,
             each, tiles, active);
}
