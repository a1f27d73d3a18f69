// The noise of a sample: Philox4x32-10 words and the normal numbers made of them, for host and device.
//
// Philox4x32-10 (Salmon et al. 2011): counter and key of zero give 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
//
// key = (seed low word, seed high word); counter = (e / 4, draw, sample index low word, sample index high word) for
// element e of the sample in logical [C, H, W] order, which takes word e mod 4. Box & Muller 1958 turns words
// (w0, w1) into (z0, z1) and (w2, w3) into (z2, z3). diffusion/normal.py is the reference.
#pragma once

#include "float32_math.h"

namespace ddpm_rt {

// What is the same for all counters of a sample's draw.
struct NoiseKey {
  uint32_t key_low, key_high, draw, index_low, index_high;
};

DDPM_RT_INLINE NoiseKey noise_key(uint64_t seed, uint64_t sample_index, uint32_t draw) {
  return {(uint32_t)seed, (uint32_t)(seed >> 32), draw, (uint32_t)sample_index, (uint32_t)(sample_index >> 32)};
}

// draw = stream << 28 | repeat << 20 | n; in the sampling stream n is the training timestep + 1, and 0 for x_T.
DDPM_RT_INLINE uint32_t draw_of_timestep(int32_t timestep) { return (uint32_t)timestep + 1u; }

DDPM_RT_INLINE void philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key_low, uint32_t key_high,
                           uint32_t* w0, uint32_t* w1, uint32_t* w2, uint32_t* w3) {
  DDPM_RT_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = multiply_wide(0xD2511F53u, c0);
    const uint64_t product1 = multiply_wide(0xCD9E8D57u, c2);
    c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key_low;
    c1 = (uint32_t)product1;
    c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key_high;
    c3 = (uint32_t)product0;
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  *w0 = c0;
  *w1 = c1;
  *w2 = c2;
  *w3 = c3;
}

// u = ((w_even >> 9) + 1/2) / 2^23, r = sqrt(-2 ln u), theta = 2 pi w_odd / 2^32, z = (r cos theta, r sin theta).
DDPM_RT_INLINE void normal_pair(uint32_t w_even, uint32_t w_odd, float* z_even, float* z_odd) {
  // 1 + (w >> 9) / 2^23 by its bits, minus 1 - 2^-24: exact, and cheaper than a conversion to float.
  const float u = subtract(float_of((w_even >> 9) | 0x3F800000u), 0.999999940395355224609375f);
  const float r = square_root(multiply(-2.0f, ln(u)));
  float sine, cosine;
  sin_cos(w_odd, &sine, &cosine);
  *z_even = multiply(r, cosine);
  *z_odd = multiply(r, sine);
}

// The four normal numbers of counter number `block`, for elements 4 block .. 4 block + 3.
DDPM_RT_INLINE void normal_four(const NoiseKey& key, uint32_t block, float* z0, float* z1, float* z2, float* z3) {
  uint32_t w0, w1, w2, w3;
  philox(block, key.draw, key.index_low, key.index_high, key.key_low, key.key_high, &w0, &w1, &w2, &w3);
  normal_pair(w0, w1, z0, z1);
  normal_pair(w2, w3, z2, z3);
}

}  // namespace ddpm_rt
