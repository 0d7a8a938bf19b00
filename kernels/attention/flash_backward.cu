// The way back from y = softmax(q kᵀ · scale) v, without atomics.  rung5_flash.py
// slopes holds: HMMA.16816.F32.BF16 LDSM LDGSTS
// means holds: LDG.E.128
//
//     p = e^(s − log_sum)     ds = p · (dy vᵀ − mean)     mean = Σ dy · y
//     dq = ds k · scale       dk = dsᵀ q · scale          dv = pᵀ dy
//
// A block that owns queries goes over all keys for their dq; one that owns keys goes over all
// queries for their dk and dv. So scores are found twice; each sum has one owner and one order.
#include "scores.cuh"

constexpr int OWN = 16 * WARPS;                           // rows of a block

// mean (N, h, L) = Σ dy · y, eight lanes a row. grid: blocks of 32 queries; h; N
KERNEL(256) means(const bf16* __restrict__ dy, long dy_image, long dy_head, long dy_row,
                  const bf16* __restrict__ y, long y_image, long y_head, long y_row,
                  float* __restrict__ mean, int L, int e) {
    const int l = blockIdx.x * 32 + threadIdx.x / 8;
    const long h = blockIdx.y, n = blockIdx.z;
    dy += n * dy_image + h * dy_head + l * dy_row;
    y += n * y_image + h * y_head + l * y_row;
    float sum = 0;
    for (int c = threadIdx.x % 8 * 8; l < L && c < e; c += 64) {
        bf16x8 a = *reinterpret_cast<const bf16x8*>(dy + c);
        bf16x8 b = *reinterpret_cast<const bf16x8*>(y + c);
        #pragma unroll
        for (int i = 0; i < 8; i++)
            sum += to_float(a.at[i]) * to_float(b.at[i]);
    }
    for (int step = 4; step; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (l < L && threadIdx.x % 8 == 0)
        mean[(n * gridDim.y + h) * L + l] = sum;
}

struct Head {                                             // what there is of one image's head
    Lines q, k, v, dy;
    Added added;
    float scale;
    const float* log_sum;                                 // (L,)
    const float* mean;
    bf16* dq;                                             // rows of all heads side by side
    bf16* dk;
    bf16* dv;
    int heads;

    DEVICE long d_step() const { return (long)heads * k.columns; }
    DEVICE long e_step() const { return (long)heads * v.columns; }
};

template <int KEYS, int D>
struct QueryRoom { Tile<OWN, D> q, dy; Tile<KEYS, D> k[2], v[2]; };

template <int D, int KEYS>
DEVICE void own_queries(const Head& head, int block) {
    auto& room = *reinterpret_cast<QueryRoom<KEYS, D>*>(shared_memory());
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
    const int first = block * OWN + row;                  // query of this warp
    const int L = head.q.count, M = head.k.count;
    float total[2], middle[2];                            // of my queries: log₂ Σ eˢ, mean
    #pragma unroll
    for (int i = 0; i < 2; i++) {
        int l = min(first + 8 * i + lane / 4, L - 1);
        total[i] = finite(head.log_sum[l]) * LOG2_E;
        middle[i] = head.mean[l];
    }
    Sums<1, D> sums;
    room.q.fetch(head.q, block * OWN);
    room.dy.fetch(head.dy, block * OWN);
    room.k[0].fetch(head.k, 0);
    room.v[0].fetch(head.v, 0);
    cp_commit();
    for (int m = 0, now = 0; m < M; m += KEYS, now ^= 1) {
        cp_wait<0>();
        __syncthreads();                                  // this tile is here, the last one is used
        if (m + KEYS < M) {
            room.k[now ^ 1].fetch(head.k, m + KEYS);
            room.v[now ^ 1].fetch(head.v, m + KEYS);
        }
        cp_commit();
        Sums<1, KEYS> s, ds;
        s.add_transposed(room.q, row, room.k[now]);
        become_scores(s, head.scale, head.added, first + lane / 4, m);
        ds.add_transposed(room.dy, row, room.v[now]);
        ds.each(s, [&](float& x, float s, int i, int) {
            x = exp2_fast(s - total[i]) * (x - middle[i]);
        });
        sums.add(ds, room.k[now]);
    }
    sums.each([&](float& x, int, int) { x *= head.scale; });
    sums.store(room.q, row, head.dq + first * head.d_step(), head.d_step(), L - first,
               head.q.columns);
}

template <int QUERIES, int D>
struct KeyRoom {
    Tile<OWN, D> k, v;
    Tile<QUERIES, D> q[2], dy[2];
    float total[2][QUERIES], middle[2][QUERIES];          // log₂ Σ eˢ, mean

    DEVICE void fetch(const Head& head, int stage, int l) {
        q[stage].fetch(head.q, l);
        dy[stage].fetch(head.dy, l);
        if (int i = threadIdx.x; i < QUERIES) {           // behind the last query dy and ds are 0
            bool valid = l + i < head.q.count;
            total[stage][i] = valid ? finite(head.log_sum[l + i]) * LOG2_E : 0;
            middle[stage][i] = valid ? head.mean[l + i] : 0;
        }
    }
};

// Scores lie turned, rows are keys and columns queries. OF_KEYS, OF_VALUES: find dk, find dv.
template <int D, int QUERIES, bool OF_KEYS, bool OF_VALUES>
DEVICE void own_keys(const Head& head, int block) {
    auto& room = *reinterpret_cast<KeyRoom<QUERIES, D>*>(shared_memory());
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
    const int first = block * OWN + row;                  // key of this warp
    const int L = head.q.count, M = head.k.count;
    Sums<1, D> k_sums, v_sums;
    room.k.fetch(head.k, block * OWN);
    room.v.fetch(head.v, block * OWN);
    room.fetch(head, 0, 0);
    cp_commit();
    for (int l = 0, now = 0; l < L; l += QUERIES, now ^= 1) {
        cp_wait<0>();
        __syncthreads();
        if (l + QUERIES < L)
            room.fetch(head, now ^ 1, l + QUERIES);
        cp_commit();
        Sums<1, QUERIES> p, ds;
        p.add_transposed(room.k, row, room.q[now]);
        become_scores(p, head.scale, head.added.turned(), first + lane / 4, l);
        p.each([&](float& x, int, int c) { x = exp2_fast(x - room.total[now][c]); });
        if constexpr (OF_VALUES)
            v_sums.add(p, room.dy[now]);
        if constexpr (OF_KEYS) {
            ds.add_transposed(room.v, row, room.dy[now]);
            ds.each(p, [&](float& x, float p, int, int c) { x = p * (x - room.middle[now][c]); });
            k_sums.add(ds, room.q[now]);
        }
    }
    if constexpr (OF_VALUES)
        v_sums.store(room.v, row, head.dv + first * head.e_step(), head.e_step(), M - first,
                     head.v.columns);
    if constexpr (OF_KEYS) {
        k_sums.each([&](float& x, int, int) { x *= head.scale; });
        k_sums.store(room.k, row, head.dk + first * head.d_step(), head.d_step(), M - first,
                     head.k.columns);
    }
}

// The first blocks own keys: they have most to do. Where the sums of dk and dv do not fit into the
// registers together, some find dk and others dv.
template <int D, int COLUMNS>
DEVICE void share_out(const Head& head) {
    const int block = blockIdx.x, blocks = (head.k.count + OWN - 1) / OWN;
    if constexpr (D > 128) {
        if (block < blocks)
            own_keys<D, COLUMNS, true, false>(head, block);
        else if (block < 2 * blocks)
            own_keys<D, COLUMNS, false, true>(head, block - blocks);
        else
            own_queries<D, COLUMNS>(head, block - 2 * blocks);
    } else {
        if (block < blocks)
            own_keys<D, COLUMNS, true, true>(head, block);
        else
            own_queries<D, COLUMNS>(head, block - blocks);
    }
}

// Arrays as in rung5_flash.cu; dq (N, L, h, d), dk (N, M, h, d), dv (N, M, h, e).
// grid: blocks, as share_out says; h; N
KERNEL(128, 2) slopes(const bf16* __restrict__ q, long q_image, long q_head, long q_row,
                      const bf16* __restrict__ k, long k_image, long k_head, long k_row,
                      const bf16* __restrict__ v, long v_image, long v_head, long v_row,
                      const bf16* __restrict__ dy, long dy_image, long dy_head, long dy_row,
                      const float* __restrict__ added, long added_image, long added_head,
                      long added_row, long added_column,
                      const float* __restrict__ log_sum, const float* __restrict__ mean,
                      bf16* __restrict__ dq, bf16* __restrict__ dk, bf16* __restrict__ dv,
                      int L, int M, int d, int e, int width, float scale) {
    const long h = blockIdx.y, n = blockIdx.z, heads = gridDim.y, one = n * heads + h;
    added += added ? n * added_image + h * added_head : 0;
    Head head{{q + n * q_image + h * q_head, q_row, L, d},
              {k + n * k_image + h * k_head, k_row, M, d},
              {v + n * v_image + h * v_head, v_row, M, e},
              {dy + n * dy_image + h * dy_head, dy_row, L, e},
              {added, added_row, added_column, L, M},
              scale, log_sum + one * L, mean + one * L,
              dq + (n * L * heads + h) * d, dk + (n * M * heads + h) * d,
              dv + (n * M * heads + h) * e, (int)heads};
    switch (width) {
    case 32:  return share_out<32, 64>(head);
    case 64:  return share_out<64, 64>(head);
    case 128: return share_out<128, 32>(head);
    case 256: return share_out<256, 16>(head);
    }
}
