// The device's side: CUDA's words for kernels, for a C++ compiler that is told -D__CUDACC__ and -D__CUDA_ARCH__.
//
// Every intrinsic has the bits of the GPU's. What is written in PTX, kernels/ also say in C++.
#pragma once

#include <cmath>
#include <cstring>

#include "cuda_runtime_api.h"
#include "device_threads.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

namespace software {

// Read anew each time, from the thread that asks.
template <dim3 ThreadPlace::* kWhat, unsigned dim3::* kAxis>
struct Axis {
  operator unsigned() const { return this_thread().*kWhat.*kAxis; }
};
template <dim3 ThreadPlace::* kWhat>
struct Place {
  Axis<kWhat, &dim3::x> x;
  Axis<kWhat, &dim3::y> y;
  Axis<kWhat, &dim3::z> z;
};

}  // namespace software

constexpr software::Place<&software::ThreadPlace::thread> threadIdx{};
constexpr software::Place<&software::ThreadPlace::block> blockIdx{};
constexpr software::Place<&software::ThreadPlace::block_size> blockDim{};
constexpr software::Place<&software::ThreadPlace::grid_size> gridDim{};

// A 16-byte access is aligned, or the device faults: the compiler may have made four of it here.
struct uint4 {
  uint4() = default;
  uint4(unsigned a, unsigned b, unsigned c, unsigned d) : x(a), y(b), z(c), w(d) {}
  uint4(const uint4& from) { *this = from; }
  uint4& operator=(const uint4& from) {
    software::expect_alignment(&from, 16);
    software::expect_alignment(this, 16);
    x = from.x, y = from.y, z = from.z, w = from.w;
    return *this;
  }
  unsigned x, y, z, w;
} __attribute__((aligned(16)));
struct float2 {
  float x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __int2float_rn(int a) { return (float)a; }
inline unsigned __float_as_uint(float a) {
  unsigned bits;
  std::memcpy(&bits, &a, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned a) {
  float value;
  std::memcpy(&value, &a, sizeof value);
  return value;
}

inline int __syncthreads_or(int predicate) { return software::barrier_or(predicate != 0); }

// Other threads may run before and after: what relies on more than the atomic itself is seen.
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  software::may_yield();
  unsigned old = __atomic_load_n(address, __ATOMIC_SEQ_CST);
  while (!__atomic_compare_exchange_n(address, &old, old >= limit ? 0 : old + 1, false, __ATOMIC_SEQ_CST,
                                      __ATOMIC_SEQ_CST)) {
  }
  software::may_yield();
  return old;
}
inline int atomicCAS(int* address, int expected, int value) {
  software::may_yield();
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  software::may_yield();
  return expected;
}

inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
  software::set_conditional(handle, value);
}
