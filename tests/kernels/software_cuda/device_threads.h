// What a thread of a kernel knows of itself and may ask for, and the kernels there are.
//
// Each CUDA thread is a fiber. Blocks start in a random order, a few at once, and at every atomic, barrier and access
// to memory another thread may go on. The order is that of a seed.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"

namespace software {

struct ThreadPlace {
  dim3 thread, block, block_size, grid_size;
};
const ThreadPlace& this_thread();

bool barrier_or(bool predicate);
void may_yield();
void set_conditional(unsigned long long handle, unsigned value);
void expect_alignment(const void* address, size_t alignment);

// Whether a kernel's own code is running here, and whether an address is its thread's own: its stack, its parameters.
bool in_kernel();
// While one lives, a thread is in the runtime: what that accesses is not the kernel's doing.
class InRuntime {
 public:
  InRuntime();
  ~InRuntime();

 private:
  bool* flag_;
  bool before_;
};
bool is_private(const void* address);
// Ends the thread and the launch: the device does not go on after a fault.
[[noreturn]] void abandon();

struct Kernel {
  std::string name;
  unsigned max_threads;
  std::vector<size_t> parameter_sizes;
  void (*call)(const void* entry, void** parameters);
};

std::vector<std::pair<const void*, Kernel>>& kernels();

// As nvcc's start-up code does for each __global__ function.
template <typename... Parameters, size_t... kIndices>
void register_kernel(const char* name, unsigned max_threads, void (*entry)(Parameters...),
                     std::index_sequence<kIndices...>) {
  const auto call = [](const void* address, void** parameters) {
    reinterpret_cast<void (*)(Parameters...)>(address)(*static_cast<Parameters*>(parameters[kIndices])...);
  };
  kernels().push_back({reinterpret_cast<const void*>(entry), {name, max_threads, {sizeof(Parameters)...}, call}});
}
template <typename... Parameters>
void register_kernel(const char* name, unsigned max_threads, void (*entry)(Parameters...)) {
  register_kernel(name, max_threads, entry, std::index_sequence_for<Parameters...>());
}

// A kernel and a copy of its parameters.
class Launch {
 public:
  Launch(const void* entry, const Kernel& kernel, dim3 grid, dim3 block, void** parameters);
  cudaError_t problem() const;  // what CUDA would answer
  void run() const;

 private:
  const void* entry_;
  const Kernel* kernel_;
  dim3 grid_, block_;
  std::vector<size_t> offsets_;
  std::vector<char> storage_;
};

}  // namespace software
