// GroupNorm where a thread has a vector of channels, and a warp whole lines of memory.  columns.cuh
//
// Two inputs side by side are measured one by one, as if the other were not there, and combined.
// measure* holds: LDG.E.128
// apply* holds: LDG.E.128 STG.E.128
#include "columns.cuh"


// out (N, tiles, width, 2): the mean of each channel over a tile's pixels, less the pivot, and the
// sum of squares around that mean; counts (tiles,) are those pixels. The pivot (N, width) is the
// mean of four pixels of the image: so near that sums around it lose no digits.
template <class T>
DEVICE void measure(const T* x, float* out, float* pivot, float* counts, int pixels, int width,
                    int each, int tiles) {
    constexpr int V = LANES<T>;
    Share<T> share(blockIdx.x, pixels, width, each, tiles, x);
    float centre[V], sums[2][V] = {}, here[4][V];
    #pragma unroll
    for (int i = 0; i < 4; i++)
        load(here[i], x + share.at(pixels / 4 * i), share.count, share.whole);
    #pragma unroll
    for (int v = 0; v < V; v++)
        centre[v] = ((here[0][v] + here[1][v]) + (here[2][v] + here[3][v])) / 4;
    for (int p = share.pixel; p < share.end; p += 4 * blockDim.y) {
        share.load(here, x, p);
        #pragma unroll
        for (int i = 0; i < 4; i++)
            #pragma unroll
            for (int v = 0; v < V; v++) {
                float d = share.has(p, i) ? here[i][v] - centre[v] : 0;
                sums[0][v] += d;
                sums[1][v] += d * d;
            }
    }
    int first = share.tile * each;
    float count = pixels - first < each ? pixels - first : each;
    float* row = out + (static_cast<long>(share.n) * tiles + share.tile) * width * 2;
    sum_down(share, sums, [&](int c, const float (&sum)[2]) {
        row[2 * c] = sum[0] / count;
        row[2 * c + 1] = sum[1] - sum[0] * sum[0] / count;
    });
    if (share.tile == 0 && threadIdx.y == 0)
        store_floats(pivot + static_cast<long>(share.n) * width + share.c, centre, share.count);
    if (share.n == 0 && share.c == 0 && threadIdx.y == 0)
        counts[share.tile] = count;
}

KERNEL(256) measure_float(const float* __restrict__ x, float* out, float* pivot, float* counts,
                          int pixels, int width, int each, int tiles) {
    measure(x, out, pivot, counts, pixels, width, each, tiles);
}

KERNEL(256) measure_bf16(const bf16* __restrict__ x, float* out, float* pivot, float* counts,
                         int pixels, int width, int each, int tiles) {
    measure(x, out, pivot, counts, pixels, width, each, tiles);
}


// What is known of an input: of C channels, which stand behind `before` others. No pivot: zeros.
struct Side {
    const float *moments, *pivot, *counts;
    int tiles, before, C;

    // each(count, mean, squares) for all tiles of image n's channels from … to − 1, among the lanes
    template <class Each>
    DEVICE void visit(int n, int from, int to, Each each) const {
        int first = max(from - before, 0), width = min(to - before, C) - first;
        for (int i = threadIdx.x % 32; i < tiles * width; i += 32) {
            int tile = i / width, c = first + i % width;
            const float* pair = moments + ((static_cast<long>(n) * tiles + tile) * C + c) * 2;
            double about = pivot ? pivot[static_cast<long>(n) * C + c] : 0.0f;
            each(counts[tile], about + pair[0], pair[1]);
        }
    }
};

// mean and rstd (N, groups) of one input, or of two side by side. A warp has a group; it adds up in
// double what is known of parts: Σ (x − mean)² = Σ_parts squares + count · (part's mean − mean)²
KERNEL(256) combine(const float* __restrict__ left_moments, const float* __restrict__ left_pivot,
                    const float* __restrict__ left_counts, int left_tiles, int C1,
                    const float* __restrict__ right_moments, const float* __restrict__ right_pivot,
                    const float* __restrict__ right_counts, int right_tiles, int C2, float* mean,
                    float* rstd, int N, int groups, float eps) {
    int group = blockIdx.x * 8 + threadIdx.x / 32, n = group / groups, size = (C1 + C2) / groups;
    if (n >= N)
        return;
    int from = group % groups * size, to = from + size;
    const Side left = {left_moments, left_pivot, left_counts, left_tiles, 0, C1};
    const Side right = {right_moments, right_pivot, right_counts, right_tiles, C1, C2};

    double total = 0, numbers = 0;
    auto add = [&](double count, double part, float) {
        numbers += count;
        total += count * part;
    };
    left.visit(n, from, to, add);
    right.visit(n, from, to, add);
    numbers = warp_sum(numbers);
    double middle = warp_sum(total) / numbers, squares = 0;

    auto add_squares = [&](double count, double part, float around) {
        squares += around + count * (part - middle) * (part - middle);
    };
    left.visit(n, from, to, add_squares);
    right.visit(n, from, to, add_squares);
    squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) {
        mean[group] = middle;
        rstd[group] = 1 / sqrt(squares / numbers + eps);
    }
}


// slope and offset (N, C): (x − mean) · rstd · γ + β = x · slope + offset. γ and β of the next image
// are `step` numbers on: 0, where all images share them.
KERNEL(256) line(const float* __restrict__ gamma, const float* __restrict__ beta, int step,
                 const float* __restrict__ mean, const float* __restrict__ rstd, float* slope,
                 float* offset, int N, int C, int groups) {
    int i = blockIdx.x * 256 + threadIdx.x, n = i / C, c = i % C;
    if (n >= N)
        return;
    int group = n * groups + c / (C / groups);
    float g = gamma[static_cast<long>(n) * step + c] * rstd[group];
    slope[i] = g;
    offset[i] = beta[static_cast<long>(n) * step + c] - g * mean[group];
}


// y = x · scale + shift, or its SiLU. From the last tile to the first: what was read last when the
// sums were taken is still in the L2 cache.
template <class T>
DEVICE void apply(const T* x, const float* scale, const float* shift, T* y, int pixels, int width,
                  int each, int tiles, bool active) {
    constexpr int V = LANES<T>;
    Share<T> share(gridDim.x - 1 - blockIdx.x, pixels, width, each, tiles, x, y);
    long channel = static_cast<long>(share.n) * width + share.c;
    float a[V], b[V];
    load_floats(a, scale + channel, share.count);
    load_floats(b, shift + channel, share.count);
    for (int p = share.pixel; p < share.end; p += 4 * blockDim.y) {
        float z[4][V];
        share.load(z, x, p);
        #pragma unroll
        for (int i = 0; i < 4; i++)
            #pragma unroll
            for (int v = 0; v < V; v++) {
                z[i][v] = z[i][v] * a[v] + b[v];
                if (active)
                    z[i][v] = silu(z[i][v]);
            }
        share.store(y, z, p);
    }
}

KERNEL(256) apply_float(const float* __restrict__ x, const float* __restrict__ scale,
                        const float* __restrict__ shift, float* __restrict__ y, int pixels,
                        int width, int each, int tiles, int active) {
    apply(x, scale, shift, y, pixels, width, each, tiles, active);
}

KERNEL(256) apply_bf16(const bf16* __restrict__ x, const float* __restrict__ scale,
                       const float* __restrict__ shift, bf16* __restrict__ y, int pixels,
                       int width, int each, int tiles, int active) {
    apply(x, scale, shift, y, pixels, width, each, tiles, active);
}
