// The CUDA kernels as Python functions, or the news that this build has none.
#pragma once

#include <nanobind/nanobind.h>

namespace ddpm_rt {

void bind_cuda(nanobind::module_& m);

}  // namespace ddpm_rt
