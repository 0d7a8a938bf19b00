// A patch of pixels with its halo in shared memory, and what is done to it on the way in and out.
//
// A 3 × 3 convolution that fetches each pixel once, and normalizes it as it passes. A block makes 128
// pixels of 128 outputs, summed as BlockSums says: a patch of `tall` × `wide` pixels, of one image or, where
// images are small, of several. 64 channels at a time, with a halo of one pixel around, are copied
// to shared memory, become silu(x · scale + shift) there, and are read nine times, once for each tap,
// by rows that are shifted. Meanwhile the weights of the next taps are on their way, and the next 64
// channels.
#pragma once
#include "tiles.cuh"
#include "vector.cuh"

struct Patch {                                            // its place, and how its rows are counted
    int N, H, W, tall, wide, images;
    int first_n, top, left;

    DEVICE Patch(int N, int H, int W, int tall, int wide)
        : N(N), H(H), W(W), tall(tall), wide(wide), images(SIDE / (tall * wide)) {
        int across = (W + wide - 1) / wide, down = (H + tall - 1) / tall;
        first_n = blockIdx.x / (across * down) * images;
        top = blockIdx.x / across % down * tall;
        left = blockIdx.x % across * wide;
    }

    DEVICE int with_halo() const { return (tall + 2) * (wide + 2); }

    // The row, in shared memory, of the upper left tap of output m
    DEVICE int row_of(int m) const {
        return m / (tall * wide) * with_halo() + m / wide % tall * (wide + 2) + m % wide;
    }

    // Of output m: its image, whether it lies in it, and which pixel of all it is
    DEVICE int image(int m) const { return first_n + m / (tall * wide); }

    DEVICE bool inside(int m) const {
        return image(m) < N && top + m / wide % tall < H && left + m % wide < W;
    }

    DEVICE long pixel(int m) const {
        return ((long)image(m) * H + top + m / wide % tall) * W + left + m % wide;
    }
};

struct Home {                                             // of a row in shared memory
    int pixel, n;                                         // of all pixels, −1 outside; its image

    DEVICE Home(const Patch& p, int row) {
        n = p.first_n + row / p.with_halo();
        int y = p.top + row % p.with_halo() / (p.wide + 2) - 1;
        int x = p.left + row % p.with_halo() % (p.wide + 2) - 1;
        bool inside = n < p.N && (unsigned)y < (unsigned)p.H && (unsigned)x < (unsigned)p.W;
        pixel = inside ? (n * p.H + y) * p.W + x : -1;
    }
};

struct Input {                                            // x ‖ skip; scale and shift (N, C) or null
    const bf16* x;
    const bf16* skip;
    const float* scale;
    const float* shift;
    int C1, C;
};

// Start copies of 64 channels from `channel` on of a patch; whoever copies a piece normalizes it.
DEVICE void copy_patch(bf16* rows, const Home* homes, int count, const Input& in, int channel) {
    const int c = channel + threadIdx.x % 8 * 8;
    const bool first = c < in.C1;
    const bf16* from = first ? in.x + c : in.skip + (c - in.C1);
    const int width = first ? in.C1 : in.C - in.C1;
    for (int row = threadIdx.x / 8; row < count; row += THREADS / 8) {
        long pixel = homes[row].pixel;
        bool valid = pixel >= 0 && c < in.C;
        cp_async16(rows + place(row, threadIdx.x % 8), valid ? from + pixel * width : in.x, valid);
    }
}

// x becomes silu(x · scale + shift); outside the image stays 0.
DEVICE void normalize(bf16* rows, const Home* homes, int count, const Input& in, int channel) {
    const int c = channel + threadIdx.x % 8 * 8;
    float scale[8], shift[8];
    int known = -1;                                       // the image whose numbers these are
    for (int row = threadIdx.x / 8; row < count; row += THREADS / 8) {
        Home home = homes[row];
        if (home.pixel < 0 || c >= in.C)
            continue;
        if (home.n != known) {
            known = home.n;
            load_floats(scale, in.scale + (long)known * in.C + c, 8);
            load_floats(shift, in.shift + (long)known * in.C + c, 8);
        }
        bf16x8* piece = reinterpret_cast<bf16x8*>(rows + place(row, threadIdx.x % 8));
        bf16x8 eight = *piece;
        #pragma unroll
        for (int i = 0; i < 8; i++)
            eight.at[i] = to_bf16(silu(to_float(eight.at[i]) * scale[i] + shift[i]));
        *piece = eight;
    }
}

// Start copies of a tap's weights for 64 channels: turned, w (9, C, O), or else, for the gradient
// of the input, w (9, O, C) with the taps the other way round
template <bool turned>
DEVICE void copy_weights(bf16* tile, const bf16* w, int tap, int channel, int first_o, int C, int O) {
    if constexpr (turned)
        copy_turned(tile, [&](int, int k, int c) {
            bool valid = channel + k < C && first_o + 8 * c < O;
            return Chunk{valid ? w + ((long)tap * C + channel + k) * O + first_o + 8 * c : w, valid};
        });
    else
        copy_tile(tile, [&](int, int row, int c) {
            bool valid = first_o + row < O && channel + 8 * c < C;
            return Chunk{valid ? w + ((long)(8 - tap) * O + first_o + row) * C + channel + 8 * c : w,
                         valid};
        });
}

// All taps of all channels: sums.tap(patch, the row of each tap's upper left, weights) for each
template <bool turned, class AnySums>
DEVICE void convolve(AnySums& sums, const Warp& warp, const Patch& patch, const Input& in,
                     const bf16* w, int first_o, int O) {
    bf16* weights = reinterpret_cast<bf16*>(shared_memory());             // STAGES tiles
    bf16* pixels = weights + STAGES * TILE;                               // two patches
    const int count = patch.images * patch.with_halo(), size = count * DEPTH;
    Home* homes = reinterpret_cast<Home*>(pixels + 2 * size);             // of a patch's rows
    for (int row = threadIdx.x; row < count; row += THREADS)
        homes[row] = Home(patch, row);
    __syncthreads();
    const int slabs = (in.C + DEPTH - 1) / DEPTH, steps = 9 * slabs;
    auto copy_tap = [&](int step) {
        if (step < steps)
            copy_weights<turned>(weights + step % STAGES * TILE, w, step % 9, step / 9 * DEPTH,
                                 first_o, in.C, O);
        cp_commit();
    };
    int rows[AnySums::FRAGMENTS];                         // which of the patch this lane points at
    #pragma unroll
    for (int i = 0; i < AnySums::FRAGMENTS; i++)
        rows[i] = patch.row_of(AnySums::fragment(warp, i) + warp.lane % 16);
    copy_patch(pixels, homes, count, in, 0);
    cp_commit();
    copy_tap(0);
    copy_tap(1);
    for (int step = 0; step < steps; step++) {
        const int tap = step % 9, slab = step / 9;
        bf16* now = pixels + slab % 2 * size;
        cp_wait<1>();                                     // these weights, and all older copies
        if (tap == 0 && in.scale)
            normalize(now, homes, count, in, slab * DEPTH);
        AnySums::before_barrier();
        __syncthreads();
        if (tap == 3 && slab + 1 < slabs)
            copy_patch(pixels + (slab + 1) % 2 * size, homes, count, in, (slab + 1) * DEPTH);
        copy_tap(step + 2);
        const int shift = tap / 3 * (patch.wide + 2) + tap % 3;
        sums.template add_rows<turned>(now, rows, shift, weights + step % STAGES * TILE, warp);
    }
}

// Mean and Σ (y − mean)² of each column over groups of rows that stand side by side, `lines` times
// eight of them; rows outside the image do not count.
template <class AnySums, class Inside>
DEVICE void statistics(AnySums& sums, const Warp& w, float* moments, int first_o, int O, int lines,
                       Inside inside) {
    auto over_rows = [](float x) {                        // lanes of a column stand 4 apart
        for (int step = 4; step < 32; step *= 2)
            x += __shfl_xor_sync(0xffffffffu, x, step);
        return x;
    };
    unsigned counted = 0;                                 // a bit for each line
    #pragma unroll
    for (int line = 0; line < AnySums::LINES; line++)
        counted |= inside(AnySums::row(w, line)) << line;
    for (int first = 0; first < AnySums::LINES; first += lines) {
        const unsigned group = ((1u << lines) - 1) << first & counted;
        const float count = fmaxf(over_rows(__popc(group)), 1.0f);
        const int row = AnySums::row(w, first) - w.lane / 4;
        float* out = moments + (long)((blockIdx.x * SIDE + row) / (8 * lines)) * O * 2;
        #pragma unroll
        for (int pair = 0; pair < AnySums::PAIRS; pair++)
            #pragma unroll
            for (int i = 0; i < 2; i++) {
                float mean = 0, squares = 0;
                #pragma unroll
                for (int line = 0; line < AnySums::LINES; line++)
                    mean += group >> line & 1 ? sums.at(line, pair, i) : 0;
                mean = over_rows(mean) / count;
                #pragma unroll
                for (int line = 0; line < AnySums::LINES; line++) {
                    float away = sums.at(line, pair, i) - mean;
                    squares += group >> line & 1 ? away * away : 0;
                }
                squares = over_rows(squares);
                int o = first_o + AnySums::column(w, pair) + i;
                if (w.lane < 4 && o < O)
                    out[o * 2] = mean, out[o * 2 + 1] = squares;
            }
    }
}

struct Output {                                           // what becomes of the sums
    const float* base;                                    // (O,) or, base_step = O, (N, O); or null
    int base_step;
    const bf16* add;                                      // like y, or null
    bf16* y;
    float* moments;                                       // or null
    int lines;                                            // eighths of the rows of a mean
};

// y = sums + base + add, and its moments
template <class AnySums>
DEVICE void finish(AnySums& sums, const Warp& w, const Patch& p, const Output& out, int first_o,
                   int O) {
    for_each(sums, w, [&](int m, int column, float& u, float& v) {
        int o = first_o + column;
        if (!p.inside(m) || o >= O)
            return;
        if (out.base) {
            const float* line = out.base + (long)p.image(m) * out.base_step;
            u += line[o], v += line[o + 1];
        }
        if (out.add) {
            const bf16* more = out.add + p.pixel(m) * O + o;
            u += to_float(more[0]), v += to_float(more[1]);
        }
        *reinterpret_cast<unsigned*>(out.y + p.pixel(m) * O + o) = pack(u, v);
    });
    if (out.moments)
        statistics(sums, w, out.moments, first_o, O, out.lines, [&](int m) { return p.inside(m); });
}

// The first O1 of the channels to dx, the others to dskip
template <class AnySums>
DEVICE void hand_back(AnySums& sums, const Warp& w, const Patch& p, bf16* dx, bf16* dskip,
                      int first_o, int O1, int O) {
    for_each(sums, w, [&](int m, int column, float u, float v) {
        int o = first_o + column;
        if (!p.inside(m) || o >= O)
            return;
        bf16* to = o < O1 ? dx + p.pixel(m) * O1 + o : dskip + p.pixel(m) * (O - O1) + (o - O1);
        *reinterpret_cast<unsigned*>(to) = pack(u, v);
    });
}

// y = conv(silu(x · scale + shift)) + base + add; base (O,) or, base_step = O, (N, O)
KERNEL(128, 2) fused(const bf16* __restrict__ x, const bf16* __restrict__ skip,
                     const float* __restrict__ scale, const float* __restrict__ shift,
                     const bf16* __restrict__ w, const float* __restrict__ base,
                     const bf16* __restrict__ add, bf16* __restrict__ y,
                     float* __restrict__ moments, int N, int H, int W, int C1, int C, int O,
                     int tall, int wide, int base_step, int lines) {
    const Patch patch(N, H, W, tall, wide);
    const int first_o = blockIdx.y * SIDE;
    Warp warp;
    BlockSums sums;
    convolve<true>(sums, warp, patch, {x, skip, scale, shift, C1, C}, w, first_o, O);
    finish(sums, warp, patch, {base, base_step, add, y, moments, lines}, first_o, O);
}

// dx = conv(dy) with the taps turned round; dx takes the first O1 of its O channels, dskip the rest
KERNEL(128, 2) fused_grad_input(const bf16* __restrict__ dy, const bf16* __restrict__ w,
                                bf16* __restrict__ dx, bf16* __restrict__ dskip, int N, int H, int W,
                                int C, int O1, int O, int tall, int wide) {
    const Patch patch(N, H, W, tall, wide);
    const int first_o = blockIdx.y * SIDE;
    Warp warp;
    BlockSums sums;
    convolve<false>(sums, warp, patch, {dy, dy, nullptr, nullptr, C, C}, w, first_o, O);
    hand_back(sums, warp, patch, dx, dskip, first_o, O1, O);
}
