#include "device.h"

#include <cstring>

#include "nvtx3/nvToolsExt.h"

namespace software {
namespace {

struct Name {
  cudaError_t error;
  const char *name, *text;
};
constexpr Name kNames[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
};

const Name& name_of(cudaError_t error) {
  for (const Name& each : kNames) {
    if (each.error == error) return each;
  }
  return kNames[0];
}

thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

Device& device() {
  static Device* only = new Device;  // outlives whoever is destroyed at exit
  return *only;
}

void set_fault(cudaError_t error, const std::string& text) {
  Device& d = device();
  if (d.fault) return;
  d.fault = error;
  d.fault_text = std::string(name_of(error).text) + ": " + text;
}

void set_misuse(const std::string& text) { device().misuses.push_back(text); }

cudaError_t failed(cudaError_t error) { return last_error = error; }

cudaError_t enter(const char* function) {
  Device& d = device();
  ++d.counts[function];
  if (d.fault) return failed(d.fault);
  const auto refused = d.refused.find(function);
  if (refused == d.refused.end() || refused->second-- > 0) return cudaSuccess;
  refused->second = 0;
  return failed(cudaErrorNotSupported);
}

void reset(size_t total_bytes, unsigned long long seed) {
  Device& d = device();
  const Lock lock(d.mutex);
  forget_streams();
  forget_graphs();
  forget_memory();
  set_total_bytes(total_bytes);
  d.random.seed(seed);
  d.eagerness = 0;
  d.fault = last_error = cudaSuccess;
  d.fault_text.clear();
  d.misuses.clear();
  d.refused.clear();
  d.counts.clear();
  d.ranges.clear();
  d.open_ranges = 0;
}

}  // namespace software

using namespace software;

cudaError_t cudaGetLastError() {
  const Lock lock(device().mutex);
  const cudaError_t error = device().fault ? device().fault : last_error;
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  const Lock lock(device().mutex);
  return error && error == device().fault ? device().fault_text.c_str() : name_of(error).text;
}

const char* cudaGetErrorName(cudaError_t error) { return name_of(error).name; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int ordinal) {
  if (ordinal != 0) return failed(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "a device in software");
  size_t free_bytes;
  properties->major = 9;
  properties->multiProcessorCount = 1;
  properties->l2CacheSize = 1 << 10;
  return cudaMemGetInfo(&free_bytes, &properties->totalGlobalMem);
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaSetDevice(int ordinal) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaSetDevice")) return error;
  return ordinal == 0 ? cudaSuccess : failed(cudaErrorInvalidDevice);
}

int nvtxRangePushA(const char* name) {
  const Lock lock(device().mutex);
  device().ranges.push_back(name);
  return device().open_ranges++;
}

int nvtxRangePop() {
  const Lock lock(device().mutex);
  return --device().open_ranges;
}
