// What the paste kernels share: how a crop is resized, the copy of the body, the search for NaN.
//
// A launch has three kinds of blocks for each frame (blockIdx.y), in this order, so that the slow ones start first:
//   draw  the region: in the rows that the rectangle touches, the 16-byte chunks that it touches, up to whole 32-byte
//         sectors, so that a warp's stores fill the sectors they touch
//   scan  the prediction, for NaN
//   copy  every other 16-byte chunk of the frame, body to output
// Each byte of a finished frame is written once, by draw or by copy, and no block waits for another. There are as many
// blocks of each kind as the most demanding frame needs; those beyond a smaller frame's end return.
#pragma once
#include "table.cuh"

// Bytes from one row of a frame to the next, of bodies and outputs alike.
static __device__ __forceinline__ int pitch_of(int row_bytes) { return (row_bytes + 15) & ~15; }

// One output pixel's place along one axis of the resize: (w0 * crop[first] + w1 * crop[second]) / 2048.
// Kept packed, as in the table, because registers are what limits these kernels.
struct Tap {
    u32 places, weights;

    __device__ __forceinline__ int first() const { return places & 0xffffu; }
    __device__ __forceinline__ int second() const { return places >> 16; }
};

static __device__ __forceinline__ Tap load_tap(const uint2* taps, int i) {
    const uint2 packed = __ldg(taps + i);
    return {packed.x, packed.y};
}

// u8(trunc(clip(p, 0, 1) * 255)); NaN gives 0.
static __device__ __forceinline__ u32 quantise(Real p) {
    return __float2uint_rz(__fmul_rn(__saturatef(to_float(p)), 255.f));
}

// cv2's INTER_LINEAR: v = ((((H0 >> 4) * b0) >> 16) + (((H1 >> 4) * b1) >> 16) + 2) >> 2, where H0 and H1 are the sums
// along x of the two rows. A product's high word with b << 16 is the product with b, shifted.
static __device__ __forceinline__ u32 blend(u32 p00, u32 p01, u32 p10, u32 p11, u32 x_weights, u32 y_weights) {
    const u32 w0 = x_weights & 0xffffu, w1 = x_weights >> 16;
    const u32 upper = w0 * p00 + w1 * p01 >> 4, lower = w0 * p10 + w1 * p11 >> 4;
    return __umulhi(upper, y_weights << 16) + __umulhi(lower, y_weights & 0xffff0000u) + 2 >> 2;
}

// The model's square of the crop, which holds the prediction; the pixels around it are the cached crop's.
struct Roi {
    int border, size;

    __device__ __forceinline__ bool outside(int position) const { return (u32)(position - border) >= (u32)size; }

    // A position in the crop, counted from the square and moved into it.
    __device__ __forceinline__ int inside(int position) const { return min(max(position - border, 0), size - 1); }

    // The first of two neighbours in the square: those of a tap, if both are in it.
    __device__ __forceinline__ int pair(int position) const { return min(max(position - border, 0), size - 2); }

    __device__ __forceinline__ bool outside(Tap tap) const { return outside(tap.first()) || outside(tap.second()); }
};

// Replaces two quantised neighbours of a row of the prediction, read at `roi.pair(tap.first())`, by what the tap takes
// there: the cached crop's where the row or the tap is outside the square.
static __device__ __forceinline__ void fix_edge(u32& p0, u32& p1, const u8* crop_row, bool row_outside, Tap tap,
                                                Roi roi) {
    const u32 left = p0, right = p1;
    const int at = roi.pair(tap.first()) + roi.border;
    p0 = tap.first() == at ? left : right;
    p1 = tap.second() == at ? left : right;
    if (row_outside || roi.outside(tap.first())) p0 = __ldg(crop_row + tap.first());
    if (row_outside || roi.outside(tap.second())) p1 = __ldg(crop_row + tap.second());
}

// Chunks and rows of a frame; `end` and `bottom` are outside.
struct Region {
    int first, end, top, bottom;
};

// The region of bytes left ... right - 1 in rows top ... bottom - 1. `draw_threads` in gpupipe/gpu/launch.py counts it.
static __device__ __forceinline__ Region region_of(int left, int right, int top, int bottom, int pitch) {
    if (left >= right || top >= bottom) return {0, 0, 0, 0};
    return {left >> 5 << 1, min((right + 31) >> 5 << 1, pitch >> 4), top, bottom};
}

// Sets the frame's bit in `status` if its prediction, `chunks` vectors of 16 bytes, holds a NaN.
static __device__ __forceinline__ void scan(const uint4* __restrict__ prediction, int chunks, int block, u32* status) {
    const int begin = block * CHUNKS_A_BLOCK, first = begin + threadIdx.x;
    bool found = false;
    if (begin + CHUNKS_A_BLOCK <= chunks) {
        uint4 v[CHUNKS_A_THREAD];
#pragma unroll
        for (int i = 0; i < CHUNKS_A_THREAD; i++) v[i] = __ldg(prediction + first + i * THREADS);
#pragma unroll
        for (int i = 0; i < CHUNKS_A_THREAD; i++) found |= any_nan(v[i]);
    } else {
#pragma unroll 1
        for (int chunk = first; chunk < chunks; chunk += THREADS) found |= any_nan(__ldg(prediction + chunk));
    }
    if (found) atomicOr(status + (blockIdx.y >> 5), 1u << (blockIdx.y & 31));
}

// Copies the chunks of this block that are not in the region. `also`: rows from the region's to a second copy of it,
// `also_top` ... `also_bottom` - 1 (nv12's chroma), which may be empty.
static __device__ __forceinline__ void copy(const u8* body, u64 output, int rows, int pitch, int block, Region region,
                                            int also_top, int also_bottom) {
    const uint4* from = reinterpret_cast<const uint4*>(body);
    const int chunks_a_row = pitch >> 4, chunks = rows * chunks_a_row;
    const int begin = block * CHUNKS_A_BLOCK, first = begin + threadIdx.x, end = min(begin + CHUNKS_A_BLOCK, chunks);
    if (begin >= chunks) return;
    const bool touches = (end > region.top * chunks_a_row && begin < region.bottom * chunks_a_row) ||
                         (end > also_top * chunks_a_row && begin < also_bottom * chunks_a_row);
    uint4 v[CHUNKS_A_THREAD];
    const u64 to = output + first * 16LL;
    if (!touches && begin + CHUNKS_A_BLOCK == end) {
#pragma unroll
        for (int i = 0; i < CHUNKS_A_THREAD; i++) v[i] = __ldcs(from + first + i * THREADS);
#pragma unroll
        for (int i = 0; i < CHUNKS_A_THREAD; i++) store_16_bytes(to + i * THREADS * 16, v[i]);
        return;
    }
    bool mine[CHUNKS_A_THREAD];
#pragma unroll
    for (int i = 0; i < CHUNKS_A_THREAD; i++) {
        const int chunk = first + i * THREADS, row = chunk / chunks_a_row, column = chunk - row * chunks_a_row;
        const bool in_rows = (row >= region.top && row < region.bottom) || (row >= also_top && row < also_bottom);
        mine[i] = chunk < end && !(in_rows && column >= region.first && column < region.end);
        if (mine[i]) v[i] = __ldcs(from + chunk);
    }
#pragma unroll
    for (int i = 0; i < CHUNKS_A_THREAD; i++)
        if (mine[i]) store_16_bytes(to + i * THREADS * 16, v[i]);
}
