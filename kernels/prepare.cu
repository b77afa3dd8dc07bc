// prepare: cached crops, cached speech features and two indexes a frame -> the inputs of the model. One launch a batch.
//
// Must equal `CpuCompositor.prepare` (gpupipe/compose_cpu.py), bit for bit.
//
//   crops     u8   [N, 3, C, C]     planes B, G, R; C = S + 2 * border
//   recorded  u8   [N, 6, S, S]     recorded inputs, or null: planes B, G, R of the roi, then of the masked roi
//   speech    f32  [rows, 512]
//   index     i32  [B, 2]           cached frame, row of speech
//   visual    Real [B, 6, S, S]     planes B, G, R of the roi / 255, then the same with the mask black
//   audio     Real [B, 32, 16, 16]  speech rows r - 8 ... r + 7; rows outside the features are zeros
//   status    u32  [ceil(B / 32)]   set to 0: a bit a frame, in which paste reports NaN
//
// Real is float32 or float16 (GPUPIPE_FLOAT16). S is a multiple of 4, every buffer is 16-byte aligned.
// Grid (pixel_blocks + speech_blocks, B), blocks of 256 threads. A pixel thread makes four neighbouring pixels of all
// planes: three 4-byte loads, six 16-byte stores (8-byte ones in float16). A speech thread makes four neighbouring
// values: one 16-byte load and store.
//
// The quotient x / 255 must be that of a correctly rounded float32 division. x * hi + x * lo, where hi + lo is 1 / 255
// to 48 bits, is that quotient for each of the 256 values (tests/test_kernels.py tries them all).
//
// Bytes a frame must move, each once:
//   3 * S * S                     the roi of the crop (with recorded inputs 6 * S * S)
//   6 * S * S * sizeof(Real)      visual
//   16 * 512 * 4                  speech; B frames in a row share rows and read (15 + B) * 2048 / B each
//   16 * 512 * sizeof(Real)       audio
//   8                             index
// S = 320, B = 8, frames in a row: 2 803 464 bytes in float32, 1 558 280 in float16. Measured 1.003 and 1.005 times
// that (the sectors at the ends of a crop's rows hold some of its border).
//
// Tried: float4 and uint2 stores written as assignments: NVRTC made 4-byte stores of them, which touched 3.5 times the
// sectors (5.7 million instructions a frame; with store4, 5.2). A thread takes all planes of its four pixels, so that
// position and mask are computed once for the three.
#include "real.cuh"

#define RECIPROCAL_HI 0x1.010102p-8f
#define RECIPROCAL_LO -0x1.fdfdfep-33f

static __device__ __forceinline__ float unit(u32 byte) {
    const float x = (float)byte;
    return __fmaf_rn(x, RECIPROCAL_HI, __fmul_rn(x, RECIPROCAL_LO));
}

static __device__ __forceinline__ void store_units(Real* to, u32 four) {
    store4(to, unit(four & 255u), unit(four >> 8 & 255u), unit(four >> 16 & 255u), unit(four >> 24));
}

extern "C" __global__ void __launch_bounds__(256)
prepare(const u8* __restrict__ crops, const u8* __restrict__ recorded, const float* __restrict__ speech,
        const int2* __restrict__ index, Real* __restrict__ visual, Real* __restrict__ audio, u32* __restrict__ status,
        int size, int border, int mask_x1, int mask_y1, int mask_x2, int mask_y2, int speech_rows, int pixel_blocks) {
    const int frame = blockIdx.y;
    const int2 from = __ldg(index + frame);
    if (blockIdx.x == 0 && threadIdx.x == 0 && (frame & 31) == 0) status[frame >> 5] = 0;

    if (blockIdx.x >= pixel_blocks) {
        const int value = ((blockIdx.x - pixel_blocks) * blockDim.x + threadIdx.x) * 4;
        if (value >= SPEECH_ROWS * SPEECH_WIDTH) return;
        const long long row = (long long)from.y - SPEECH_BEFORE + value / SPEECH_WIDTH;
        float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
        if (row >= 0 && row < speech_rows)
            v = __ldg(reinterpret_cast<const float4*>(speech + row * SPEECH_WIDTH + value % SPEECH_WIDTH));
        store4(audio + (long long)frame * (SPEECH_ROWS * SPEECH_WIDTH) + value, v.x, v.y, v.z, v.w);
        return;
    }

    const int quad = blockIdx.x * blockDim.x + threadIdx.x, quads = size / 4;
    const int y = quad / quads, x = (quad - y * quads) * 4;
    if (y >= size) return;
    const int plane = size * size;
    Real* to = visual + (long long)frame * 6 * plane + y * size + x;

    if (recorded) {
        const u8* six = recorded + (long long)from.x * 6 * plane + y * size + x;
#pragma unroll
        for (int i = 0; i < 6; i++) store_units(to + i * plane, __ldg(reinterpret_cast<const u32*>(six + i * plane)));
        return;
    }

    const int crop = size + 2 * border, crop_plane = crop * crop;
    const u8* roi = crops + (long long)from.x * 3 * crop_plane + (y + border) * crop + border + x;
    // Bits that the mask leaves of the four bytes. 0 / 255 is 0.
    u32 keep = 0xffffffffu;
    if (y >= mask_y1 && y < mask_y2) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (x + i >= mask_x1 && x + i < mask_x2) keep &= ~(255u << 8 * i);
    }
    u32 four[3];
#pragma unroll
    for (int i = 0; i < 3; i++) four[i] = __ldg(reinterpret_cast<const u32*>(roi + i * crop_plane));
#pragma unroll
    for (int i = 0; i < 3; i++) {
        store_units(to + i * plane, four[i]);
        if (keep)
            store_units(to + (3 + i) * plane, four[i] & keep);
        else
            store4(to + (3 + i) * plane, 0.f, 0.f, 0.f, 0.f);
    }
}
