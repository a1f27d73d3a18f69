#include "thread_pool.h"

#include <system_error>
#include <thread>

namespace ddpm_rt {

ThreadPool& ThreadPool::shared() {
  static ThreadPool* const pool = new ThreadPool;
  return *pool;
}

void ThreadPool::run(int64_t count, int helpers, void (*work)(void* context, int64_t i), void* context) {
  Job job{count, work, context};
  const std::unique_lock<std::mutex> alone(one_caller_, std::try_to_lock);
  if (!alone.owns_lock()) {
    job.take_pieces();
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      for (; workers_ < helpers; ++workers_) std::thread(&ThreadPool::serve, this).detach();
    } catch (const std::system_error&) {
      // No more threads to be had: those that there are, and this one, do the work.
    }
    job_ = &job;
    places_ = helpers;
  }
  for (int i = 0; i < helpers; ++i) wake_.notify_one();
  job.take_pieces();
  std::unique_lock<std::mutex> lock(mutex_);
  job_ = nullptr;
  places_ = 0;
  finished_.wait(lock, [this] { return working_ == 0; });
}

void ThreadPool::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return places_ > 0; });
    Job* const job = job_;
    --places_;
    ++working_;
    lock.unlock();
    job->take_pieces();
    lock.lock();
    if (--working_ == 0) finished_.notify_one();
  }
}

}  // namespace ddpm_rt
