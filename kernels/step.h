// One row of a sampler's table applied to one element, for host and device.
//
//   x_start = clip(u x + v p)
//   x'      = a x + q p + b x_start [+ c1 h1 [+ c2 h2]] [+ (s exp(k w)) z]
//   h1'     = d x + f x_start + g1 h1 [+ g2 h2]
//   h2'     = x_start, or the old h1
//
// p is the prediction, w its second half (a learned variance), z the sample's noise. Terms are summed from left to
// right, each operation rounded once; tests/kernels/numpy_step.py has the same bits. Which terms are there is a matter of
// the table, so a compile-time one; the noise term is absent, not zero, in a row with s = 0.
//
// If p is not finite then x' is not either, whatever clips x_start: the term q p is there even where q = 0, 0 * inf is
// NaN, and no sum gets back from there. So what checks x' has checked p, and only w needs a look of its own.
#pragma once

#include "float32_math.h"

namespace ddpm_rt {

// A row's coefficients, float32 [13], in the order of diffusion/step_table.py's COLUMNS.
struct Row {
  float u, v, a, q, b, c1, c2, d, f, g1, g2, s, k;
};

static_assert(sizeof(Row) == 13 * sizeof(float), "a row is read straight from the table");

// x within -bound and bound, a NaN for a NaN. In these forms each comparison is one instruction.
DDPM_RT_INLINE float clamp(float x, float bound) {
#if defined(DDPM_RT_PTX)
  float above, within;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(above) : "f"(x), "f"(-bound));
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(within) : "f"(above), "f"(bound));
  return within;
#else
  const float above = -bound > x ? -bound : x;
  return bound < above ? bound : above;
#endif
}

struct Element {
  float x, x_start, h1, h2;
};

template <int kHistories, bool kLearned, bool kNoise>
DDPM_RT_INLINE Element step_element(const Row& row, float clip, bool h2_is_x_start, float x, float p, float w, float z,
                                    float h1, float h2) {
  Element next;
  const float free_x_start = add(multiply(row.u, x), multiply(row.v, p));
  const float x_start = clamp(free_x_start, clip);
  float x_next = add(add(multiply(row.a, x), multiply(row.q, p)), multiply(row.b, x_start));
  if (kHistories >= 1) x_next = add(x_next, multiply(row.c1, h1));
  if (kHistories == 2) x_next = add(x_next, multiply(row.c2, h2));
  if (kNoise) {
    const float noise_std = kLearned ? multiply(row.s, exp(multiply(row.k, w))) : row.s;
    x_next = add(x_next, multiply(noise_std, z));
  }
  next.x = x_next;
  next.x_start = x_start;
  next.h1 = next.h2 = 0.0f;
  if (kHistories >= 1) {
    next.h1 = add(add(multiply(row.d, x), multiply(row.f, x_start)), multiply(row.g1, h1));
    if (kHistories == 2) {
      next.h1 = add(next.h1, multiply(row.g2, h2));
      next.h2 = h2_is_x_start ? x_start : h1;
    }
  }
  return next;
}

// The value's magnitude as an integer: the order of numbers, with infinities and NaN from kNotFinite upward.
DDPM_RT_INLINE int32_t magnitude(float value) { return (int32_t)(bits_of(value) & 0x7FFFFFFFu); }
constexpr int32_t kNotFinite = 0x7F800000;

}  // namespace ddpm_rt
