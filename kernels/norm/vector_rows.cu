// LayerNorm: each row of x (P, D) by itself. A warp has a row, a lane every 32nd vector of it; what
// the warp comes back to is still in the L1 cache.
// holds: LDG.E.128
#include "columns.cuh"

// The vectors of a row that a lane has, in turn: each(c, how many numbers from channel c on)
template <class T, class Each>
DEVICE void over_row(int D, Each each) {
    for (int c = threadIdx.x % 32 * LANES<T>; c < D; c += 32 * LANES<T>)
        each(c, D - c < LANES<T> ? D - c : LANES<T>);
}

DEVICE int row_of_warp() { return blockIdx.x * 8 + threadIdx.x / 32; }

// mean and 1 / √(var + eps) of a row, for all lanes; sums around its first number lose no digits
template <class T>
DEVICE float2 about(const T* row, int D, bool whole, float eps) {
    float first = to_float(row[0]), sum = 0, squares = 0, x[LANES<T>];
    over_row<T>(D, [&](int c, int count) {
        load(x, row + c, count, whole);
        #pragma unroll
        for (int v = 0; v < LANES<T>; v++)
            sum += v < count ? x[v] - first : 0;
    });
    float mean = first + warp_sum(sum) / D;
    over_row<T>(D, [&](int c, int count) {
        load(x, row + c, count, whole);
        #pragma unroll
        for (int v = 0; v < LANES<T>; v++)
            squares += v < count ? (x[v] - mean) * (x[v] - mean) : 0;
    });
    return {mean, 1 / sqrtf(warp_sum(squares) / D + eps)};
}


// y = x̂ · scale + shift, x̂ = (x − mean) · rstd
template <class T>
DEVICE void normalize(const T* x, const float* scale, const float* shift, T* y, int P, int D,
                      float eps) {
    constexpr int V = LANES<T>;
    int p = row_of_warp();
    if (p >= P)
        return;
    bool whole = D % V == 0 && aligned(x) && aligned(y);
    const T* row = x + static_cast<long>(p) * D;
    T* out = y + static_cast<long>(p) * D;
    float2 of = about(row, D, whole, eps);                // mean, rstd
    over_row<T>(D, [&](int c, int count) {
        float z[V], a[V], b[V];
        load(z, row + c, count, whole);
        load_floats(a, scale + c, count);
        load_floats(b, shift + c, count);
        #pragma unroll
        for (int v = 0; v < V; v++)
            z[v] = (z[v] - of.x) * of.y * a[v] + b[v];
        store(out + c, z, count, whole);
    });
}

KERNEL(256) rows_float(const float* __restrict__ x, const float* __restrict__ scale,
                       const float* __restrict__ shift, float* __restrict__ y, int P, int D,
                       float eps) {
    normalize(x, scale, shift, y, P, D, eps);
}

KERNEL(256) rows_bf16(const bf16* __restrict__ x, const float* __restrict__ scale,
                      const float* __restrict__ shift, bf16* __restrict__ y, int P, int D,
                      float eps) {
    normalize(x, scale, shift, y, P, D, eps);
}


// dx = rstd · (g − mean(g) − x̂ · mean(g · x̂)), g = dy · scale; mean and rstd of each row (P, 2)
template <class T>
DEVICE void gradient(const T* dy, const T* x, const float* scale, T* dx, float* moments, int P,
                     int D, float eps) {
    constexpr int V = LANES<T>;
    int p = row_of_warp();
    if (p >= P)
        return;
    bool whole = D % V == 0 && aligned(x) && aligned(dy) && aligned(dx);
    long start = static_cast<long>(p) * D;
    float2 of = about(x + start, D, whole, eps);
    float x_hat[V], g[V], a[V], sum = 0, along = 0;       // Σ g, Σ g · x̂
    auto read = [&](int c, int count) {
        load(x_hat, x + start + c, count, whole);
        load(g, dy + start + c, count, whole);
        load_floats(a, scale + c, count);
        #pragma unroll
        for (int v = 0; v < V; v++) {
            x_hat[v] = (x_hat[v] - of.x) * of.y;
            g[v] *= a[v];                                 // 0 beyond the row
        }
    };
    over_row<T>(D, [&](int c, int count) {
        read(c, count);
        #pragma unroll
        for (int v = 0; v < V; v++) {
            sum += g[v];
            along += v < count ? g[v] * x_hat[v] : 0;
        }
    });
    sum = warp_sum(sum) / D, along = warp_sum(along) / D;
    over_row<T>(D, [&](int c, int count) {
        read(c, count);
        #pragma unroll
        for (int v = 0; v < V; v++)
            g[v] = of.y * (g[v] - sum - x_hat[v] * along);
        store(dx + start + c, g, count, whole);
    });
    if (threadIdx.x % 32 == 0) {
        moments[2 * p] = of.x;
        moments[2 * p + 1] = of.y;
    }
}

KERNEL(256) gradient_float(const float* __restrict__ dy, const float* __restrict__ x,
                           const float* __restrict__ scale, float* __restrict__ dx, float* moments,
                           int P, int D, float eps) {
    gradient(dy, x, scale, dx, moments, P, D, eps);
}

KERNEL(256) gradient_bf16(const bf16* __restrict__ dy, const bf16* __restrict__ x,
                          const float* __restrict__ scale, bf16* __restrict__ dx, float* moments,
                          int P, int D, float eps) {
    gradient(dy, x, scale, dx, moments, P, D, eps);
}


// out (tiles, 2, D): Σ dy · x̂ and Σ dy over a tile's rows, to be dscale and dshift
template <class T>
DEVICE void sum_rows(const T* dy, const T* x, const float* moments, float* out, int P, int D,
                     int each, int tiles) {
    constexpr int V = LANES<T>;
    Share<T> share(blockIdx.x, P, D, each, tiles, x, dy);
    float sums[2][V] = {};
    for (int p = share.pixel; p < share.end; p += 2 * blockDim.y) {
        float here[2][V], above[2][V];                    // zeros beyond the last row
        share.load(here, x, p);
        share.load(above, dy, p);
        #pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = share.has(p, i) ? share.pixel_of(p, i) : p;
            float mean = moments[2 * row], rstd = moments[2 * row + 1];
            #pragma unroll
            for (int v = 0; v < V; v++) {
                sums[0][v] += above[i][v] * ((here[i][v] - mean) * rstd);
                sums[1][v] += above[i][v];
            }
        }
    }
    float* both = out + static_cast<long>(share.tile) * 2 * D;
    sum_down(share, sums, [&](int c, const float (&sum)[2]) {
        both[c] = sum[0];
        both[D + c] = sum[1];
    });
}

KERNEL(256) sums_float(const float* __restrict__ dy, const float* __restrict__ x,
                       const float* __restrict__ moments, float* out, int P, int D, int each,
                       int tiles) {
    sum_rows(dy, x, moments, out, P, D, each, tiles);
}

KERNEL(256) sums_bf16(const bf16* __restrict__ dy, const bf16* __restrict__ x,
                      const float* __restrict__ moments, float* out, int P, int D, int each,
                      int tiles) {
    sum_rows(dy, x, moments, out, P, D, each, tiles);
}
