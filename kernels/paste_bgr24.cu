#include "paste.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
paste_bgr24(const Real* __restrict__ prediction, const u8* __restrict__ crops, const u8* __restrict__ body,
            const int4* __restrict__ placements, const uint2* __restrict__ taps, const int2* __restrict__ index,
            u8* __restrict__ frames, u32* __restrict__ status, int size, int border, int width, int height, int pitch,
            int draw_blocks, int scan_blocks) {
    const int frame = blockIdx.y, plane = size * size;
    prediction += (long long)frame * 3 * plane;
    int block = blockIdx.x;
    if (block >= draw_blocks && block < draw_blocks + scan_blocks) {
        scan(reinterpret_cast<const uint4*>(prediction), 3 * plane / REALS_IN_16_BYTES, block - draw_blocks, status);
        return;
    }
    const int cached = __ldg(index + frame).x;
    const Placement at = load_placement(placements, cached);
    const int left = max(at.x1, 0), right = min(at.x2, width), top = max(at.y1, 0), bottom = min(at.y2, height);
    const Region region = region_of(3 * left, 3 * right, top, bottom, pitch);
    body += (long long)cached * height * pitch;
    frames += (long long)frame * height * pitch;

    if (block >= draw_blocks) {
        block -= draw_blocks + scan_blocks;
        copy(reinterpret_cast<const uint4*>(body), reinterpret_cast<uint4*>(frames), height * (pitch >> 4), pitch >> 4, block,
             [&](int first, int last) { return last >= region.top && first < region.bottom; },
             [&](int row, int chunk) {
                 return row >= region.top && row < region.bottom && chunk >= region.first && chunk < region.end;
             });
        return;
    }

    // Draw: four bytes of one row.
    const int words = (region.end - region.first) * 4, word = block * THREADS + threadIdx.x;
    if (words == 0) return;
    const int row = word / words, y = region.top + row;
    if (y >= region.bottom) return;
    const int byte = region.first * 16 + (word - row * words) * 4, offset = y * pitch + byte;
    const int x = byte / 3, phase = byte - 3 * x;  // the word holds bytes of pixels x and x + 1 only
    const bool covers0 = x >= left && x < right, covers1 = x + 1 >= left && x + 1 < right;
    const u32 body_word = covers0 && covers1 ? 0 : __ldg(reinterpret_cast<const u32*>(body + offset));
    if (!covers0 && !covers1) {
        *reinterpret_cast<u32*>(frames + offset) = body_word;
        return;
    }

    const Tap ty = load_tap(taps, at.y_taps + y - at.y1);
    const Tap t0 = load_tap(taps, at.x_taps + min(max(x, left), right - 1) - at.x1);
    const Tap t1 = load_tap(taps, at.x_taps + min(max(x + 1, left), right - 1) - at.x1);
    const int row0 = into_roi(ty.i0, border, size) * size, row1 = into_roi(ty.i1, border, size) * size;
    const int col0[2] = {into_roi(t0.i0, border, size), into_roi(t1.i0, border, size)};
    const int col1[2] = {into_roi(t0.i1, border, size), into_roi(t1.i1, border, size)};

    int p[4][4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const bool second = phase + k >= 3;
        const Real* from = prediction + (phase + k - (second ? 3 : 0)) * plane;
        const int c0 = second ? col0[1] : col0[0], c1 = second ? col1[1] : col1[0];
        p[k][0] = quantise(__ldg(from + row0 + c0));
        p[k][1] = quantise(__ldg(from + row0 + c1));
        p[k][2] = quantise(__ldg(from + row1 + c0));
        p[k][3] = quantise(__ldg(from + row1 + c1));
    }
    const bool upper = outside_roi(ty.i0, border, size), lower = outside_roi(ty.i1, border, size);
    if (upper || lower || outside_roi(t0.i0, border, size) || outside_roi(t1.i1, border, size)) {
        const int crop = size + 2 * border;
        crops += (long long)cached * 3 * crop * crop;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const bool second = phase + k >= 3;
            const u8* from = crops + (phase + k - (second ? 3 : 0)) * crop * crop;
            const int i0 = second ? t1.i0 : t0.i0, i1 = second ? t1.i1 : t0.i1;
            const bool before = outside_roi(i0, border, size), after = outside_roi(i1, border, size);
            if (upper || before) p[k][0] = __ldg(from + ty.i0 * crop + i0);
            if (upper || after) p[k][1] = __ldg(from + ty.i0 * crop + i1);
            if (lower || before) p[k][2] = __ldg(from + ty.i1 * crop + i0);
            if (lower || after) p[k][3] = __ldg(from + ty.i1 * crop + i1);
        }
    }

    u32 drawn = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const bool second = phase + k >= 3;
        const Tap tx = {0, 0, second ? t1.w0 : t0.w0, second ? t1.w1 : t0.w1};
        const u32 value = blend(p[k][0], p[k][1], p[k][2], p[k][3], tx, ty);
        drawn |= ((second ? covers1 : covers0) ? value : body_word >> 8 * k & 255u) << 8 * k;
    }
    *reinterpret_cast<u32*>(frames + offset) = drawn;
}
