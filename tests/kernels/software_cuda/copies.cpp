// Copies are late, as everything on a stream: a host's buffer is read or written when the copy's turn comes, so who does
// not wait is seen.
#include <cstring>

#include "device.h"
#include "streams.h"

using namespace software;

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t handle) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaMemcpyAsync")) return error;
  if (!size) return cudaSuccess;
  // The host's memory is pageable here.
  if (kind != cudaMemcpyDeviceToDevice) {
    if (const cudaError_t error = expect_no_capture(handle)) return error;
  }
  const auto copy = [=] {
    std::string problem;
    if (kind != cudaMemcpyHostToDevice) problem = problem_of_range(from, size, false);
    if (problem.empty() && kind != cudaMemcpyDeviceToHost) problem = problem_of_range(to, size, true);
    // The other side is the host's.
    const void* host = kind == cudaMemcpyHostToDevice ? from : kind == cudaMemcpyDeviceToHost ? to : nullptr;
    if (host && problem_of_range(host, 1, true).empty()) problem = "the host's side lies on the device";
    if (!problem.empty()) return set_fault(cudaErrorIllegalAddress, "a copy: " + problem);
    const DeviceAtWork at_work;
    std::memmove(to, from, size);
    if (kind != cudaMemcpyDeviceToHost) mark_written(to, size);
  };
  return put(handle, {cudaGraphNodeTypeMemcpy, copy});
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t size, cudaStream_t stream) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaMemsetAsync")) return error;
  if (!size) return cudaSuccess;
  const auto fill = [=] {
    const std::string problem = problem_of_range(address, size, true);
    if (!problem.empty()) return set_fault(cudaErrorIllegalAddress, "a memset: " + problem);
    const DeviceAtWork at_work;
    std::memset(address, value, size);
    mark_written(address, size);
  };
  return put(stream, {cudaGraphNodeTypeMemset, fill});
}
