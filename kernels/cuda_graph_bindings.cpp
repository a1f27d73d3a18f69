// Graphs as Python functions; a cudaGraph_t, a cudaGraphExec_t and a cudaStream_t are integers.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include "cuda_bindings.h"
#include "cuda_error.h"
#include "cuda_graph.h"

namespace nb = nanobind;

namespace ddpm_rt {
namespace {

using nb::literals::operator""_a;

cudaGraph_t graph_of(uintptr_t handle) {
  if (handle == 0) throw nb::value_error("graph is 0; expected a cudaGraph_t");
  return reinterpret_cast<cudaGraph_t>(handle);
}

cudaGraphExec_t executable_of(uintptr_t handle) {
  if (handle == 0) throw nb::value_error("executable is 0; expected a cudaGraphExec_t");
  return reinterpret_cast<cudaGraphExec_t>(handle);
}

cudaStream_t stream_of(uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

template <typename T>
uintptr_t handle_of(T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer);
}

// Thread-local: what other threads do, such as allocate, is none of the capture's business.
void begin_capture(uintptr_t stream) {
  if (stream == 0) throw nb::value_error("stream is 0; expected a stream of one's own: the default one has no capture");
  check(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}

uintptr_t end_capture(uintptr_t stream) {
  cudaGraph_t graph = nullptr;
  const cudaError_t error = cudaStreamEndCapture(stream_of(stream), &graph);
  if (error != cudaSuccess && graph) cudaGraphDestroy(graph);
  check(error, "cudaStreamEndCapture");
  return handle_of(graph);
}

uintptr_t while_graph(uintptr_t network, const CudaStep& step, uintptr_t turns_left, int num_rows) {
  if (turns_left == 0) throw nb::value_error("turns_left is a null pointer; expected device memory");
  if (num_rows < 1) throw nb::value_error("num_rows is below 1; expected the rows of one turn of the loop");
  return handle_of(make_while_graph(graph_of(network), step.job, step.arrivals, device_pointer<uint32_t>(turns_left),
                                    num_rows));
}

uintptr_t step_graph(uintptr_t network, const CudaStep& step) {
  return handle_of(make_step_graph(graph_of(network), step.job, step.arrivals));
}

uintptr_t instantiate(uintptr_t graph) {
  cudaGraphExec_t executable = nullptr;
  check(cudaGraphInstantiate(&executable, graph_of(graph), 0), "cudaGraphInstantiate");
  return handle_of(executable);
}

}  // namespace

void bind_cuda_graph(nb::module_& m) {
  m.def("cuda_begin_capture", &begin_capture, "stream"_a, "What this thread puts on the stream is recorded, not run.");
  m.def("cuda_end_capture", &end_capture, "stream"_a, "The recorded cudaGraph_t, which the caller destroys.");
  m.def("cuda_graph_node_types", [](uintptr_t graph) { return graph_node_types(graph_of(graph)); }, "graph"_a,
        "How many nodes of each type a graph holds, those of child graphs included.");
  m.def("cuda_while_graph", &while_graph, "network"_a, "step"_a, "turns_left"_a, "num_rows"_a = 1,
        "WHILE { num_rows times: network, step }: a launch takes as many turns as the uint32 at turns_left says.");
  m.def("cuda_step_graph", &step_graph, "network"_a, "step"_a, "{ network, step }: a launch runs one row.");
  m.def("cuda_graph_instantiate", &instantiate, "graph"_a, "A cudaGraphExec_t, which the caller destroys.");
  m.def("cuda_graph_upload",
        [](uintptr_t executable, uintptr_t stream) {
          check(cudaGraphUpload(executable_of(executable), stream_of(stream)), "cudaGraphUpload");
        },
        "executable"_a, "stream"_a, "Put what a first launch would do on the stream, without running anything.");
  m.def("cuda_graph_launch",
        [](uintptr_t executable, uintptr_t stream) {
          // Launching may wait for room in the stream's queue.
          const nb::gil_scoped_release released;
          check(cudaGraphLaunch(executable_of(executable), stream_of(stream)), "cudaGraphLaunch");
        },
        "executable"_a, "stream"_a, "Put one run of the graph on the stream.");
  m.def("cuda_graph_executable_destroy",
        [](uintptr_t executable) { check(cudaGraphExecDestroy(executable_of(executable)), "cudaGraphExecDestroy"); },
        "executable"_a);
  m.def("cuda_graph_destroy",
        [](uintptr_t graph) { check(cudaGraphDestroy(graph_of(graph)), "cudaGraphDestroy"); }, "graph"_a);
}

}  // namespace ddpm_rt
