// paste_nv12: predictions, cached crops and cached body frames -> finished NV12 frames. One launch a batch.
//
// Must equal `CpuCompositor.paste` (gpupipe/compose_cpu.py) with pixel_format "nv12", bit for bit.
//
//   prediction  Real [B, 3, S, S]       planes B, G, R, 0 to 1; NaN is drawn as 0
//   crops       u8   [N, 3, C, C]       planes B, G, R; C = S + 2 * border
//   body        u8   [N, R, pitch]      R = H * 3 / 2: H rows of Y, then rows of Cb, Cr in turn; rows start at
//                                       multiples of 16 bytes
//   placements  i32  [N, 8]             x1, y1, x2, y2, first tap along x, first tap along y, 0, 0
//   taps        u32  [T, 2]             i0 + (i1 << 16), w0 + (w1 << 16): geometry.resize_taps
//   index       i32  [B, 2]             cached frame, (row of speech)
//   frames      u8   [B, R, pitch]      like body, written
//   status      u32  [ceil(B / 32)]     bit b is set if prediction[b] holds a NaN anywhere; prepare has zeroed it
//   matrix      by value: rows Y, Cb, Cr of weights for B, G, R and an offset, 14 fractional bits: Colour.from_bgr
//
// Real is float32 or float16 (GPUPIPE_FLOAT16). S is a multiple of 4, every buffer is 16-byte aligned, width and height
// are even; rectangles are any. Grid (draw_blocks + scan_blocks + copy_blocks, B), blocks of THREADS threads; see
// paste.cuh for the three kinds. A drawing thread makes a 2x2 block of pixels: four Y, one Cb and one Cr, from 48
// values of the prediction, stored as three pairs of bytes; warps store whole sectors. Pixels of the block that the
// rectangle does not cover keep their Y, and give the body's Cb and Cr to the mean.
//
// Bytes a frame must move, each once, for a rectangle of w * h pixels inside the body, on even coordinates:
//   3/2 * W * H                   the frame
//   3/2 * W * H - 3/2 * w * h     the body around the rectangle
//   3 * S * S * sizeof(Real)      the prediction, all of it, for NaN
//   3 * (C * C - S * S)           the border of the crop
//   8 * (w + h) + 40              taps, placement, index
// 1280 x 720, w = h = 182, S = 320, C = 328: 3 962 418 bytes in float32, 3 348 018 in float16. Measured 1.009 and 1.011
// times that (sectors that the rectangle's edge or the crop's border cuts).
//
// Tried, in float32: registers, bytes spilled (ptxas, sm_75 to sm_120), instructions a frame (1280 x 720, w = h = 182):
//   all three planes of a block unrolled               122 to 146 registers                12.2 million
//   the same, held to 64 registers                     116 to 220 bytes spilled
//   a loop over planes, 16 loads in flight             112 to 132 bytes spilled            12.9 million
//   the same, the compiler kept from hoisting          12 to 44 bytes spilled              12.7 million
//   a loop over planes and rows, 8 loads in flight     64 registers, none spilled          14.7 million
//   the same, 8 vectors a copying thread, not 4        54 to 60 registers, none spilled    13.2 million
#include "paste.cuh"

// Rows Y, Cb, Cr of weights for B, G, R and an offset.
struct Matrix {
    int weights[3][4];
};

static __device__ __forceinline__ u32 sample(const int* row, int b, int g, int r) {
    return min(255, row[0] * b + row[1] * g + row[2] * r + row[3] >> FRACTION_BITS);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
paste_nv12(const Real* __restrict__ prediction, const u8* __restrict__ crops, const u8* __restrict__ body,
           const int4* __restrict__ placements, const uint2* __restrict__ taps, const int2* __restrict__ index,
           u8* __restrict__ frames, u32* __restrict__ status, int size, int border, int width, int height, int pitch,
           int draw_blocks, int scan_blocks, const Matrix matrix) {
    const int frame = blockIdx.y, values = size * size, block = blockIdx.x, rows = height / 2 * 3;
    if (block >= draw_blocks && block < draw_blocks + scan_blocks) {
        scan(reinterpret_cast<const uint4*>(prediction + (long long)frame * 3 * values), 3 * values / REALS_IN_16_BYTES,
             block - draw_blocks, status);
        return;
    }
    const int cached = __ldg(index + frame).x;
    const Placement at = load_placement(placements, cached);
    const int left = max(at.x1, 0), right = min(at.x2, width), top = max(at.y1, 0), bottom = min(at.y2, height);
    // Rows of whole 2x2 blocks, so that the same columns of rows height + top / 2 ... are the region's chroma.
    const Region region = region_of(left, right, top & ~1, top < bottom ? (bottom + 1) & ~1 : 0, pitch);
    const long long frame_bytes = (long long)rows * pitch;
    if (block >= draw_blocks) {
        copy(body + cached * frame_bytes, frames + frame * frame_bytes, rows, pitch, block - draw_blocks - scan_blocks,
             region, height + region.top / 2, height + region.bottom / 2);
        return;
    }

    const int blocks = (region.end - region.first) * 8, thread = block * THREADS + threadIdx.x;
    if (blocks == 0) return;
    const int block_row = thread / blocks, y = region.top + 2 * block_row;
    if (y >= region.bottom) return;
    const int x = region.first * 16 + 2 * (thread - block_row * blocks);
    const bool covers_x0 = x >= left && x < right, covers_x1 = x + 1 >= left && x + 1 < right;
    const bool covers_y0 = y >= top, covers_y1 = y + 1 < bottom;  // a region's block has a covered row
    u32 bgr[3] = {0, 0, 0};  // planes of the 2x2 block, a byte a pixel
    if (covers_x0 || covers_x1) {
        // A pixel that is not covered gets its neighbour's taps; what it gives is not used.
        const Tap tx[2] = {load_tap(taps, at.x_taps + max(x, left) - at.x1),
                           load_tap(taps, at.x_taps + min(x + 1, right - 1) - at.x1)};
        Tap ty[2] = {load_tap(taps, at.y_taps + max(y, top) - at.y1),
                     load_tap(taps, at.y_taps + min(y + 1, bottom - 1) - at.y1)};
        const Roi roi = {border, size};
        const int column[2] = {roi.pair(tx[0].first()), roi.pair(tx[1].first())}, crop = size + 2 * border;
        const bool edge = roi.outside(ty[0]) || roi.outside(ty[1]) || roi.outside(tx[0]) || roi.outside(tx[1]);
        const Real* predicted = prediction + frame * 3LL * values;
        // Two neighbouring pixels of one plane at a time: unrolled, this takes more than twice the registers.
#pragma unroll 1
        for (int half = 0; half < 6; half++) {
            const int over = ty[0].first(), under = ty[0].second(), plane = half >> 1;
            const int rows_at[2] = {plane * values + roi.inside(over) * size,
                                    plane * values + roi.inside(under) * size};
            u32 p[2][2][2];
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const Real* from = predicted + (rows_at[i] + column[j]);
                    p[i][j][0] = quantise(__ldg(from));
                    p[i][j][1] = quantise(__ldg(from + 1));
                }
            if (edge) {
                const u8* crop_plane = crops + (cached * 3 + plane) * (long long)(crop * crop);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    fix_edge(p[0][j][0], p[0][j][1], crop_plane + over * crop, roi.outside(over), tx[j], roi);
                    fix_edge(p[1][j][0], p[1][j][1], crop_plane + under * crop, roi.outside(under), tx[j], roi);
                }
            }
            u32 two = 0;
#pragma unroll
            for (int j = 0; j < 2; j++)
                two |= blend(p[0][j][0], p[0][j][1], p[1][j][0], p[1][j][1], tx[j].weights, ty[0].weights) << 8 * j;
            // The oldest two bytes leave: after six turns, each plane's four are where they belong.
            bgr[0] = bgr[0] >> 16 | bgr[1] << 16;
            bgr[1] = bgr[1] >> 16 | bgr[2] << 16;
            bgr[2] = bgr[2] >> 16 | two << 16;
            const Tap other = ty[1];
            ty[1] = ty[0];
            ty[0] = other;
        }
    }

    body += cached * frame_bytes;
    frames += frame * frame_bytes;
    const int upper_luma = y * pitch + x, lower_luma = upper_luma + pitch, chroma = (height + y / 2) * pitch + x;
    u32 upper = 0, lower = 0, mixed = 0;
    if (!(covers_x0 && covers_x1 && covers_y0 && covers_y1)) {
        upper = __ldg(reinterpret_cast<const unsigned short*>(body + upper_luma));
        lower = __ldg(reinterpret_cast<const unsigned short*>(body + lower_luma));
        mixed = __ldg(reinterpret_cast<const unsigned short*>(body + chroma));
    }
    if (covers_x0 || covers_x1) {
        const bool covers[4] = {covers_x0 && covers_y0, covers_x1 && covers_y0, covers_x0 && covers_y1,
                                covers_x1 && covers_y1};
        u32 luma[4], blue = 2, red = 2;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int b = bgr[0] >> 8 * k & 255u, g = bgr[1] >> 8 * k & 255u, r = bgr[2] >> 8 * k & 255u;
            luma[k] = covers[k] ? sample(matrix.weights[0], b, g, r) : (k < 2 ? upper : lower) >> 8 * (k % 2) & 255u;
            blue += covers[k] ? sample(matrix.weights[1], b, g, r) : mixed & 255u;
            red += covers[k] ? sample(matrix.weights[2], b, g, r) : mixed >> 8;
        }
        upper = luma[0] | luma[1] << 8;
        lower = luma[2] | luma[3] << 8;
        mixed = blue >> 2 | red >> 2 << 8;
    }
    *reinterpret_cast<unsigned short*>(frames + upper_luma) = upper;
    *reinterpret_cast<unsigned short*>(frames + lower_luma) = lower;
    *reinterpret_cast<unsigned short*>(frames + chroma) = mixed;
}
