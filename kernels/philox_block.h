// Philox4x32-10 for a run of consecutive counters, one array per word: what the C++ side spends most time on.
//
// x86 multiplies 32 x 32 -> 64 bits in every second lane only. Keeping each word in a 64-bit lane of its own, with
// whatever the multiplication leaves above it, spares the shuffles that a compiler inserts to pack the lanes after
// every round (2.5 times faster than its own vectorization with GCC 12 and AVX-512).
#pragma once

#include "philox.h"

#if defined(__x86_64__) && defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ddpm_rt {
namespace {  // differs between instruction sets, so it must not be shared between their object files

#if defined(__AVX512F__)
struct Lanes {
  static constexpr uint32_t kPair = 16, kSecond = 8;
  using Words = __m512i;
  DDPM_RT_INLINE Words all(uint32_t word) { return _mm512_set1_epi64((long long)word); }
  DDPM_RT_INLINE Words counters(uint32_t first) {
    return _mm512_add_epi32(all(first), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
  }
  DDPM_RT_INLINE Words product(Words a, Words b) { return _mm512_mul_epu32(a, b); }
  DDPM_RT_INLINE Words high(Words a) { return _mm512_srli_epi64(a, 32); }
  DDPM_RT_INLINE Words exclusive_or(Words a, Words b, Words c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  DDPM_RT_INLINE void store(uint32_t* to, Words a, Words b) {
    const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi32(a, evens, b));
  }
};
#elif defined(__AVX2__)
struct Lanes {
  static constexpr uint32_t kPair = 8, kSecond = 2;
  using Words = __m256i;
  DDPM_RT_INLINE Words all(uint32_t word) { return _mm256_set1_epi64x((long long)word); }
  DDPM_RT_INLINE Words counters(uint32_t first) {
    // With the second vector 2 3 6 7, the shuffle in `store`, which works within halves, gives 0..7 in order.
    return _mm256_add_epi32(all(first), _mm256_set_epi64x(5, 4, 1, 0));
  }
  DDPM_RT_INLINE Words product(Words a, Words b) { return _mm256_mul_epu32(a, b); }
  DDPM_RT_INLINE Words high(Words a) { return _mm256_srli_epi64(a, 32); }
  DDPM_RT_INLINE Words exclusive_or(Words a, Words b, Words c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
  DDPM_RT_INLINE void store(uint32_t* to, Words a, Words b) {
    const __m256 evens = _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), _MM_SHUFFLE(2, 0, 2, 0));
    _mm256_storeu_ps((float*)to, evens);
  }
};
#elif defined(__x86_64__) && defined(__SSE2__)
struct Lanes {
  static constexpr uint32_t kPair = 4, kSecond = 2;
  using Words = __m128i;
  DDPM_RT_INLINE Words all(uint32_t word) { return _mm_set1_epi64x((long long)word); }
  DDPM_RT_INLINE Words counters(uint32_t first) { return _mm_add_epi32(all(first), _mm_set_epi64x(1, 0)); }
  DDPM_RT_INLINE Words product(Words a, Words b) { return _mm_mul_epu32(a, b); }
  DDPM_RT_INLINE Words high(Words a) { return _mm_srli_epi64(a, 32); }
  DDPM_RT_INLINE Words exclusive_or(Words a, Words b, Words c) { return _mm_xor_si128(_mm_xor_si128(a, b), c); }
  DDPM_RT_INLINE void store(uint32_t* to, Words a, Words b) {
    const __m128 evens = _mm_shuffle_ps(_mm_castsi128_ps(a), _mm_castsi128_ps(b), _MM_SHUFFLE(2, 0, 2, 0));
    _mm_storeu_ps((float*)to, evens);
  }
};
#endif

// Words of the counters first .. first + count - 1, written up to the next multiple of kCountersAtOnce.
#if defined(__x86_64__) && defined(__SSE2__)
constexpr uint32_t kCountersAtOnce = Lanes::kPair;

DDPM_RT_INLINE void philox_lanes(Lanes::Words c0, const NoiseKey& key, Lanes::Words words[4]) {
  Lanes::Words c1 = Lanes::all(key.draw), c2 = Lanes::all(key.index_low), c3 = Lanes::all(key.index_high);
  uint32_t key_low = key.key_low, key_high = key.key_high;
  DDPM_RT_UNROLL
  for (int round = 0; round < 10; ++round) {
    const Lanes::Words product0 = Lanes::product(c0, Lanes::all(0xD2511F53u));
    const Lanes::Words product1 = Lanes::product(c2, Lanes::all(0xCD9E8D57u));
    c0 = Lanes::exclusive_or(Lanes::high(product1), c1, Lanes::all(key_low));
    c1 = product1;
    c2 = Lanes::exclusive_or(Lanes::high(product0), c3, Lanes::all(key_high));
    c3 = product0;
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

DDPM_RT_INLINE void philox_block(const NoiseKey key, uint32_t first, uint32_t count, uint32_t* w0, uint32_t* w1,
                                 uint32_t* w2, uint32_t* w3) {
  for (uint32_t i = 0; i < count; i += Lanes::kPair) {
    Lanes::Words a[4], b[4];
    philox_lanes(Lanes::counters(first + i), key, a);
    philox_lanes(Lanes::counters(first + i + Lanes::kSecond), key, b);
    Lanes::store(w0 + i, a[0], b[0]);
    Lanes::store(w1 + i, a[1], b[1]);
    Lanes::store(w2 + i, a[2], b[2]);
    Lanes::store(w3 + i, a[3], b[3]);
  }
}
#else
constexpr uint32_t kCountersAtOnce = 1;

DDPM_RT_INLINE void philox_block(const NoiseKey key, uint32_t first, uint32_t count, uint32_t* w0, uint32_t* w1,
                                 uint32_t* w2, uint32_t* w3) {
  for (uint32_t i = 0; i < count; ++i) {
    philox(first + i, key.draw, key.index_low, key.index_high, key.key_low, key.key_high, w0 + i, w1 + i, w2 + i,
           w3 + i);
  }
}
#endif

}  // namespace
}  // namespace ddpm_rt
