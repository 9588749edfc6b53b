// target: compute_70
// Exact search by few queries: every vector is read once, by all of the card, and the best are chosen
// from the scores. FAISS 1.15 multiplies matrices for a single query too, and lets one block choose from all scores
// of a query: 1,000,000 x 384 took it ten times as long as reading the vectors takes.
//
// Made into scan.ptx by tools/kernels.py, for every card from compute capability 7.0 on: the driver compiles that.
//
// A score is turned into a key, an unsigned number that is smaller the nearer a row is. Choosing looks at the
// 11 highest bits of all keys, then at the next 11 among those that share them, and then hands out every row up to there: a
// few more than were asked for, which the host puts in order. So ties are by position, and k has no limit.

#include "keys.cuh"

const int ROWS = 4;     // rows that a warp reads at once; a mask of bits has those of a step in one word
const int BINS = 2048;  // 11 bits

__device__ __forceinline__ void two_halves(u32 both, float& low, float& high) {
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}" : "=f"(low), "=f"(high) : "r"(both));
}

__device__ __forceinline__ float one_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// Vectors as they are stored: WIDE numbers at once where the dimension allows it, else one by one. What is read is
// made into floats later: a warp that waits for each of its rows in turn reads at two thirds of the rate.
template <typename T, int WIDE> struct Stored;
template <> struct Stored<float, 4> {
    typedef float4 Raw;
    static __device__ __forceinline__ void floats(Raw v, float (&out)[4]) {
        out[0] = v.x; out[1] = v.y; out[2] = v.z; out[3] = v.w;
    }
};
template <> struct Stored<float, 1> {
    typedef float Raw;
    static __device__ __forceinline__ void floats(Raw v, float (&out)[1]) { out[0] = v; }
};
template <> struct Stored<unsigned short, 4> {
    typedef uint2 Raw;
    static __device__ __forceinline__ void floats(Raw v, float (&out)[4]) {
        two_halves(v.x, out[0], out[1]);
        two_halves(v.y, out[2], out[3]);
    }
};
template <> struct Stored<unsigned short, 1> {
    typedef unsigned short Raw;
    static __device__ __forceinline__ void floats(Raw v, float (&out)[1]) { out[0] = one_half(v); }
};

template <int N> __device__ __forceinline__ void from_shared(const float* at, float (&out)[N]) {
    if constexpr (N == 1) {
        out[0] = *at;
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const float4 v = *reinterpret_cast<const float4*>(at + i);
            out[i] = v.x; out[i + 1] = v.y; out[i + 2] = v.z; out[i + 3] = v.w;
        }
    }
}

// Sums V values (a power of two up to 32) over a warp: in each step a lane gives half of its values away and gets the
// other lane's part of those it keeps. The sum of value i comes out in the lanes from i * 32 / V on.
template <int V> struct Summed {
    static __device__ __forceinline__ float of(float (&v)[V], int lane, int bit = 16) {
        const bool upper = lane & bit;
        float half[V / 2];
#pragma unroll
        for (int i = 0; i < V / 2; i++) {
            const float given = upper ? v[i] : v[i + V / 2];
            half[i] = (upper ? v[i + V / 2] : v[i]) + __shfl_xor_sync(FULL, given, bit);
        }
        return Summed<V / 2>::of(half, lane, bit / 2);
    }
};
template <> struct Summed<1> {
    static __device__ __forceinline__ float of(float (&v)[1], int lane, int bit = 16) {
        float sum = v[0];
        for (; bit >= 1; bit /= 2) sum += __shfl_xor_sync(FULL, sum, bit);
        return sum;
    }
};

// Keys (Q, n) of all rows for Q queries, and states as choosing wants them at first. `queries` (Q, dimension) float32;
// `allowed` a bit a row, or null.
template <typename T, int WIDE, bool L2, int Q>
__device__ __forceinline__ void scan(
    const void* vectors, u64 n, int dimension, const float* queries, const u32* allowed, u32* keys, u32* states
) {
    typedef typename Stored<T, WIDE>::Raw Raw;
    extern __shared__ float asked[];
    if (blockIdx.x == 0 && threadIdx.x < Q * STATE) states[threadIdx.x] = 0;
    for (int i = threadIdx.x; i < Q * dimension; i += THREADS) asked[i] = queries[i];
    __syncthreads();
    const int lane = threadIdx.x & 31;
    const u64 warps = static_cast<u64>(gridDim.x) * (THREADS / 32);
    for (u64 step = static_cast<u64>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32; step * ROWS < n; step += warps) {
        const u64 first = step * ROWS;
        u32 which = (1u << ROWS) - 1;
        if (n - first < ROWS) which = (1u << (n - first)) - 1;
        const u32 there = which;
        if (allowed) which &= allowed[first >> 5] >> (first & 31);
        float sums[ROWS * Q];
#pragma unroll
        for (int i = 0; i < ROWS * Q; i++) sums[i] = 0.0f;
        if (which) {
            // A row that is not allowed is not read, but an allowed one in its place: so nothing branches.
            const T* rows[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                rows[r] = static_cast<const T*>(vectors) + (first + (which >> r & 1 ? r : __ffs(which) - 1)) * dimension;
            }
#pragma unroll 2
            for (int c = lane * WIDE; c < dimension; c += 32 * WIDE) {
                Raw raw[ROWS];
#pragma unroll
                for (int r = 0; r < ROWS; r++) raw[r] = *reinterpret_cast<const Raw*>(rows[r] + c);
                float x[ROWS][WIDE];
#pragma unroll
                for (int r = 0; r < ROWS; r++) Stored<T, WIDE>::floats(raw[r], x[r]);
#pragma unroll
                for (int q = 0; q < Q; q++) {
                    float y[WIDE];
                    from_shared(asked + q * dimension + c, y);
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
#pragma unroll
                        for (int i = 0; i < WIDE; i++) {
                            if (L2) {
                                float apart = x[r][i] - y[i];
                                sums[r * Q + q] = fmaf(apart, apart, sums[r * Q + q]);
                            } else {
                                sums[r * Q + q] = fmaf(-x[r][i], y[i], sums[r * Q + q]);
                            }
                        }
                    }
                }
            }
        }
        float sum = Summed<ROWS * Q>::of(sums, lane);
        const int lanes = 32 / (ROWS * Q);
        if (lane % lanes == 0) {
            const int r = lane / lanes / Q, q = lane / lanes % Q;
            if (there >> r & 1) keys[q * n + first + r] = which >> r & 1 ? key_of(sum) : NOT_ALLOWED;
        }
    }
}

#define SCAN(NAME, T, WIDE, L2, Q)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(                                                       \
        const void* vectors, u64 n, int dimension, const float* queries, const u32* allowed, u32* keys,               \
        u32* states                                                                                                   \
    ) {                                                                                                               \
        scan<T, WIDE, L2, Q>(vectors, n, dimension, queries, allowed, keys, states);                                  \
    }
#define SCANS(NAME, T, WIDE, L2)                                                                                      \
    SCAN(NAME##_1, T, WIDE, L2, 1)                                                                                    \
    SCAN(NAME##_4, T, WIDE, L2, 4)                                                                                    \
    SCAN(NAME##_8, T, WIDE, L2, 8)

SCANS(scan_float32_wide_l2, float, 4, true)
SCANS(scan_float32_wide_ip, float, 4, false)
SCANS(scan_float32_slim_l2, float, 1, true)
SCANS(scan_float32_slim_ip, float, 1, false)
// Four halves at once, not eight: rows of 384 are no multiple of 32 x 8, and fewer registers let more warps run.
SCANS(scan_float16_wide_l2, unsigned short, 4, true)
SCANS(scan_float16_wide_ip, unsigned short, 4, false)
SCANS(scan_float16_slim_l2, unsigned short, 1, true)
SCANS(scan_float16_slim_ip, unsigned short, 1, false)

// The sum of `mine` over the threads before this one, in a block of THREADS.
__device__ u32 sum_before(u32 mine, u32* of_warps) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    u32 sum = mine;
    for (int apart = 1; apart < 32; apart *= 2) {
        u32 other = __shfl_up_sync(FULL, sum, apart);
        if (lane >= apart) sum += other;
    }
    if (lane == 31) of_warps[warp] = sum;
    __syncthreads();
    u32 before = sum - mine;
    for (int w = 0; w < warp; w++) before += of_warps[w];
    __syncthreads();
    return before;
}

// Keys that a thread reads before it looks at the first: each waits for the memory once and not eight times.
const int AHEAD = 8;

// Calls use(key, row) for the keys of a query that this block is to look at, of those that are allowed.
template <typename Use> __device__ __forceinline__ void each_key(const u32* keys, u64 n, Use use) {
    const u64 step = static_cast<u64>(gridDim.x) * THREADS;
    for (u64 first = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x; first < n; first += AHEAD * step) {
        u32 some[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) some[i] = first + i * step < n ? keys[first + i * step] : NOT_ALLOWED;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (some[i] != NOT_ALLOWED) use(some[i], first + i * step);
        }
    }
}

// Whether this block is the last of a query to come here, with all that the others have written to see. Then `ticket` is
// zero again.
__device__ __forceinline__ bool last_to_come(u32* ticket) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!last) return false;
    __threadfence();
    if (threadIdx.x == 0) *ticket = 0;
    return true;
}

// Counts the keys of query blockIdx.y by the bits that `step` (0, 1, 2: 11, 11 and 10 bits from the highest on) looks
// at, among those that share the bits before; the last block finds the bin in which the k-th lies, and is told so. `bins`
// is all zero before and after.
__device__ bool narrowed(const u32* keys, u64 n, u32 k, int step, volatile u32* state, u32* bins) {
    __shared__ u32 counted[BINS];
    __shared__ u32 of_warps[THREADS / 32];
    __shared__ u32 wanted;
    for (int i = threadIdx.x; i < BINS; i += THREADS) counted[i] = 0;
    __syncthreads();
    const int shift = step == 0 ? 21 : step == 1 ? 10 : 0;
    const u32 mask = step == 2 ? 1023u : 2047u;
    const u32 prefix = step == 0 ? 0 : state[PREFIX];
    each_key(keys, n, [&](u32 key, u64) {
        if (step != 0 && key >> (step == 1 ? 21 : 10) != prefix) return;
        atomicAdd(&counted[key >> shift & mask], 1u);
    });
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += THREADS) {
        if (counted[i]) atomicAdd(&bins[i], counted[i]);
    }
    if (!last_to_come(const_cast<u32*>(state) + TICKET)) return false;
    const int EACH = BINS / THREADS;
    u32 mine[EACH], sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        mine[i] = atomicExch(&bins[threadIdx.x * EACH + i], 0u);
        sum += mine[i];
    }
    const u32 before = sum_before(sum, of_warps);
    if (threadIdx.x == THREADS - 1 && step == 0) {
        const u32 total = before + sum;
        state[ALLOWED] = total;
        wanted = k < total ? k : total;
    }
    if (threadIdx.x == 0 && step != 0) wanted = state[LEFT];
    __syncthreads();
    if (wanted > before && wanted <= before + sum) {
        u32 left = wanted - before, bin = threadIdx.x * EACH;
        bool found = false;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            found = found || left <= mine[i];
            if (!found) {
                left -= mine[i];
                bin++;
            }
        }
        state[PREFIX] = step == 0 ? bin : step == 1 ? prefix << 11 | bin : prefix << 10 | bin;
        state[LEFT] = left;
    }
    return true;
}

// One step for many queries; see `narrowed`.
extern "C" __global__ void __launch_bounds__(THREADS)
narrow(const u32* all_keys, u64 n, u32 k, int step, u32* all_states, u32* all_bins) {
    narrowed(all_keys + blockIdx.y * n, n, k, step, all_states + blockIdx.y * STATE, all_bins + blockIdx.y * BINS);
}

// Steps `from` to `to`, and hands out rows of query blockIdx.y, key and position in one number, at most `room`; how many
// there were goes to `counts`. `to` 1: all whose first 22 bits are up to those found. 2: all that are below the k-th key, and
// as many that equal it as are left. Blocks wait for each other: all of them must run at once (a cooperative launch).
// `all_out` and `counts` may be memory of the host, which is written to and never read.
extern "C" __global__ void __launch_bounds__(THREADS)
choose(
    const u32* all_keys, u64 n, u32 k, int from, int to, u32 room, u32* all_states, u32* all_bins, u64* all_out, u32* counts
) {
    const u32* keys = all_keys + blockIdx.y * n;
    volatile u32* state = all_states + blockIdx.y * STATE;
    u64* out = all_out + static_cast<u64>(blockIdx.y) * room;
    for (int step = from; step <= to; step++) {
        if (narrowed(keys, n, k, step, state, all_bins + blockIdx.y * BINS)) {
            if (threadIdx.x == 0 && step == 2) state[GIVEN] = state[TIES] = 0;  // what was given before is given again
            __threadfence();
            __syncthreads();
            if (threadIdx.x == 0) state[DONE] = step + 1;
        } else if (threadIdx.x == 0) {
            while (state[DONE] != step + 1) __nanosleep(20);
        }
        __syncthreads();
        __threadfence();
    }
    u32* counters = all_states + blockIdx.y * STATE;
    if (state[ALLOWED] != 0) {
        const u32 border = state[PREFIX], left = state[LEFT];
        each_key(keys, n, [&](u32 key, u64 row) {
            if (to == 1 ? key >> 10 > border : key > border) return;
            if (to == 2 && key == border && atomicAdd(&counters[TIES], 1u) >= left) return;
            const u32 at = atomicAdd(&counters[GIVEN], 1u);
            if (at < room) out[at] = static_cast<u64>(key) << 32 | row;
        });
    }
    if (last_to_come(counters + TICKET) && threadIdx.x == 0) counts[blockIdx.y] = state[GIVEN];
}
