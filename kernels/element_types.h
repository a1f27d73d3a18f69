// The 16-bit element types that a network may read and write, for host and device.
//
// On the host the conversions are integer operations that a compiler vectorizes on any instruction set; to 16 bits
// they round to nearest, ties to even. A NaN stays a NaN, its payload is not kept.
#pragma once

#include "float32_math.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace ddpm_rt {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

DDPM_RT_INLINE float to_float(float value) { return value; }

DDPM_RT_INLINE float to_float(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t magnitude = value.bits & 0x7FFFu;
  const uint32_t sign = (uint32_t)(value.bits & 0x8000u) << 16;
  // Subnormals of float16 are m * 2^-24, taken from the integer so that no float32 subnormal is met on the way.
  const uint32_t subnormal = bits_of(multiply(to_float((int32_t)magnitude), 5.9604644775390625e-08f));
  const uint32_t normal = (magnitude << 13) + ((127u - 15u) << 23);
  const uint32_t special = (magnitude << 13) | 0x7F800000u;  // infinities and NaN
  uint32_t bits = magnitude < 0x0400u ? subnormal : normal;
  bits = magnitude >= 0x7C00u ? special : bits;
  return float_of(bits | sign);
#endif
}

DDPM_RT_INLINE float to_float(BFloat16 value) { return float_of((uint32_t)value.bits << 16); }

DDPM_RT_INLINE void from_float(float value, float* to) { *to = value; }

DDPM_RT_INLINE void from_float(float value, Float16* to) {
#if defined(__CUDA_ARCH__)
  to->bits = __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  // Above float16's subnormals: drop 13 bits; a carry out of the mantissa moves the exponent up, to infinity too.
  const uint32_t normal = (magnitude - ((127u - 15u) << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: 0.5f has the unit 2^-24 of float16's subnormals in its last place, so the addition rounds.
  const uint32_t subnormal = bits_of(add(float_of(magnitude), 0.5f)) - bits_of(0.5f);
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x47800000u ? 0x7C00u : result;  // 65536 and more
  result = magnitude > 0x7F800000u ? 0x7E00u : result;   // NaN
  to->bits = (uint16_t)(result | ((bits >> 16) & 0x8000u));
#endif
}

DDPM_RT_INLINE void from_float(float value, BFloat16* to) {
#if defined(__CUDA_ARCH__)
  to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;  // the rounding would carry a NaN's bits into an infinity
  to->bits = (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet_nan : rounded);
#endif
}

}  // namespace ddpm_rt
