// The CPU's inner loops, compiled once per instruction set with DDPM_RT_VARIANT naming it.
//
// Everything here has internal linkage but the table at the end, and nothing of the standard library is used: a
// function shared with another object file could be merged with a copy that this CPU cannot run.
#include "host_step.h"

#include "element_types.h"
#include "philox_block.h"
#include "step.h"

#if !defined(__FLT_EVAL_METHOD__) || __FLT_EVAL_METHOD__ != 0
#error "float arithmetic must be rounded to float after every operation: x87 cannot give the noise's bits"
#endif

#define DDPM_RT_JOIN_(a, b) a##b
#define DDPM_RT_JOIN(a, b) DDPM_RT_JOIN_(a, b)
#define DDPM_RT_TEXT_(a) #a
#define DDPM_RT_TEXT(a) DDPM_RT_TEXT_(a)

namespace ddpm_rt {
namespace {

constexpr int64_t kBlock = kElementsPerBlock;

// z [4 * counters], written in whole counters. Word by word in separate arrays, which is what vectorizes.
void normal_block(const NoiseKey& key, uint32_t first_counter, int64_t counters, float* __restrict z) {
  constexpr int64_t n = kCountersPerBlock;
  static_assert(n % kCountersAtOnce == 0, "a block's words are written in whole vectors");
  alignas(64) uint32_t w0[n], w1[n], w2[n], w3[n];
  alignas(64) float z0[n], z1[n], z2[n], z3[n];
  philox_block(key, first_counter, (uint32_t)counters, w0, w1, w2, w3);
  for (int64_t i = 0; i < counters; ++i) normal_pair(w0[i], w1[i], &z0[i], &z1[i]);
  for (int64_t i = 0; i < counters; ++i) normal_pair(w2[i], w3[i], &z2[i], &z3[i]);
  for (int64_t i = 0; i < counters; ++i) {
    z[4 * i] = z0[i];
    z[4 * i + 1] = z1[i];
    z[4 * i + 2] = z2[i];
    z[4 * i + 3] = z3[i];
  }
}

void normal(uint64_t seed, uint64_t sample_index, uint32_t draw, int64_t first, int64_t count, float* z) {
  const NoiseKey key = noise_key(seed, sample_index, draw);
  for (int64_t done = 0; done < count; done += kBlock) {
    const int64_t left = count - done < kBlock ? count - done : kBlock;
    const uint32_t counter = (uint32_t)((first + done) / 4);
    if (left % 4 == 0) {
      normal_block(key, counter, left / 4, z + done);
    } else {
      alignas(64) float whole[kBlock];
      normal_block(key, counter, (left + 3) / 4, whole);
      __builtin_memcpy(z + done, whole, (size_t)left * sizeof(float));
    }
  }
}

template <typename T>
void widen(const T* __restrict from, int64_t count, float* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

int32_t largest_magnitude(const float* __restrict values, int64_t count) {
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t m = magnitude(values[i]);
    largest = m > largest ? m : largest;
  }
  return largest;
}

// Elements offset .. offset + count - 1 of the prediction as float32: in `buffer`, or where they are.
const float* prediction_block(const StepJob& job, int64_t offset, int64_t count, float* buffer) {
  if (job.prediction_type == ElementType::kFloat32) return (const float*)job.prediction + offset;
  if (job.prediction_type == ElementType::kFloat16) {
    widen((const Float16*)job.prediction + offset, count, buffer);
  } else {
    widen((const BFloat16*)job.prediction + offset, count, buffer);
  }
  return buffer;
}

template <typename T>
void narrow(const float* __restrict from, int64_t count, T* __restrict to) {
  for (int64_t i = 0; i < count; ++i) from_float(from[i], &to[i]);
}

struct Arrays {
  float* x;
  const float* p;
  const float* w;
  const float* z;
  float* h1;
  float* h2;
  float* x_start;
};

// Returns the largest magnitude of x', which tells whether all of them, and all of p, are finite (see step.h).
template <int kHistories, bool kLearned, bool kNoise>
int32_t step_elements(const Row row, float clip, bool h2_is_x_start, const Arrays& arrays, int64_t count) {
  float* __restrict x = arrays.x;
  const float* __restrict p = arrays.p;
  const float* __restrict w = arrays.w;
  const float* __restrict z = arrays.z;
  float* __restrict h1 = arrays.h1;
  float* __restrict h2 = arrays.h2;
  float* __restrict x_start = arrays.x_start;
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Element next = step_element<kHistories, kLearned, kNoise>(
        row, clip, h2_is_x_start, x[i], p[i], kLearned && kNoise ? w[i] : 0.0f, kNoise ? z[i] : 0.0f,
        kHistories >= 1 ? h1[i] : 0.0f, kHistories == 2 ? h2[i] : 0.0f);
    x[i] = next.x;
    if (x_start) x_start[i] = next.x_start;
    if (kHistories >= 1) h1[i] = next.h1;
    if (kHistories == 2) h2[i] = next.h2;
    const int32_t m = magnitude(next.x);
    largest = m > largest ? m : largest;
  }
  return largest;
}

using StepElements = int32_t (*)(Row, float, bool, const Arrays&, int64_t);

// [histories][learned][noise]
constexpr StepElements kStepElements[3][2][2] = {
    {{step_elements<0, false, false>, step_elements<0, false, true>},
     {step_elements<0, true, false>, step_elements<0, true, true>}},
    {{step_elements<1, false, false>, step_elements<1, false, true>},
     {step_elements<1, true, false>, step_elements<1, true, true>}},
    {{step_elements<2, false, false>, step_elements<2, false, true>},
     {step_elements<2, true, false>, step_elements<2, true, true>}},
};

bool step_block(const StepJob& job, int32_t row_number, int64_t sample, int64_t block) {
  alignas(64) float z[kBlock], p_buffer[kBlock], w_buffer[kBlock];
  const int64_t first = block * kBlock;
  const int64_t left = job.num_elements - first;
  const int64_t count = left < kBlock ? left : kBlock;
  const int64_t at = sample * job.num_elements + first;
  Row row;
  __builtin_memcpy(&row, job.coefficients + (int64_t)row_number * 13, sizeof row);

  const int64_t prediction_at = sample * job.prediction_elements + first;
  Arrays arrays = {};
  const bool noise = row.s != 0.0f;
  if (noise) {
    const uint32_t draw = draw_of_timestep(job.timesteps[row_number]);
    const NoiseKey key = noise_key(job.seed[sample], job.sample_index[sample], draw);
    normal_block(key, (uint32_t)(first / 4), (count + 3) / 4, z);
    arrays.z = z;
  }
  int32_t largest = 0;
  arrays.p = prediction_block(job, prediction_at, count, p_buffer);
  if (job.prediction_elements > job.num_elements) {
    // Looked at even where the table does not use it: what is not finite there says that the network failed.
    arrays.w = prediction_block(job, prediction_at + job.num_elements, count, w_buffer);
    largest = largest_magnitude(arrays.w, count);
  }
  arrays.x = job.x + at;
  if (job.histories >= 1) arrays.h1 = job.h1 + at;
  if (job.histories == 2) arrays.h2 = job.h2 + at;
  arrays.x_start = job.x_start ? job.x_start + at : nullptr;
  const StepElements step = kStepElements[job.histories][job.learned][noise];
  const int32_t largest_x = step(row, job.clip, job.h2_is_x_start, arrays, count);
  largest = largest_x > largest ? largest_x : largest;
  if (job.next_input) {
    if (job.next_input_type == ElementType::kFloat32) {
      narrow(arrays.x, count, (float*)job.next_input + at);
    } else if (job.next_input_type == ElementType::kFloat16) {
      narrow(arrays.x, count, (Float16*)job.next_input + at);
    } else {
      narrow(arrays.x, count, (BFloat16*)job.next_input + at);
    }
  }
  return largest < kNotFinite;
}

void ln_all(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = ln(x[i]);
}

void exp_all(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = exp(x[i]);
}

}  // namespace

extern const InstructionSet DDPM_RT_JOIN(instruction_set_, DDPM_RT_VARIANT);
const InstructionSet DDPM_RT_JOIN(instruction_set_, DDPM_RT_VARIANT) = {
    DDPM_RT_TEXT(DDPM_RT_VARIANT), normal, step_block, ln_all, exp_all};

}  // namespace ddpm_rt
