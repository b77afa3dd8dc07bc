// gather: features of a batch's frames, from where they stay to places one behind the other; or back. One launch.
//
// Must equal `gather_on_host` (gpupipe/model/features.py), bit for bit.
//
//   table     GatherTable           of these
//     places    Place [B]           where the features of a place's frame stay: the address of a block, as
//                                   `ResidentFeatures.allocate` lays it out for `frames` frames, and the frame's row;
//                                   null for a place that is left alone
//     tensors   Tensor [T]          the batch's own array of a tensor, bytes [B, bytes], and the blocks that copy a row
//   first     i32                   the place of places[0] in the batch's arrays
//   back      i32                   0: from where they stay to the batch's arrays; 1: the other way
//
// A block of features holds the tensors one behind the other, each u8 [frames, bytes] from a multiple of 256 on. Grid
// (sum of blocks, B). A block of threads copies 32 KB of one tensor of one frame; a thread has eight 16-byte vectors in
// flight. A tensor whose rows are no multiple of 16 bytes, of which models of real size have none, goes byte by byte.
//
// The table is among the kernel's parameters, so that nothing is uploaded for it; __grid_constant__ promises that threads
// may index it where it lies (NVRTC 12.9 does so without, but a copy of 3 KB for each thread would be as right). It holds
// GATHER_PLACES places; a larger batch takes another launch.
//
// Bytes a frame must move, each once: 2 * (bytes of all tensors). The published model keeps 11 264 000 in float32, half
// of that in float16: 22 528 000 and 11 264 000. Measured 1.000 times that.
#include "table.cuh"

struct Place {
    u64 block;
    u32 frames, row;
};

struct Tensor {
    u64 rows;
    u32 bytes, blocks;
};

struct GatherTable {
    Place places[GATHER_PLACES];
    Tensor tensors[GATHER_TENSORS];
};

KERNEL gather(const __grid_constant__ GatherTable table, int first, int back) {
    const u64 resident = table.places[blockIdx.y].block;
    if (!resident) return;
    const u64 frames = table.places[blockIdx.y].frames, row = table.places[blockIdx.y].row;
    u32 block = blockIdx.x, number = 0;
    u64 offset = 0;
    while (block >= table.tensors[number].blocks) {
        block -= table.tensors[number].blocks;
        offset += (frames * table.tensors[number].bytes + 255) & ~255ull;
        number++;
    }
    const u32 bytes = table.tensors[number].bytes;
    const u64 kept = resident + offset + row * bytes;
    const u64 own = table.tensors[number].rows + (u64)(first + blockIdx.y) * bytes;
    const u64 from = back ? own : kept, to = back ? kept : own;

    if (bytes & 15) {
        const u32 begin = block * 16 * CHUNKS_A_BLOCK, end = min(bytes, begin + 16 * CHUNKS_A_BLOCK);
        for (u32 at = begin + threadIdx.x; at < end; at += THREADS)
            reinterpret_cast<u8*>(to)[at] = __ldg(reinterpret_cast<const u8*>(from) + at);
        return;
    }
    const u32 vectors = bytes / 16, begin = block * CHUNKS_A_BLOCK + threadIdx.x;
    uint4 v[CHUNKS_A_THREAD];
#pragma unroll
    for (int i = 0; i < CHUNKS_A_THREAD; i++)
        if (begin + i * THREADS < vectors) v[i] = __ldg(reinterpret_cast<const uint4*>(from) + begin + i * THREADS);
#pragma unroll
    for (int i = 0; i < CHUNKS_A_THREAD; i++)
        if (begin + i * THREADS < vectors) store_16_bytes(to + 16ull * (begin + i * THREADS), v[i]);
}
