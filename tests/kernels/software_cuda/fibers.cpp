#include "fibers.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

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
#endif

namespace software {

Fiber::Fiber() {
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) {
    std::fputs("software CUDA: no memory for a thread's stack\n", stderr);
    std::abort();
  }
  stack_ = static_cast<char*>(stack);
}

Fiber::~Fiber() {
  rewind();
  munmap(stack_, kStackBytes);
}

void Fiber::resume(Place* from, void (*entry)()) {
#if defined(SOFTWARE_TSAN)
  if (!place_.sanitizer) place_.sanitizer = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(place_.sanitizer, 1);  // 1: the switch itself puts nothing in order
#elif defined(__SANITIZE_ADDRESS__)
  void* saved;
  __sanitizer_start_switch_fiber(&saved, stack_, kStackBytes);
#endif
#if defined(__x86_64__)
  if (!started_) {
    // What the switch pops, and the address that it returns to; a call leaves the stack 8 off a multiple of 16.
    void** top = reinterpret_cast<void**>(stack_ + kStackBytes - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    place_.stack_pointer = top;
    started_ = true;
  }
  software_cuda_switch(&from->stack_pointer, place_.stack_pointer);
#else
  if (!started_) {
    getcontext(&place_.context);
    place_.context.uc_stack.ss_sp = stack_;
    place_.context.uc_stack.ss_size = kStackBytes;
    makecontext(&place_.context, entry, 0);
    started_ = true;
  }
  swapcontext(&from->context, &place_.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, nullptr, nullptr);
#endif
}

void Fiber::leave(Place* to, bool for_good) {
#if defined(SOFTWARE_TSAN)
  __tsan_switch_to_fiber(to->sanitizer, 1);
#elif defined(__SANITIZE_ADDRESS__)
  void* saved = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &saved, to->stack, to->stack_size);
#endif
  (void)for_good;
#if defined(__x86_64__)
  software_cuda_switch(&place_.stack_pointer, to->stack_pointer);
#else
  swapcontext(&place_.context, &to->context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, nullptr, nullptr);
#endif
}

void Fiber::entered(Place* from) {
  (void)from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from->stack, &from->stack_size);
#endif
}

void Fiber::rewind() {
  started_ = false;
#if defined(SOFTWARE_TSAN)
  if (place_.sanitizer) __tsan_destroy_fiber(place_.sanitizer);
  place_.sanitizer = nullptr;
#endif
}

void note_runner(Place* place) {
  (void)place;
#if defined(SOFTWARE_TSAN)
  place->sanitizer = __tsan_get_current_fiber();
#endif
}

void release(void* address) {
  (void)address;
#if defined(SOFTWARE_TSAN)
  __tsan_release(address);
#endif
}

void acquire(void* address) {
  (void)address;
#if defined(SOFTWARE_TSAN)
  __tsan_acquire(address);
#endif
}

}  // namespace software
