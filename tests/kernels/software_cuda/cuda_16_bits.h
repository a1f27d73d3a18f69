// Rounding to 16-bit types, from their definition, by a way of its own: kernels/element_types.h does it in integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace software {

// Nearest, ties to even; `mantissa` bits are stored, and `lowest` is the exponent of the smallest normal number.
inline uint16_t to_16_bits(float value, int mantissa, int lowest, uint16_t infinity) {
  if (std::isnan(value)) return 0x7FFF;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs((double)value);
  if (std::isinf(size)) return sign | infinity;
  if (size == 0) return sign;
  const int exponent = std::max(std::ilogb(size), lowest);
  const long units = std::lrint(std::ldexp(size, mantissa - exponent));
  const long bits = ((long)(exponent - lowest) << mantissa) + units;
  return sign | (uint16_t)std::min(bits, (long)infinity);
}

inline float from_float16(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                      : exponent     ? std::ldexp(1024 + mantissa, exponent - 25)
                                     : std::ldexp(mantissa, -24);
  return (float)(bits & 0x8000 ? -size : size);
}

}  // namespace software
