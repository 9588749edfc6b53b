// target: compute_70
// What stands around the products of many queries (products.cu, hopper.cu): queries rounded, thresholds, the best of what was
// given. `best` and `overflow` may be memory of the host, which is written to and never read.

#include "keys.cuh"

// From what `narrow` found among a sample: the largest score that an answer can have. Where the sample has fewer than k
// rows, any. Queries from `asked` on are padding. Nothing has been given yet.
extern "C" __global__ void __launch_bounds__(THREADS)
begin(const u32* states, u32 k, u32 asked, u32 padded, float* thresholds, u32* given, u32* overflow) {
    const u32 q = blockIdx.x * THREADS + threadIdx.x;
    if (q == 0) *overflow = 0;
    if (q >= padded) return;
    given[q] = 0;
    const u32* state = states + q * STATE;
    if (q >= asked) {
        thresholds[q] = -__uint_as_float(0x7f800000u);
    } else if (state[ALLOWED] < k) {
        thresholds[q] = __uint_as_float(0x7f800000u);
    } else {
        thresholds[q] = score_of(state[PREFIX] << 10 | 1023u);
    }
}

// Rounds query blockIdx.x of `asked` (dimension numbers each) to float16; the squared length of what comes out goes to
// `squares`. Queries behind these are zero.
extern "C" __global__ void __launch_bounds__(THREADS)
halve(const float* queries, u32 asked, int dimension, unsigned short* halves, float* squares) {
    __shared__ float of_warps[THREADS / 32];
    const u64 first = static_cast<u64>(blockIdx.x) * dimension;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < dimension; i += THREADS) {
        const float value = blockIdx.x < asked ? queries[first + i] : 0.0f;
        unsigned short half;
        float rounded;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
        asm("cvt.f32.f16 %0, %1;" : "=f"(rounded) : "h"(half));
        halves[first + i] = half;
        sum = fmaf(rounded, rounded, sum);
    }
    for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(FULL, sum, apart);
    if ((threadIdx.x & 31) == 0) of_warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < THREADS / 32; w++) sum += of_warps[w];
        squares[blockIdx.x] = sum;
    }
}

// Leaves the k best of what query blockIdx.x was given, in order, and makes the k-th the threshold; they go to `best`
// (queries, k) too, behind them all ones. `forget`: what was given will be given again. `room` is a power of two.
extern "C" __global__ void __launch_bounds__(THREADS)
keep_best(u64* all_out, u32 room, u32 k, int forget, float* thresholds, u32* given, u32* overflow, u64* best) {
    extern __shared__ __align__(128) unsigned char sorted_bytes[];
    u64* sorted = reinterpret_cast<u64*>(sorted_bytes);
    u64* out = all_out + static_cast<u64>(blockIdx.x) * room;
    u32 count = given[blockIdx.x];
    if (count > room) {
        if (threadIdx.x == 0) *overflow = 1;
        count = room;
    }
    u32 size = 2;
    while (size < count) size *= 2;
    for (u32 i = threadIdx.x; i < size; i += THREADS) sorted[i] = i < count ? out[i] : ~0ull;
    __syncthreads();
    for (u32 run = 2; run <= size; run *= 2) {
        for (u32 apart = run / 2; apart > 0; apart /= 2) {
            for (u32 i = threadIdx.x; i < size; i += THREADS) {
                const u32 other = i ^ apart;
                if (other > i) {
                    const u64 a = sorted[i], b = sorted[other];
                    if ((a > b) == ((i & run) == 0)) sorted[i] = b, sorted[other] = a;
                }
            }
            __syncthreads();
        }
    }
    const u32 kept = count < k ? count : k;
    for (u32 i = threadIdx.x; i < k; i += THREADS) {
        if (i < kept) out[i] = sorted[i];
        best[static_cast<u64>(blockIdx.x) * k + i] = i < kept ? sorted[i] : ~0ull;
    }
    if (threadIdx.x == 0) {
        given[blockIdx.x] = forget ? 0 : kept;
        if (kept == k) thresholds[blockIdx.x] = score_of(static_cast<u32>(sorted[k - 1] >> 32));
    }
}
