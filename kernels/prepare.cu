// prepare: the table of a batch, cached crops and speech features -> the inputs of the model. One launch a batch.
//
// Must equal `CpuCompositor.prepare` (gpupipe/compose/cpu.py), bit for bit.
//
//   table     TableRow [B]          (table.cuh) of these
//     crop      u8   [3, C, C]      planes B, G, R; C = S + 2 * border; null for an empty place. Where the flags say
//               u8   [6, S, S]      so, recorded inputs follow: planes B, G, R of the roi, then of the masked roi
//     speech    f32  [17, 512]      the window's rows and one more, read if fraction > 0
//     fraction                      of a row, in 1 / SPEECH_STEPS, by which the window lies past its first row
//   visual    Real [B, 6, S, S]     planes B, G, R of the roi / 255, then the same with the mask black
//   audio     Real [B, 32, 16, 16]  row k: speech[k], or (1 - r) * speech[k] + r * speech[k + 1] between two rows
//   status    u32  [ceil(B / 32)]   set to 0: a bit a frame, in which paste reports NaN
//
// Real is float32 or float16 (GPUPIPE_FLOAT16). S is a multiple of 4, every address is a multiple of 16.
// Grid (pixel_blocks + speech_blocks, B). A pixel thread makes four neighbouring pixels of all planes: three 4-byte
// loads, six 16-byte stores (8-byte ones in float16). A speech thread makes four neighbouring values: one 16-byte load
// (two between rows) and store.
//
// The quotient x / 255 must be that of a correctly rounded float32 division. x * hi + x * lo, where hi + lo is 1 / 255
// to 48 bits, is that quotient for each of the 256 values (tests/test_kernels.py tries them all).
//
// Bytes a frame must move, each once:
//   3 * S * S                     the roi of the crop (with recorded inputs 6 * S * S)
//   6 * S * S * sizeof(Real)      visual
//   16 * 512 * 4                  speech; n frames of one speech in a row share rows and read (15 + n) * 2048 / n each
//   16 * 512 * sizeof(Real)       audio
//   64                            the table's row
// S = 320, n = 8: 2 803 520 bytes in float32, 1 558 336 in float16. Measured 1.003 and 1.005 times that (the sectors at
// the ends of a crop's rows hold some of its border).
//
// Tried: float4 and uint2 stores written as assignments: NVRTC made 4-byte stores of them, which touched 3.5 times the
// sectors (5.7 million instructions a frame; with store4, 5.1). A thread takes all planes of its four pixels, so that
// position and mask are computed once for the three.
#include "table.cuh"

#define RECIPROCAL_HI 0x1.010102p-8f
#define RECIPROCAL_LO -0x1.fdfdfep-33f

static __device__ __forceinline__ float unit(u32 byte) {
    const float x = (float)byte;
    return __fmaf_rn(x, RECIPROCAL_HI, __fmul_rn(x, RECIPROCAL_LO));
}

static __device__ __forceinline__ void store_units(Real* to, u32 four) {
    store4(to, unit(four & 255u), unit(four >> 8 & 255u), unit(four >> 16 & 255u), unit(four >> 24));
}

// A value between two rows of speech, as `SpeechRows.window` (gpupipe/speech/rows.py) rounds it.
static __device__ __forceinline__ float between(float a, float b, float rest) {
    return __fadd_rn(__fmul_rn(1.f - rest, a), __fmul_rn(rest, b));
}

KERNEL prepare(const TableRow* __restrict__ table, Real* __restrict__ visual, Real* __restrict__ audio,
               u32* __restrict__ status, int size, int border, int mask_x1, int mask_y1, int mask_x2, int mask_y2,
               int pixel_blocks) {
    const int place = blockIdx.y, block = blockIdx.x;
    if (block == 0 && threadIdx.x == 0 && (place & 31) == 0) status[place >> 5] = 0;
    const TableRow& frame = table[place];
    if (!frame.crop) return;

    if (block >= pixel_blocks) {
        const int value = ((block - pixel_blocks) * THREADS + threadIdx.x) * 4;
        if (value >= SPEECH_ROWS * SPEECH_WIDTH) return;
        float4 v = __ldg(reinterpret_cast<const float4*>(frame.speech + value));
        if (frame.fraction) {
            const float4 next = __ldg(reinterpret_cast<const float4*>(frame.speech + value + SPEECH_WIDTH));
            const float rest = frame.fraction * (1.f / SPEECH_STEPS);
            v = make_float4(between(v.x, next.x, rest), between(v.y, next.y, rest), between(v.z, next.z, rest),
                            between(v.w, next.w, rest));
        }
        store4(audio + (long long)place * (SPEECH_ROWS * SPEECH_WIDTH) + value, v.x, v.y, v.z, v.w);
        return;
    }

    const int quad = block * THREADS + threadIdx.x, quads = size / 4;
    const int y = quad / quads, x = (quad - y * quads) * 4;
    if (y >= size) return;
    const int plane = size * size, crop = size + 2 * border, crop_plane = crop * crop;
    Real* to = visual + (long long)place * 6 * plane + y * size + x;

    if (IS_RECORDED(frame.flags)) {
        const u8* six = frame.crop + 3 * crop_plane + y * size + x;
#pragma unroll
        for (int i = 0; i < 6; i++) store_units(to + i * plane, __ldg(reinterpret_cast<const u32*>(six + i * plane)));
        return;
    }

    const u8* roi = frame.crop + (y + border) * crop + border + x;
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
