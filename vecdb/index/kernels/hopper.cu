// target: compute_90a
// The kernels `sample` and `nearest` of products.cu for cards of compute capability 9.0 (H100, H200), whose tensor cores
// are fed from shared memory by four warps at once (wgmma) and reach twice the rate of what every card has.
//
// A block multiplies 128 queries by 256 rows. One warp asks for tiles of 64 dimensions, which the card's copy
// engine brings and zeros where there is nothing: four of them are on their way. Twice four warps have 64 x 256
// scores each; they wait for tiles and not for each other, so that while some choose others multiply.

#include "keys.cuh"

const int TILE_Q = 128, TILE_R = 256, TILE_K = 64, STAGES = 4;
const int ROW_BYTES = TILE_K * 2;
const int Q_BYTES = TILE_Q * ROW_BYTES, R_BYTES = TILE_R * ROW_BYTES, STAGE_BYTES = Q_BYTES + R_BYTES;
const int TEAM = 128, TEAMS = TILE_Q / 64;  // threads that multiply together, and how often they are there
const int ALL = (TEAMS + 1) * TEAM;
// Registers of a thread, of the 168 that each has at first: who asks for tiles leaves its own to who multiplies.
const int FEW = 24, MANY = 240;
const int OWN = TILE_R / 4;  // scores of a query that a thread has: columns 0 and 1 of eight in each eight, 2 and 3, ...

// How the copy engine finds a tile: a CUtensorMap of the driver's.
struct alignas(64) Map {
    u64 words[16];
};

__device__ __forceinline__ void expect(u32 barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void wait(u32 barrier, u32 phase) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(barrier), "r"(phase) : "memory");
}

__device__ __forceinline__ void copy_tile(u32 to, const Map* map, int column, int row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
            "r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}

// Where a tile of rows of 128 bytes lies, as the copy engine has swizzled it: eight rows in 1,024 bytes.
__device__ __forceinline__ u64 described(u32 at) {
    return static_cast<u64>((at & 0x3ffffu) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

#define EIGHT(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SIXTY_FOUR(d, i) EIGHT(d, i), EIGHT(d, i + 8), EIGHT(d, i + 16), EIGHT(d, i + 24), EIGHT(d, i + 32), EIGHT(d, i + 40), EIGHT(d, i + 48), EIGHT(d, i + 56)

// 64 queries x 256 rows by 16 dimensions; `more` 0 begins anew.
__device__ __forceinline__ void multiply(float (&sums)[128], u64 a, u64 b, int more) {
    asm volatile(
        "{\n.reg .pred more;\n"
        "setp.ne.b32 more, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, more, 1, 1, 0, 0;\n}"
        : SIXTY_FOUR(sums, 0), SIXTY_FOUR(sums, 64)
        : "l"(a), "l"(b), "r"(more));
}

// What is compared: -q.x, or |x|^2 - 2 q.x, in which only |q|^2 is missing. Smaller is nearer.
template <bool L2> __device__ __forceinline__ float compared(float product, float square) {
    return L2 ? fmaf(-2.0f, product, square) : -product;
}

// Number i of N in registers, which have no index: halves are chosen from halves.
template <int N> __device__ __forceinline__ float picked(const float (&some)[N], int i) {
    if constexpr (N == 1) {
        return some[0];
    } else {
        float half[N / 2];
#pragma unroll
        for (int j = 0; j < N / 2; j++) half[j] = i & (N / 2) ? some[j + N / 2] : some[j];
        return picked<N / 2>(half, i);
    }
}

// As `products` in products.cu. `queries` (query_tiles x 128, dimension) and `rows` (count, dimension) are maps; row p of
// these is row first + p * stride of all.
template <bool L2, bool SAMPLE>
__device__ __forceinline__ void products(
    const Map* queries, const Map* rows, u64 first, u64 stride, u32 count, int dimension, int query_tiles,
    const float* squares, const u32* allowed, u32* keys, const float* thresholds, u32* given, u64* out, u32 room
) {
    extern __shared__ unsigned char memory[];
    __shared__ alignas(8) u64 barriers[2 * STAGES];
    __shared__ alignas(8) float held[TEAMS][TILE_R];
    const u32 base = (static_cast<u32>(__cvta_generic_to_shared(memory)) + 1023u) & ~1023u;
    const u32 full = static_cast<u32>(__cvta_generic_to_shared(barriers)), empty = full + 8 * STAGES;
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const int steps = (dimension + TILE_K - 1) / TILE_K;
    const u32 units = (count + TILE_R - 1) / TILE_R * query_tiles;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full + 8 * s));
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(empty + 8 * s), "r"(TEAMS * TEAM / 32));
        }
        asm volatile("fence.mbarrier_init.release.cluster;");
        asm volatile("fence.proxy.async.shared::cta;");
    }
    __syncthreads();

    int stage = 0;
    u32 phase = 0;
    if (warp >= TEAMS * TEAM / 32) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW));
        if (threadIdx.x != TEAMS * TEAM) return;
        for (u32 unit = blockIdx.x; unit < units; unit += gridDim.x) {
            const int row = unit / query_tiles * TILE_R, query = unit % query_tiles * TILE_Q;
            for (int step = 0; step < steps; step++) {
                wait(empty + 8 * stage, phase ^ 1);
                const u32 at = base + stage * STAGE_BYTES, barrier = full + 8 * stage;
                expect(barrier, STAGE_BYTES);
                copy_tile(at, queries, step * TILE_K, query, barrier);
                copy_tile(at + Q_BYTES, rows, step * TILE_K, row, barrier);
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY));

    const int team = warp / 4, in_team = threadIdx.x % TEAM;
    const int own_q = team * 64 + (warp & 3) * 16 + (lane >> 2);  // and 8 behind it
    float sums[128];
    for (u32 unit = blockIdx.x; unit < units; unit += gridDim.x) {
        const u32 tile_r = unit / query_tiles, first_q = unit % query_tiles * TILE_Q + own_q;
        // What choosing will need is asked for now.
        float square[TILE_R / TEAM];
#pragma unroll
        for (int i = 0; i < TILE_R / TEAM; i++) {
            const u32 p = tile_r * TILE_R + i * TEAM + in_team;
            square[i] = L2 && p < count ? squares[first + p * stride] : 0.0f;
        }
        float limits[2];
#pragma unroll
        for (int lower = 0; lower < 2; lower++) limits[lower] = SAMPLE ? 0.0f : thresholds[first_q + 8 * lower];

        int before = 0;
        for (int step = 0; step < steps; step++) {
            wait(full + 8 * stage, phase);
            const u32 at = base + stage * STAGE_BYTES;
            const u64 a = described(at + team * 64 * ROW_BYTES), b = described(at + Q_BYTES);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int k = 0; k < TILE_K / 16; k++) multiply(sums, a + 2 * k, b + 2 * k, step | k);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (step > 0 && lane == 0) arrive(empty + 8 * before);
            before = stage;
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
#pragma unroll
        for (int i = 0; i < 128; i++) asm volatile("" : "+f"(sums[i])::"memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int i = 0; i < 128; i++) asm volatile("" : "+f"(sums[i])::"memory");
        if (lane == 0) arrive(empty + 8 * before);

        // A tile is done. Lane l has, of each 16 x 8 scores, those of rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
        const int in_eight = (lane & 3) * 2;
        if (L2) {
            asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(TEAM) : "memory");  // all have read those of the last tile
#pragma unroll
            for (int i = 0; i < TILE_R / TEAM; i++) held[team][i * TEAM + in_team] = square[i];
            asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(TEAM) : "memory");
        }
        // The number of score i of this thread's OWN among all columns, and what it is to be compared by.
        const u32 column = tile_r * TILE_R + in_eight;
        auto place_of = [&](int i) { return column + (i >> 1) * 8 + (i & 1); };
        auto square_of = [&](int i) { return L2 ? held[team][in_eight + (i >> 1) * 8 + (i & 1)] : 0.0f; };
        // Whether an answer may be the row in this place; few are asked about but in samples.
        auto good = [&](u32 p) {
            if (p >= count) return false;
            const u64 row = first + p * stride;
            return !allowed || (allowed[row >> 5] >> (row & 31) & 1) != 0;
        };
        if (SAMPLE) {
            u64 may = 0;
#pragma unroll 1
            for (int i = 0; i < OWN; i++) may |= static_cast<u64>(good(place_of(i))) << i;
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                u32* own = keys + static_cast<u64>(first_q + 8 * lower) * count + column;
#pragma unroll
                for (int i = 0; i < OWN; i++) {
                    const float value = compared<L2>(sums[(i >> 1) * 4 + lower * 2 + (i & 1)], square_of(i));
                    if (place_of(i) < count) own[(i >> 1) * 8 + (i & 1)] = may >> i & 1 ? key_of(value) : NOT_ALLOWED;
                }
            }
            continue;
        }
        u64 near[2] = {0, 0};
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
            float least = compared<L2>(sums[lower * 2], square_of(0));
#pragma unroll
            for (int i = 1; i < OWN; i++) {
                least = fminf(least, compared<L2>(sums[(i >> 1) * 4 + lower * 2 + (i & 1)], square_of(i)));
            }
            if (!(least <= limits[lower])) continue;
            u32 halves[2] = {0, 0};
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                const float value = compared<L2>(sums[(i >> 1) * 4 + lower * 2 + (i & 1)], square_of(i));
                if (value <= limits[lower]) halves[i >> 5] |= 1u << (i & 31);
            }
            near[lower] = static_cast<u64>(halves[1]) << 32 | halves[0];
            for (u64 left = near[lower]; left; left &= left - 1) {
                const int i = __ffsll(left) - 1;
                if (!good(place_of(i))) near[lower] &= ~(1ull << i);
            }
        }
        // Room for all that a thread gives, asked for both queries at once: the answer takes as long as many products. And one
        // piece of code for all scores: a copy for each would be more than the card keeps at hand.
        u32 at[2];
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
            if (near[lower]) at[lower] = atomicAdd(&given[first_q + 8 * lower], static_cast<u32>(__popcll(near[lower])));
        }
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
            for (u64 left = near[lower]; left; left &= left - 1, at[lower]++) {
                const int i = __ffsll(left) - 1;
                float half[OWN / 2];
#pragma unroll
                for (int j = 0; j < OWN / 2; j++) {
                    const int low = (j >> 1) * 4 + lower * 2 + (j & 1);
                    half[j] = i & (OWN / 2) ? sums[low + OWN] : sums[low];
                }
                const float value = compared<L2>(picked(half, i), square_of(i));
                const u64 row = first + static_cast<u64>(place_of(i)) * stride;
                if (at[lower] < room) {
                    out[static_cast<u64>(first_q + 8 * lower) * room + at[lower]] = static_cast<u64>(key_of(value)) << 32 | row;
                }
            }
        }
    }
}

#define PRODUCTS(NAME, L2, SAMPLE)                                                                                    \
    extern "C" __global__ void __launch_bounds__(ALL, 1) NAME(                                                        \
        const __grid_constant__ Map queries, const __grid_constant__ Map rows, u64 first, u64 stride, u32 count,      \
        int dimension, int query_tiles, const float* squares, const u32* allowed, u32* keys, const float* thresholds, \
        u32* given, u64* out, u32 room                                                                                \
    ) {                                                                                                               \
        products<L2, SAMPLE>(                                                                                         \
            &queries, &rows, first, stride, count, dimension, query_tiles, squares, allowed, keys, thresholds, given, \
            out, room                                                                                                 \
        );                                                                                                            \
    }
PRODUCTS(sample_l2, true, true)
PRODUCTS(sample_ip, false, true)
PRODUCTS(nearest_l2, true, false)
PRODUCTS(nearest_ip, false, false)
