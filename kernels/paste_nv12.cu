#include "paste.cuh"

// One sample of a row of the colour matrix, before the shift.
static __device__ __forceinline__ int sample(int sum) { return min(255, sum >> FRACTION_BITS); }

extern "C" __global__ void __launch_bounds__(THREADS)
paste_nv12(const Real* __restrict__ prediction, const u8* __restrict__ crops, const u8* __restrict__ body,
           const int4* __restrict__ placements, const uint2* __restrict__ taps, const int2* __restrict__ index,
           u8* __restrict__ frames, u32* __restrict__ status, int size, int border, int width, int height, int pitch,
           int draw_blocks, int scan_blocks, const int4* __restrict__ matrix) {
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
    // Rows of whole 2x2 blocks; the chroma rows of the region are height + region.top / 2 and so on.
    const Region region = region_of(left, right, top & ~1, top < bottom ? (bottom + 1) & ~1 : 0, pitch);
    const int rows = height / 2 * 3;
    body += (long long)cached * rows * pitch;
    frames += (long long)frame * rows * pitch;

    if (block >= draw_blocks) {
        block -= draw_blocks + scan_blocks;
        const int chroma_top = height + region.top / 2, chroma_bottom = height + region.bottom / 2;
        copy(reinterpret_cast<const uint4*>(body), reinterpret_cast<uint4*>(frames), rows * (pitch >> 4), pitch >> 4, block,
             [&](int first, int last) {
                 return (last >= region.top && first < region.bottom) || (last >= chroma_top && first < chroma_bottom);
             },
             [&](int row, int chunk) {
                 const bool in_rows =
                     (row >= region.top && row < region.bottom) || (row >= chroma_top && row < chroma_bottom);
                 return in_rows && chunk >= region.first && chunk < region.end;
             });
        return;
    }

    // Draw: one 2x2 block of pixels.
    const int blocks = (region.end - region.first) * 8, thread = block * THREADS + threadIdx.x;
    if (blocks == 0) return;
    const int block_row = thread / blocks, y = region.top + 2 * block_row;
    if (y >= region.bottom) return;
    const int x = region.first * 16 + 2 * (thread - block_row * blocks);
    const int upper_luma = y * pitch + x, lower_luma = upper_luma + pitch, chroma = (height + y / 2) * pitch + x;
    const bool covers_x0 = x >= left && x < right, covers_x1 = x + 1 >= left && x + 1 < right;
    const bool covers_y0 = y >= top && y < bottom, covers_y1 = y + 1 >= top && y + 1 < bottom;
    const bool covers_all = covers_x0 && covers_x1 && covers_y0 && covers_y1;
    u32 upper = 0, lower = 0, mixed = 0;
    if (!covers_all) {
        upper = __ldg(reinterpret_cast<const unsigned short*>(body + upper_luma));
        lower = __ldg(reinterpret_cast<const unsigned short*>(body + lower_luma));
        mixed = __ldg(reinterpret_cast<const unsigned short*>(body + chroma));
    }
    if (covers_all || ((covers_x0 || covers_x1) && (covers_y0 || covers_y1))) {
        // A pixel of the block that is not covered gets its neighbour's taps; what it gives is not used.
        Tap tx[2], ty[2];
        int rows_in[4], columns_in[4], rows_of[4], columns_of[4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            tx[i] = load_tap(taps, at.x_taps + min(max(x + i, left), right - 1) - at.x1);
            ty[i] = load_tap(taps, at.y_taps + min(max(y + i, top), bottom - 1) - at.y1);
            rows_of[2 * i] = ty[i].i0, rows_of[2 * i + 1] = ty[i].i1;
            columns_of[2 * i] = tx[i].i0, columns_of[2 * i + 1] = tx[i].i1;
        }
        bool edge = false;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            rows_in[i] = into_roi(rows_of[i], border, size);
            columns_in[i] = into_roi(columns_of[i], border, size);
            edge = edge || outside_roi(rows_of[i], border, size) || outside_roi(columns_of[i], border, size);
        }
        int sums[3][4];
#pragma unroll
        for (int i = 0; i < 3; i++) {
            const int offset = __ldg(&matrix[i].w);
#pragma unroll
            for (int k = 0; k < 4; k++) sums[i][k] = offset;
        }
        const int crop = size + 2 * border;
        crops += (long long)cached * 3 * crop * crop;
#pragma unroll
        for (int c = 0; c < 3; c++) {
            int p[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    p[i][j] = quantise(__ldg(prediction + c * plane + rows_in[i] * size + columns_in[j]));
            if (edge) {
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        if (outside_roi(rows_of[i], border, size) || outside_roi(columns_of[j], border, size))
                            p[i][j] = __ldg(crops + (c * crop + rows_of[i]) * crop + columns_of[j]);
            }
            int weight[3];
#pragma unroll
            for (int i = 0; i < 3; i++) weight[i] = __ldg(&matrix[i].x + c);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int i = k / 2 * 2, j = k % 2 * 2;
                const int value = blend(p[i][j], p[i][j + 1], p[i + 1][j], p[i + 1][j + 1], tx[k % 2], ty[k / 2]);
#pragma unroll
                for (int row = 0; row < 3; row++) sums[row][k] += weight[row] * value;
            }
        }
        const bool covers[4] = {covers_x0 && covers_y0, covers_x1 && covers_y0, covers_x0 && covers_y1,
                                covers_x1 && covers_y1};
        u32 blue = 2, red = 2, luma[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            luma[k] = covers[k] ? sample(sums[0][k]) : (k < 2 ? upper : lower) >> 8 * (k % 2) & 255u;
            blue += covers[k] ? sample(sums[1][k]) : mixed & 255u;
            red += covers[k] ? sample(sums[2][k]) : mixed >> 8;
        }
        upper = luma[0] | luma[1] << 8;
        lower = luma[2] | luma[3] << 8;
        mixed = blue >> 2 | red >> 2 << 8;
    }
    *reinterpret_cast<unsigned short*>(frames + upper_luma) = upper;
    *reinterpret_cast<unsigned short*>(frames + lower_luma) = lower;
    *reinterpret_cast<unsigned short*>(frames + chroma) = mixed;
}
