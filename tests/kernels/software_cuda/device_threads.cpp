#include "device_threads.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>

#include "device.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SOFTWARE_TSAN)  // this file itself is built without: its switches would be taken for races
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

#if defined(__x86_64__)
// Saves what a call must preserve and the stack's place at *rdi, and goes on at rsi.
asm(R"(
.text
.globl software_cuda_switch
.hidden software_cuda_switch
.type software_cuda_switch, @function
software_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size software_cuda_switch, . - software_cuda_switch
)");
extern "C" void software_cuda_switch(void** from, void* to);
#else
#include <ucontext.h>
#endif

namespace software {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kBlocksAtOnce = 3;
constexpr unsigned kYieldsOneIn = 8;

enum class State { kReady, kAtBarrier, kDone, kFaulted };

struct Block;

struct Fiber {
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber() {
    if (stack) munmap(stack, kStackBytes);
  }

  char* stack = nullptr;
#if defined(__x86_64__)
  void* place = nullptr;
#else
  ucontext_t context;
#endif
  void* sanitizer = nullptr;
  State state = State::kReady;
  bool started = false, result = false, in_runtime = false;
  Block* block = nullptr;
  ThreadPlace at;
};

struct Block {
  dim3 index;
  unsigned alive = 0, arrived = 0;
  bool any = false;
  std::vector<Fiber*> fibers;
  char barrier = 0;  // its address stands for the barrier
};

// Stacks are kept for the next launch.
std::vector<std::unique_ptr<Fiber>>& free_fibers() {
  static thread_local std::vector<std::unique_ptr<Fiber>> fibers;
  return fibers;
}

struct Scheduler {
  const void* entry = nullptr;
  const Kernel* kernel = nullptr;
  std::vector<void*> parameters;
  const char* parameters_first = nullptr;
  size_t parameters_size = 0;
  std::mt19937_64* random = nullptr;
#if defined(__x86_64__)
  void* place = nullptr;
#else
  ucontext_t context;
#endif
  void* sanitizer = nullptr;  // of the thread that the scheduler runs on
  const void* stack = nullptr;
  size_t stack_size = 0;
  Fiber* current = nullptr;
};
thread_local Scheduler* scheduler = nullptr;

void run_thread();

void switch_to(Fiber* fiber) {
  Scheduler& s = *scheduler;
  s.current = fiber;
#if defined(SOFTWARE_TSAN)
  if (!fiber->sanitizer) fiber->sanitizer = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(fiber->sanitizer, 1);  // 1: the switch itself puts nothing in order
#elif defined(__SANITIZE_ADDRESS__)
  void* saved;
  __sanitizer_start_switch_fiber(&saved, fiber->stack, kStackBytes);
#endif
#if defined(__x86_64__)
  if (!fiber->started) {
    // What the switch pops, and the address that it returns to; a call leaves the stack 8 off a multiple of 16.
    void** top = reinterpret_cast<void**>(fiber->stack + kStackBytes - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&run_thread);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber->place = top;
    fiber->started = true;
  }
  software_cuda_switch(&s.place, fiber->place);
#else
  if (!fiber->started) {
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber->context, &run_thread, 0);
    fiber->started = true;
  }
  swapcontext(&s.context, &fiber->context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, nullptr, nullptr);
#endif
  s.current = nullptr;
}

void switch_back(bool for_good) {
  Scheduler& s = *scheduler;
  Fiber* fiber = s.current;
#if defined(SOFTWARE_TSAN)
  __tsan_switch_to_fiber(s.sanitizer, 1);
#elif defined(__SANITIZE_ADDRESS__)
  void* saved = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &saved, s.stack, s.stack_size);
#endif
  (void)for_good;
#if defined(__x86_64__)
  software_cuda_switch(&fiber->place, s.place);
#else
  swapcontext(&fiber->context, &s.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, nullptr, nullptr);
#endif
}

void run_thread() {
  Scheduler& s = *scheduler;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &s.stack, &s.stack_size);
#endif
#if defined(SOFTWARE_TSAN)
  __tsan_acquire(&s);
#endif
  Fiber* fiber = s.current;
  s.kernel->call(s.entry, s.parameters.data());
  fiber->state = State::kDone;
#if defined(SOFTWARE_TSAN)
  __tsan_release(&s);
#endif
  switch_back(true);
  std::abort();
}

Fiber* take_fiber() {
  auto& free = free_fibers();
  if (free.empty()) {
    auto fiber = std::make_unique<Fiber>();
    void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) {
      std::fputs("software CUDA: no memory for a thread's stack\n", stderr);
      std::abort();
    }
    fiber->stack = static_cast<char*>(stack);
    free.push_back(std::move(fiber));
  }
  Fiber* fiber = free.back().release();
  free.pop_back();
  fiber->state = State::kReady;
  fiber->started = fiber->in_runtime = false;
  return fiber;
}

void give_fiber(Fiber* fiber) {
#if defined(SOFTWARE_TSAN)
  if (fiber->sanitizer) __tsan_destroy_fiber(fiber->sanitizer);
  fiber->sanitizer = nullptr;
#endif
  free_fibers().emplace_back(fiber);
}

class Grid {
 public:
  Grid(dim3 grid, dim3 block, std::mt19937_64& random) : grid_(grid), block_(block), random_(random) {
    order_.resize((size_t)grid.x * grid.y * grid.z);
    std::iota(order_.begin(), order_.end(), size_t(0));
    std::shuffle(order_.begin(), order_.end(), random);
  }

  void run() {
    while (next_ < order_.size() && blocks_.size() < kBlocksAtOnce) start_block();
    while (!ready_.empty()) {
      const size_t pick = random_() % ready_.size();
      std::swap(ready_[pick], ready_.back());
      Fiber* fiber = ready_.back();
      switch_to(fiber);
      if (fiber->state == State::kFaulted) break;
      if (fiber->state == State::kReady) continue;
      ready_.pop_back();
      Block* block = fiber->block;
      if (fiber->state == State::kDone) {
        give_fiber(fiber);
        block->fibers.erase(std::find(block->fibers.begin(), block->fibers.end(), fiber));
        --block->alive;
      }
      // Threads that have ended are not waited for.
      if (block->alive && block->arrived == block->alive) release(block);
      if (!block->alive) {
        blocks_.erase(std::find_if(blocks_.begin(), blocks_.end(), [=](auto& each) { return each.get() == block; }));
        if (next_ < order_.size()) start_block();
      }
    }
    for (auto& block : blocks_) {
      for (Fiber* fiber : block->fibers) give_fiber(fiber);
    }
  }

 private:
  void start_block() {
    const size_t number = order_[next_++];
    auto block = std::make_unique<Block>();
    block->index = dim3((unsigned)(number % grid_.x), (unsigned)(number / grid_.x % grid_.y),
                        (unsigned)(number / grid_.x / grid_.y));
    for (unsigned z = 0; z < block_.z; ++z) {
      for (unsigned y = 0; y < block_.y; ++y) {
        for (unsigned x = 0; x < block_.x; ++x) {
          Fiber* fiber = take_fiber();
          fiber->block = block.get();
          fiber->at = {dim3(x, y, z), block->index, block_, grid_};
          block->fibers.push_back(fiber);
          ready_.push_back(fiber);
        }
      }
    }
    block->alive = (unsigned)block->fibers.size();
    blocks_.push_back(std::move(block));
  }

  void release(Block* block) {
    for (Fiber* fiber : block->fibers) {
      fiber->result = block->any;
      fiber->state = State::kReady;
      ready_.push_back(fiber);
    }
    block->arrived = 0;
    block->any = false;
  }

  dim3 grid_, block_;
  std::mt19937_64& random_;
  std::vector<size_t> order_;
  size_t next_ = 0;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Fiber*> ready_;
};

}  // namespace

std::vector<std::pair<const void*, Kernel>>& kernels() {
  static std::vector<std::pair<const void*, Kernel>> all;
  return all;
}

const ThreadPlace& this_thread() { return scheduler->current->at; }

bool in_kernel() { return scheduler && scheduler->current && !scheduler->current->in_runtime; }

InRuntime::InRuntime() {
  static thread_local bool of_the_host;
  flag_ = scheduler && scheduler->current ? &scheduler->current->in_runtime : &of_the_host;
  before_ = *flag_;
  *flag_ = true;
}
InRuntime::~InRuntime() { *flag_ = before_; }

bool is_private(const void* address) {
  const Scheduler& s = *scheduler;
  const char *place = static_cast<const char*>(address), *stack = s.current->stack;
  const char *at = reinterpret_cast<const char*>(&s.current->at), *first = reinterpret_cast<const char*>(s.parameters.data());
  return (place >= stack && place < stack + kStackBytes) ||
         (place >= s.parameters_first && place < s.parameters_first + s.parameters_size) ||
         (place >= at && place < at + sizeof(ThreadPlace)) ||
         (place >= first && place < first + s.parameters.size() * sizeof(void*));
}

void may_yield() {
  const InRuntime here;
  if (!scheduler || !scheduler->current || (*scheduler->random)() % kYieldsOneIn) return;
  switch_back(false);
}

bool barrier_or(bool predicate) {
  const InRuntime here;
  Fiber* fiber = scheduler->current;
  Block* block = fiber->block;
  block->any |= predicate;
  ++block->arrived;
  fiber->state = State::kAtBarrier;
#if defined(SOFTWARE_TSAN)
  __tsan_release(&block->barrier);
#endif
  switch_back(false);
#if defined(SOFTWARE_TSAN)
  __tsan_acquire(&block->barrier);
#endif
  return fiber->result;
}

void abandon() {
  scheduler->current->state = State::kFaulted;
  switch_back(true);
  std::abort();
}

void expect_alignment(const void* address, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(address) % alignment == 0 || !in_kernel()) return;
  const InRuntime here;
  set_fault(cudaErrorMisalignedAddress, "an access of " + std::to_string(alignment) + " bytes in " +
                                            scheduler->kernel->name + " is not aligned");
  abandon();
}

void set_conditional(unsigned long long handle, unsigned value) {
  const InRuntime here;
  may_yield();
  for (const std::string& text : conditional_problem(handle, value)) {
    set_fault(cudaErrorLaunchFailure, scheduler->kernel->name + ": " + text);
    abandon();
  }
}

Launch::Launch(const void* entry, const Kernel& kernel, dim3 grid, dim3 block, void** parameters)
    : entry_(entry), kernel_(&kernel), grid_(grid), block_(block) {
  size_t end = 0;
  for (const size_t size : kernel.parameter_sizes) {
    offsets_.push_back(end);
    end += (size + 15) / 16 * 16;
  }
  storage_.resize(end);
  for (size_t i = 0; i < offsets_.size(); ++i) {
    std::memcpy(storage_.data() + offsets_[i], parameters[i], kernel.parameter_sizes[i]);
  }
}

cudaError_t Launch::problem() const {
  const auto outside = [](unsigned size, unsigned most) { return size == 0 || size > most; };
  if (outside(grid_.x, 0x7FFFFFFF) || outside(grid_.y, 65535) || outside(grid_.z, 65535)) {
    return cudaErrorInvalidConfiguration;
  }
  if (!block_.x || !block_.y || !block_.z) return cudaErrorInvalidConfiguration;
  const uint64_t threads = (uint64_t)block_.x * block_.y * block_.z;
  return threads > kernel_->max_threads ? cudaErrorLaunchOutOfResources : cudaSuccess;
}

void Launch::run() const {
  const DeviceAtWork at_work;
  Scheduler running;
  running.kernel = kernel_;
  running.entry = entry_;
  for (const size_t offset : offsets_) running.parameters.push_back(const_cast<char*>(storage_.data()) + offset);
  running.parameters_first = storage_.data();
  running.parameters_size = storage_.size();
  running.random = &device().random;
#if defined(SOFTWARE_TSAN)
  running.sanitizer = __tsan_get_current_fiber();
  __tsan_release(&running);
#endif
  scheduler = &running;
  Grid(grid_, block_, *running.random).run();
  scheduler = nullptr;
#if defined(SOFTWARE_TSAN)
  __tsan_acquire(&running);
#endif
}

}  // namespace software
