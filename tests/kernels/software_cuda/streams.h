// What lies on streams and in the nodes of graphs.
#pragma once

#include <functional>
#include <memory>

#include "device_threads.h"

namespace software {

// Runs at once when its turn comes.
using Action = std::function<void()>;

// Something on a stream that takes several turns, between which others have theirs.
class Work {
 public:
  virtual ~Work() = default;
  virtual bool step() = 0;  // true when it is over
};

struct Piece {
  cudaGraphNodeType type;
  Action action;
};

std::unique_ptr<Work> work_of(Action action);
// Puts it on the stream, or, while that is being captured, into the graph.
cudaError_t put(cudaStream_t stream, Piece piece);
cudaError_t put(cudaStream_t stream, std::unique_ptr<Work> work);

// What a thread that captures must not do; the capture is lost.
cudaError_t expect_no_capture(cudaStream_t stream);

cudaError_t kernel_of(const void* function, dim3 grid, dim3 block, void** arguments, Action* action);
// A node behind `after`; null for the first.
cudaGraphNode_t add_node(cudaGraph_t graph, cudaGraphNodeType type, const cudaGraphNode_t* after, size_t count);
void set_action(cudaGraphNode_t node, Action action);

}  // namespace software
