// Builds the chain's graphs on the fake runtime and prints them; with an argument, that function fails.
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda_error.h"
#include "cuda_graph.h"

struct CUgraph_st {
  std::vector<cudaGraphNode_t> nodes;
};
struct CUgraphNode_st {
  cudaGraphNodeType type;
  cudaGraphNode_t after;  // the one that it depends on
  cudaGraph_t graph;      // of a child node or a loop
  ddpm_rt::DeviceLoop loop;
};

static const char* failing = "";
static int graphs_alive = 0;
static constexpr unsigned long long kHandle = 42;

static cudaError_t outcome(const char* name) {
  return std::strcmp(name, failing) ? cudaSuccess : cudaErrorNotSupported;
}
static cudaGraphNode_t add(cudaGraph_t graph, cudaGraphNodeType type, const cudaGraphNode_t* after, size_t count,
                           cudaGraph_t inner) {
  graph->nodes.push_back(new CUgraphNode_st{type, count ? after[0] : nullptr, inner, {}});
  return graph->nodes.back();
}

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned int) {
  *graph = new CUgraph_st;
  ++graphs_alive;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t) {
  --graphs_alive;
  return cudaSuccess;
}
cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                                       size_t count, cudaGraph_t child) {
  *node = add(graph, cudaGraphNodeTypeGraph, after, count, child);
  return outcome("cudaGraphAddChildGraphNode");
}
cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t, unsigned int value,
                                             unsigned int flags) {
  *handle = kHandle;
  std::printf("default %u flags %u ", value, flags);
  return outcome("cudaGraphConditionalHandleCreate");
}
#if CUDART_VERSION >= 13000
cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                             const cudaGraphEdgeData*, size_t count, cudaGraphNodeParams* params) {
#else
cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after, size_t count,
                             cudaGraphNodeParams* params) {
#endif
  const cudaConditionalNodeParams& conditional = params->conditional;
  if (params->type != cudaGraphNodeTypeConditional || conditional.type != cudaGraphCondTypeWhile ||
      conditional.size != 1 || conditional.handle != kHandle) {
    return cudaErrorNotSupported;
  }
  static cudaGraph_t body;
  body = new CUgraph_st;
  params->conditional.phGraph_out = &body;
  *node = add(graph, cudaGraphNodeTypeConditional, after, count, body);
  return outcome("cudaGraphAddNode");
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes) std::memcpy(nodes, graph->nodes.data(), *count * sizeof *nodes);
  *count = graph->nodes.size();
  return cudaSuccess;
}
cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  *type = node->type;
  return cudaSuccess;
}
cudaError_t cudaGraphChildGraphNodeGetGraph(cudaGraphNode_t node, cudaGraph_t* graph) {
  *graph = node->graph;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "operation not supported"; }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorNotSupported"; }

namespace ddpm_rt {
const char* add_cuda_step(CUgraph_st* graph, CUgraphNode_st* previous, const StepJob&, uint32_t*, DeviceLoop loop,
                          CUgraphNode_st** node) {
  *node = add(graph, cudaGraphNodeTypeKernel, &previous, previous ? 1 : 0, nullptr);
  (*node)->loop = loop;
  return outcome("add_cuda_step") == cudaSuccess ? nullptr : "the batch is empty";
}
}  // namespace ddpm_rt

// "call" and "step", each behind the one before it; "counts" where a step counts for the loop.
static void print(cudaGraph_t graph, cudaGraph_t network) {
  cudaGraphNode_t previous = nullptr;
  for (const cudaGraphNode_t node : graph->nodes) {
    if (node->after != previous) std::printf("out-of-order ");
    if (node->type == cudaGraphNodeTypeConditional) {
      std::printf("while { ");
      print(node->graph, network);
      std::printf("} ");
    } else if (node->type == cudaGraphNodeTypeGraph) {
      std::printf(node->graph == network ? "call " : "other ");
    } else {
      const bool counts = node->loop.turns_left && node->loop.handle == kHandle;
      std::printf(counts ? "step-counts " : node->loop.turns_left ? "step-broken " : "step ");
    }
    previous = node;
  }
}

int main(int argc, char** argv) {
  if (argc > 1) failing = argv[1];
  CUgraph_st network, inner;
  for (const int type : {0, 0, 2}) add(&inner, (cudaGraphNodeType)type, nullptr, 0, nullptr);
  for (const int type : {0, 1, 3, 10, 77}) add(&network, (cudaGraphNodeType)type, nullptr, 0, nullptr);
  add(&network, cudaGraphNodeTypeGraph, nullptr, 0, &inner);
  uint32_t arrivals = 0, turns_left = 0;
  try {
    for (const auto& [name, count] : ddpm_rt::graph_node_types(&network)) std::printf("%s=%d ", name.c_str(), count);
    std::printf("\n");
    print(ddpm_rt::make_step_graph(&network, {}, &arrivals), &network);
    std::printf("\n");
    for (const int num_rows : {1, 3}) {
      print(ddpm_rt::make_while_graph(&network, {}, &arrivals, &turns_left, num_rows), &network);
      std::printf("\n");
    }
  } catch (const ddpm_rt::CudaError& error) {
    std::printf("error: %s\n", error.what());
  }
  std::printf("%d alive\n", graphs_alive);
}
