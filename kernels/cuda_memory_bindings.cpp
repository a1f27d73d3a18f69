// Device memory, streams, events and facts as Python functions; addresses and handles are integers.
//
// The CUDA runtime works in the context that is current, and without one in the device's primary context, which is
// the one that PyTorch, ONNX Runtime and TensorRT use too.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include "buffer.h"
#include "cuda_bindings.h"
#include "cuda_error.h"

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define DDPM_RT_NVTX 1
#endif

namespace ddpm_rt {
namespace {

using nb::literals::operator""_a;

// Any contiguous array: bytes are bytes.
constexpr const char* kAnyType =
    "float32 or float16 or float64 or int32 or int64 or uint8 or uint16 or uint32 or uint64";

cudaStream_t stream_of(uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }
cudaEvent_t event_of(uintptr_t handle) { return reinterpret_cast<cudaEvent_t>(handle); }

uintptr_t allocate(uint64_t size_bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, size_bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw OutOfDeviceMemory("cudaMalloc failed: out of memory");
  }
  check(error, "cudaMalloc");
  return reinterpret_cast<uintptr_t>(memory);
}

std::pair<uint64_t, uint64_t> memory_info() {
  size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  return {free_bytes, total_bytes};
}

void copy(void* to, const void* from, size_t size_bytes, cudaMemcpyKind kind, uintptr_t stream) {
  const nb::gil_scoped_release released;
  check(cudaMemcpyAsync(to, from, size_bytes, kind, stream_of(stream)), "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream_of(stream)), "cudaStreamSynchronize");
}

void copy_to_device(uintptr_t address, nb::handle array, uintptr_t stream) {
  const Buffer buffer(array, "array", kAnyType, Access::kRead);
  copy(device_pointer<void>(address), buffer.data<void>(), buffer.size_bytes(), cudaMemcpyHostToDevice, stream);
}

void copy_to_host(nb::handle array, uintptr_t address, uintptr_t stream) {
  const Buffer buffer(array, "array", kAnyType, Access::kWrite);
  copy(buffer.data<void>(), device_pointer<void>(address), buffer.size_bytes(), cudaMemcpyDeviceToHost, stream);
}

void copy_on_device(uintptr_t to, uintptr_t from, uint64_t size_bytes, uintptr_t stream) {
  check(cudaMemcpyAsync(device_pointer<void>(to), device_pointer<void>(from), size_bytes, cudaMemcpyDeviceToDevice,
                        stream_of(stream)),
        "cudaMemcpyAsync");
}

void fill(uintptr_t address, int value, uint64_t size_bytes, uintptr_t stream) {
  check(cudaMemsetAsync(device_pointer<void>(address), value, size_bytes, stream_of(stream)), "cudaMemsetAsync");
}

uintptr_t create_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return reinterpret_cast<uintptr_t>(stream);
}

void synchronize(uintptr_t stream) {
  const nb::gil_scoped_release released;
  check(cudaStreamSynchronize(stream_of(stream)), "cudaStreamSynchronize");
}

bool is_done(uintptr_t stream) {
  const cudaError_t error = cudaStreamQuery(stream_of(stream));
  if (error != cudaErrorNotReady) {
    check(error, "cudaStreamQuery");
    return true;
  }
  cudaGetLastError();  // no error, and yet the next launch would report it
  return false;
}

uintptr_t create_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "cudaEventCreate");
  return reinterpret_cast<uintptr_t>(event);
}

void synchronize_event(uintptr_t event) {
  const nb::gil_scoped_release released;
  check(cudaEventSynchronize(event_of(event)), "cudaEventSynchronize");
}

float elapsed_ms(uintptr_t start, uintptr_t end) {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, event_of(start), event_of(end)), "cudaEventElapsedTime");
  return milliseconds;
}

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}

nb::dict device_facts(int ordinal) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  int driver = 0, runtime = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  nb::dict facts;
  facts["name"] = properties.name;
  facts["compute_capability"] = std::to_string(properties.major) + "." + std::to_string(properties.minor);
  facts["num_multiprocessors"] = properties.multiProcessorCount;
  facts["memory_bytes"] = properties.totalGlobalMem;
  facts["l2_bytes"] = properties.l2CacheSize;
  facts["driver_cuda_version"] = driver;
  facts["runtime_cuda_version"] = runtime;
  return facts;
}

void nvtx_push(const std::string& name) {
#if defined(DDPM_RT_NVTX)
  nvtxRangePushA(name.c_str());
#else
  (void)name;
#endif
}

void nvtx_pop() {
#if defined(DDPM_RT_NVTX)
  nvtxRangePop();
#endif
}

}  // namespace

void bind_cuda_memory(nb::module_& m) {
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const OutOfDeviceMemory& error) {
      PyErr_SetString(PyExc_MemoryError, error.what());
    }
  });
  m.def("cuda_device_count", &device_count);
  m.def("cuda_device_facts", &device_facts, "ordinal"_a);
  m.def("cuda_set_device", [](int ordinal) { check(cudaSetDevice(ordinal), "cudaSetDevice"); }, "ordinal"_a,
        "Make a device's primary context current in this thread.");
  m.def("cuda_allocate", &allocate, "size_bytes"_a, "New device memory. Raises MemoryError if there is too little.");
  m.def("cuda_free",
        [](uintptr_t address) { check(cudaFree(device_pointer<void>(address)), "cudaFree"); }, "address"_a);
  m.def("cuda_memory_info", &memory_info, "Free and total bytes of the current device.");
  m.def("cuda_copy_to_device", &copy_to_device, "address"_a, "array"_a, "stream"_a, "Done when this returns.");
  m.def("cuda_copy_to_host", &copy_to_host, "array"_a, "address"_a, "stream"_a, "Done when this returns.");
  m.def("cuda_copy", &copy_on_device, "to"_a, "from_"_a, "size_bytes"_a, "stream"_a, "Put a copy on the stream.");
  m.def("cuda_fill", &fill, "address"_a, "value"_a, "size_bytes"_a, "stream"_a, "Put byte = value on the stream.");
  m.def("cuda_stream_create", &create_stream, "A stream that does not wait for the default stream.");
  m.def("cuda_stream_destroy",
        [](uintptr_t stream) { check(cudaStreamDestroy(stream_of(stream)), "cudaStreamDestroy"); }, "stream"_a);
  m.def("cuda_stream_synchronize", &synchronize, "stream"_a);
  m.def("cuda_stream_is_done", &is_done, "stream"_a);
  m.def("cuda_event_create", &create_event, "An event that keeps time.");
  m.def("cuda_event_destroy",
        [](uintptr_t event) { check(cudaEventDestroy(event_of(event)), "cudaEventDestroy"); }, "event"_a);
  m.def("cuda_event_record",
        [](uintptr_t event, uintptr_t stream) {
          check(cudaEventRecord(event_of(event), stream_of(stream)), "cudaEventRecord");
        },
        "event"_a, "stream"_a);
  m.def("cuda_event_synchronize", &synchronize_event, "event"_a);
  m.def("cuda_event_elapsed_ms", &elapsed_ms, "start"_a, "end"_a, "Milliseconds between two recorded events.");
  m.def("nvtx_push", &nvtx_push, "name"_a, "Begin a named range for profilers.");
  m.def("nvtx_pop", &nvtx_pop);
}

}  // namespace ddpm_rt
