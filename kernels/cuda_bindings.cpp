// Device pointers and streams come as integers, so that any module's memory can be used: PyCUDA's, torch's, ours.
#include "cuda_bindings.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_step.h"

namespace nb = nanobind;

namespace ddpm_rt {
namespace {

using nb::literals::operator""_a;

std::vector<std::string> cuda_architectures() {
  std::vector<std::string> names;
#if defined(DDPM_RT_CUDA_ARCHITECTURES)
  const std::string all = DDPM_RT_CUDA_ARCHITECTURES;
  for (size_t first = 0; first <= all.size();) {
    const size_t comma = std::min(all.find(',', first), all.size());
    names.push_back(all.substr(first, comma - first));
    first = comma + 1;
  }
#endif
  return names;
}

#if defined(DDPM_RT_CUDA_ARCHITECTURES)

ElementType element_type(const std::string& name, const char* what) {
  if (name == "float32") return ElementType::kFloat32;
  if (name == "float16") return ElementType::kFloat16;
  if (name == "bfloat16") return ElementType::kBFloat16;
  throw nb::value_error((std::string(what) + " is '" + name + "'; expected float32, float16 or bfloat16").c_str());
}

void raise_if(const char* error) {
  if (error) throw std::runtime_error(std::string("CUDA launch failed: ") + error);
}

void expect_address(const char* name, uintptr_t address) {
  if (address == 0) throw nb::value_error((std::string(name) + " is a null pointer; expected device memory").c_str());
}

CudaStep make_step(uintptr_t coefficients, uintptr_t timesteps, int num_rows, int histories, bool learned,
                   bool h2_is_x_start, double clip, int64_t num_samples, int64_t num_elements,
                   int64_t prediction_elements, const std::string& prediction_type, uintptr_t x, uintptr_t prediction,
                   uintptr_t t, bool t_is_int64, uintptr_t row, uintptr_t seed, uintptr_t sample_index, uintptr_t flag,
                   uintptr_t arrivals, uintptr_t h1, uintptr_t h2, uintptr_t x_start, uintptr_t next_input) {
  if (histories < 0 || histories > 2) throw nb::value_error("histories is not 0, 1 or 2");
  if (!(clip > 0)) throw nb::value_error("clip is not a positive number; infinity means no clipping");
  if (prediction_elements != 2 * num_elements && (learned || prediction_elements != num_elements)) {
    throw nb::value_error("prediction_elements is not num_elements, nor twice that (which a learned variance needs)");
  }
  const struct {
    const char* name;
    uintptr_t address;
    bool needed;
  } buffers[] = {
      {"coefficients", coefficients, true}, {"timesteps", timesteps, true}, {"x", x, true},
      {"prediction", prediction, true},     {"t", t, true},                 {"row", row, true},
      {"seed", seed, true},                 {"flag", flag, true},           {"sample_index", sample_index, true},
      {"arrivals", arrivals, true},         {"h1", h1, histories >= 1},     {"h2", h2, histories == 2},
  };
  for (const auto& buffer : buffers) {
    if (buffer.needed) expect_address(buffer.name, buffer.address);
  }
  StepJob job = {};
  job.coefficients = device_pointer<const float>(coefficients);
  job.timesteps = device_pointer<const int32_t>(timesteps);
  job.num_rows = num_rows;
  job.histories = histories;
  job.learned = learned;
  job.h2_is_x_start = h2_is_x_start;
  job.clip = (float)clip;
  job.num_samples = num_samples;
  job.num_elements = num_elements;
  job.prediction_type = job.next_input_type = element_type(prediction_type, "prediction_type");
  job.prediction_elements = prediction_elements;
  job.x = device_pointer<float>(x);
  job.prediction = device_pointer<const void>(prediction);
  job.h1 = device_pointer<float>(h1);
  job.h2 = device_pointer<float>(h2);
  job.x_start = device_pointer<float>(x_start);
  job.next_input = device_pointer<void>(next_input);
  job.t = device_pointer<void>(t);
  job.t_is_int64 = t_is_int64;
  job.row = device_pointer<int32_t>(row);
  job.flag = device_pointer<int32_t>(flag);
  job.seed = device_pointer<const uint64_t>(seed);
  job.sample_index = device_pointer<const uint64_t>(sample_index);
  return {job, device_pointer<uint32_t>(arrivals)};
}

void launch(const CudaStep& step, uintptr_t stream) {
  raise_if(launch_cuda_step(step.job, step.arrivals, device_pointer<void>(stream)));
}

void cuda_normal_launch(uintptr_t out, int64_t num_samples, int64_t num_elements, uintptr_t seed,
                        uintptr_t sample_index, uintptr_t draw, uintptr_t stream) {
  raise_if(launch_cuda_normal(device_pointer<float>(out), num_samples, num_elements, device_pointer<uint64_t>(seed),
                              device_pointer<uint64_t>(sample_index), device_pointer<uint32_t>(draw),
                              device_pointer<void>(stream)));
}

void cuda_convert_launch(uintptr_t x, uintptr_t out, const std::string& out_type, int64_t num_elements,
                         uintptr_t stream) {
  const ElementType type = element_type(out_type, "out_type");
  expect_address("x", x);
  expect_address("out", out);
  raise_if(launch_cuda_convert(device_pointer<const float>(x), device_pointer<void>(out), type, num_elements,
                               device_pointer<void>(stream)));
}

void cuda_set_uint32(uintptr_t address, uint32_t value, uintptr_t stream) {
  expect_address("address", address);
  raise_if(launch_cuda_set(device_pointer<uint32_t>(address), value, device_pointer<void>(stream)));
}

void bind_kernels(nb::module_& m) {
  nb::class_<CudaStep>(m, "CudaStep", "One row of a table per sample and launch, on device buffers; see HostStep.")
      .def(
          "__init__",
          [](CudaStep* self, uintptr_t coefficients, uintptr_t timesteps, int num_rows, int histories, bool learned,
             bool h2_is_x_start, double clip, int64_t num_samples, int64_t num_elements, int64_t prediction_elements,
             const std::string& prediction_type, uintptr_t x, uintptr_t prediction, uintptr_t t, bool t_is_int64,
             uintptr_t row, uintptr_t seed, uintptr_t sample_index, uintptr_t flag, uintptr_t arrivals, uintptr_t h1,
             uintptr_t h2, uintptr_t x_start, uintptr_t next_input) {
            new (self) CudaStep(make_step(coefficients, timesteps, num_rows, histories, learned, h2_is_x_start, clip,
                                          num_samples, num_elements, prediction_elements, prediction_type, x,
                                          prediction, t, t_is_int64, row, seed, sample_index, flag, arrivals, h1, h2,
                                          x_start, next_input));
          },
          nb::kw_only(), "coefficients"_a, "timesteps"_a, "num_rows"_a, "histories"_a, "learned"_a, "h2_is_x_start"_a,
          "clip"_a, "num_samples"_a, "num_elements"_a, "prediction_elements"_a, "prediction_type"_a, "x"_a,
          "prediction"_a, "t"_a, "t_is_int64"_a, "row"_a, "seed"_a, "sample_index"_a, "flag"_a, "arrivals"_a,
          "h1"_a = 0, "h2"_a = 0, "x_start"_a = 0, "next_input"_a = 0)
      .def("launch", &launch, "stream"_a = 0, "Put one step on the stream.");
  m.def(
      "cuda_step_launch",
      [](const nb::kwargs& arguments) {
        const uintptr_t stream = arguments.contains("stream") ? nb::cast<uintptr_t>(arguments["stream"]) : 0;
        nb::dict buffers(arguments);
        if (buffers.contains("stream")) nb::del(buffers["stream"]);
        launch(nb::cast<const CudaStep&>(nb::type<CudaStep>()(**buffers)), stream);
      },
      "Put one step on the stream: CudaStep(...).launch(stream).");
  m.def("cuda_normal_launch", &cuda_normal_launch, nb::kw_only(), "out"_a, "num_samples"_a, "num_elements"_a, "seed"_a,
        "sample_index"_a, "draw"_a, "stream"_a = 0, "Put the filling of out, float32 [N, E], on the stream.");
  m.def("cuda_convert_launch", &cuda_convert_launch, nb::kw_only(), "x"_a, "out"_a, "out_type"_a, "num_elements"_a,
        "stream"_a = 0, "Put out = x, rounded to another type as the step rounds, on the stream.");
  m.def("cuda_set_uint32", &cuda_set_uint32, "address"_a, "value"_a, "stream"_a,
        "Put the setting of one uint32 on the stream.");
}

#endif

}  // namespace

void bind_cuda(nb::module_& m) {
  m.def("has_cuda_kernels", [] { return !cuda_architectures().empty(); }, "Whether this build has the CUDA kernels.");
  m.def("cuda_architectures", &cuda_architectures, "Architectures that the CUDA kernels were compiled for.");
#if defined(DDPM_RT_CUDA_ARCHITECTURES)
  bind_kernels(m);
  bind_cuda_graph(m);
  bind_cuda_memory(m);
#endif
}

}  // namespace ddpm_rt
