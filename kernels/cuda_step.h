// The step and the noise on a CUDA device. All pointers are device pointers, all work is put on the stream.
//
// Functions return null, or the text of a CUDA error.
#pragma once

#include "host_step.h"

struct CUgraph_st;
struct CUgraphNode_st;

namespace ddpm_rt {

// What a step inside a WHILE node of a graph does beside stepping: one thread takes 1 from `turns_left` and tells the
// node whether to run its body again. Nothing where `turns_left` is null.
struct DeviceLoop {
  uint32_t* turns_left;
  unsigned long long handle;  // a cudaGraphConditionalHandle
};

// Launches one step; the job's buffers lie on the device. `next_input` has the prediction's element type.
// `arrivals` [N] is scratch that must be zero before the first launch and is zero again after each.
const char* launch_cuda_step(const StepJob& job, uint32_t* arrivals, void* stream);

// Adds the same launch to a graph, as a node that runs after `previous` (null: after nothing).
const char* add_cuda_step(CUgraph_st* graph, CUgraphNode_st* previous, const StepJob& job, uint32_t* arrivals,
                          DeviceLoop loop, CUgraphNode_st** node);

// Fills out [N, E] with N samples' normal numbers.
const char* launch_cuda_normal(float* out, int64_t num_samples, int64_t num_elements, const uint64_t* seed,
                               const uint64_t* sample_index, const uint32_t* draw, void* stream);

// out = x in another element type, as the step writes its next input.
const char* launch_cuda_convert(const float* x, void* out, ElementType type, int64_t num_elements, void* stream);

// *to = value. A launch and no copy, so that nothing on the host must outlive it.
const char* launch_cuda_set(uint32_t* to, uint32_t value, void* stream);

}  // namespace ddpm_rt
