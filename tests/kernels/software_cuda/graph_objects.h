// Graphs, their nodes, and what WHILE nodes read.
#pragma once

#include <algorithm>
#include <map>

#include "streams.h"

struct CUgraphNode_st {
  cudaGraphNodeType type;
  std::vector<cudaGraphNode_t> after;
  software::Action action;               // of what runs at once
  std::unique_ptr<CUgraph_st> inner;     // of a child, or of a loop
  cudaGraphConditionalHandle handle = 0;  // of a loop
};

struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
  std::vector<cudaGraphConditionalHandle> handles;
  bool alive = true;

  bool holds(cudaGraphNode_t node) const {
    return std::any_of(nodes.begin(), nodes.end(), [=](const auto& each) { return each.get() == node; });
  }
};

struct CUgraphExec_st {
  std::unique_ptr<CUgraph_st> graph;
  int pending = 0;
  bool alive = true;
};

namespace software {

struct Condition {
  bool assign_default, alive, used;
  unsigned default_value, value;
};
std::map<cudaGraphConditionalHandle, Condition>& conditions();

// One launch of an executable graph, for a stream.
std::unique_ptr<Work> run_of(cudaGraphExec_t executable);

}  // namespace software
