// What every kernel shares: the table of a batch, its addresses, and the size of a block.
//
// A launch has a column of blocks for each place of the batch (blockIdx.y), as many as the most demanding frame needs.
// What differs between frames stands in the table alone, so a kind of batch is always the same launch. A place whose
// crop is null is empty: its blocks return at once.
#pragma once
#include "real.cuh"

typedef unsigned long long u64;

// THREADS a block, and how many blocks must fit on a multiprocessor at a time, which bounds a thread's registers: see
// gpupipe/gpu/kernels.py.
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_A_MULTIPROCESSOR)

// CHUNKS_A_THREAD 16-byte loads in flight in a thread that copies or scans (gpupipe/gpu/kernels.py).
#define CHUNKS_A_BLOCK (THREADS * CHUNKS_A_THREAD)

// A row of the table. gpupipe/compose/table.py makes it and says what each field is.
struct __align__(16) TableRow {
    const u8* crop;
    const u8* body;
    u64 output;
    const float* speech;
    const uint2 *x_taps, *y_taps;
    short x1, y1, x2, y2;
    unsigned short width, height, flags, fraction;
};
static_assert(sizeof(TableRow) == ROW_BYTES, "gpupipe/compose/table.py has rows of another size");

#define IS_RECORDED(flags) ((flags) & 1)
#define MATRIX_NUMBER(flags) ((flags) >> 1)

// Stores to an address from the table: the compiler, which cannot know that it is one of global memory, would make a
// generic store of an assignment, and of one of 16 bytes perhaps four.
static __device__ __forceinline__ void store_16_bytes(u64 to, uint4 v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

static __device__ __forceinline__ void store_4_bytes(u64 to, u32 v) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

static __device__ __forceinline__ void store_2_bytes(u64 to, u32 v) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(to), "h"((unsigned short)v) : "memory");
}
