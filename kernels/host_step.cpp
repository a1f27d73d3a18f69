// Spreads the work over samples, blocks and threads, for whichever instruction set the CPU has.
#include "host_step.h"

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <thread>

#include "thread_pool.h"

namespace ddpm_rt {

extern const InstructionSet instruction_set_baseline;
#if defined(DDPM_RT_X86_VARIANTS)
extern const InstructionSet instruction_set_avx2;
extern const InstructionSet instruction_set_avx512;
#endif

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> found = [] {
    std::vector<InstructionSet> sets = {instruction_set_baseline};
#if defined(DDPM_RT_X86_VARIANTS)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) sets.push_back(instruction_set_avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
      sets.push_back(instruction_set_avx512);
    }
#endif
    return sets;
  }();
  return found;
}

// What this process may use: a container or a batch system often leaves it fewer processors than the machine has.
int default_threads() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
#endif  // A set too small for a machine of more than 1,024 processors fails, too.
  return std::max(1, (int)std::thread::hardware_concurrency());
}

namespace {

// Calls work(i) for each block 0 <= i < blocks. With one thread no other is woken.
template <typename Work>
void for_all(int64_t blocks, int64_t elements, int threads, const Work& work) {
  const int64_t used = std::min<int64_t>(threads, elements / kElementsPerThread);
  if (used <= 1) {
    for (int64_t i = 0; i < blocks; ++i) work(i);
    return;
  }
  struct Context {
    const Work& work;
    int64_t blocks;
  } context{work, blocks};
  const auto piece = [](void* untyped, int64_t i) {
    const Context& all = *static_cast<Context*>(untyped);
    const int64_t last = std::min(all.blocks, (i + 1) * kBlocksPerPiece);
    for (int64_t block = i * kBlocksPerPiece; block < last; ++block) all.work(block);
  };
  ThreadPool::shared().run((blocks + kBlocksPerPiece - 1) / kBlocksPerPiece, (int)used - 1, piece, &context);
}

int64_t blocks_of(int64_t num_elements) { return (num_elements + kElementsPerBlock - 1) / kElementsPerBlock; }

}  // namespace

void fill_normal(const InstructionSet& isa, float* out, int64_t num_samples, int64_t num_elements, const uint64_t* seed,
                 const uint64_t* sample_index, const uint32_t* draw, int threads) {
  const int64_t blocks = blocks_of(num_elements);
  for_all(num_samples * blocks, num_samples * num_elements, threads, [&](int64_t i) {
    const int64_t n = i / blocks, first = i % blocks * kElementsPerBlock;
    const int64_t count = std::min(kElementsPerBlock, num_elements - first);
    isa.normal(seed[n], sample_index[n], draw[n], first, count, out + n * num_elements + first);
  });
}

void run_step(const InstructionSet& isa, const StepJob& job, int threads) {
  const int64_t blocks = blocks_of(job.num_elements);
  const auto active = [&](int64_t n) { return job.row[n] >= 0 && job.row[n] < job.num_rows; };
  for_all(job.num_samples * blocks, job.num_samples * job.num_elements, threads, [&](int64_t i) {
    const int64_t n = i / blocks;
    if (!active(n) || isa.step_block(job, job.row[n], n, i % blocks)) return;
    // Blocks of one sample may get here on several threads; they all write the same number.
    int32_t unflagged = 0;
    __atomic_compare_exchange_n(&job.flag[n], &unflagged, job.row[n] + 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  });
  for (int64_t n = 0; n < job.num_samples; ++n) {
    if (!active(n)) continue;
    const int32_t row = ++job.row[n];
    if (row == job.num_rows) continue;
    if (job.t_is_int64) {
      ((int64_t*)job.t)[n] = job.timesteps[row];
    } else {
      ((float*)job.t)[n] = (float)job.timesteps[row];
    }
  }
}

}  // namespace ddpm_rt
