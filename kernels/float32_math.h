// ln, sin, cos and exp in float32 from + - * sqrt and integer operations alone: the same bits on every machine.
//
// One header for the C++ compiler and for nvcc; diffusion/float32_math.py holds the same operations in the same
// order: change all or none. (Only what is exact, a conversion or a reduction, is written here as is cheapest.) Every
// operation is rounded on its own. A C++ compiler must be told so with
// -ffp-contract=off (GCC contracts a*b + c to one fused operation by default, which changes about 1 % of the
// results); CUDA is told with intrinsics, which nvcc never contracts.
#pragma once

#include <stdint.h>

#if defined(__FAST_MATH__)
#error "the noise must have the same bits everywhere: build without -ffast-math (nvcc: --use_fast_math)"
#endif

#if defined(__CUDACC__)
#define DDPM_RT_INLINE static __host__ __device__ __forceinline__
#define DDPM_RT_UNROLL _Pragma("unroll")
#else
// Always inlined: the header is compiled once per instruction set, and a linker that merged the copies of a
// plain inline function could hand AVX-512 code to a CPU without it.
#define DDPM_RT_INLINE static inline __attribute__((always_inline))
#define DDPM_RT_UNROLL _Pragma("GCC unroll 16")
#endif

// Device code in PTX needs nvcc; any other compiler of it, such as that of the tests, takes the C++ beside it.
#if defined(__CUDA_ARCH__) && defined(__NVCC__)
#define DDPM_RT_PTX
#endif

namespace ddpm_rt {

#if defined(__CUDA_ARCH__)
DDPM_RT_INLINE float add(float a, float b) { return __fadd_rn(a, b); }
DDPM_RT_INLINE float subtract(float a, float b) { return __fsub_rn(a, b); }
DDPM_RT_INLINE float multiply(float a, float b) { return __fmul_rn(a, b); }
DDPM_RT_INLINE float square_root(float a) { return __fsqrt_rn(a); }
DDPM_RT_INLINE float to_float(int32_t a) { return __int2float_rn(a); }
// Said in PTX: of a product of two numbers widened to 64 bits nvcc 13 makes one instruction and a useless addition.
DDPM_RT_INLINE uint64_t multiply_wide(uint32_t a, uint32_t b) {
#if defined(DDPM_RT_PTX)
  unsigned long long product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return (uint64_t)a * b;
#endif
}
DDPM_RT_INLINE uint32_t bits_of(float a) { return __float_as_uint(a); }
DDPM_RT_INLINE float float_of(uint32_t a) { return __uint_as_float(a); }
#else
DDPM_RT_INLINE float add(float a, float b) { return a + b; }
DDPM_RT_INLINE float subtract(float a, float b) { return a - b; }
DDPM_RT_INLINE float multiply(float a, float b) { return a * b; }
DDPM_RT_INLINE float square_root(float a) { return __builtin_sqrtf(a); }
DDPM_RT_INLINE float to_float(int32_t a) { return (float)a; }
DDPM_RT_INLINE uint64_t multiply_wide(uint32_t a, uint32_t b) { return (uint64_t)a * b; }
DDPM_RT_INLINE uint32_t bits_of(float a) {
  uint32_t bits;
  __builtin_memcpy(&bits, &a, sizeof bits);
  return bits;
}
DDPM_RT_INLINE float float_of(uint32_t a) {
  float value;
  __builtin_memcpy(&value, &a, sizeof value);
  return value;
}
#endif

// ln 2 in two parts: the first has 9 significant bits, so that an integer up to 128 times it is exact.
#define DDPM_RT_LN2_HIGH 0.693359375f
#define DDPM_RT_LN2_LOW -2.12194440e-4f

// Natural logarithm of positive, normal, finite numbers. x = m * 2^k with m in [sqrt(1/2), sqrt(2)), so that
// f = m - 1 is exact and an x near 1 keeps its relative accuracy. ln(1 + f) = f + f^2 R(f).
DDPM_RT_INLINE float ln(float x) {
  const uint32_t shifted = bits_of(x) + (0x3F800000u - 0x3F3504F3u);
  // k as a float by its bits, in a number whose last place is 1: exact, and cheaper than a conversion.
  const float exponent = subtract(float_of((shifted >> 23) + (0x4B400000u - 127u)), 12582912.0f);
  const float f = subtract(float_of((shifted & 0x7FFFFFu) + 0x3F3504F3u), 1.0f);
  float r = add(multiply(f, -0.10191724f), 0.16024379f);
  r = add(multiply(r, f), -0.17137128f);
  r = add(multiply(r, f), 0.19924504f);
  r = add(multiply(r, f), -0.24983267f);
  r = add(multiply(r, f), 0.33334246f);
  r = add(multiply(r, f), -0.5f);
  return add(add(f, multiply(multiply(f, f), r)), multiply(exponent, 0.69314718f));
}

// sin and cos of the angle 2 pi word / 2^32, reduced to a quarter turn in integers.
DDPM_RT_INLINE void sin_cos(uint32_t word, float* sine, float* cosine) {
  // The top two bits of `turned` number the quarter turn nearest to the angle. What remains is the rest of the word,
  // signed: four times that is rounded to a float in the same place, and its bits are the word's, moved up.
  const uint32_t turned = word + (1u << 29);
  const float phi = multiply(to_float((int32_t)(word << 2)), 3.6572952e-10f);  // 2 pi / 2^34
  const float square = multiply(phi, phi);
  // sin(phi) = phi + phi^3 S(phi^2)
  float s = add(multiply(square, -0.00019495636f), 0.0083319787f);
  s = add(multiply(s, square), -0.16666651f);
  s = add(phi, multiply(multiply(phi, square), s));
  // cos(phi) = 1 + phi^2 C(phi^2)
  float c = add(multiply(square, 2.4438452e-05f), -0.0013887368f);
  c = add(multiply(c, square), 0.041666646f);
  c = add(multiply(c, square), -0.5f);
  c = add(1.0f, multiply(square, c));
  const uint32_t sine_sign = turned & 0x80000000u;
  const uint32_t cosine_sign = (turned + 0x40000000u) & 0x80000000u;
  const bool odd = (turned & 0x40000000u) != 0;
  *sine = float_of(bits_of(odd ? c : s) ^ sine_sign);
  *cosine = float_of(bits_of(odd ? s : c) ^ cosine_sign);
}

// 2^n for -126 <= n <= 127.
DDPM_RT_INLINE float power_of_two(int32_t n) { return float_of((uint32_t)(n + 127) << 23); }

// e^x: inf above 88.72283, exactly 0 below -87.3 (so never a subnormal), NaN for NaN.
DDPM_RT_INLINE float exp(float x) {
  const float lowest = -87.3f, highest = 88.72283f;
  const float clamped = x < lowest ? lowest : (x > highest ? highest : x);
  // Adding and subtracting 1.5 * 2^23 rounds to an integer, ties to even, in float32 additions alone.
  const float rounded = add(multiply(clamped, 1.44269504f), 12582912.0f);
  const int32_t n = (int32_t)(bits_of(rounded) - 0x4B400000u);
  const float n_float = subtract(rounded, 12582912.0f);
  const float r = subtract(subtract(clamped, multiply(n_float, DDPM_RT_LN2_HIGH)), multiply(n_float, DDPM_RT_LN2_LOW));
  // exp(r) = 1 + r + r^2 E(r)
  float e = add(multiply(r, 0.0013950809f), 0.0083690733f);
  e = add(multiply(e, r), 0.041666202f);
  e = add(multiply(e, r), 0.16666517f);
  e = add(multiply(e, r), 0.5f);
  float value = add(add(1.0f, r), multiply(multiply(r, r), e));
  // 2^128 is no float32, so the scale is applied in two factors.
  const int32_t half = n >> 1;
  value = multiply(multiply(value, power_of_two(half)), power_of_two(n - half));
  value = x < lowest ? 0.0f : value;
  return x > highest ? float_of(0x7F800000u) : value;
}

#undef DDPM_RT_LN2_HIGH
#undef DDPM_RT_LN2_LOW

}  // namespace ddpm_rt
