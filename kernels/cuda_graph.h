// Graphs of a chain: a network's call and a step, once or in a loop that runs on the device.
//
//   { network -> step }                          one row for each launch
//   WHILE { network -> step -> network -> … }    a few rows at a time until the count is down to 0: one launch for many
//
// The network's graph becomes a child node, which copies it: its kernels' buffers must outlive what is built here.
// Everything throws CudaError.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <string>

#include "cuda_step.h"

namespace ddpm_rt {

// How many nodes of each type a graph holds, those of child graphs included: "kernel", "memcpy", "host" and so on.
std::map<std::string, int> graph_node_types(cudaGraph_t graph);

cudaGraph_t make_step_graph(cudaGraph_t network, const StepJob& job, uint32_t* arrivals);

// Each launch of it runs its body, of `num_rows` rows, *turns_left times, at least once, and leaves 0 there. Between two
// turns the device decides anew what to launch; the more rows a turn has, the less often.
cudaGraph_t make_while_graph(cudaGraph_t network, const StepJob& job, uint32_t* arrivals, uint32_t* turns_left,
                             int num_rows);

}  // namespace ddpm_rt
