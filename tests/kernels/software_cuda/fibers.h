// Fibers: stacks of their own that one thread of the host runs by turns.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace software {

constexpr size_t kStackBytes = 64 << 10;

// Where a fiber, or whoever runs fibers, goes on.
struct Place {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  void* sanitizer = nullptr;  // what ThreadSanitizer knows it by
  const void* stack = nullptr;
  size_t stack_size = 0;
};

class Fiber {
 public:
  Fiber();
  Fiber(const Fiber&) = delete;
  ~Fiber();

  // Begins `entry`, or goes on where it left; back when it leaves again.
  void resume(Place* from, void (*entry)());
  // In the fiber: back to who resumed it; for the last time where `for_good`.
  void leave(Place* to, bool for_good);
  // The first thing that an entry calls.
  static void entered(Place* from);
  // Ready for another entry; its stack is kept.
  void rewind();

  bool owns(const void* address) const {
    return address >= stack_ && address < static_cast<const char*>(stack_) + kStackBytes;
  }

 private:
  char* stack_;
  Place place_;
  bool started_ = false;
};

// The thread that runs here, as one that resumes fibers.
void note_runner(Place* place);

// For ThreadSanitizer, which takes each fiber for a thread: what came before a release comes before what follows the
// acquisition of the same address. Nothing else puts fibers in order.
void release(void* address);
void acquire(void* address);

}  // namespace software
