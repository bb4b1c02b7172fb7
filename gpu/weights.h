// Weights in device memory, in the form their kernels read.
#pragma once

#include "core/interface/backend.h"
#include "gpu/device.h"

namespace stoker::gpu {

class CudaWeight final : public BackendWeight {
 public:
  // For products: tile16 form.
  static Result<std::unique_ptr<CudaWeight>> tiled(const QuantView& host, DeviceId device);
  // For look-ups and absorbed attention: row-major, as published.
  static Result<std::unique_ptr<CudaWeight>> row_major(const QuantView& host, DeviceId device);

  std::int64_t rows() const override { return view_.rows; }
  std::int64_t cols() const override { return view_.cols; }
  std::int64_t bytes() const override { return memory_.bytes(); }

  const QuantView& view() const { return view_; }

 private:
  CudaWeight(DeviceBuffer memory, QuantView view) : memory_(std::move(memory)), view_(view) {}

  DeviceBuffer memory_;  // payload, then scales
  QuantView view_;
};

}  // namespace stoker::gpu
