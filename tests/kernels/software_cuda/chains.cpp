// Whole chains on the device in software, two at a time in two threads of the host, against the step of the CPU.
//
// A program of its own, so that AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer see all of it: CUDA's
// threads are fibers that ThreadSanitizer takes for threads, ordered by barriers and atomics alone.
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "cuda_error.h"
#include "cuda_graph.h"
#include "device.h"
#include "element_types.h"
#include "network.h"

using namespace ddpm_rt;

namespace {

constexpr int kRows = 6, kRowsPerTurn = 2, kTurns = 2, kSamples = 3;  // two rows are left over

struct Kind {
  int histories;
  bool learned, h2_is_x_start, t_is_int64;
  ElementType type;
  int64_t elements;
};

size_t size_of(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

// The network of network.cpp, on the host.
template <typename T>
void predict(const StepJob& job, const T* x, T* prediction, int64_t width) {
  const bool wide = job.prediction_elements > job.num_elements;
  for (int64_t sample = 0; sample < job.num_samples; ++sample) {
    const float t = job.t_is_int64 ? (float)static_cast<int64_t*>(job.t)[sample] : static_cast<float*>(job.t)[sample];
    for (int64_t e = 0; e < job.num_elements; ++e) {
      const int64_t left = e % width ? e - 1 : e + width - 1;
      const T* of_sample = x + sample * job.num_elements;
      const float value = add(subtract(multiply(0.8f, to_float(of_sample[e])), multiply(0.3f, to_float(of_sample[left]))),
                              multiply(1e-4f, t));
      T* to = prediction + sample * job.prediction_elements + e;
      from_float(value, to);
      if (wide) from_float(value < -1.0f ? -1.0f : value > 1.0f ? 1.0f : value, to + job.num_elements);
    }
  }
}

// The buffers of a chain on either side. Each is memory of its own, so that one byte past its end is seen.
class Chain {
 public:
  Chain(const Kind& kind, uint64_t seed, bool on_device) : kind_(kind), on_device_(on_device), random_(seed) {
    job.histories = kind.histories;
    job.learned = kind.learned;
    job.h2_is_x_start = kind.h2_is_x_start;
    job.clip = 1.0f;
    job.num_rows = kRows;
    job.num_samples = kSamples;
    job.num_elements = kind.elements;
    job.prediction_elements = kind.elements * (kind.learned ? 2 : 1);
    job.prediction_type = job.next_input_type = kind.type;
    job.t_is_int64 = kind.t_is_int64;
    std::vector<float> coefficients(kRows * 13);
    std::normal_distribution<float> normal;
    for (float& each : coefficients) each = 0.5f * normal(random_);
    for (int row = 1; row < kRows; row += 2) coefficients[(size_t)row * 13 + 11] = 0.0f;  // s: no noise
    std::vector<int32_t> timesteps(kRows), rows = {0, 1, -1}, zeros(kSamples);
    for (int row = 0; row < kRows; ++row) timesteps[(size_t)row] = 900 - 150 * row;
    std::vector<uint64_t> seeds = {seed, 1ull << 63, 7}, indices = {0, 5, ~0ull};
    std::vector<float> x((size_t)(kSamples * kind.elements));
    for (float& each : x) each = normal(random_);
    job.coefficients = static_cast<float*>(make(coefficients.data(), coefficients.size() * 4));
    job.timesteps = static_cast<int32_t*>(make(timesteps.data(), timesteps.size() * 4));
    job.row = static_cast<int32_t*>(make(rows.data(), rows.size() * 4));
    job.flag = static_cast<int32_t*>(make(zeros.data(), zeros.size() * 4));
    job.seed = static_cast<uint64_t*>(make(seeds.data(), seeds.size() * 8));
    job.sample_index = static_cast<uint64_t*>(make(indices.data(), indices.size() * 8));
    const size_t element = size_of(kind.type);
    job.x = static_cast<float*>(make(x.data(), x.size() * 4));
    job.prediction = make(nullptr, x.size() * element * (kind.learned ? 2 : 1));
    if (kind.histories >= 1) job.h1 = static_cast<float*>(make(nullptr, x.size() * 4));
    if (kind.histories == 2) job.h2 = static_cast<float*>(make(nullptr, x.size() * 4));
    job.x_start = static_cast<float*>(make(nullptr, x.size() * 4));
    if (element == 2) job.next_input = make(nullptr, x.size() * 2);
    std::vector<int64_t> t_int(kSamples, 900);
    std::vector<float> t_float(kSamples, 900.0f);
    job.t = kind.t_is_int64 ? make(t_int.data(), t_int.size() * 8) : make(t_float.data(), t_float.size() * 4);
    const uint32_t turns = kTurns;
    arrivals_ = static_cast<uint32_t*>(make(zeros.data(), zeros.size() * 4));
    turns_left_ = static_cast<uint32_t*>(make(&turns, 4));
  }

  void run_on_host() {
    const InstructionSet& isa = instruction_sets().front();
    for (int row = 0; row < kRows; ++row) {
      if (kind_.type == ElementType::kFloat32) predict_as(job.x);
      if (kind_.type == ElementType::kFloat16) predict_as(static_cast<Float16*>(job.next_input));
      if (kind_.type == ElementType::kBFloat16) predict_as(static_cast<BFloat16*>(job.next_input));
      run_step(isa, job, 1);
    }
  }

  // Two rows a turn in a loop on the device, then a row in a graph of its own, then one without a graph.
  void run_on_device() {
    cudaStream_t stream;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    const void* input = job.next_input ? job.next_input : job.x;
    const size_t bytes = (size_t)(kSamples * kind_.elements) * size_of(kind_.type);
    void* scratch = nullptr;
    check(cudaMalloc(&scratch, bytes), "cudaMalloc");
    const software::Network network{input,           job.t,      const_cast<void*>(job.prediction), scratch,
                                    nullptr,         nullptr,    kSamples,                          kind_.elements,
                                    width(),         kind_.type, kind_.t_is_int64,                  kind_.learned};
    cudaGraph_t call;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    check(software::enqueue(network, stream), "cudaLaunchKernel");
    check(cudaStreamEndCapture(stream, &call), "cudaStreamEndCapture");
    const cudaGraph_t graphs[] = {make_while_graph(call, job, arrivals_, turns_left_, kRowsPerTurn),
                                  make_step_graph(call, job, arrivals_)};
    cudaGraphExec_t executables[2];
    for (int i = 0; i < 2; ++i) {
      check(cudaGraphInstantiate(&executables[i], graphs[i], 0), "cudaGraphInstantiate");
      check(cudaGraphUpload(executables[i], stream), "cudaGraphUpload");
      check(cudaGraphLaunch(executables[i], stream), "cudaGraphLaunch");
    }
    check(software::enqueue(network, stream), "cudaLaunchKernel");
    if (const char* error = launch_cuda_step(job, arrivals_, stream)) throw CudaError(error);
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    for (int i = 0; i < 2; ++i) {
      check(cudaGraphExecDestroy(executables[i]), "cudaGraphExecDestroy");
      check(cudaGraphDestroy(graphs[i]), "cudaGraphDestroy");
    }
    check(cudaGraphDestroy(call), "cudaGraphDestroy");
    check(cudaFree(scratch), "cudaFree");
    read_stream_ = stream;
  }

  // Everything there is, in one piece; then nothing of it is left.
  std::vector<char> contents() {
    std::vector<char> all;
    for (const auto& [address, size] : made_) {
      const size_t before = all.size();
      all.resize(before + size);
      if (on_device_) {
        check(cudaMemcpyAsync(all.data() + before, address, size, cudaMemcpyDeviceToHost, read_stream_), "cudaMemcpyAsync");
        check(cudaStreamSynchronize(read_stream_), "cudaStreamSynchronize");
        check(cudaFree(address), "cudaFree");
      } else {
        std::memcpy(all.data() + before, address, size);
        std::free(address);
      }
    }
    if (on_device_) check(cudaStreamDestroy(read_stream_), "cudaStreamDestroy");
    made_.clear();
    return all;
  }

  // Of the counter of arrivals, zero again, and of the turns that are left, none.
  static constexpr size_t kCountersBytes = kSamples * 4 + 4;

  StepJob job = {};

 private:
  int64_t width() const { return kind_.elements % 4 ? kind_.elements : 4; }

  template <typename T>
  void predict_as(const T* x) {
    predict(job, x, static_cast<T*>(const_cast<void*>(job.prediction)), width());
  }

  void* make(const void* from, size_t size) {
    std::vector<char> zeros;
    if (!from) {
      zeros.resize(size);
      from = zeros.data();
    }
    void* address = nullptr;
    if (on_device_) {
      check(cudaMalloc(&address, size), "cudaMalloc");
      check(cudaMemcpyAsync(address, from, size, cudaMemcpyHostToDevice, nullptr), "cudaMemcpyAsync");
      check(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
    } else {
      address = std::malloc(size);
      std::memcpy(address, from, size);
    }
    made_.push_back({address, size});
    return address;
  }

  Kind kind_;
  bool on_device_;
  std::mt19937_64 random_;
  std::vector<std::pair<void*, size_t>> made_;
  uint32_t *arrivals_ = nullptr, *turns_left_ = nullptr;
  cudaStream_t read_stream_ = nullptr;
};

bool same(const Kind& kind, uint64_t seed) {
  Chain host(kind, seed, false), device(kind, seed, true);
  host.run_on_host();
  device.run_on_device();
  std::vector<char> expected = host.contents(), found = device.contents();
  // The host's step counts neither arrivals nor turns.
  std::fill(expected.end() - Chain::kCountersBytes, expected.end(), 0);
  return expected == found;
}

}  // namespace

// With an argument, every third pair of kinds alone: threads are dear under ThreadSanitizer.
int main(int argc, char**) {
  const size_t stride = argc > 1 ? 6 : 2;
  software::reset(size_t(1) << 30, 1);
  std::vector<Kind> kinds;
  int number = 0;
  for (const int histories : {0, 1, 2}) {
    for (const bool learned : {false, true}) {
      for (const ElementType type : {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16}) {
        ++number;
        // One block a sample and two, whole eights and not.
        constexpr int64_t kElements[] = {24, 264, 35, 259};
        kinds.push_back({histories, learned, number % 2 == 0, number % 3 == 0, type, kElements[number % 4]});
      }
    }
  }
  bool failed = false;
  size_t compared = 0;
  for (size_t i = 0; i + 1 < kinds.size(); i += stride) {
    software::device().eagerness = compared % 4 ? 0.5 : 0;
    bool first = false, second = false;
    const auto run = [](const Kind& kind, uint64_t seed, bool* result) {
      try {
        *result = same(kind, seed);
      } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
      }
    };
    std::thread other(run, kinds[i + 1], i + 1, &second);
    run(kinds[i], i, &first);
    other.join();
    if (!first) std::printf("kind %zu differs\n", i);
    if (!second) std::printf("kind %zu differs\n", i + 1);
    failed |= !first || !second;
    compared += 2;
  }
  for (const std::string& misuse : software::device().misuses) {
    std::printf("%s\n", misuse.c_str());
    failed = true;
  }
  if (!failed) std::printf("%zu chains equal\n", compared);
  return failed ? 1 : 0;
}
