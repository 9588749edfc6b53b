// What the kernels share: scores as keys, and the numbers that choosing keeps about a query.

typedef unsigned int u32;
typedef unsigned long long u64;

const u32 FULL = 0xffffffffu;
const u32 NOT_ALLOWED = 0xffffffffu;
const int THREADS = 256;
const int STATE = 8;  // numbers a query; see `State`

// The first bits of the k-th key as far as they are known, how many rows are still to be found among those with these
// bits, rows that are allowed, blocks that are through, rows that were given, of these such with the k-th key, and steps
// that are done.
enum State { PREFIX, LEFT, ALLOWED, TICKET, GIVEN, TIES, DONE };

// A number that is smaller the smaller the score is.
__device__ __forceinline__ u32 key_of(float score) {
    const u32 bits = __float_as_uint(score);
    const u32 key = bits ^ ((bits & 0x80000000u) ? FULL : 0x80000000u);
    return key == NOT_ALLOWED ? key - 1 : key;  // what is not a number comes last
}

__device__ __forceinline__ float score_of(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}
