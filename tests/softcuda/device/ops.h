// PTX operations that C++ has no operator for, as compiled kernels use them. f16 values are bit patterns (uint16_t):
// not every compiler has a half type, and this way the rounding is written down.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernel.h"

namespace softcuda {

template <class To, class From> inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a register is read as a type of its own size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// --- memory

template <class T> inline T load(uint64_t address) {
  T value;
  std::memcpy(&value, reinterpret_cast<const void*>(address), sizeof value);
  return value;
}
template <class T> inline void store(uint64_t address, T value) {
  std::memcpy(reinterpret_cast<void*>(address), &value, sizeof value);
}
template <unsigned Bytes> inline void aligned(Thread& t, uint64_t address) {
  if (address % Bytes) t.device->misaligned(t, address, Bytes);
}

// --- integers

template <class T> inline T shift_left(T v, uint32_t n) { return n >= sizeof(T) * 8 ? 0 : static_cast<T>(v << n); }
template <class T> inline T shift_right(T v, uint32_t n) {
  const uint32_t width = sizeof(T) * 8;
  if (std::is_signed<T>::value) return static_cast<T>(v >> std::min(n, width - 1));
  return n >= width ? 0 : static_cast<T>(v >> n);
}
// Division by zero and the one quotient that overflows stop a CPU; a GPU goes on with some value.
template <class T> inline T quotient(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed<T>::value && b == static_cast<T>(-1)) return static_cast<T>(0 - static_cast<uint64_t>(a));
  return static_cast<T>(a / b);
}
template <class T> inline T remainder(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed<T>::value && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}
template <class T> inline T mul_hi(T a, T b) {
  using Wide = std::conditional_t<std::is_signed<T>::value, __int128, unsigned __int128>;
  return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> (sizeof(T) * 8));
}
template <class To, class From> inline To saturate(From v) {
  using Limits = std::numeric_limits<To>;
  return static_cast<To>(std::min<__int128>(Limits::max(), std::max<__int128>(Limits::min(), v)));
}
inline uint32_t reverse_bits(uint32_t v) {
  uint32_t r = 0;
  for (int i = 0; i < 32; i++) r |= (v >> i & 1u) << (31 - i);
  return r;
}
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t pair = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned n = selector >> (4 * i) & 15;
    uint32_t byte = pair >> (8 * (n & 7)) & 255;
    if (n & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << (8 * i);
  }
  return r;
}
inline uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, unsigned table) {
  uint32_t r = 0;
  for (int i = 0; i < 8; i++)
    if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}
inline uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t n) {
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32 | low) << n) >> 32);
}
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t n) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> n);
}
// Positions and lengths are the low eight bits of their operands; a field may reach beyond the word.
template <class T> inline T extract_field(T v, uint32_t position, uint32_t length) {
  const uint32_t width = sizeof(T) * 8;
  position &= 255;
  length &= 255;
  if (length == 0) return 0;
  const T shifted = shift_right(v, position);
  if (position + length >= width) return shifted;
  return static_cast<T>(static_cast<T>(shifted << (width - length)) >> (width - length));
}
inline uint32_t insert_field(uint32_t field, uint32_t into, uint32_t position, uint32_t length) {
  position &= 255;
  length &= 255;
  if (length == 0 || position > 31) return into;
  const uint32_t mask = (length > 31 ? ~0u : (1u << length) - 1) << position;
  return (into & ~mask) | (field << position & mask);
}
template <class A, class B> inline uint32_t dot4(uint32_t a, uint32_t b, uint32_t c) {
  for (int i = 0; i < 4; i++) c += static_cast<uint32_t>(static_cast<A>(a >> (8 * i)) * static_cast<B>(b >> (8 * i)));
  return c;
}
template <class A, class B> inline uint32_t dot2(uint32_t a, uint32_t b, uint32_t c) {
  for (int i = 0; i < 2; i++) c += static_cast<uint32_t>(static_cast<A>(a >> (16 * i)) * static_cast<B>(b >> (8 * i)));
  return c;
}

// --- floating point

// A NaN loses against a number, and -0 is less than +0.
template <class T> inline T min_number(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
template <class T> inline T max_number(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
template <class T> inline T nan_or(T a, T b, T result) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : result;
}
template <class T> inline T unit_range(T v) { return v > 0 ? (v < 1 ? v : 1) : 0; }  // a NaN becomes 0
inline float flush(float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v; }
// The approximate instructions of a GPU may be off by a unit in the last place, so here they always are: code whose
// result depends on that unit differs from its reference at once, not on some GPUs.
template <class T> inline T approximate(T v) {
  return v == 0 || !std::isfinite(v) ? v : std::nextafter(v, std::numeric_limits<T>::infinity());
}
// Out of range saturates. A NaN becomes 0, or the lowest bit pattern with only its top bit set where 64 bits take part.
template <class To, class From> inline To to_integer(From v) {
  using Limits = std::numeric_limits<To>;
  if (std::isnan(v))
    return sizeof(From) == 8 || sizeof(To) == 8 ? static_cast<To>(uint64_t{1} << (sizeof(To) * 8 - 1)) : To{0};
  if (v <= static_cast<From>(Limits::min())) return Limits::min();
  if (v >= static_cast<From>(Limits::max())) return Limits::max();
  return static_cast<To>(v);
}

// Sums, products and fused products of halves are exact in double, so rounding a double once is the IEEE result.
inline uint16_t to_half(double v) {
  if (std::isnan(v)) return 0x7fff;
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const double magnitude = std::fabs(v);
  if (magnitude >= 65520) return sign | 0x7c00;
  const int exponent = magnitude < 0x1p-14 ? -14 : std::ilogb(magnitude);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  // 1024 units are the implicit bit: they, and a carry out of the mantissa, count up the exponent field.
  return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + units));
}
inline float from_half(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  float magnitude;
  if (exponent == 31)
    magnitude = mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  else
    magnitude = exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(1.0f * mantissa, -24);
  return h & 0x8000 ? -magnitude : magnitude;
}

}  // namespace softcuda
