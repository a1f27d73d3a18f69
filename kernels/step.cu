// The fused step on CUDA: one pass over memory, the noise made in registers, from the headers that the CPU uses.
//
// A thread makes the four normal numbers of one Philox counter and steps the four elements that they belong to. In
// float16 an element costs 12 bytes: 2 of the prediction, 4 + 4 of x, 2 of the network's next input.
#include <cuda_runtime.h>

#include "cuda_step.h"
#include "element_types.h"
#include "philox.h"
#include "step.h"

namespace ddpm_rt {
namespace {

constexpr int kThreads = 256;

template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

// Four consecutive elements: one access where all of them exist and are aligned, else one by one.
template <typename T>
__device__ __forceinline__ void load_four(const T* from, int count, bool whole, float to[4]) {
  Four<T> values = {};
  if (whole) {
    values = *reinterpret_cast<const Four<T>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) values.at[i] = from[i];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = to_float(values.at[i]);
}

template <typename T>
__device__ __forceinline__ void store_four(const float from[4], int count, bool whole, T* to) {
  Four<T> values;
#pragma unroll
  for (int i = 0; i < 4; ++i) from_float(from[i], &values.at[i]);
  if (whole) {
    *reinterpret_cast<Four<T>*>(to) = values;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) to[i] = values.at[i];
    }
  }
}

__device__ __forceinline__ bool any_not_finite(const float values[4]) {
  bool found = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) found |= magnitude(values[i]) >= kNotFinite;
  return found;
}

// Steps the elements of one counter; true if the prediction or x' is not finite.
template <int kHistories, bool kLearned, typename T>
__device__ __forceinline__ bool step_four(const StepJob& job, const Row& row, int timestep, int64_t sample,
                                          int64_t counter, bool aligned) {
  const int64_t first = 4 * counter;
  const int64_t left = job.num_elements - first;
  const int count = left < 4 ? (int)left : 4;
  const bool whole = aligned && count == 4;
  const int64_t at = sample * job.num_elements + first;
  const T* prediction = static_cast<const T*>(job.prediction) + sample * job.prediction_elements + first;

  float x[4], p[4], w[4] = {}, z[4] = {}, h1[4] = {}, h2[4] = {}, x_start[4];
  load_four(job.x + at, count, whole, x);
  load_four(prediction, count, whole, p);
  bool bad = false;
  if (job.prediction_elements > job.num_elements) {
    load_four(prediction + job.num_elements, count, whole, w);
    bad = any_not_finite(w);
  }
  if (kHistories >= 1) load_four(job.h1 + at, count, whole, h1);
  if (kHistories == 2) load_four(job.h2 + at, count, whole, h2);
  const bool noise = row.s != 0.0f;
  if (noise) {
    const NoiseKey key = noise_key(job.seed[sample], job.sample_index[sample], draw_of_timestep(timestep));
    normal_four(key, (uint32_t)counter, &z[0], &z[1], &z[2], &z[3]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Element next = noise ? step_element<kHistories, kLearned, true>(row, job.clip, job.h2_is_x_start, x[i], p[i],
                                                                          w[i], z[i], h1[i], h2[i])
                               : step_element<kHistories, kLearned, false>(row, job.clip, job.h2_is_x_start, x[i], p[i],
                                                                           w[i], 0.0f, h1[i], h2[i]);
    x[i] = next.x;
    x_start[i] = next.x_start;
    h1[i] = next.h1;
    h2[i] = next.h2;
  }
  store_four(x, count, whole, job.x + at);
  if (kHistories >= 1) store_four(h1, count, whole, job.h1 + at);
  if (kHistories == 2) store_four(h2, count, whole, job.h2 + at);
  if (job.x_start) store_four(x_start, count, whole, job.x_start + at);
  if (job.next_input) store_four(x, count, whole, static_cast<T*>(job.next_input) + at);
  return bad | any_not_finite(x);
}

template <int kHistories, bool kLearned, typename T>
__global__ void __launch_bounds__(kThreads)
    step_kernel(const StepJob job, uint32_t* arrivals, uint32_t blocks_per_sample, bool aligned) {
  const uint32_t sample = blockIdx.x / blocks_per_sample;
  const int64_t counter = (int64_t)(blockIdx.x % blocks_per_sample) * kThreads + threadIdx.x;
  const int row_number = job.row[sample];
  // An idle sample's row never changes, so all of its blocks leave here.
  if (row_number < 0 || row_number >= job.num_rows) return;
  bool bad = false;
  if (4 * counter < job.num_elements) {
    const Row row = *reinterpret_cast<const Row*>(job.coefficients + (int64_t)row_number * 13);
    bad = step_four<kHistories, kLearned, T>(job, row, job.timesteps[row_number], sample, counter, aligned);
  }
  bad = __syncthreads_or(bad);
  if (threadIdx.x != 0) return;
  if (bad) atomicCAS(&job.flag[sample], 0, row_number + 1);
  // Past the barrier every thread of this block has read the row. The last block to get here knows that all blocks
  // have, and moves the sample on. atomicInc wraps to 0 by itself, ready for the next launch.
  if (blocks_per_sample > 1) {
    __threadfence();
    if (atomicInc(&arrivals[sample], blocks_per_sample - 1) != blocks_per_sample - 1) return;
  }
  const int next = row_number + 1;
  job.row[sample] = next;
  if (next == job.num_rows) return;
  if (job.t_is_int64) {
    static_cast<int64_t*>(job.t)[sample] = job.timesteps[next];
  } else {
    static_cast<float*>(job.t)[sample] = to_float((int32_t)job.timesteps[next]);
  }
}

__global__ void __launch_bounds__(kThreads)
    normal_kernel(float* out, int64_t num_elements, uint32_t blocks_per_sample, const uint64_t* seed,
                  const uint64_t* sample_index, const uint32_t* draw, bool aligned) {
  const uint32_t sample = blockIdx.x / blocks_per_sample;
  const int64_t counter = (int64_t)(blockIdx.x % blocks_per_sample) * kThreads + threadIdx.x;
  const int64_t left = num_elements - 4 * counter;
  if (left <= 0) return;
  const NoiseKey key = noise_key(seed[sample], sample_index[sample], draw[sample]);
  float z[4];
  normal_four(key, (uint32_t)counter, &z[0], &z[1], &z[2], &z[3]);
  const int count = left < 4 ? (int)left : 4;
  store_four(z, count, aligned && count == 4, out + sample * num_elements + 4 * counter);
}

using StepKernel = void (*)(StepJob, uint32_t*, uint32_t, bool);

template <int kHistories, bool kLearned>
StepKernel kernel_for(ElementType type) {
  if (type == ElementType::kFloat32) return step_kernel<kHistories, kLearned, float>;
  if (type == ElementType::kFloat16) return step_kernel<kHistories, kLearned, Float16>;
  return step_kernel<kHistories, kLearned, BFloat16>;
}

StepKernel kernel_for(const StepJob& job) {
  const ElementType type = job.prediction_type;
  if (job.histories == 0) return job.learned ? kernel_for<0, true>(type) : kernel_for<0, false>(type);
  if (job.histories == 1) return job.learned ? kernel_for<1, true>(type) : kernel_for<1, false>(type);
  return job.learned ? kernel_for<2, true>(type) : kernel_for<2, false>(type);
}

int64_t blocks_for(int64_t num_elements) { return (num_elements + 4 * kThreads - 1) / (4 * kThreads); }

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

const char* outcome() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

constexpr int64_t kMaxBlocks = 0x7FFFFFFF;

}  // namespace

const char* launch_cuda_step(const StepJob& job, uint32_t* arrivals, void* stream) {
  const int64_t blocks = blocks_for(job.num_elements);
  if (job.num_samples * blocks == 0) return nullptr;
  if (job.num_samples * blocks > kMaxBlocks) return "the batch is too large for one launch";
  const bool aligned = job.num_elements % 4 == 0 && is_aligned(job.x) && is_aligned(job.prediction) &&
                       is_aligned(job.h1) && is_aligned(job.h2) && is_aligned(job.x_start) &&
                       is_aligned(job.next_input);
  kernel_for(job)<<<(unsigned)(job.num_samples * blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      job, arrivals, (uint32_t)blocks, aligned);
  return outcome();
}

const char* launch_cuda_normal(float* out, int64_t num_samples, int64_t num_elements, const uint64_t* seed,
                               const uint64_t* sample_index, const uint32_t* draw, void* stream) {
  const int64_t blocks = blocks_for(num_elements);
  if (num_samples * blocks == 0) return nullptr;
  if (num_samples * blocks > kMaxBlocks) return "the batch is too large for one launch";
  normal_kernel<<<(unsigned)(num_samples * blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      out, num_elements, (uint32_t)blocks, seed, sample_index, draw, num_elements % 4 == 0 && is_aligned(out));
  return outcome();
}

}  // namespace ddpm_rt
