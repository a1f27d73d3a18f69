// Eight consecutive elements between memory and registers, 16 bytes at a time. For CUDA alone.
#pragma once

#include "element_types.h"

namespace ddpm_rt {

constexpr int kEight = 8;

// Raw memory of eight elements: two accesses of 16 bytes in float32, one in 16-bit types.
template <typename T>
struct Eight {
  static constexpr int kAccesses = kEight * sizeof(T) / 16;
  uint4 words[kAccesses];
};

// Written out because a compiler may otherwise move a load below a branch, and split one of eight 16-bit elements.
__device__ __forceinline__ uint4 load_16_bytes(const void* from) {
#if defined(DDPM_RT_PTX)
  uint4 words;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(__cvta_generic_to_global(from)));
  return words;
#else
  return *static_cast<const uint4*>(from);
#endif
}

__device__ __forceinline__ void unpack(const Eight<float>& raw, float to[kEight]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    to[4 * i] = float_of(raw.words[i].x);
    to[4 * i + 1] = float_of(raw.words[i].y);
    to[4 * i + 2] = float_of(raw.words[i].z);
    to[4 * i + 3] = float_of(raw.words[i].w);
  }
}

__device__ __forceinline__ void unpack_pair(const uint32_t& word, Float16, float* low, float* high) {
  const float2 pair = __half22float2(reinterpret_cast<const __half2&>(word));
  *low = pair.x;
  *high = pair.y;
}

__device__ __forceinline__ void unpack_pair(uint32_t word, BFloat16, float* low, float* high) {
  *low = float_of(word << 16);
  *high = float_of(word & 0xFFFF0000u);
}

template <typename T>
__device__ __forceinline__ void unpack(const Eight<T>& raw, float to[kEight]) {
  const uint4 words = raw.words[0];
  unpack_pair(words.x, T(), &to[0], &to[1]);
  unpack_pair(words.y, T(), &to[2], &to[3]);
  unpack_pair(words.z, T(), &to[4], &to[5]);
  unpack_pair(words.w, T(), &to[6], &to[7]);
}

__device__ __forceinline__ uint32_t pack_pair(float low, float high, Float16) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ uint32_t pack_pair(float low, float high, BFloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ void pack(const float from[kEight], Eight<float>* raw) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    raw->words[i] = make_uint4(bits_of(from[4 * i]), bits_of(from[4 * i + 1]), bits_of(from[4 * i + 2]),
                               bits_of(from[4 * i + 3]));
  }
}

template <typename T>
__device__ __forceinline__ void pack(const float from[kEight], Eight<T>* raw) {
  raw->words[0] = make_uint4(pack_pair(from[0], from[1], T()), pack_pair(from[2], from[3], T()),
                             pack_pair(from[4], from[5], T()), pack_pair(from[6], from[7], T()));
}

// Eight elements, aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ Eight<T> load_eight(const T* from) {
  Eight<T> raw;
#pragma unroll
  for (int i = 0; i < Eight<T>::kAccesses; ++i) raw.words[i] = load_16_bytes(from + i * (16 / sizeof(T)));
  return raw;
}

template <typename T>
__device__ __forceinline__ void store_eight(const float from[kEight], T* to) {
  Eight<T> raw;
  pack(from, &raw);
#pragma unroll
  for (int i = 0; i < Eight<T>::kAccesses; ++i) reinterpret_cast<uint4*>(to)[i] = raw.words[i];
}

// The first `count` of eight, one by one, wherever they lie; missing ones read as zero.
template <typename T>
__device__ __forceinline__ Eight<T> load_some(const T* from, int count) {
  float values[kEight] = {};
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    if (i < count) values[i] = to_float(from[i]);
  }
  Eight<T> raw;
  pack(values, &raw);  // exact: they were of this type
  return raw;
}

template <typename T>
__device__ __forceinline__ void store_some(const float from[kEight], int count, T* to) {
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    if (i < count) from_float(from[i], &to[i]);
  }
}

}  // namespace ddpm_rt
