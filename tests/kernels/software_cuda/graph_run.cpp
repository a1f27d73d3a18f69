// Graphs run node by node, in any order that their edges allow; a WHILE node runs its body while its handle says so.
#include <set>

#include "device.h"
#include "graph_objects.h"

namespace software {
namespace {

constexpr long kMaxTurns = 500;  // no test has more rows

const CUgraph_st* running = nullptr;  // whose node has its turn

// One launch of an executable graph, a node at a time.
class Run : public Work {
 public:
  explicit Run(CUgraphExec_st* executable) : executable_(executable) {
    ++executable->pending;
    enter_graph(executable->graph.get(), nullptr);
  }
  ~Run() override { --executable_->pending; }

  bool step() override {
    if (!begun_) begin();
    while (!device().fault && !frames_.empty()) {
      Frame& frame = frames_.back();
      const cudaGraphNode_t node = next_of(frame);
      if (!node) {
        leave(frame);
        continue;
      }
      frame.done.insert(node);
      if (node->type == cudaGraphNodeTypeConditional) {
        if (condition(node->handle)) enter_graph(node->inner.get(), node);
      } else if (node->inner) {
        enter_graph(node->inner.get(), nullptr);
      } else {
        running = executable_->graph.get();
        if (node->action) node->action();
        running = nullptr;
        return false;
      }
    }
    return true;
  }

 private:
  struct Frame {
    const CUgraph_st* graph;
    cudaGraphNode_t loop;  // whose body it is
    std::set<cudaGraphNode_t> done;
    long turns = 0;
  };

  void begin() {
    begun_ = true;
    for (const cudaGraphConditionalHandle handle : executable_->graph->handles) {
      Condition& each = conditions().at(handle);
      if (each.assign_default) each.value = each.default_value;
    }
  }

  void enter_graph(const CUgraph_st* graph, cudaGraphNode_t loop) { frames_.push_back({graph, loop, {}}); }

  cudaGraphNode_t next_of(const Frame& frame) {
    std::vector<cudaGraphNode_t> ready;
    for (const auto& node : frame.graph->nodes) {
      const bool waits = std::any_of(node->after.begin(), node->after.end(),
                                     [&](cudaGraphNode_t each) { return !frame.done.count(each); });
      if (!waits && !frame.done.count(node.get())) ready.push_back(node.get());
    }
    return ready.empty() ? nullptr : ready[device().random() % ready.size()];
  }

  void leave(Frame& frame) {
    if (frame.loop && condition(frame.loop->handle)) {
      frame.done.clear();
      if (++frame.turns >= kMaxTurns) set_fault(cudaErrorLaunchFailure, "a WHILE node does not come to an end");
    } else {
      frames_.pop_back();
    }
  }

  bool condition(cudaGraphConditionalHandle handle) {
    const Condition& found = conditions().at(handle);
    if (!found.alive) set_fault(cudaErrorLaunchFailure, "the graph whose condition a WHILE node reads was destroyed");
    return found.alive && found.value != 0;
  }

  CUgraphExec_st* executable_;
  std::vector<Frame> frames_;
  bool begun_ = false;
};

}  // namespace

std::map<cudaGraphConditionalHandle, Condition>& conditions() {
  static std::map<cudaGraphConditionalHandle, Condition> all;
  return all;
}

std::unique_ptr<Work> run_of(cudaGraphExec_t executable) { return std::make_unique<Run>(executable); }

std::vector<std::string> conditional_problem(unsigned long long handle, unsigned value) {
  if (!running || !std::count(running->handles.begin(), running->handles.end(), handle)) {
    return {"cudaGraphSetConditional with a handle that is not of the graph that runs"};
  }
  conditions().at(handle).value = value;
  return {};
}

}  // namespace software
