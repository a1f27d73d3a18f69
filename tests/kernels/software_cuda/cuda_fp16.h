#pragma once

#include "cuda_16_bits.h"
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
struct __half2 {
  __half x, y;
};

inline __half __float2half_rn(float a) { return {software::to_16_bits(a, 10, -14, 0x7C00)}; }
inline float __half2float(__half a) { return software::from_float16(a.bits); }
inline uint16_t __half_as_ushort(__half a) { return a.bits; }
inline __half __ushort_as_half(uint16_t a) { return {a}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__float2half_rn(a), __float2half_rn(b)}; }
inline float2 __half22float2(__half2 a) { return {__half2float(a.x), __half2float(a.y)}; }
