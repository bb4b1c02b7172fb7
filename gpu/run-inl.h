// CudaBackend::run, for the sources that define the backend.
#pragma once

#include "gpu/backend.h"

namespace stoker::gpu {

template <typename F>
void CudaBackend::run(F&& enqueue) {
  if (!status_.ok()) return;
  status_ = use_device(options_.device);
  if (status_.ok()) status_ = enqueue();
}

}  // namespace stoker::gpu
