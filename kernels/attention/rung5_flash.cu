// y = softmax(q kᵀ · scale) v on tensor cores, a block of queries at a time.  rung5_flash.py
// holds: HMMA.16816.F32.BF16 LDSM LDGSTS
#include "scores.cuh"

template <int QUERIES, int KEYS, int D>
struct Room { Tile<QUERIES, D> q; Tile<KEYS, D> k[2], v[2]; };

// A warp has 16 · TILES queries. While it works on a tile of keys, the next is on its way.
template <int D, int TILES, int KEYS>
DEVICE void attend(Lines q, Lines k, Lines v, const Added& added, float scale, bf16* y,
                   float* log_sum) {
    constexpr int QUERIES = 16 * TILES * WARPS;
    auto& room = *reinterpret_cast<Room<QUERIES, KEYS, D>*>(shared_memory());
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 * TILES;
    const int first = blockIdx.x * QUERIES + row;         // query of this warp
    Sums<TILES, D> sums;
    Seen<TILES> seen;
    room.q.fetch(q, blockIdx.x * QUERIES);
    room.k[0].fetch(k, 0);
    room.v[0].fetch(v, 0);
    cp_commit();
    for (int m = 0, now = 0; m < k.count; m += KEYS, now ^= 1) {
        cp_wait<0>();
        __syncthreads();                                  // this tile is here, the last one is used
        if (m + KEYS < k.count) {
            room.k[now ^ 1].fetch(k, m + KEYS);
            room.v[now ^ 1].fetch(v, m + KEYS);
        }
        cp_commit();
        Sums<TILES, KEYS> s;
        s.add_transposed(room.q, row, room.k[now]);
        become_scores(s, scale, added, first + lane / 4, m);
        seen.absorb(s, sums);
        sums.add(s, room.v[now]);
    }
    seen.finish(sums);
    const long n = blockIdx.z, h = blockIdx.y, heads = gridDim.y;
    y += ((n * q.count + first) * heads + h) * v.columns;
    sums.store(room.q, row, y, heads * v.columns, q.count - first, v.columns);
    log_sum += (n * heads + h) * q.count;
    #pragma unroll
    for (int i = 0; i < 2 * TILES; i++)
        if (lane % 4 == 0 && first + 8 * i + lane / 4 < q.count)
            log_sum[first + 8 * i + lane / 4] = seen.log_sum(i);
}

// q (N, h, L, d), k (N, h, M, d), v (N, h, M, e), of any steps but for rows; y (N, L, h, e),
// log_sum (N, h, L). grid: blocks of queries, h, N; width: what d and e fit in.
KERNEL(128, 2) forward(const bf16* __restrict__ q, long q_image, long q_head, long q_row,
                       const bf16* __restrict__ k, long k_image, long k_head, long k_row,
                       const bf16* __restrict__ v, long v_image, long v_head, long v_row,
                       const float* __restrict__ added, long added_image, long added_head,
                       long added_row, long added_column,
                       bf16* __restrict__ y, float* __restrict__ log_sum,
                       int L, int M, int d, int e, int width, float scale) {
    const long h = blockIdx.y, n = blockIdx.z;
    added += added ? n * added_image + h * added_head : 0;
    Lines queries{q + n * q_image + h * q_head, q_row, L, d};
    Lines keys{k + n * k_image + h * k_head, k_row, M, d};
    Lines values{v + n * v_image + h * v_head, v_row, M, e};
    Added more{added, added_row, added_column, L, M};
    switch (width) {
    case 32:  return attend<32, 2, 64>(queries, keys, values, more, scale, y, log_sum);
    case 64:  return attend<64, 2, 32>(queries, keys, values, more, scale, y, log_sum);
    case 128: return attend<128, 1, 64>(queries, keys, values, more, scale, y, log_sum);
    case 256: return attend<256, 1, 32>(queries, keys, values, more, scale, y, log_sum);
    }
}
