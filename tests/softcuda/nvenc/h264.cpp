#include "h264.h"

#include <algorithm>

namespace nvenc {
namespace {

constexpr int counter_bits = 8;  // of frame numbers and of the order of showing

class Writer {
 public:
  void bits(uint32_t value, int count) {
    for (int bit = count - 1; bit >= 0; bit--) {
      if (used_ == 0) bytes_.push_back(0);
      bytes_.back() |= (value >> bit & 1) << (7 - used_);
      used_ = (used_ + 1) % 8;
    }
  }
  void ue(uint32_t value) {      // Exp-Golomb
    int length = 0;
    while ((value + 1) >> (length + 1)) length++;
    bits(0, length);
    bits(value + 1, length + 1);
  }
  void align() { used_ = 0; }
  void byte(uint8_t value) { bytes_.push_back(value); }
  // As a NAL unit in a byte stream, with the bytes that keep start codes out of it.
  Bytes nal(int type, int importance) {
    bits(1, 1);
    align();
    Bytes out = {0, 0, 0, 1, static_cast<uint8_t>(importance << 5 | type)};
    int zeros = 0;
    for (uint8_t b : bytes_) {
      if (zeros >= 2 && b <= 3) {
        out.push_back(3);
        zeros = 0;
      }
      zeros = b ? 0 : zeros + 1;
      out.push_back(b);
    }
    return out;
  }

 private:
  Bytes bytes_;
  int used_ = 0;
};

uint32_t macroblocks(uint32_t pixels) { return (pixels + 15) / 16; }

}  // namespace

Bytes headers(uint32_t width, uint32_t height, bool reordered) {
  Writer sps;
  sps.bits(77, 8);               // Main profile
  sps.bits(0, 8);
  sps.bits(51, 8);               // level
  sps.ue(0);
  sps.ue(counter_bits - 4);
  sps.ue(0);                     // the order of showing is told in every slice
  sps.ue(counter_bits - 4);
  sps.ue(1);                     // reference frames
  sps.bits(0, 1);
  sps.ue(macroblocks(width) - 1);
  sps.ue(macroblocks(height) - 1);
  sps.bits(1, 1);                // frames only
  sps.bits(1, 1);
  sps.bits(1, 1);                // cropping, in units of two pixels
  sps.ue(0);
  sps.ue((macroblocks(width) * 16 - width) / 2);
  sps.ue(0);
  sps.ue((macroblocks(height) * 16 - height) / 2);
  sps.bits(1, 1);                // VUI, for the reordering alone
  sps.bits(0, 8);
  sps.bits(1, 1);
  sps.bits(1, 1);
  sps.ue(0);
  sps.ue(0);
  sps.ue(10);
  sps.ue(10);
  sps.ue(reordered ? 1 : 0);     // frames decoded before one that is shown earlier
  sps.ue(2);                     // frames that the decoder keeps
  Bytes out = sps.nal(7, 3);
  Writer pps;
  pps.ue(0);
  pps.ue(0);
  pps.bits(0, 2);                // CAVLC
  pps.ue(0);
  pps.ue(0);
  pps.ue(0);
  pps.bits(0, 3);
  pps.ue(0);
  pps.ue(0);
  pps.ue(0);
  pps.bits(4, 3);                // slices say how they are deblocked
  const Bytes second = pps.nal(8, 3);
  out.insert(out.end(), second.begin(), second.end());
  return out;
}

Bytes coded(const Picture& p) {
  const bool first = p.references == 0;
  Writer w;
  w.ue(0);
  w.ue(7);                       // I
  w.ue(0);
  w.bits(p.references, counter_bits);
  if (first) w.ue(0);
  w.bits(2 * p.shown, counter_bits);
  if (first) w.bits(0, 2);
  else if (p.reference) w.bits(0, 1);
  w.ue(0);
  w.ue(1);                       // not deblocked
  const uint8_t* chroma = p.luma + size_t(p.height) * p.pitch;
  const auto at = [&](const uint8_t* plane, uint32_t x, uint32_t y, uint32_t rows) {
    return plane[size_t(std::min(y, rows - 1)) * p.pitch + x];
  };
  for (uint32_t my = 0; my < macroblocks(p.height); my++) {
    for (uint32_t mx = 0; mx < macroblocks(p.width); mx++) {
      w.ue(25);                  // I_PCM
      w.align();
      for (uint32_t y = 0; y < 16; y++)
        for (uint32_t x = 0; x < 16; x++)
          w.byte(at(p.luma, std::min(mx * 16 + x, p.width - 1), my * 16 + y, p.height));
      for (uint32_t c = 0; c < 2; c++)
        for (uint32_t y = 0; y < 8; y++)
          for (uint32_t x = 0; x < 8; x++)
            w.byte(at(chroma, 2 * std::min(mx * 8 + x, p.width / 2 - 1) + c, my * 8 + y, p.height / 2));
    }
  }
  return w.nal(first ? 5 : 1, p.reference ? 3 : 0);
}

}  // namespace nvenc
