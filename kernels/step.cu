// The fused step on CUDA: one pass over memory, the noise made in registers, from the headers that the CPU uses.
//
// A thread steps eight elements, whose normal numbers are those of two Philox counters: 16-byte accesses in every
// type, all of a thread's loads in flight before the noise is made, and the first rounds and the keys of Philox
// shared. In float16 an element costs 12 bytes: 2 of the prediction, 4 + 4 of x, 2 of the network's next input.
#include <cuda_runtime.h>

#include "cuda_elements.h"
#include "cuda_step.h"
#include "philox.h"
#include "step.h"

namespace ddpm_rt {
namespace {

constexpr int kMaxThreads = 128;
// A batch too small to fill the device is spread over more, smaller blocks, down to this.
constexpr int kMinThreads = 32;
constexpr int64_t kFewBlocks = 264;  // two for each multiprocessor of a large device
constexpr int kMaxGridY = 65535;     // CUDA's limit for the second and the third dimension of a grid

// Blocks are numbered within their sample along x; samples along y, and along z where there are too many.
__device__ __forceinline__ int64_t sample_of_block() { return (int64_t)blockIdx.z * kMaxGridY + blockIdx.y; }
// The first of a thread's eight elements, within the sample.
__device__ __forceinline__ uint32_t first_of_thread() { return kEight * (blockIdx.x * blockDim.x + threadIdx.x); }

__device__ __forceinline__ bool not_finite(float value) { return !(fabsf(value) < float_of(0x7F800000u)); }

__device__ __forceinline__ bool any_not_finite(const float values[kEight]) {
  bool found = false;
#pragma unroll
  for (int i = 0; i < kEight; ++i) found |= not_finite(values[i]);
  return found;
}

// What a thread holds of its eight elements.
template <typename T>
struct Loaded {
  Eight<float> x, h1, h2;
  Eight<T> p, w;
};

// `load` and `store` take a pointer to the first of eight elements of any type.
template <int kHistories, typename T, typename Load>
__device__ __forceinline__ void load_all(const StepJob& job, int64_t sample, uint32_t first, Load load,
                                         Loaded<T>* loaded) {
  const int64_t start = sample * job.num_elements;
  const T* prediction = static_cast<const T*>(job.prediction) + sample * job.prediction_elements + first;
  loaded->x = load(job.x + start + first);
  loaded->p = load(prediction);
  if (job.prediction_elements > job.num_elements) loaded->w = load(prediction + job.num_elements);
  if (kHistories >= 1) loaded->h1 = load(job.h1 + start + first);
  if (kHistories == 2) loaded->h2 = load(job.h2 + start + first);
}

template <int kHistories, typename T, typename Store>
__device__ __forceinline__ void store_all(const StepJob& job, int64_t sample, uint32_t first, Store store,
                                          const float x[kEight], const float h1[kEight], const float h2[kEight],
                                          const float x_start[kEight]) {
  const int64_t start = sample * job.num_elements;
  store(x, job.x + start + first);
  if (kHistories >= 1) store(h1, job.h1 + start + first);
  if (kHistories == 2) store(h2, job.h2 + start + first);
  if (job.x_start) store(x_start, job.x_start + start + first);
  if (job.next_input) store(x, static_cast<T*>(job.next_input) + start + first);
}

// Applies a row to eight elements, in place of what was loaded; true if the prediction or x' is not finite.
template <int kHistories, bool kLearned, typename T>
__device__ __forceinline__ bool step_eight(const StepJob& job, const Row& row, int timestep, int64_t sample,
                                           uint32_t first, const Loaded<T>& loaded, float x[kEight], float h1[kEight],
                                           float h2[kEight], float x_start[kEight]) {
  const bool noise = row.s != 0.0f;
  float z[kEight] = {};
  if (noise) {
    const NoiseKey key = noise_key(job.seed[sample], job.sample_index[sample], draw_of_timestep(timestep));
    normal_four(key, first / 4, &z[0], &z[1], &z[2], &z[3]);
    normal_four(key, first / 4 + 1, &z[4], &z[5], &z[6], &z[7]);
  }
  float p[kEight], w[kEight] = {};
  unpack(loaded.x, x);
  unpack(loaded.p, p);
  bool bad = false;
  if (job.prediction_elements > job.num_elements) {
    unpack(loaded.w, w);
    bad = any_not_finite(w);
  }
  if (kHistories >= 1) unpack(loaded.h1, h1);
  if (kHistories == 2) unpack(loaded.h2, h2);
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const float old_h1 = kHistories >= 1 ? h1[i] : 0.0f, old_h2 = kHistories == 2 ? h2[i] : 0.0f;
    const Element next = noise ? step_element<kHistories, kLearned, true>(row, job.clip, job.h2_is_x_start, x[i], p[i],
                                                                          w[i], z[i], old_h1, old_h2)
                               : step_element<kHistories, kLearned, false>(row, job.clip, job.h2_is_x_start, x[i], p[i],
                                                                           w[i], 0.0f, old_h1, old_h2);
    x[i] = next.x;
    x_start[i] = next.x_start;
    h1[i] = next.h1;
    h2[i] = next.h2;
  }
  return bad | any_not_finite(x);
}

// `aligned`: every buffer to 16 bytes, and the elements of a sample a multiple of eight. Left to itself nvcc 13 gives
// the steps with two histories one register too few on sm_120; 0 leaves the others to it.
template <int kHistories, bool kLearned, typename T>
__global__ void __launch_bounds__(kMaxThreads, kHistories == 2 ? 7 : 0)
    step_kernel(const StepJob job, uint32_t* arrivals, bool aligned, DeviceLoop loop) {
  const int64_t sample = sample_of_block();
  // First, while little else is held in registers: a step that finds no row left for any sample still counts.
  if (loop.turns_left && sample == 0 && blockIdx.x == 0 && threadIdx.x == 0) {
    const uint32_t turns_left = *loop.turns_left - 1;
    *loop.turns_left = turns_left;
    cudaGraphSetConditional(loop.handle, turns_left != 0);
  }
  if (sample >= job.num_samples) return;
  const int row_number = job.row[sample];
  const uint32_t first = first_of_thread(), elements = (uint32_t)job.num_elements;
  const int count = first < elements ? (int)min(elements - first, (uint32_t)kEight) : 0;
  // On their way while the row's number is still awaited, and the row, and the noise is made.
  Loaded<T> loaded = {};
  if (aligned && count) {
    load_all<kHistories>(job, sample, first, [](const auto* from) { return load_eight(from); }, &loaded);
  } else if (count) {
    load_all<kHistories>(job, sample, first, [=](const auto* from) { return load_some(from, count); }, &loaded);
  }
  // An idle sample's row never changes, so all of its blocks leave here.
  if (__syncthreads_or(row_number < 0 || row_number >= job.num_rows)) return;
  // Past the barrier every thread of this block has its row's number in a register. Blocks count themselves, and the
  // last one knows that all of them have: it moves the sample on, at its end. (No fence: what must come first is a
  // read that is over.) atomicInc wraps to 0 by itself, ready for the next launch.
  uint32_t arrived = 0;
  if (gridDim.x > 1 && threadIdx.x == 0) arrived = atomicInc(&arrivals[sample], gridDim.x - 1);
  if (count == 0) return;

  const Row row = *reinterpret_cast<const Row*>(job.coefficients + (int64_t)row_number * 13);
  float x[kEight], h1[kEight], h2[kEight], x_start[kEight];
  if (step_eight<kHistories, kLearned, T>(job, row, job.timesteps[row_number], sample, first, loaded, x, h1, h2,
                                          x_start)) {
    atomicCAS(&job.flag[sample], 0, row_number + 1);
  }
  if (aligned) {
    store_all<kHistories, T>(
        job, sample, first, [](const float* from, auto* to) { store_eight(from, to); }, x, h1, h2, x_start);
  } else {
    store_all<kHistories, T>(
        job, sample, first, [=](const float* from, auto* to) { store_some(from, count, to); }, x, h1, h2, x_start);
  }
  if (threadIdx.x != 0 || arrived != gridDim.x - 1) return;
  const int next = row_number + 1;
  job.row[sample] = next;
  if (next == job.num_rows) return;
  if (job.t_is_int64) {
    static_cast<int64_t*>(job.t)[sample] = job.timesteps[next];
  } else {
    static_cast<float*>(job.t)[sample] = to_float((int32_t)job.timesteps[next]);
  }
}

__global__ void __launch_bounds__(kMaxThreads)
    normal_kernel(float* out, int64_t num_samples, int64_t num_elements, const uint64_t* seed,
                  const uint64_t* sample_index, const uint32_t* draw, bool aligned) {
  const int64_t sample = sample_of_block();
  const uint32_t first = first_of_thread();
  if (sample >= num_samples || first >= (uint32_t)num_elements) return;
  const NoiseKey key = noise_key(seed[sample], sample_index[sample], draw[sample]);
  float z[kEight];
  normal_four(key, first / 4, &z[0], &z[1], &z[2], &z[3]);
  normal_four(key, first / 4 + 1, &z[4], &z[5], &z[6], &z[7]);
  float* to = out + sample * num_elements + first;
  if (aligned) {
    store_eight(z, to);
  } else {
    store_some(z, (int)min((uint32_t)num_elements - first, (uint32_t)kEight), to);
  }
}

template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    convert_kernel(const float* x, T* out, int64_t num_elements, bool aligned) {
  const int64_t first = (int64_t)kEight * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);
  const int64_t left = num_elements - first;
  if (left <= 0) return;
  const int count = left < kEight ? (int)left : kEight;
  float values[kEight];
  if (aligned && count == kEight) {
    unpack(load_eight(x + first), values);
    store_eight(values, out + first);
  } else {
    unpack(load_some(x + first, count), values);
    store_some(values, count, out + first);
  }
}

__global__ void set_kernel(uint32_t* to, uint32_t value) { *to = value; }

using StepKernel = void (*)(StepJob, uint32_t*, bool, DeviceLoop);

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

const void* convert_kernel_for(ElementType type) {
  if (type == ElementType::kFloat32) return reinterpret_cast<const void*>(convert_kernel<float>);
  if (type == ElementType::kFloat16) return reinterpret_cast<const void*>(convert_kernel<Float16>);
  return reinterpret_cast<const void*>(convert_kernel<BFloat16>);
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// How N samples of E elements are spread over blocks; no block holds elements of two samples.
struct Grid {
  Grid(int64_t num_samples, int64_t num_elements) : samples(num_samples), elements(num_elements) {
    const int64_t eights = (elements + kEight - 1) / kEight;
    for (threads = kMaxThreads;; threads /= 2) {
      per_sample = (eights + threads - 1) / threads;
      if (threads == kMinThreads || samples * per_sample >= kFewBlocks) break;
    }
  }

  bool is_empty() const { return samples * per_sample == 0; }
  // Elements of a sample are numbered in 32 bits.
  const char* problem() const {
    const bool fits = elements <= 0x7FFFFFFF && samples <= (int64_t)kMaxGridY * kMaxGridY;
    return fits ? nullptr : "the batch is too large for one launch";
  }
  dim3 blocks() const {
    const unsigned y = (unsigned)(samples < kMaxGridY ? samples : kMaxGridY);
    return {(unsigned)per_sample, y, (unsigned)((samples + kMaxGridY - 1) / kMaxGridY)};
  }

  int64_t samples, elements, per_sample;
  int threads;
};

const char* text_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // else the next launch would report this error again
  return cudaGetErrorString(error);
}

// The one way to launch: `arguments` points to the kernel's parameters, in their order, of their very types.
const char* launch(const void* kernel, dim3 blocks, int threads, void** arguments, void* stream) {
  return text_of(cudaLaunchKernel(kernel, blocks, dim3(threads), arguments, 0, static_cast<cudaStream_t>(stream)));
}

// The arguments of one step's launch, in the order of the kernel's parameters.
struct StepLaunch {
  StepLaunch(const StepJob& step_job, uint32_t* step_arrivals, DeviceLoop device_loop)
      : grid(step_job.num_samples, step_job.num_elements),
        kernel(reinterpret_cast<void*>(kernel_for(step_job))),
        job(step_job),
        arrivals(step_arrivals),
        aligned(job.num_elements % kEight == 0 && is_aligned(job.x) && is_aligned(job.prediction) &&
                is_aligned(job.h1) && is_aligned(job.h2) && is_aligned(job.x_start) && is_aligned(job.next_input)),
        loop(device_loop) {}
  StepLaunch(const StepLaunch&) = delete;  // `arguments` points into it

  Grid grid;
  void* kernel;
  StepJob job;
  uint32_t* arrivals;
  bool aligned;
  DeviceLoop loop;
  void* arguments[4] = {&job, &arrivals, &aligned, &loop};
};

}  // namespace

const char* launch_cuda_step(const StepJob& job, uint32_t* arrivals, void* stream) {
  StepLaunch step(job, arrivals, {});
  if (step.grid.is_empty()) return nullptr;
  if (step.grid.problem()) return step.grid.problem();
  return launch(step.kernel, step.grid.blocks(), step.grid.threads, step.arguments, stream);
}

const char* add_cuda_step(CUgraph_st* graph, CUgraphNode_st* previous, const StepJob& job, uint32_t* arrivals,
                          DeviceLoop loop, CUgraphNode_st** node) {
  StepLaunch step(job, arrivals, loop);
  if (step.grid.is_empty()) return "the batch is empty";
  if (step.grid.problem()) return step.grid.problem();
  cudaKernelNodeParams params = {};
  params.func = step.kernel;
  params.gridDim = step.grid.blocks();
  params.blockDim = dim3(step.grid.threads);
  params.kernelParams = step.arguments;  // copied by the call
  return text_of(cudaGraphAddKernelNode(node, graph, &previous, previous ? 1 : 0, &params));
}

const char* launch_cuda_normal(float* out, int64_t num_samples, int64_t num_elements, const uint64_t* seed,
                               const uint64_t* sample_index, const uint32_t* draw, void* stream) {
  const Grid grid(num_samples, num_elements);
  if (grid.is_empty()) return nullptr;
  if (grid.problem()) return grid.problem();
  bool aligned = num_elements % kEight == 0 && is_aligned(out);
  void* arguments[] = {&out, &num_samples, &num_elements, &seed, &sample_index, &draw, &aligned};
  return launch(reinterpret_cast<const void*>(normal_kernel), grid.blocks(), grid.threads, arguments, stream);
}

const char* launch_cuda_convert(const float* x, void* out, ElementType type, int64_t num_elements, void* stream) {
  const Grid grid(1, num_elements);
  if (grid.is_empty()) return nullptr;
  bool aligned = is_aligned(x) && is_aligned(out);
  void* arguments[] = {&x, &out, &num_elements, &aligned};
  return launch(convert_kernel_for(type), grid.blocks(), grid.threads, arguments, stream);
}

const char* launch_cuda_set(uint32_t* to, uint32_t value, void* stream) {
  void* arguments[] = {&to, &value};
  return launch(reinterpret_cast<const void*>(set_kernel), dim3(1), 1, arguments, stream);
}

}  // namespace ddpm_rt
