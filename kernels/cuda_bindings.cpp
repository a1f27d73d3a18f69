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

template <typename T>
T* device_pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

ElementType element_type(const std::string& name) {
  if (name == "float32") return ElementType::kFloat32;
  if (name == "float16") return ElementType::kFloat16;
  if (name == "bfloat16") return ElementType::kBFloat16;
  throw nb::value_error(("prediction_type is '" + name + "'; expected float32, float16 or bfloat16").c_str());
}

void raise_if(const char* error) {
  if (error) throw std::runtime_error(std::string("CUDA launch failed: ") + error);
}

void cuda_step_launch(uintptr_t coefficients, uintptr_t timesteps, int num_rows, int histories, bool learned,
                      bool h2_is_x_start, double clip, int64_t num_samples, int64_t num_elements,
                      int64_t prediction_elements, const std::string& prediction_type, uintptr_t x,
                      uintptr_t prediction, uintptr_t t, bool t_is_int64, uintptr_t row, uintptr_t seed,
                      uintptr_t sample_index, uintptr_t flag, uintptr_t arrivals, uintptr_t h1, uintptr_t h2,
                      uintptr_t x_start, uintptr_t next_input, uintptr_t stream) {
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
    if (buffer.needed && buffer.address == 0) {
      throw nb::value_error((std::string(buffer.name) + " is a null pointer; expected device memory").c_str());
    }
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
  job.prediction_type = job.next_input_type = element_type(prediction_type);
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
  raise_if(launch_cuda_step(job, device_pointer<uint32_t>(arrivals), device_pointer<void>(stream)));
}

void cuda_normal_launch(uintptr_t out, int64_t num_samples, int64_t num_elements, uintptr_t seed,
                        uintptr_t sample_index, uintptr_t draw, uintptr_t stream) {
  raise_if(launch_cuda_normal(device_pointer<float>(out), num_samples, num_elements, device_pointer<uint64_t>(seed),
                              device_pointer<uint64_t>(sample_index), device_pointer<uint32_t>(draw),
                              device_pointer<void>(stream)));
}

#endif

}  // namespace

void bind_cuda(nb::module_& m) {
  m.def("has_cuda_kernels", [] { return !cuda_architectures().empty(); }, "Whether this build has the CUDA kernels.");
  m.def("cuda_architectures", &cuda_architectures, "Architectures that the CUDA kernels were compiled for.");
#if defined(DDPM_RT_CUDA_ARCHITECTURES)
  m.def("cuda_step_launch", &cuda_step_launch, nb::kw_only(), "coefficients"_a, "timesteps"_a, "num_rows"_a,
        "histories"_a, "learned"_a, "h2_is_x_start"_a, "clip"_a, "num_samples"_a, "num_elements"_a,
        "prediction_elements"_a, "prediction_type"_a, "x"_a, "prediction"_a, "t"_a, "t_is_int64"_a, "row"_a, "seed"_a,
        "sample_index"_a, "flag"_a, "arrivals"_a, "h1"_a = 0, "h2"_a = 0, "x_start"_a = 0, "next_input"_a = 0,
        "stream"_a = 0,
        "Put one step on the stream; buffers as HostStep's, given as device addresses (0: none). next_input has the "
        "prediction's type. arrivals is uint32 [N], zeroed once before the first launch.");
  m.def("cuda_normal_launch", &cuda_normal_launch, nb::kw_only(), "out"_a, "num_samples"_a, "num_elements"_a, "seed"_a,
        "sample_index"_a, "draw"_a, "stream"_a = 0, "Put the filling of out, float32 [N, E], on the stream.");
#endif
}

}  // namespace ddpm_rt
