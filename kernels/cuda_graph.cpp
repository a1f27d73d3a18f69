#include "cuda_graph.h"

#include <vector>

#include "cuda_error.h"

namespace ddpm_rt {
namespace {

// A graph that is destroyed unless it is released.
class Graph {
 public:
  Graph() { check(cudaGraphCreate(&graph_, 0), "cudaGraphCreate"); }
  Graph(const Graph&) = delete;
  ~Graph() {
    if (graph_) cudaGraphDestroy(graph_);
  }
  cudaGraph_t get() const { return graph_; }
  cudaGraph_t release() {
    const cudaGraph_t graph = graph_;
    graph_ = nullptr;
    return graph;
  }

 private:
  cudaGraph_t graph_ = nullptr;
};

const char* name_of(cudaGraphNodeType type) {
  switch (type) {
    case cudaGraphNodeTypeKernel: return "kernel";
    case cudaGraphNodeTypeMemcpy: return "memcpy";
    case cudaGraphNodeTypeMemset: return "memset";
    case cudaGraphNodeTypeHost: return "host";
    case cudaGraphNodeTypeGraph: return "child graph";
    case cudaGraphNodeTypeEmpty: return "empty";
    case cudaGraphNodeTypeWaitEvent: return "event wait";
    case cudaGraphNodeTypeEventRecord: return "event record";
    case cudaGraphNodeTypeExtSemaphoreSignal: return "semaphore signal";
    case cudaGraphNodeTypeExtSemaphoreWait: return "semaphore wait";
    case cudaGraphNodeTypeMemAlloc: return "memory allocation";
    case cudaGraphNodeTypeMemFree: return "memory free";
    case cudaGraphNodeTypeConditional: return "conditional";
    default: return nullptr;
  }
}

void count_nodes(cudaGraph_t graph, std::map<std::string, int>* counts) {
  size_t num_nodes = 0;
  check(cudaGraphGetNodes(graph, nullptr, &num_nodes), "cudaGraphGetNodes");
  std::vector<cudaGraphNode_t> nodes(num_nodes);
  if (num_nodes) check(cudaGraphGetNodes(graph, nodes.data(), &num_nodes), "cudaGraphGetNodes");
  for (const cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type;
    check(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
    const char* name = name_of(type);
    ++(*counts)[name ? name : "type " + std::to_string((int)type)];
    if (type == cudaGraphNodeTypeGraph) {
      cudaGraph_t child;
      check(cudaGraphChildGraphNodeGetGraph(node, &child), "cudaGraphChildGraphNodeGetGraph");
      count_nodes(child, counts);
    }
  }
}

// Adds a network call and a step behind `previous` (null: behind nothing); returns the step's node.
cudaGraphNode_t add_row(cudaGraph_t graph, cudaGraphNode_t previous, cudaGraph_t network, const StepJob& job,
                        uint32_t* arrivals, DeviceLoop loop) {
  cudaGraphNode_t call, step;
  check(cudaGraphAddChildGraphNode(&call, graph, &previous, previous ? 1 : 0, network), "cudaGraphAddChildGraphNode");
  if (const char* error = add_cuda_step(graph, call, job, arrivals, loop, &step)) {
    throw CudaError(std::string("adding the step to a graph failed: ") + error);
  }
  return step;
}

}  // namespace

std::map<std::string, int> graph_node_types(cudaGraph_t graph) {
  std::map<std::string, int> counts;
  count_nodes(graph, &counts);
  return counts;
}

cudaGraph_t make_step_graph(cudaGraph_t network, const StepJob& job, uint32_t* arrivals) {
  Graph graph;
  add_row(graph.get(), nullptr, network, job, arrivals, {});
  return graph.release();
}

cudaGraph_t make_while_graph(cudaGraph_t network, const StepJob& job, uint32_t* arrivals, uint32_t* turns_left,
                             int num_rows) {
  Graph graph;
  // 1 at every launch, so that the first turn runs; from then on its last step decides.
  cudaGraphConditionalHandle handle;
  check(cudaGraphConditionalHandleCreate(&handle, graph.get(), 1, cudaGraphCondAssignDefault),
        "cudaGraphConditionalHandleCreate");
  cudaGraphNodeParams params = {};
  params.type = cudaGraphNodeTypeConditional;
  params.conditional.handle = handle;
  params.conditional.type = cudaGraphCondTypeWhile;
  params.conditional.size = 1;
  cudaGraphNode_t node;
#if CUDART_VERSION >= 13000
  check(cudaGraphAddNode(&node, graph.get(), nullptr, nullptr, 0, &params), "cudaGraphAddNode");
#else
  check(cudaGraphAddNode(&node, graph.get(), nullptr, 0, &params), "cudaGraphAddNode");
#endif
  cudaGraphNode_t previous = nullptr;
  for (int row = 0; row < num_rows; ++row) {
    const DeviceLoop loop = row + 1 == num_rows ? DeviceLoop{turns_left, handle} : DeviceLoop{};
    previous = add_row(params.conditional.phGraph_out[0], previous, network, job, arrivals, loop);
  }
  return graph.release();
}

}  // namespace ddpm_rt
