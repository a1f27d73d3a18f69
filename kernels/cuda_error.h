// A CUDA call that failed becomes an exception with CUDA's own words, and the wrong state is not left behind.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace ddpm_rt {

// RuntimeError in Python; OutOfDeviceMemory, of an allocation alone, is told apart there, as a MemoryError.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct OutOfDeviceMemory : CudaError {
  using CudaError::CudaError;
};

inline void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would report this error again
  const std::string text =
      std::string(call) + " failed: " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
  throw CudaError(text);
}

}  // namespace ddpm_rt
