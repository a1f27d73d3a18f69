#include "device_threads.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>

#include "device.h"
#include "fibers.h"

namespace software {
namespace {

constexpr size_t kBlocksAtOnce = 3;
constexpr unsigned kYieldsOneIn = 8;

enum class State { kReady, kAtBarrier, kDone, kFaulted };

struct Block;

struct Thread {
  Fiber fiber;
  State state = State::kReady;
  bool result = false, in_runtime = false;
  Block* block = nullptr;
  ThreadPlace at;
};

struct Block {
  dim3 index;
  unsigned alive = 0, arrived = 0;
  bool any = false;
  std::vector<Thread*> threads;
  char barrier = 0;  // its address stands for the barrier
};

// Kept for the next launch.
std::vector<std::unique_ptr<Thread>>& free_threads() {
  static thread_local std::vector<std::unique_ptr<Thread>> threads;
  return threads;
}

struct Scheduler {
  const void* entry = nullptr;
  const Kernel* kernel = nullptr;
  std::vector<void*> parameters;
  const char* parameters_first = nullptr;
  size_t parameters_size = 0;
  std::mt19937_64* random = nullptr;
  Place place;
  Thread* current = nullptr;
};
thread_local Scheduler* scheduler = nullptr;

void leave(bool for_good) { scheduler->current->fiber.leave(&scheduler->place, for_good); }

void run_thread() {
  Scheduler& s = *scheduler;
  Fiber::entered(&s.place);
  acquire(&s);
  Thread* thread = s.current;
  s.kernel->call(s.entry, s.parameters.data());
  thread->state = State::kDone;
  release(&s);
  leave(true);
  std::abort();
}

Thread* take_thread() {
  auto& free = free_threads();
  if (free.empty()) free.push_back(std::make_unique<Thread>());
  Thread* thread = free.back().release();
  free.pop_back();
  thread->state = State::kReady;
  thread->in_runtime = false;
  return thread;
}

void give_thread(Thread* thread) {
  thread->fiber.rewind();
  free_threads().emplace_back(thread);
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
      Thread* thread = ready_.back();
      scheduler->current = thread;
      thread->fiber.resume(&scheduler->place, &run_thread);
      scheduler->current = nullptr;
      if (thread->state == State::kFaulted) break;
      if (thread->state == State::kReady) continue;
      ready_.pop_back();
      Block* block = thread->block;
      if (thread->state == State::kDone) {
        give_thread(thread);
        block->threads.erase(std::find(block->threads.begin(), block->threads.end(), thread));
        --block->alive;
      }
      // Threads that have ended are not waited for.
      if (block->alive && block->arrived == block->alive) release_block(block);
      if (!block->alive) {
        blocks_.erase(std::find_if(blocks_.begin(), blocks_.end(), [=](auto& each) { return each.get() == block; }));
        if (next_ < order_.size()) start_block();
      }
    }
    for (auto& block : blocks_) {
      for (Thread* thread : block->threads) give_thread(thread);
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
          Thread* thread = take_thread();
          thread->block = block.get();
          thread->at = {dim3(x, y, z), block->index, block_, grid_};
          block->threads.push_back(thread);
          ready_.push_back(thread);
        }
      }
    }
    block->alive = (unsigned)block->threads.size();
    blocks_.push_back(std::move(block));
  }

  void release_block(Block* block) {
    for (Thread* thread : block->threads) {
      thread->result = block->any;
      thread->state = State::kReady;
      ready_.push_back(thread);
    }
    block->arrived = 0;
    block->any = false;
  }

  dim3 grid_, block_;
  std::mt19937_64& random_;
  std::vector<size_t> order_;
  size_t next_ = 0;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Thread*> ready_;
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
  const char* place = static_cast<const char*>(address);
  const char *at = reinterpret_cast<const char*>(&s.current->at),
             *first = reinterpret_cast<const char*>(s.parameters.data());
  return s.current->fiber.owns(address) ||
         (place >= s.parameters_first && place < s.parameters_first + s.parameters_size) ||
         (place >= at && place < at + sizeof(ThreadPlace)) ||
         (place >= first && place < first + s.parameters.size() * sizeof(void*));
}

void may_yield() {
  const InRuntime here;
  if (!scheduler || !scheduler->current || (*scheduler->random)() % kYieldsOneIn) return;
  leave(false);
}

bool barrier_or(bool predicate) {
  const InRuntime here;
  Thread* thread = scheduler->current;
  Block* block = thread->block;
  block->any |= predicate;
  ++block->arrived;
  thread->state = State::kAtBarrier;
  release(&block->barrier);
  leave(false);
  acquire(&block->barrier);
  return thread->result;
}

void abandon() {
  scheduler->current->state = State::kFaulted;
  leave(true);
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
  note_runner(&running.place);
  release(&running);
  scheduler = &running;
  Grid(grid_, block_, *running.random).run();
  scheduler = nullptr;
  acquire(&running);
}

}  // namespace software
