// What the paste kernels share: where a crop goes, how it is resized, the copy of the body, the search for NaN.
//
// A launch has three kinds of blocks for each frame (blockIdx.y), in this order, so that the slow ones start first:
//   draw  the region: the 16-byte chunks of each row that the rectangle touches, up to whole 32-byte sectors
//   scan  the prediction, for NaN
//   copy  every other 16-byte chunk of the frame, body to output
// Each byte of a finished frame is written once, by draw or by copy, and no block waits for another.
#pragma once
#include "real.cuh"

#define THREADS 256
#define CHUNKS_A_THREAD 4  // 16-byte loads in flight in a copying or scanning thread

// Where a cached frame's crop goes, in body pixels, and its taps, as indexes into the table of taps.
struct Placement {
    int x1, y1, x2, y2;
    int x_taps, y_taps;
};

static __device__ __forceinline__ Placement load_placement(const int4* __restrict__ placements, int cached) {
    const int4 rect = __ldg(placements + 2 * cached), taps = __ldg(placements + 2 * cached + 1);
    return {rect.x, rect.y, rect.z, rect.w, taps.x, taps.y};
}

// One output pixel's place along one axis of the resize: w0 * source[i0] + w1 * source[i1].
struct Tap {
    int i0, i1, w0, w1;
};

static __device__ __forceinline__ Tap load_tap(const uint2* __restrict__ taps, int i) {
    const uint2 packed = __ldg(taps + i);
    return {(int)(packed.x & 0xffffu), (int)(packed.x >> 16), (int)(packed.y & 0xffffu), (int)(packed.y >> 16)};
}

// u8(trunc(clip(p, 0, 1) * 255)); NaN gives 0.
static __device__ __forceinline__ int quantise(Real p) { return __float2int_rz(__fmul_rn(__saturatef(to_float(p)), 255.f)); }

static __device__ __forceinline__ int blend(int p00, int p01, int p10, int p11, Tap x, Tap y) {
    const int upper = x.w0 * p00 + x.w1 * p01, lower = x.w0 * p10 + x.w1 * p11;
    return (((upper >> 4) * y.w0 >> 16) + ((lower >> 4) * y.w1 >> 16) + 2) >> 2;
}

// A position in the crop, moved into the model's square of it and counted from there.
static __device__ __forceinline__ int into_roi(int position, int border, int size) {
    return min(max(position - border, 0), size - 1);
}

static __device__ __forceinline__ bool outside_roi(int position, int border, int size) {
    return (u32)(position - border) >= (u32)size;
}

// A column of 16-byte chunks in some rows of the frame.
struct Region {
    int first, end, top, bottom;  // chunks and rows; `end` and `bottom` are outside
};

// The region of a rectangle that covers bytes left ... right - 1 of rows top ... bottom - 1.
static __device__ __forceinline__ Region region_of(int left, int right, int top, int bottom, int pitch) {
    if (left >= right || top >= bottom) return {0, 0, 0, 0};
    return {left >> 5 << 1, min((right + 31) >> 5 << 1, pitch >> 4), top, bottom};
}

// Sets the frame's bit in `status` if its prediction, `chunks` vectors of 16 bytes, holds a NaN.
static __device__ __forceinline__ void scan(const uint4* __restrict__ prediction, int chunks, int block, u32* status) {
    const int first = block * (THREADS * CHUNKS_A_THREAD) + threadIdx.x;
    uint4 v[CHUNKS_A_THREAD];
#pragma unroll
    for (int i = 0; i < CHUNKS_A_THREAD; i++) {
        const int chunk = first + i * THREADS;
        v[i] = chunk < chunks ? __ldg(prediction + chunk) : make_uint4(0, 0, 0, 0);
    }
    bool found = false;
#pragma unroll
    for (int i = 0; i < CHUNKS_A_THREAD; i++)
        found = found || any_nan(v[i].x) || any_nan(v[i].y) || any_nan(v[i].z) || any_nan(v[i].w);
    if (found) atomicOr(status + (blockIdx.y >> 5), 1u << (blockIdx.y & 31));
}

// Copies the chunks of this block that `in_region(row, column)` leaves. `touches(first row, last row)`: whether any of
// those rows has a chunk that it does not.
template <typename Touches, typename InRegion>
static __device__ __forceinline__ void copy(const uint4* __restrict__ body, uint4* __restrict__ frame, int chunks,
                                            int chunks_a_row, int block, Touches touches, InRegion in_region) {
    const int begin = block * (THREADS * CHUNKS_A_THREAD), first = begin + threadIdx.x;
    const int end = min(begin + THREADS * CHUNKS_A_THREAD, chunks);
    bool mine[CHUNKS_A_THREAD];
    if (touches(begin / chunks_a_row, (end - 1) / chunks_a_row)) {
#pragma unroll
        for (int i = 0; i < CHUNKS_A_THREAD; i++) {
            const int chunk = first + i * THREADS, row = chunk / chunks_a_row;
            mine[i] = chunk < end && !in_region(row, chunk - row * chunks_a_row);
        }
    } else {
#pragma unroll
        for (int i = 0; i < CHUNKS_A_THREAD; i++) mine[i] = first + i * THREADS < end;
    }
    uint4 v[CHUNKS_A_THREAD];
#pragma unroll
    for (int i = 0; i < CHUNKS_A_THREAD; i++)
        if (mine[i]) v[i] = __ldcs(body + first + i * THREADS);
#pragma unroll
    for (int i = 0; i < CHUNKS_A_THREAD; i++)
        if (mine[i]) frame[first + i * THREADS] = v[i];
}
