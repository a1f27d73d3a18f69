// kernels/step.cu as it is, and its kernels made known to the runtime, as nvcc does when the program starts.
#include "step.cu"

namespace ddpm_rt {
namespace {

const bool registered = [] {
  for (const int histories : {0, 1, 2}) {
    for (const bool learned : {false, true}) {
      for (const ElementType type : {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16}) {
        StepJob job = {};
        job.histories = histories;
        job.learned = learned;
        job.prediction_type = type;
        software::register_kernel("step_kernel", kMaxThreads, kernel_for(job));
      }
    }
  }
  software::register_kernel("normal_kernel", kMaxThreads, normal_kernel);
  software::register_kernel("convert_kernel", kMaxThreads, convert_kernel<float>);
  software::register_kernel("convert_kernel", kMaxThreads, convert_kernel<Float16>);
  software::register_kernel("convert_kernel", kMaxThreads, convert_kernel<BFloat16>);
  software::register_kernel("set_kernel", 1024, set_kernel);
  return true;
}();

}  // namespace
}  // namespace ddpm_rt
