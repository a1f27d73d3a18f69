// The step and the noise on a CUDA device. All pointers are device pointers, all work is put on the stream.
#pragma once

#include "host_step.h"

namespace ddpm_rt {

// Launches one step; the job's buffers lie on the device. `next_input` has the prediction's element type.
// `arrivals` [N] is scratch that must be zero before the first launch and is zero again after each.
// Returns null, or the text of a CUDA error.
const char* launch_cuda_step(const StepJob& job, uint32_t* arrivals, void* stream);

// Fills out [N, E] with N samples' normal numbers.
const char* launch_cuda_normal(float* out, int64_t num_samples, int64_t num_elements, const uint64_t* seed,
                               const uint64_t* sample_index, const uint32_t* draw, void* stream);

}  // namespace ddpm_rt
