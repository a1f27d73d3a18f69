// The step and the noise on the CPU: what the bindings call.
#pragma once

#include <cstdint>
#include <vector>

namespace ddpm_rt {

enum class ElementType { kFloat32, kFloat16, kBFloat16 };

// Everything one step needs, bound once. N samples of E = C*H*W elements; nothing here is owned.
struct StepJob {
  const float* coefficients;  // [R, 13]
  const int32_t* timesteps;   // [R]
  int32_t num_rows;
  int histories;  // 0, 1 or 2
  bool learned, h2_is_x_start;
  float clip;  // infinity for none

  int64_t num_samples, num_elements;
  ElementType prediction_type, next_input_type;
  int64_t prediction_elements;  // E or 2E per sample
  float* x;                     // [N, E]
  const void* prediction;       // [N, E or 2E]
  float* h1;                    // [N, E] or null
  float* h2;                    // [N, E] or null
  float* x_start;               // [N, E] or null
  void* next_input;             // [N, E] or null

  void* t;  // [N] float or int64_t
  bool t_is_int64;
  int32_t* row;                  // [N]
  int32_t* flag;                 // [N]
  const uint64_t* seed;          // [N]
  const uint64_t* sample_index;  // [N]
};

// The noise and the step are made in runs of this many counters (four elements each): small enough that a run's
// noise and converted prediction stay in the first-level cache.
constexpr int64_t kCountersPerBlock = 256;
constexpr int64_t kElementsPerBlock = 4 * kCountersPerBlock;

// The same source, compiled once per instruction set.
struct InstructionSet {
  const char* name;
  // Normal numbers of the elements first .. first + count - 1 of a sample; `first` is a multiple of four.
  void (*normal)(uint64_t seed, uint64_t sample_index, uint32_t draw, int64_t first, int64_t count, float* z);
  // Applies a row to block number `block` of a sample; false if something in it is not finite.
  bool (*step_block)(const StepJob& job, int32_t row, int64_t sample, int64_t block);
  void (*ln)(const float* x, float* y, int64_t count);
  void (*exp)(const float* x, float* y, int64_t count);
};

// Those that this CPU can run, the slowest first.
const std::vector<InstructionSet>& instruction_sets();

// Waking a thread takes tens of microseconds, in which one thread steps this many elements; and it takes a core away
// from the network's own threads, which may still be spinning there. So a thread is added only for this much work.
constexpr int64_t kElementsPerThread = 65536;

// A thread takes this many blocks at a time, about ten microseconds of work.
constexpr int64_t kBlocksPerPiece = 8;

// Fills out [N, E] with N samples' normal numbers, on at most `threads` threads.
void fill_normal(const InstructionSet& isa, float* out, int64_t num_samples, int64_t num_elements, const uint64_t* seed,
                 const uint64_t* sample_index, const uint32_t* draw, int threads);

// Advances every sample that is not idle by its row, on at most `threads` threads.
void run_step(const InstructionSet& isa, const StepJob& job, int threads);

// As many as this process may run on.
int default_threads();

}  // namespace ddpm_rt
