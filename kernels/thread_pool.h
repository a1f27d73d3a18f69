// Threads that sleep between steps.
//
// A step takes a fraction of a millisecond between network calls that take many. An OpenMP runtime keeps its threads
// spinning after a region (libgomp: for several milliseconds), on the very cores that the network's own threads
// need, and on a busy machine the region waits for threads that are not scheduled. Here a worker blocks until it is
// woken, takes pieces of the work while there are any, and is not waited for if it has not begun.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace ddpm_rt {

class ThreadPool {
 public:
  // The process's pool. It is never destroyed: its threads may sleep in it until the process ends.
  static ThreadPool& shared();

  // Calls work(context, i) once for each 0 <= i < count, on the calling thread and up to `helpers` others. If the
  // pool serves another caller at that moment, the calling thread does everything.
  void run(int64_t count, int helpers, void (*work)(void* context, int64_t i), void* context);

 private:
  struct Job {
    int64_t count;
    void (*work)(void* context, int64_t i);
    void* context;
    std::atomic<int64_t> next{0};

    void take_pieces() {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(context, i);
    }
  };

  void serve();

  std::mutex one_caller_;
  std::mutex mutex_;  // of everything below
  std::condition_variable wake_, finished_;
  Job* job_ = nullptr;
  int places_ = 0;   // how many more workers may join the job
  int working_ = 0;  // how many have joined and not finished
  int workers_ = 0;  // how many threads there are
};

}  // namespace ddpm_rt
