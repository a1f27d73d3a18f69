// The CUDA kernels as Python functions, or the news that this build has none.
#pragma once

#include <nanobind/nanobind.h>

#include "host_step.h"

namespace ddpm_rt {

// A step on device buffers, its arguments checked once: launched on a stream, or made a node of a graph.
struct CudaStep {
  StepJob job;
  uint32_t* arrivals;
};

template <typename T>
T* device_pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_cuda(nanobind::module_& m);
void bind_cuda_graph(nanobind::module_& m);   // only where this build has CUDA
void bind_cuda_memory(nanobind::module_& m);  // likewise

}  // namespace ddpm_rt
