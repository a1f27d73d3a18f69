// Device memory: bounds, what was freed, what was never written; and what each access of a kernel is checked for.
//
// step.cu is compiled with -fsanitize=kernel-address and -fsanitize=alignment, whose calls end here. Under the real
// AddressSanitizer and ThreadSanitizer device memory comes from malloc, and they check it.
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "device.h"
#include "device_threads.h"

namespace software {
namespace {

constexpr size_t kAlignment = 256, kArenaBytes = size_t(1) << 34;
constexpr unsigned char kJunk = 0xA5;

struct Allocation {
  size_t size;
  bool live;
  std::vector<bool> written;
};

std::map<uintptr_t, Allocation> allocations;  // by their first address
size_t total = 0, in_use = 0;
int at_work = 0;
bool shared = false;

#if defined(SOFTWARE_MALLOC)
// Of exactly this size, so that one byte more is seen.
char* take(size_t size) {
  void* memory = nullptr;
  return posix_memalign(&memory, kAlignment, size) == 0 ? static_cast<char*>(memory) : nullptr;
}
void protect(int) {}
#else
// Addresses are given out once, so that what was freed is never another's.
char *arena = nullptr, *lowest = nullptr, *top = nullptr, *highest = nullptr;  // lowest: of this device

void protect(int protection) {
  if (highest > lowest) mprotect(lowest, (size_t)(highest - lowest), protection);
}

char* take(size_t size) {
  if (!arena) {
    void* memory = mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::fputs("software CUDA: no address space for the device's memory\n", stderr);
      std::abort();
    }
    arena = lowest = top = highest = static_cast<char*>(memory);
  }
  char* start = top + kAlignment;  // between two allocations lies nobody's memory
  char* end = start + (size + kAlignment - 1) / kAlignment * kAlignment;
  if (end > arena + kArenaBytes) return nullptr;
  top = end;
  highest = arena + ((size_t)(std::max(highest, end) - arena) + 4095) / 4096 * 4096;
  return start;
}
#endif

bool on_device(const void* address) {
#if defined(SOFTWARE_MALLOC)
  const auto next = allocations.upper_bound(reinterpret_cast<uintptr_t>(address));
  return next != allocations.begin() &&
         std::prev(next)->first + std::prev(next)->second.size > reinterpret_cast<uintptr_t>(address);
#else
  return address >= arena && address < arena + kArenaBytes && arena;
#endif
}

std::string hex(const void* address) {
  char text[32];
  std::snprintf(text, sizeof text, "%p", address);
  return text;
}

}  // namespace

DeviceAtWork::DeviceAtWork() {
  if (at_work++ == 0 && !shared) protect(PROT_READ | PROT_WRITE);
}
DeviceAtWork::~DeviceAtWork() {
  if (--at_work == 0 && !shared) protect(PROT_NONE);
}

void forget_memory() {
#if defined(SOFTWARE_MALLOC)
  for (auto& [start, each] : allocations) {
    if (each.live) std::free(reinterpret_cast<void*>(start));
  }
#else
  if (shared) protect(PROT_NONE);
  // Addresses are never given out again.
  if (highest > lowest) madvise(lowest, (size_t)(highest - lowest), MADV_DONTNEED);
  lowest = top = highest;
#endif
  allocations.clear();
  in_use = 0;
  shared = false;
}

void share_memory() {
  shared = true;
  protect(PROT_READ | PROT_WRITE);
}

void set_total_bytes(size_t total_bytes) { total = total_bytes; }

size_t allocated_bytes() { return in_use; }

size_t num_allocations() {
  size_t live = 0;
  for (const auto& [start, each] : allocations) live += each.live;
  return live;
}

// `written` is asked of what is read; what is written becomes it by mark_written.
std::string problem_of_range(const void* address, size_t size, bool write) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(address);
  const auto next = allocations.upper_bound(first);
  if (next == allocations.begin()) return hex(address) + " was never allocated";
  const auto& [start, found] = *std::prev(next);
  if (first - start >= found.size || size > found.size - (first - start)) {
    const std::string past = std::to_string((long long)(first + size - start - found.size));
    return hex(address) + ", " + std::to_string(size) + " bytes, ends " + past + " past the end of an allocation of " +
           std::to_string(found.size);
  }
  if (!found.live) return hex(address) + " was freed";
  if (!write) {
    for (size_t i = 0; i < size; ++i) {
      if (!found.written[first - start + i]) return hex(address) + " was never written";
    }
  }
  return "";
}

void mark_written(const void* address, size_t size) {
  auto& [start, found] = *std::prev(allocations.upper_bound(reinterpret_cast<uintptr_t>(address)));
  const size_t first = reinterpret_cast<uintptr_t>(address) - start;
  std::fill_n(found.written.begin() + (ptrdiff_t)first, size, true);
}

namespace {

// This module's constants, and what the network of the tests keeps in __device__ variables.
bool in_module(const void* address) {
  struct Range {
    uintptr_t first = 0, end = 0;
  };
  static const std::vector<Range> ranges = [] {
    std::vector<Range> found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
          std::vector<Range> loaded;
          bool ours = false;
          const uintptr_t here = reinterpret_cast<uintptr_t>(&allocations);
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD) continue;
            const uintptr_t first = info->dlpi_addr + header.p_vaddr;
            loaded.push_back({first, first + header.p_memsz});
            ours |= here >= first && here < first + header.p_memsz;
          }
          if (ours) *static_cast<std::vector<Range>*>(data) = loaded;
          return ours ? 1 : 0;
        },
        &found);
    return found;
  }();
  const uintptr_t place = reinterpret_cast<uintptr_t>(address);
  for (const Range& range : ranges) {
    if (place >= range.first && place < range.end) return true;
  }
  return false;
}

[[noreturn]] void fail(cudaError_t error, const std::string& text) {
  set_fault(error, text);
  abandon();
}

void check_access(const void* address, size_t size, bool write) {
  if (!in_kernel()) return;
  const InRuntime here;
  if (on_device(address)) {
    may_yield();
    const std::string what = write ? "a write to " : "a read of ";
    if (size <= 16 && reinterpret_cast<uintptr_t>(address) % size) {
      fail(cudaErrorMisalignedAddress, what + hex(address) + ", " + std::to_string(size) + " bytes, is not aligned");
    }
    const std::string problem = problem_of_range(address, size, write);
    if (!problem.empty()) fail(cudaErrorIllegalAddress, what + problem);
    if (write) mark_written(address, size);
  } else if (!is_private(address) && !in_module(address)) {
    fail(cudaErrorIllegalAddress, hex(address) + " is not the device's memory");
  }
}

}  // namespace
}  // namespace software

#if !defined(SOFTWARE_MALLOC)
#define ACCESSES(size)                                                                                              \
  extern "C" void __asan_load##size##_noabort(void* address) { software::check_access(address, size, false); } \
  extern "C" void __asan_store##size##_noabort(void* address) { software::check_access(address, size, true); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
extern "C" void __asan_loadN_noabort(void* address, size_t size) { software::check_access(address, size, false); }
extern "C" void __asan_storeN_noabort(void* address, size_t size) { software::check_access(address, size, true); }
extern "C" void __asan_handle_no_return() {}
extern "C" void __asan_before_dynamic_init(const char*) {}
extern "C" void __asan_after_dynamic_init() {}

struct TypeMismatch {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};
extern "C" void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, void* address) {
  if (!software::in_kernel()) return;
  const software::InRuntime here;
  software::fail(cudaErrorMisalignedAddress, software::hex(address) + " is not aligned to " +
                                                 std::to_string(1u << data->log_alignment) + " bytes, in line " +
                                                 std::to_string(data->line));
}
#endif

using namespace software;

cudaError_t cudaMalloc(void** address, size_t size) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaMalloc")) return error;
  if (size > total - std::min(total, in_use)) return failed(cudaErrorMemoryAllocation);
  char* start = size ? take(size) : nullptr;
  if (size && !start) return failed(cudaErrorMemoryAllocation);
  *address = start;
  if (!size) return cudaSuccess;
  allocations[reinterpret_cast<uintptr_t>(start)] = {size, true, std::vector<bool>(size, shared)};
  in_use += size;
  if (shared) share_memory();
  const DeviceAtWork at_work_now;
  std::memset(start, kJunk, size);
  return cudaSuccess;
}

// CUDA waits here for the whole device. Our code promises to have waited, so nothing is run: who still uses the memory
// is seen.
cudaError_t cudaFree(void* address) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaFree")) return error;
  if (!address) return cudaSuccess;
  const auto found = allocations.find(reinterpret_cast<uintptr_t>(address));
  if (found == allocations.end() || !found->second.live) return failed(cudaErrorInvalidValue);
  found->second.live = false;
  in_use -= found->second.size;
#if defined(SOFTWARE_MALLOC)
  allocations.erase(found);
  std::free(address);
#endif
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const Lock lock(device().mutex);
  if (const cudaError_t error = enter("cudaMemGetInfo")) return error;
  *free_bytes = total - std::min(total, in_use);
  *total_bytes = total;
  return cudaSuccess;
}
