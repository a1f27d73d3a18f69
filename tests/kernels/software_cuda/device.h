// The device: its memory, its faults, its random order, and how often each thing happened.
#pragma once

#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

namespace software {

struct Device {
  std::recursive_mutex mutex;
  std::mt19937_64 random{0};
  // How likely it is that the device runs something as soon as it is put on a stream, not only when someone waits.
  double eagerness = 0;

  // The first thing that CUDA would call a fault. It sticks: every later call fails with it.
  cudaError_t fault = cudaSuccess;
  std::string fault_text;
  // What CUDA permits, and what our own code promises never to do, such as destroying what is running.
  std::vector<std::string> misuses;

  // Functions that fail, as an older driver would make them, after so many calls that succeed.
  std::map<std::string, int> refused;
  std::map<std::string, long> counts;
  std::vector<std::string> ranges;
  int open_ranges = 0;
};

Device& device();
using Lock = std::lock_guard<std::recursive_mutex>;

void set_fault(cudaError_t error, const std::string& text);
void set_misuse(const std::string& text);
// At the beginning of each function of the CUDA runtime: a sticky fault, or a refusal; success otherwise.
cudaError_t enter(const char* function);
// What cudaGetLastError will say.
cudaError_t failed(cudaError_t error);

// Memory. `problem_of_range` is empty where the device may read or write all of it.
void forget_memory();
void set_total_bytes(size_t total_bytes);
// From now on the host may use the device's memory, and all of it counts as written.
void share_memory();
size_t allocated_bytes();
size_t num_allocations();
std::string problem_of_range(const void* address, size_t size, bool write);
void mark_written(const void* address, size_t size);
// Memory of the device is out of the host's reach but while the device works.
struct DeviceAtWork {
  DeviceAtWork();
  ~DeviceAtWork();
};

// Streams and graphs.
void forget_streams();
void forget_graphs();
std::map<std::string, long> streams_state();
std::map<std::string, long> graphs_state();
std::vector<std::string> conditional_problem(unsigned long long handle, unsigned value);

void reset(size_t total_bytes, unsigned long long seed);

}  // namespace software
