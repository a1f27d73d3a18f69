#include "network.h"

#include <cuda_runtime.h>

#include "element_types.h"

namespace software {
namespace {

using namespace ddpm_rt;

__device__ int broken_slot = -1, broken_timestep = 0;

// Few threads, each with several elements: they are dear in software.
constexpr int kThreads = 4, kElementsOfThread = 16;

template <typename T, typename Time>
__global__ void network_kernel(const T* x, const T* rolled, const Time* t, const int64_t* label, const float* scale,
                               T* prediction, int64_t num_elements, int64_t width, bool wide) {
  const int64_t sample = blockIdx.y, first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * kElementsOfThread;
  for (int64_t e = first; e < first + kElementsOfThread && e < num_elements; ++e) {
    const int64_t left = e % width ? e - 1 : e + width - 1;
    const float here = multiply(0.8f, to_float(x[sample * num_elements + e]));
    const float there = multiply(0.3f, to_float(rolled[sample * num_elements + left]));
    float value = add(subtract(here, there), multiply(1e-4f, (float)t[sample]));
    if (label) value = add(value, multiply(scale[sample], multiply(0.01f, (float)label[sample])));
    const float second = value < -1.0f ? -1.0f : (value > 1.0f ? 1.0f : value);
    if (sample == broken_slot && t[sample] == broken_timestep && e == width + 1) value = float_of(0x7FC00000u);
    T* to = prediction + sample * num_elements * (wide ? 2 : 1) + e;
    from_float(value, to);
    if (wide) from_float(second, to + num_elements);
  }
}

__global__ void write_kernel(float* address) { *address = 1.0f; }

template <typename T, typename Time>
cudaError_t enqueue_typed(const Network& network, cudaStream_t stream) {
  const T *x = static_cast<const T*>(network.x), *rolled = x;
  if (network.scratch) {
    const size_t size = network.num_samples * network.num_elements * sizeof(T);
    cudaMemsetAsync(network.scratch, 0xFF, size, stream);
    cudaMemcpyAsync(network.scratch, network.x, size, cudaMemcpyDeviceToDevice, stream);
    rolled = static_cast<const T*>(network.scratch);
  }
  const Time* t = static_cast<const Time*>(network.t);
  T* prediction = static_cast<T*>(network.prediction);
  int64_t num_elements = network.num_elements, width = network.width;
  bool wide = network.wide;
  const int64_t* label = network.label;
  const float* scale = network.scale;
  void* arguments[] = {&x, &rolled, &t, &label, &scale, &prediction, &num_elements, &width, &wide};
  constexpr int64_t kElementsOfBlock = kThreads * kElementsOfThread;
  const dim3 grid((unsigned)((num_elements + kElementsOfBlock - 1) / kElementsOfBlock), (unsigned)network.num_samples);
  return cudaLaunchKernel(reinterpret_cast<const void*>(network_kernel<T, Time>), grid, dim3(kThreads), arguments, 0,
                          stream);
}

template <typename T>
cudaError_t enqueue_of(const Network& network, cudaStream_t stream) {
  return network.t_is_int64 ? enqueue_typed<T, int64_t>(network, stream) : enqueue_typed<T, float>(network, stream);
}

template <typename T>
bool register_network() {
  register_kernel("network_kernel", 1024, network_kernel<T, float>);
  register_kernel("network_kernel", 1024, network_kernel<T, int64_t>);
  return true;
}

const bool registered = [] {
  register_kernel("write_kernel", 1024, write_kernel);
  return register_network<float>() && register_network<Float16>() && register_network<BFloat16>();
}();

}  // namespace

cudaError_t enqueue(const Network& network, cudaStream_t stream) {
  if (network.type == ElementType::kFloat32) return enqueue_of<float>(network, stream);
  return network.type == ElementType::kFloat16 ? enqueue_of<Float16>(network, stream)
                                               : enqueue_of<BFloat16>(network, stream);
}

void break_at(int slot, int timestep) {
  broken_slot = slot;
  broken_timestep = timestep;
}

cudaError_t enqueue_write(float* address, cudaStream_t stream) {
  void* arguments[] = {&address};
  return cudaLaunchKernel(reinterpret_cast<const void*>(write_kernel), dim3(1), dim3(1), arguments, 0, stream);
}

}  // namespace software
