// Graphs as they are built: the functions of the CUDA runtime. How they run is in graph_run.cpp.
#include <algorithm>
#include <cstring>

#include "device.h"
#include "graph_objects.h"

using namespace software;

namespace software {
namespace {

// What is destroyed stays where it is, so that its handle is never another's.
std::vector<std::unique_ptr<CUgraph_st>> graphs;
std::vector<std::unique_ptr<CUgraphExec_st>> executables;
cudaGraphConditionalHandle next_handle = 0x7A00000000000001;

bool contains(const CUgraph_st& graph, cudaGraph_t wanted) {
  for (const auto& node : graph.nodes) {
    if (node->inner && (node->inner.get() == wanted || contains(*node->inner, wanted))) return true;
  }
  return false;
}

// A graph of its own, or one inside.
bool exists(cudaGraph_t graph) {
  return std::any_of(graphs.begin(), graphs.end(), [=](const auto& each) {
    return each->alive && (each.get() == graph || contains(*each, graph));
  });
}

CUgraphExec_st* find(cudaGraphExec_t executable) {
  for (const auto& each : executables) {
    if (each.get() == executable && each->alive) return executable;
  }
  return nullptr;
}

std::unique_ptr<CUgraph_st> copy_of(const CUgraph_st& graph) {
  auto copy = std::make_unique<CUgraph_st>();
  copy->handles = graph.handles;
  std::map<cudaGraphNode_t, cudaGraphNode_t> copies;
  for (const auto& node : graph.nodes) {
    auto same = std::make_unique<CUgraphNode_st>();
    same->type = node->type;
    same->action = node->action;
    same->handle = node->handle;
    if (node->inner) same->inner = copy_of(*node->inner);
    for (const cudaGraphNode_t each : node->after) same->after.push_back(copies.at(each));
    copies[node.get()] = same.get();
    copy->nodes.push_back(std::move(same));
  }
  return copy;
}

bool may_be_in_a_loop(cudaGraphNodeType type) {
  return type == cudaGraphNodeTypeKernel || type == cudaGraphNodeTypeMemcpy || type == cudaGraphNodeTypeMemset ||
         type == cudaGraphNodeTypeEmpty || type == cudaGraphNodeTypeGraph || type == cudaGraphNodeTypeConditional;
}

bool can_run(const CUgraph_st& graph, bool in_a_loop) {
  return std::all_of(graph.nodes.begin(), graph.nodes.end(), [=](const auto& node) {
    return (!in_a_loop || may_be_in_a_loop(node->type)) &&
           (!node->inner || can_run(*node->inner, in_a_loop || node->type == cudaGraphNodeTypeConditional));
  });
}

}  // namespace

cudaGraphNode_t add_node(cudaGraph_t graph, cudaGraphNodeType type, const cudaGraphNode_t* after, size_t count) {
  graph->nodes.push_back(std::make_unique<CUgraphNode_st>());
  const cudaGraphNode_t node = graph->nodes.back().get();
  node->type = type;
  node->after.assign(after, after + count);
  return node;
}

void set_action(cudaGraphNode_t node, Action action) { node->action = std::move(action); }

void forget_graphs() {
  for (const auto& each : graphs) each->alive = false;
  for (const auto& each : executables) each->alive = false;
  for (auto& [handle, condition] : conditions()) condition.alive = false;
}

std::map<std::string, long> graphs_state() {
  std::map<std::string, long> state{{"graphs", 0}, {"executables", 0}};
  for (const auto& each : graphs) state["graphs"] += each->alive;
  for (const auto& each : executables) state["executables"] += each->alive;
  return state;
}

}  // namespace software

namespace {

// A node of a live graph, behind nodes of the same graph.
cudaError_t check_place(cudaGraph_t graph, const cudaGraphNode_t* after, size_t count) {
  if (!exists(graph)) return failed(cudaErrorInvalidValue);
  for (size_t i = 0; i < count; ++i) {
    if (!graph->holds(after[i])) return failed(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned int) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphCreate")) return error;
  graphs.push_back(std::make_unique<CUgraph_st>());
  *graph = graphs.back().get();
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphDestroy")) return error;
  for (const auto& each : graphs) {
    if (each.get() != graph || !each->alive) continue;
    each->alive = false;
    for (const cudaGraphConditionalHandle handle : each->handles) conditions().at(handle).alive = false;
    return cudaSuccess;
  }
  return failed(cudaErrorInvalidValue);
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after, size_t count,
                                   const cudaKernelNodeParams* params) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphAddKernelNode")) return error;
  if (const cudaError_t error = check_place(graph, after, count)) return error;
  if (params->sharedMemBytes || params->extra) return failed(cudaErrorNotSupported);
  Action action;
  if (const cudaError_t error =
          kernel_of(params->func, params->gridDim, params->blockDim, params->kernelParams, &action)) {
    return error;
  }
  *node = add_node(graph, cudaGraphNodeTypeKernel, after, count);
  set_action(*node, action);
  return cudaSuccess;
}

cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                                       size_t count, cudaGraph_t child) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphAddChildGraphNode")) return error;
  if (const cudaError_t error = check_place(graph, after, count)) return error;
  if (!exists(child) || child == graph) return failed(cudaErrorInvalidValue);
  auto copy = copy_of(*child);
  *node = add_node(graph, cudaGraphNodeTypeGraph, after, count);
  (*node)->inner = std::move(copy);
  return cudaSuccess;
}

cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph, unsigned int value,
                                             unsigned int flags) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphConditionalHandleCreate")) return error;
  if (!exists(graph)) return failed(cudaErrorInvalidValue);
  *handle = next_handle++;
  // Without the flag a condition keeps what it was; before the first launch that is nothing sure.
  conditions()[*handle] = {flags == cudaGraphCondAssignDefault, true, false, value, 0};
  graph->handles.push_back(*handle);
  return cudaSuccess;
}

#if CUDART_VERSION >= 13000
cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                             const cudaGraphEdgeData*, size_t count, cudaGraphNodeParams* params) {
#else
cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after, size_t count,
                             cudaGraphNodeParams* params) {
#endif
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphAddNode")) return error;
  if (const cudaError_t error = check_place(graph, after, count)) return error;
  cudaConditionalNodeParams& conditional = params->conditional;
  if (params->type != cudaGraphNodeTypeConditional || conditional.type != cudaGraphCondTypeWhile ||
      conditional.size != 1) {
    return failed(cudaErrorNotSupported);
  }
  // A handle is of one graph, and of one node in it.
  if (!std::count(graph->handles.begin(), graph->handles.end(), conditional.handle) ||
      conditions().at(conditional.handle).used) {
    return failed(cudaErrorInvalidValue);
  }
  conditions().at(conditional.handle).used = true;
  *node = add_node(graph, cudaGraphNodeTypeConditional, after, count);
  (*node)->handle = conditional.handle;
  (*node)->inner = std::make_unique<CUgraph_st>();
  static thread_local cudaGraph_t body;
  body = (*node)->inner.get();
  conditional.phGraph_out = &body;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphGetNodes")) return error;
  if (!exists(graph)) return failed(cudaErrorInvalidValue);
  if (!nodes) {
    *count = graph->nodes.size();
    return cudaSuccess;
  }
  *count = std::min(*count, graph->nodes.size());
  for (size_t i = 0; i < *count; ++i) nodes[i] = graph->nodes[i].get();
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphNodeGetType")) return error;
  *type = node->type;
  return cudaSuccess;
}

cudaError_t cudaGraphChildGraphNodeGetGraph(cudaGraphNode_t node, cudaGraph_t* graph) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphChildGraphNodeGetGraph")) return error;
  if (node->type != cudaGraphNodeTypeGraph) return failed(cudaErrorInvalidValue);
  *graph = node->inner.get();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphInstantiate")) return error;
  if (!exists(graph) || flags) return failed(cudaErrorInvalidValue);
  if (!can_run(*graph, false)) return failed(cudaErrorNotSupported);
  executables.push_back(std::make_unique<CUgraphExec_st>());
  executables.back()->graph = copy_of(*graph);
  *executable = executables.back().get();
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t stream) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphUpload")) return error;
  if (!find(executable)) return failed(cudaErrorInvalidValue);
  return put(stream, work_of([] {}));
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphLaunch")) return error;
  if (!find(executable)) return failed(cudaErrorInvalidValue);
  return put(stream, run_of(executable));
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaGraphExecDestroy")) return error;
  if (!find(executable)) return failed(cudaErrorInvalidValue);
  if (executable->pending) set_misuse("an executable graph was destroyed before it had run");
  executable->alive = false;
  return cudaSuccess;
}
