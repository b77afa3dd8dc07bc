// paste_nv12: predictions, cached crops and body frames -> finished NV12 frames. One launch a batch.
//
// Must equal `CpuCompositor.paste` (gpupipe/compose/cpu.py) with pixel_format "nv12", bit for bit.
//
//   prediction  Real [B, 3, S, S]       planes B, G, R, 0 to 1; NaN is drawn as 0
//   table       TableRow [B]            (table.cuh) of these
//     crop        u8   [3, C, C]        planes B, G, R; C = S + 2 * border; null for an empty place
//     body        u8   [R, pitch]       R = H * 3 / 2: H rows of Y, then rows of Cb, Cr in turn; rows start at
//                                       multiples of 16 bytes
//     output      u8   [R, pitch]       like body, written
//     x_taps      u32  [x2 - x1, 2]     i0 + (i1 << 16), w0 + (w1 << 16): geometry.resize_taps
//     y_taps      u32  [y2 - y1, 2]     along y
//     x1, y1, x2, y2, width, height     the rectangle in body pixels, W, H
//     flags                             the number of the matrix
//   matrices    i32  [M, 3, 4]          rows Y, Cb, Cr of weights for B, G, R and an offset, 14 fractional bits:
//                                       colour.matrices
//   status      u32  [ceil(B / 32)]     bit b is set if prediction[b] holds a NaN anywhere; prepare has zeroed it
//
// Real is float32 or float16 (GPUPIPE_FLOAT16). S is a multiple of 4, every address of one of 16, except taps'; width
// and height are even; rectangles are any. Grid (draw_blocks + scan_blocks + copy_blocks, B); see paste.cuh for the
// three kinds. A drawing thread makes a 2x2 block of pixels: four Y, one Cb and one Cr, from 48 values of the
// prediction, stored as three pairs of bytes; warps store whole sectors. Pixels of the block that the rectangle does
// not cover keep their Y, and give the body's Cb and Cr to the mean.
//
// Bytes a frame must move, each once, for a rectangle of w * h pixels inside the body, on even coordinates:
//   3/2 * W * H                   the frame
//   3/2 * W * H - 3/2 * w * h     the body around the rectangle
//   3 * S * S * sizeof(Real)      the prediction, all of it, for NaN
//   3 * (C * C - S * S)           the border of the crop
//   8 * (w + h) + 64 + 48         taps, the table's row, the matrix
// 1280 x 720, w = h = 182, S = 320, C = 328: 3 962 490 bytes in float32, 3 348 090 in float16. Measured 1.009 and 1.011
// times that (sectors that the rectangle's edge or the crop's border cuts).
//
// Tried, in float32: registers, bytes spilled (ptxas, sm_75 to sm_120), instructions a frame (1280 x 720, w = h = 182):
//   all three planes of a block unrolled               122 to 146 registers                12.2 million
//   the same, held to 64 registers                     116 to 220 bytes spilled
//   a loop over planes, 16 loads in flight             112 to 132 bytes spilled            12.9 million
//   the same, the compiler kept from hoisting          12 to 44 bytes spilled              12.7 million
//   a loop over planes and rows, 8 loads in flight     64 registers, none spilled          14.7 million
//   the same, 8 vectors a copying thread, not 4        54 to 60 registers, none spilled    13.2 million
//   the same, a table's row for what is a frame's own  55 to 64 registers, none spilled    12.2 million
#include "paste.cuh"

static __device__ __forceinline__ int sample(int4 row, int b, int g, int r) {
    return min(255, row.x * b + row.y * g + row.z * r + row.w >> FRACTION_BITS);
}

KERNEL paste_nv12(const Real* __restrict__ prediction, const TableRow* __restrict__ table,
                  const int4* __restrict__ matrices, u32* __restrict__ status, int size, int border, int draw_blocks,
                  int scan_blocks) {
    const int values = size * size, block = blockIdx.x;
    const TableRow& frame = table[blockIdx.y];
    if (!frame.crop) return;
    prediction += (long long)blockIdx.y * 3 * values;
    if (block >= draw_blocks && block < draw_blocks + scan_blocks) {
        scan(reinterpret_cast<const uint4*>(prediction), 3 * values / REALS_IN_16_BYTES, block - draw_blocks, status);
        return;
    }
    const int pitch = pitch_of(frame.width);
    const int left = max(frame.x1, 0), right = min(frame.x2, frame.width);
    const int top = max(frame.y1, 0), bottom = min(frame.y2, frame.height);
    // Rows of whole 2x2 blocks, so that the same columns of rows height + top / 2 ... are the region's chroma.
    const Region region = region_of(left, right, top & ~1, top < bottom ? (bottom + 1) & ~1 : 0, pitch);
    if (block >= draw_blocks) {
        copy(frame.body, frame.output, frame.height / 2 * 3, pitch, block - draw_blocks - scan_blocks, region,
             frame.height + region.top / 2, frame.height + region.bottom / 2);
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
        const Tap tx[2] = {load_tap(frame.x_taps, max(x, left) - frame.x1),
                           load_tap(frame.x_taps, min(x + 1, right - 1) - frame.x1)};
        Tap ty[2] = {load_tap(frame.y_taps, max(y, top) - frame.y1),
                     load_tap(frame.y_taps, min(y + 1, bottom - 1) - frame.y1)};
        const Roi roi = {border, size};
        const int column[2] = {roi.pair(tx[0].first()), roi.pair(tx[1].first())}, crop = size + 2 * border;
        const bool edge = roi.outside(ty[0]) || roi.outside(ty[1]) || roi.outside(tx[0]) || roi.outside(tx[1]);
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
                    const Real* from = prediction + (rows_at[i] + column[j]);
                    p[i][j][0] = quantise(__ldg(from));
                    p[i][j][1] = quantise(__ldg(from + 1));
                }
            if (edge) {
                const u8* crop_plane = frame.crop + plane * crop * crop;
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

    const u8* body = frame.body;
    const int upper_luma = y * pitch + x, lower_luma = upper_luma + pitch, chroma = (frame.height + y / 2) * pitch + x;
    u32 upper = 0, lower = 0, mixed = 0;
    if (!(covers_x0 && covers_x1 && covers_y0 && covers_y1)) {
        upper = __ldg(reinterpret_cast<const unsigned short*>(body + upper_luma));
        lower = __ldg(reinterpret_cast<const unsigned short*>(body + lower_luma));
        mixed = __ldg(reinterpret_cast<const unsigned short*>(body + chroma));
    }
    if (covers_x0 || covers_x1) {
        const bool covers[4] = {covers_x0 && covers_y0, covers_x1 && covers_y0, covers_x0 && covers_y1,
                                covers_x1 && covers_y1};
        const int4* matrix = matrices + 3 * MATRIX_NUMBER(frame.flags);
        const int4 to_y = __ldg(matrix), to_cb = __ldg(matrix + 1), to_cr = __ldg(matrix + 2);
        u32 luma[4], blue = 2, red = 2;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int b = bgr[0] >> 8 * k & 255u, g = bgr[1] >> 8 * k & 255u, r = bgr[2] >> 8 * k & 255u;
            luma[k] = covers[k] ? sample(to_y, b, g, r) : (k < 2 ? upper : lower) >> 8 * (k % 2) & 255u;
            blue += covers[k] ? sample(to_cb, b, g, r) : mixed & 255u;
            red += covers[k] ? sample(to_cr, b, g, r) : mixed >> 8;
        }
        upper = luma[0] | luma[1] << 8;
        lower = luma[2] | luma[3] << 8;
        mixed = blue >> 2 | red >> 2 << 8;
    }
    store_2_bytes(frame.output + upper_luma, upper);
    store_2_bytes(frame.output + lower_luma, lower);
    store_2_bytes(frame.output + chroma, mixed);
}
