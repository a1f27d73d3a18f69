// The module runtime._kernels. Everything is checked here; below, nothing is.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cmath>

#include "buffer.h"
#include "cuda_bindings.h"
#include "host_step.h"
#include "philox.h"

namespace ddpm_rt {
namespace {

using nb::literals::operator""_a;

const InstructionSet& instruction_set(const std::string& name) {
  std::string known;
  for (const InstructionSet& isa : instruction_sets()) {
    if (name == isa.name) return isa;
    known += std::string(", ") + isa.name;
  }
  if (name == "auto") return instruction_sets().back();
  throw nb::value_error(("isa is '" + name + "'; expected auto" + known).c_str());
}

int thread_count(int threads) {
  if (threads < 0) throw nb::value_error("threads is negative; expected a number, or 0 for as many as there are CPUs");
  return threads == 0 ? default_threads() : threads;
}

void bind_philox(nb::handle counters_array, nb::handle keys_array, nb::handle words_array) {
  const Buffer counters(counters_array, "counters", "uint32", Access::kRead);
  const Buffer keys(keys_array, "keys", "uint32", Access::kRead);
  const Buffer words(words_array, "words", "uint32", Access::kWrite);
  const int64_t count = counters.shape().empty() ? 0 : counters.shape()[0];
  counters.expect_shape({count, 4});
  keys.expect_shape({count, 2});
  words.expect_shape({count, 4});
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t* c = counters.data<uint32_t>() + 4 * i;
    const uint32_t* k = keys.data<uint32_t>() + 2 * i;
    uint32_t* w = words.data<uint32_t>() + 4 * i;
    philox(c[0], c[1], c[2], c[3], k[0], k[1], &w[0], &w[1], &w[2], &w[3]);
  }
}

// `draw` is one number for all samples, or an array with one for each.
std::vector<uint32_t> draws_of(nb::handle draw, int64_t num_samples) {
  uint32_t number;
  if (nb::try_cast(draw, number, false)) return std::vector<uint32_t>(num_samples, number);
  if (PyLong_Check(draw.ptr())) throw nb::value_error("draw is out of range; expected 0..2^32-1");
  const Buffer numbers(draw, "draw", "uint32", Access::kRead);
  numbers.expect_shape({num_samples});
  return {numbers.data<uint32_t>(), numbers.data<uint32_t>() + num_samples};
}

void bind_normal(nb::handle out_array, nb::handle seed_array, nb::handle index_array, nb::handle draw,
                 const std::string& isa, int threads) {
  const Buffer out(out_array, "out", "float32", Access::kWrite);
  const Buffer seed(seed_array, "seed", "uint64", Access::kRead);
  const Buffer index(index_array, "sample_index", "uint64", Access::kRead);
  const std::vector<int64_t> shape = out.shape();
  if (shape.empty()) out.fail("of shape []", "[N, ...]");
  int64_t num_elements = 1;
  for (size_t i = 1; i < shape.size(); ++i) num_elements *= shape[i];
  for (const Buffer* each : {&seed, &index}) each->expect_shape({shape[0]});
  const std::vector<uint32_t> draws = draws_of(draw, shape[0]);
  const InstructionSet& set = instruction_set(isa);
  const int count = thread_count(threads);
  const nb::gil_scoped_release released;
  fill_normal(set, out.data<float>(), shape[0], num_elements, seed.data<uint64_t>(), index.data<uint64_t>(),
              draws.data(), count);
}

template <auto kFunction>
void bind_function(nb::handle x_array, nb::handle y_array, const std::string& isa) {
  const Buffer x(x_array, "x", "float32", Access::kRead);
  const Buffer y(y_array, "y", "float32", Access::kWrite);
  y.expect_shape(x.shape());
  int64_t count = 1;
  for (const int64_t size : x.shape()) count *= size;
  (instruction_set(isa).*kFunction)(x.data<float>(), y.data<float>(), count);
}

ElementType element_type(const Buffer& buffer) {
  if (buffer.type() == "float32") return ElementType::kFloat32;
  return buffer.type() == "float16" ? ElementType::kFloat16 : ElementType::kBFloat16;
}

class HostStep {
 public:
  HostStep(nb::handle coefficients, nb::handle timesteps, int histories, bool learned, bool h2_is_x_start, double clip,
           nb::handle x, nb::handle prediction, nb::handle t, nb::handle row, nb::handle seed, nb::handle sample_index,
           nb::handle flag, nb::handle h1, nb::handle h2, nb::handle x_start, nb::handle next_input,
           const std::string& isa, int threads)
      : isa_(instruction_set(isa)), threads_(thread_count(threads)) {
    if (histories < 0 || histories > 2) throw nb::value_error("histories is not 0, 1 or 2");
    if (!(clip > 0)) throw nb::value_error("clip is not a positive number; infinity means no clipping");
    buffers_.reserve(16);  // references to its elements are held below
    job_.histories = histories;
    job_.learned = learned;
    job_.h2_is_x_start = h2_is_x_start;
    job_.clip = (float)clip;
    bind_table(coefficients, timesteps);
    bind_state(x, prediction);
    job_.x_start = x_start.is_none() ? nullptr : like_x(x_start, "x_start");
    job_.h1 = history(h1, "h1", histories >= 1);
    job_.h2 = history(h2, "h2", histories == 2);
    if (!next_input.is_none()) {
      const Buffer& buffer = keep(next_input, "next_input", "float32 or float16 or uint16", Access::kWrite);
      buffer.expect_shape(x_shape_);
      job_.next_input = buffer.data<void>();
      job_.next_input_type = element_type(buffer);
    }
    const Buffer& times = per_sample(t, "t", "float32 or int64", Access::kWrite);
    job_.t = times.data<void>();
    job_.t_is_int64 = times.type() == "int64";
    job_.row = per_sample(row, "row", "int32", Access::kWrite).data<int32_t>();
    job_.flag = per_sample(flag, "flag", "int32", Access::kWrite).data<int32_t>();
    job_.seed = per_sample(seed, "seed", "uint64", Access::kRead).data<uint64_t>();
    job_.sample_index = per_sample(sample_index, "sample_index", "uint64", Access::kRead).data<uint64_t>();
    expect_no_overlap();
  }

  void run() {
    if (running_.exchange(true, std::memory_order_acquire)) {
      throw std::runtime_error("this HostStep is already running in another thread; give every thread its own");
    }
    {
      const nb::gil_scoped_release released;
      run_step(isa_, job_, threads_);
    }
    running_.store(false, std::memory_order_release);
  }

  std::string isa() const { return isa_.name; }
  int threads() const { return threads_; }

 private:
  void bind_table(nb::handle coefficients, nb::handle timesteps) {
    const Buffer& numbers = keep(timesteps, "timesteps", "int32", Access::kRead);
    if (numbers.shape().size() != 1) numbers.fail("of shape " + Buffer::text(numbers.shape()), "[R]");
    const int64_t num_rows = numbers.shape()[0];
    for (int64_t i = 0; i < num_rows; ++i) {
      const int32_t timestep = numbers.data<int32_t>()[i];
      if (timestep < 0 || timestep >= (1 << 20) - 1) {
        numbers.fail(std::to_string(timestep) + " in row " + std::to_string(i), "0.." + std::to_string((1 << 20) - 2));
      }
    }
    const Buffer& table = keep(coefficients, "coefficients", "float32", Access::kRead);
    table.expect_shape({num_rows, 13});
    job_.timesteps = numbers.data<int32_t>();
    job_.coefficients = table.data<float>();
    job_.num_rows = (int32_t)num_rows;
  }

  void bind_state(nb::handle x, nb::handle prediction) {
    const Buffer& state = keep(x, "x", "float32", Access::kWrite);
    x_shape_ = state.shape();
    if (x_shape_.size() < 2) state.fail("of shape " + Buffer::text(x_shape_), "[N, C, ...]");
    job_.x = state.data<float>();
    job_.num_samples = x_shape_[0];
    job_.num_elements = 1;
    for (size_t i = 1; i < x_shape_.size(); ++i) job_.num_elements *= x_shape_[i];

    const Buffer& output = keep(prediction, "prediction", "float32 or float16 or uint16", Access::kRead);
    std::vector<int64_t> wide = x_shape_;
    wide[1] *= 2;
    const bool is_wide = output.shape() == wide;
    if (!is_wide && (job_.learned || output.shape() != x_shape_)) {
      const std::string expected = Buffer::text(wide) + (job_.learned ? "" : " or " + Buffer::text(x_shape_));
      output.fail("of shape " + Buffer::text(output.shape()), expected);
    }
    job_.prediction = output.data<void>();
    job_.prediction_type = element_type(output);
    job_.prediction_elements = is_wide ? 2 * job_.num_elements : job_.num_elements;
  }

  const Buffer& keep(nb::handle object, const char* name, const char* types, Access access) {
    buffers_.emplace_back(object, name, types, access);
    return buffers_.back();
  }

  const Buffer& per_sample(nb::handle object, const char* name, const char* types, Access access) {
    const Buffer& buffer = keep(object, name, types, access);
    buffer.expect_shape({job_.num_samples});
    return buffer;
  }

  float* like_x(nb::handle object, const char* name) {
    const Buffer& buffer = keep(object, name, "float32", Access::kWrite);
    buffer.expect_shape(x_shape_);
    return buffer.data<float>();
  }

  float* history(nb::handle object, const char* name, bool needed) {
    if (!needed) return nullptr;
    if (object.is_none()) {
      throw nb::value_error((std::string(name) + " is None; expected an array like x, the table keeps " +
                             std::to_string(job_.histories) + " histories")
                                .c_str());
    }
    return like_x(object, name);
  }

  // The inner loops rely on it: an array that is written shares no memory with another.
  void expect_no_overlap() const {
    for (const Buffer& a : buffers_) {
      for (const Buffer& b : buffers_) {
        if (&a != &b && a.writable() && a.overlaps(b)) a.fail("sharing memory with " + b.name(), "an array of its own");
      }
    }
  }

  StepJob job_ = {};
  std::vector<int64_t> x_shape_;
  std::vector<Buffer> buffers_;
  const InstructionSet& isa_;
  int threads_;
  std::atomic<bool> running_{false};
};

std::vector<std::string> isa_levels() {
  std::vector<std::string> names;
  for (const InstructionSet& isa : instruction_sets()) names.emplace_back(isa.name);
  return names;
}

}  // namespace
}  // namespace ddpm_rt

NB_MODULE(_kernels, m) {
  using namespace ddpm_rt;
  m.doc() = "The noise and the fused step, compiled. Arrays are used in place and never copied.";
  m.def("isa_levels", &isa_levels, "Instruction sets that this CPU can run, the slowest first.");
  m.def("philox", &bind_philox, "counters"_a, "keys"_a, "words"_a,
        "Philox4x32-10: words[i] from counters[i] (uint32 [M, 4]) and keys[i] (uint32 [M, 2]).");
  m.def("normal", &bind_normal, "out"_a, "seed"_a, "sample_index"_a, "draw"_a, nb::kw_only(), "isa"_a = "auto",
        "threads"_a = 0, "Fill out, float32 [N, ...], with the normal numbers of N samples (see diffusion.normal).");
  m.def("ln", &bind_function<&InstructionSet::ln>, "x"_a, "y"_a, nb::kw_only(), "isa"_a = "auto", "y = ln x, float32.");
  m.def("exp", &bind_function<&InstructionSet::exp>, "x"_a, "y"_a, nb::kw_only(), "isa"_a = "auto",
        "y = e^x, float32.");
  nb::class_<HostStep>(m, "HostStep",
                       "One row of a table per sample and call, on the CPU; tests/kernels/numpy_step.py has the same bits.")
      .def(nb::init<nb::handle, nb::handle, int, bool, bool, double, nb::handle, nb::handle, nb::handle, nb::handle,
                    nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle,
                    const std::string&, int>(),
           "coefficients"_a.none(), "timesteps"_a.none(), nb::kw_only(), "histories"_a, "learned"_a,
           "h2_is_x_start"_a, "clip"_a, "x"_a.none(), "prediction"_a.none(), "t"_a.none(), "row"_a.none(),
           "seed"_a.none(), "sample_index"_a.none(), "flag"_a.none(), "h1"_a = nb::none(),
           "h2"_a = nb::none(), "x_start"_a = nb::none(), "next_input"_a = nb::none(), "isa"_a = "auto",
           "threads"_a = 0)
      .def("run", &HostStep::run, "Advance every sample that is not idle by its row. Allocates nothing.")
      .def_prop_ro("isa", &HostStep::isa)
      .def_prop_ro("threads", &HostStep::threads);
  bind_cuda(m);
}
