// target: compute_80
// Exact search by many queries over float16 vectors: products by tensor cores, whose scores are never written.
//
// FAISS 1.15 writes all scores of a batch to memory and chooses from them; for 1,024 queries over 1,000,000 x 384 that takes
// 25 times as long as the products do. Here a sample of the rows says first how near an answer must be at
// least: the k-th best of the sample is no better than the k-th best of all. Then all rows are multiplied, and only what
// is that near is kept: a few hundred of a million for each query, of which the best are chosen at last.
//
// A block multiplies 128 queries by 256 rows, 32 dimensions at a time, which come in four steps ahead. Its eight warps
// have 64 x 64 scores each. Blocks go on to the next tile without a pause.

#include "keys.cuh"

const int TILE_Q = 128, TILE_R = 256, TILE_K = 32, STAGES = 4;
const int ROW_BYTES = TILE_K * 2;
const int Q_BYTES = TILE_Q * ROW_BYTES, R_BYTES = TILE_R * ROW_BYTES, STAGE_BYTES = Q_BYTES + R_BYTES;

__device__ __forceinline__ void copy_16(u32 to, const void* from, bool there) {
    const int size = there ? 16 : 0;  // the rest becomes zero
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size));
}

__device__ __forceinline__ void load_matrices(u32 (&out)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at));
}

__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Where 16 bytes of a row lie in a tile: eight rows at the same place of theirs are in different banks.
__device__ __forceinline__ u32 place(int row, int chunk) {
    return row * ROW_BYTES + ((chunk ^ ((row >> 1) & 3)) << 4);
}

// What is compared: -q.x, or |x|^2 - 2 q.x, in which only |q|^2 is missing. Smaller is nearer.
template <bool L2> __device__ __forceinline__ float compared(float product, float square) {
    return L2 ? fmaf(-2.0f, product, square) : -product;
}

// Rows first + p * stride, p < count, by `query_tiles` x 128 queries (padded with zeros). SAMPLE writes `keys`
// (queries, count); else rows whose score is at most the query's threshold go to `out` (queries, room), counted in `given`.
template <bool L2, bool SAMPLE>
__device__ __forceinline__ void products(
    const unsigned short* vectors, u64 first, u64 stride, u32 count, int dimension, const unsigned short* queries,
    int query_tiles, const float* squares, const u32* allowed, u32* keys, const float* thresholds, u32* given, u64* out, u32 room
) {
    extern __shared__ __align__(128) unsigned char memory[];
    const u32 base = static_cast<u32>(__cvta_generic_to_shared(memory));
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const int warp_q = (warp & 1) * 64, warp_r = (warp >> 1) * 64;
    const int steps_a_unit = (dimension + TILE_K - 1) / TILE_K;
    const u32 units = (count + TILE_R - 1) / TILE_R * query_tiles;
    const u32 mine = blockIdx.x < units ? (units - blockIdx.x - 1) / gridDim.x + 1 : 0;
    const u32 total = mine * steps_a_unit;

    // The side that loads: which unit and step comes next, and where its rows begin.
    const int own_row = threadIdx.x >> 2, own_chunk = threadIdx.x & 3;
    const unsigned short* from_q[2];
    const unsigned short* from_r[4];
    bool there[4];
    u32 load_unit = blockIdx.x;
    int load_step = 0;
    auto begin_unit = [&]() {
        const u32 tile_r = load_unit / query_tiles, tile_q = load_unit % query_tiles;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            from_q[i] = queries + static_cast<u64>(tile_q * TILE_Q + own_row + i * 64) * dimension + own_chunk * 8;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u64 p = static_cast<u64>(tile_r) * TILE_R + own_row + i * 64;
            there[i] = p < count;
            from_r[i] = vectors + (first + (there[i] ? p : 0) * stride) * dimension + own_chunk * 8;
        }
    };
    auto load = [&](int stage) {
        const u32 at = base + stage * STAGE_BYTES;
        const int column = load_step * TILE_K;
        const bool within = column + own_chunk * 8 < dimension;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            copy_16(at + place(own_row + i * 64, own_chunk), within ? from_q[i] + column : queries, within);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool good = within && there[i];
            copy_16(at + Q_BYTES + place(own_row + i * 64, own_chunk), good ? from_r[i] + column : vectors, good);
        }
        if (++load_step == steps_a_unit) {
            load_step = 0;
            load_unit += gridDim.x;
            if (load_unit < units) begin_unit();
        }
    };

    if (mine) begin_unit();
    u32 loaded = 0;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (loaded < total) load(s), loaded++;
        asm volatile("cp.async.commit_group;");
    }
    float sums[4][8][4];
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[m][j][e] = 0.0f;

    u32 unit = blockIdx.x;
    int step = 0, stage = 0, free_stage = STAGES - 1;
    for (u32 s = 0; s < total; s++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
        __syncthreads();
        if (loaded < total) load(free_stage), loaded++;
        asm volatile("cp.async.commit_group;");
        free_stage = free_stage == STAGES - 1 ? 0 : free_stage + 1;

        const u32 at_q = base + stage * STAGE_BYTES, at_r = at_q + Q_BYTES;
        stage = stage == STAGES - 1 ? 0 : stage + 1;
#pragma unroll
        for (int half = 0; half < TILE_K / 16; half++) {
            u32 a[4][4], b[4][4];
#pragma unroll
            for (int m = 0; m < 4; m++) {
                load_matrices(a[m], at_q + place(warp_q + m * 16 + (lane & 15), half * 2 + (lane >> 4)));
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                load_matrices(
                    b[j], at_r + place(warp_r + j * 16 + (lane & 7) + ((lane >> 4) << 3), half * 2 + ((lane >> 3) & 1))
                );
            }
#pragma unroll
            for (int m = 0; m < 4; m++) {
#pragma unroll
                for (int j = 0; j < 8; j++) multiply(sums[m][j], a[m], b[j / 2][(j & 1) * 2], b[j / 2][(j & 1) * 2 + 1]);
            }
        }
        if (++step < steps_a_unit) continue;

        // A tile is done. Lane l has, of each 16 x 8 scores, those of rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
        const u32 tile_r = unit / query_tiles, tile_q = unit % query_tiles;
        const u32 column = tile_r * TILE_R + warp_r + (lane & 3) * 2;
        float square[8][2];
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const u32 p = column + j * 8 + e;
                square[j][e] = L2 && p < count ? squares[first + p * stride] : 0.0f;
            }
        }
        // All at once: nothing is known to be the same after a row has been given away.
        float limits[4][2];
#pragma unroll
        for (int m = 0; m < 4; m++) {
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                limits[m][lower] = SAMPLE ? 0.0f : thresholds[tile_q * TILE_Q + warp_q + m * 16 + lower * 8 + (lane >> 2)];
            }
        }
#pragma unroll
        for (int m = 0; m < 4; m++) {
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                const u32 q = tile_q * TILE_Q + warp_q + m * 16 + lower * 8 + (lane >> 2);
                if (SAMPLE) {
#pragma unroll
                    for (int j = 0; j < 8; j++) {
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            const u32 p = column + j * 8 + e;
                            if (p >= count) continue;
                            const u64 row = first + p * stride;
                            const bool good = !allowed || allowed[row >> 5] >> (row & 31) & 1;
                            const float value = compared<L2>(sums[m][j][lower * 2 + e], square[j][e]);
                            keys[static_cast<u64>(q) * count + p] = good ? key_of(value) : NOT_ALLOWED;
                        }
                    }
                } else {
                    const float threshold = limits[m][lower];
                    float least = compared<L2>(sums[m][0][lower * 2], square[0][0]);
#pragma unroll
                    for (int j = 0; j < 8; j++) {
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            least = fminf(least, compared<L2>(sums[m][j][lower * 2 + e], square[j][e]));
                        }
                    }
                    if (least <= threshold) {
#pragma unroll
                        for (int j = 0; j < 8; j++) {
#pragma unroll
                            for (int e = 0; e < 2; e++) {
                                const u32 p = column + j * 8 + e;
                                const float value = compared<L2>(sums[m][j][lower * 2 + e], square[j][e]);
                                if (p >= count || !(value <= threshold)) continue;
                                const u64 row = first + p * stride;
                                if (allowed && !(allowed[row >> 5] >> (row & 31) & 1)) continue;
                                const u32 at = atomicAdd(&given[q], 1u);
                                if (at < room) out[static_cast<u64>(q) * room + at] = static_cast<u64>(key_of(value)) << 32 | row;
                            }
                        }
                    }
                }
#pragma unroll
                for (int j = 0; j < 8; j++) sums[m][j][lower * 2] = sums[m][j][lower * 2 + 1] = 0.0f;
            }
        }
        step = 0;
        unit += gridDim.x;
    }
}

#define PRODUCTS(NAME, L2, SAMPLE)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME(                                                    \
        const unsigned short* vectors, u64 first, u64 stride, u32 count, int dimension,                               \
        const unsigned short* queries, int query_tiles, const float* squares, const u32* allowed, u32* keys,          \
        const float* thresholds, u32* given, u64* out, u32 room                                                       \
    ) {                                                                                                               \
        products<L2, SAMPLE>(                                                                                         \
            vectors, first, stride, count, dimension, queries, query_tiles, squares, allowed, keys, thresholds, given,\
            out, room                                                                                                 \
        );                                                                                                            \
    }
PRODUCTS(sample_l2, true, true)
PRODUCTS(sample_ip, false, true)
PRODUCTS(nearest_l2, true, false)
PRODUCTS(nearest_ip, false, false)
