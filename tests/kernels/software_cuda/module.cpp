// The real bindings of the CUDA part on the device in software, and what tests ask of that device.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cuda_bindings.h"
#include "cuda_error.h"
#include "device.h"
#include "network.h"
#include "streams.h"

namespace nb = nanobind;
using nb::literals::operator""_a;
using namespace software;

namespace {

std::map<std::string, long> state() {
  const Lock lock(device().mutex);
  std::map<std::string, long> all = device().counts;
  for (const auto& part : {streams_state(), graphs_state()}) all.insert(part.begin(), part.end());
  all["allocations"] = (long)num_allocations();
  all["allocated_bytes"] = (long)allocated_bytes();
  all["open_ranges"] = device().open_ranges;
  return all;
}

void network(uintptr_t x, uintptr_t t, uintptr_t prediction, uintptr_t scratch, uintptr_t label, uintptr_t scale,
             int64_t num_samples, int64_t num_elements, int64_t width, const std::string& type, bool t_is_int64,
             bool wide, uintptr_t stream) {
  using ddpm_rt::ElementType;
  const ElementType element = type == "float32"   ? ElementType::kFloat32
                              : type == "float16" ? ElementType::kFloat16
                                                  : ElementType::kBFloat16;
  const Network call{reinterpret_cast<void*>(x),
                     reinterpret_cast<void*>(t),
                     reinterpret_cast<void*>(prediction),
                     reinterpret_cast<void*>(scratch),
                     reinterpret_cast<int64_t*>(label),
                     reinterpret_cast<float*>(scale),
                     num_samples,
                     num_elements,
                     width,
                     element,
                     t_is_int64,
                     wide};
  ddpm_rt::check(enqueue(call, reinterpret_cast<cudaStream_t>(stream)), "cudaLaunchKernel");
}

}  // namespace

NB_MODULE(_software_kernels, m) {
  ddpm_rt::bind_cuda(m);
  m.def("software_reset", &reset, "total_bytes"_a, "seed"_a, "A new device; nothing of the old one may be used again.");
  m.def("software_set_total_bytes", &set_total_bytes, "total_bytes"_a, "What cudaMalloc may give in all.");
  m.def("software_share_memory", &share_memory,
        "The host may use the device's memory from now on, and all of it counts as written.");
  m.def("software_state", &state, "How much there is of everything, and how often each CUDA function was called.");
  m.def("software_fault", [] { return device().fault_text; }, "The fault that sticks; empty if there is none.");
  m.def("software_misuses", [] { return device().misuses; }, "Promises of our own code that were not kept.");
  m.def("software_ranges", [] { return device().ranges; }, "The NVTX ranges that were opened.");
  m.def("software_set_eagerness", [](double share) { device().eagerness = share; }, "share"_a,
        "How likely the device runs something as soon as work is put on a stream.");
  m.def("software_refuse", [](const std::string& name, int after) { device().refused[name] = after; }, "name"_a,
        "after"_a = 0, "From its `after`-th call on this CUDA function fails: operation not supported.");
  m.def("software_break_at", &break_at, "slot"_a, "timestep"_a);
  m.def("software_add_node",
        [](uintptr_t graph, int type) {
          add_node(reinterpret_cast<cudaGraph_t>(graph), (cudaGraphNodeType)type, nullptr, 0);
        },
        "graph"_a, "type"_a, "Add a node of any cudaGraphNodeType to a graph; it does nothing.");
  m.def("software_add_child",
        [](uintptr_t graph, uintptr_t child) {
          cudaGraphNode_t node;
          ddpm_rt::check(cudaGraphAddChildGraphNode(&node, reinterpret_cast<cudaGraph_t>(graph), nullptr, 0,
                                                    reinterpret_cast<cudaGraph_t>(child)),
                         "cudaGraphAddChildGraphNode");
        },
        "graph"_a, "child"_a, "Add a copy of a graph to another.");
  m.def("software_network", &network, nb::kw_only(), "x"_a, "t"_a, "prediction"_a, "scratch"_a, "label"_a,
        "scale"_a, "num_samples"_a, "num_elements"_a, "width"_a, "type"_a, "t_is_int64"_a, "wide"_a, "stream"_a);
  m.def("software_write",
        [](uintptr_t address, uintptr_t stream) {
          ddpm_rt::check(enqueue_write(reinterpret_cast<float*>(address), reinterpret_cast<cudaStream_t>(stream)),
                         "cudaLaunchKernel");
        },
        "address"_a, "stream"_a, "Put a kernel that writes one float on the stream.");
  m.def("software_host_node",
        [](uintptr_t stream) {
          ddpm_rt::check(cudaLaunchHostFunc(reinterpret_cast<cudaStream_t>(stream), [](void*) {}, nullptr),
                         "cudaLaunchHostFunc");
        },
        "stream"_a, "Put a function of the host on the stream.");
}
