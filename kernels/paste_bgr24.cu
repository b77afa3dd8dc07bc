// paste_bgr24: predictions, cached crops and body frames -> finished bgr24 frames. One launch a batch.
//
// Must equal `CpuCompositor.paste` (gpupipe/compose/cpu.py) with pixel_format "bgr24", bit for bit.
//
//   prediction  Real [B, 3, S, S]       planes B, G, R, 0 to 1; NaN is drawn as 0
//   table       TableRow [B]            (table.cuh) of these
//     crop        u8   [3, C, C]        planes B, G, R; C = S + 2 * border; null for an empty place
//     body        u8   [H, pitch]       bytes B, G, R; rows start at multiples of 16 bytes
//     output      u8   [H, pitch]       like body, written
//     x_taps      u32  [x2 - x1, 2]     i0 + (i1 << 16), w0 + (w1 << 16): geometry.resize_taps
//     y_taps      u32  [y2 - y1, 2]     along y
//     x1, y1, x2, y2, width, height     the rectangle in body pixels, W, H
//   status      u32  [ceil(B / 32)]     bit b is set if prediction[b] holds a NaN anywhere; prepare has zeroed it
//
// Real is float32 or float16 (GPUPIPE_FLOAT16). S is a multiple of 4, every address of one of 16, except taps'; width,
// height and rectangles are any. Grid (draw_blocks + scan_blocks + copy_blocks, B); see paste.cuh for the three kinds.
// A drawing thread makes four neighbouring bytes of a row, whatever pixels they belong to, from sixteen values of the
// prediction, and stores them as one word; warps store whole sectors.
//
// Bytes a frame must move, each once, for a rectangle of w * h pixels inside the body:
//   3 * W * H                     the frame
//   3 * W * H - 3 * w * h         the body around the rectangle
//   3 * S * S * sizeof(Real)      the prediction, all of it, for NaN
//   3 * (C * C - S * S)           the border of the crop
//   8 * (w + h) + 64              taps, the table's row
// 1280 x 720, w = h = 182, S = 320, C = 328: 6 677 556 bytes in float32, 6 063 156 in float16. Measured 1.005 times
// that (sectors that the rectangle's edge or the crop's border cuts).
//
// Tried: a thread a pixel, byte by byte: 70 million instructions a frame and 3.0 times the sectors in stores; this
// makes 14.4 million and 1.004. Tap positions and products as in the nv12 kernel's first version: 19.1 million. Four
// vectors in flight in a copying thread instead of eight: 17.0 million. Unpacked taps: 20 bytes spilled at 64
// registers, and without a bound 80 registers on sm_75, where a fourth block then finds no room.
#include "paste.cuh"

KERNEL paste_bgr24(const Real* __restrict__ prediction, const TableRow* __restrict__ table, u32* __restrict__ status,
                   int size, int border, int draw_blocks, int scan_blocks) {
    const int plane = size * size, block = blockIdx.x;
    const TableRow& frame = table[blockIdx.y];
    if (!frame.crop) return;
    prediction += (long long)blockIdx.y * 3 * plane;
    if (block >= draw_blocks && block < draw_blocks + scan_blocks) {
        scan(reinterpret_cast<const uint4*>(prediction), 3 * plane / REALS_IN_16_BYTES, block - draw_blocks, status);
        return;
    }
    const int pitch = pitch_of(3 * frame.width);
    const int left = max(frame.x1, 0), right = min(frame.x2, frame.width);
    const int top = max(frame.y1, 0), bottom = min(frame.y2, frame.height);
    const Region region = region_of(3 * left, 3 * right, top, bottom, pitch);
    if (block >= draw_blocks) {
        copy(frame.body, frame.output, frame.height, pitch, block - draw_blocks - scan_blocks, region, 0, 0);
        return;
    }

    const int words = (region.end - region.first) * 4, word = block * THREADS + threadIdx.x;
    if (words == 0) return;
    const int row = word / words, y = region.top + row;
    if (y >= region.bottom) return;
    const int byte = region.first * 16 + (word - row * words) * 4, offset = y * pitch + byte;
    const int x = byte / 3, phase = byte - 3 * x;  // four bytes hold some of pixels x and x + 1, and of no other
    const bool covers0 = x >= left && x < right, covers1 = x + 1 >= left && x + 1 < right;
    if (!covers0 && !covers1) {
        store_4_bytes(frame.output + offset, __ldg(reinterpret_cast<const u32*>(frame.body + offset)));
        return;
    }

    // A pixel that is not covered gets its neighbour's taps; what it gives is not used.
    const Tap ty = load_tap(frame.y_taps, y - frame.y1);
    const Tap t0 = load_tap(frame.x_taps, min(max(x, left), right - 1) - frame.x1);
    const Tap t1 = load_tap(frame.x_taps, min(max(x + 1, left), right - 1) - frame.x1);
    const Roi roi = {border, size};
    const int row0 = roi.inside(ty.first()) * size, row1 = roi.inside(ty.second()) * size;
    const int column0 = roi.pair(t0.first()), column1 = roi.pair(t1.first());

    u32 p[4][4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const bool second = phase + k >= 3;
        const Real* from = prediction + (second ? (phase + k - 3) * plane + column1 : (phase + k) * plane + column0);
        p[k][0] = quantise(__ldg(from + row0));
        p[k][1] = quantise(__ldg(from + row0 + 1));
        p[k][2] = quantise(__ldg(from + row1));
        p[k][3] = quantise(__ldg(from + row1 + 1));
    }
    if (roi.outside(ty) || roi.outside(t0) || roi.outside(t1)) {
        const int crop = size + 2 * border;
        const u8* crop_row0 = frame.crop + ty.first() * crop;
        const u8* crop_row1 = crop_row0 + (ty.second() - ty.first()) * crop;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const bool second = phase + k >= 3;
            const int channel = (phase + k - (second ? 3 : 0)) * crop * crop;
            const Tap tx = second ? t1 : t0;
            fix_edge(p[k][0], p[k][1], crop_row0 + channel, roi.outside(ty.first()), tx, roi);
            fix_edge(p[k][2], p[k][3], crop_row1 + channel, roi.outside(ty.second()), tx, roi);
        }
    }

    u32 drawn = 0;
    const u32 kept = covers0 && covers1 ? 0 : __ldg(reinterpret_cast<const u32*>(frame.body + offset));
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const bool second = phase + k >= 3;
        const u32 value = blend(p[k][0], p[k][1], p[k][2], p[k][3], second ? t1.weights : t0.weights, ty.weights);
        drawn |= ((second ? covers1 : covers0) ? value : kept >> 8 * k & 255u) << 8 * k;
    }
    store_4_bytes(frame.output + offset, drawn);
}
