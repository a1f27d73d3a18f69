// An ε-network of two kernels, a memset and a copy; its twin in NumPy is tests/runtime/device/device_network.py.
//
//   prediction = 0.8 x - 0.3 (x rolled by one along its last axis) + 1e-4 t, and the same within ±1 behind it if wide;
//   where there are conditions, plus scale · 0.01 label
#pragma once

#include <string>

#include "cuda_runtime_api.h"
#include "host_step.h"

namespace software {

struct Network {
  const void* x;     // [N, E]
  const void* t;     // [N]
  void* prediction;  // [N, E or 2E]
  void* scratch;     // [N, E] like x, or null: without it there is one kernel alone
  const int64_t* label;  // [N], or null
  const float* scale;    // [N], where there are labels
  int64_t num_samples, num_elements, width;
  ddpm_rt::ElementType type;
  bool t_is_int64, wide;
};

// Puts one call on the stream.
cudaError_t enqueue(const Network& network, cudaStream_t stream);

// From now on the prediction of this slot at this timestep is NaN in one place; slot -1 for none.
void break_at(int slot, int timestep);

// A kernel that writes a float at an address, once.
cudaError_t enqueue_write(float* address, cudaStream_t stream);

}  // namespace software
