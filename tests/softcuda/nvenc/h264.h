// H.264 without compression (ITU-T H.264, I_PCM macroblocks): every picture decodes to exactly its pixels.
#pragma once
#include <cstdint>
#include <vector>

namespace nvenc {

using Bytes = std::vector<uint8_t>;

struct Picture {
  const uint8_t* luma;           // NV12: chroma follows `height` rows below
  uint32_t width, height, pitch;
  uint32_t shown;                // its place in the order of showing, from the first
  uint32_t references;           // pictures before it, in the order of decoding, that others may refer to
  bool reference;
};

Bytes headers(uint32_t width, uint32_t height, bool reordered);  // sequence and picture parameter sets
Bytes coded(const Picture&);     // a picture; the first is an instantaneous refresh

}  // namespace nvenc
