// CudaBackend::run, for the sources that define the backend.
#pragma once

#include <utility>

#include "gpu/backend.h"

namespace stoker::gpu {

template <typename F>
void CudaBackend::run(F&& enqueue) {
  if (!status_.ok()) return;
  graphs_.count();
  after_route_ = std::exchange(route_was_last_, false);
  if (graphs_.replayed()) return;
  status_ = use_device(options_.device);
  const bool metered = meter_ && !graphs_.captured();
  if (status_.ok() && metered) status_ = meter_->before_work(stream_);
  if (status_.ok()) status_ = enqueue();
  if (status_.ok() && metered) status_ = meter_->after_work(stream_);
}

}  // namespace stoker::gpu
