// Weights in device memory, in the form their kernels read.
#pragma once

#include "core/interface/backend.h"
#include "gpu/device.h"

namespace stoker::gpu {

class CudaWeight final : public BackendWeight {
 public:
  // For products: tile16 form.
  static Result<std::unique_ptr<CudaWeight>> tiled(const QuantView& host, DeviceId device);
  // For absorbed attention: row-major, as published.
  static Result<std::unique_ptr<CudaWeight>> row_major(const QuantView& host, DeviceId device);
  // For look-ups of a few rows: row-major in pinned host memory, where kernels read it themselves.
  // Takes host.stored_bytes() of RAM, and of the device nothing.
  static Result<std::unique_ptr<CudaWeight>> on_host(const QuantView& host);

  std::int64_t rows() const override { return view_.rows; }
  std::int64_t cols() const override { return view_.cols; }
  std::int64_t bytes() const override { return memory_.bytes(); }  // of the device

  const QuantView& view() const { return view_; }

 private:
  CudaWeight(DeviceBuffer memory, QuantView view) : memory_(std::move(memory)), view_(view) {}
  CudaWeight(PinnedBuffer memory, QuantView view) : host_memory_(std::move(memory)), view_(view) {}

  // Payload, then scales, in one of them.
  DeviceBuffer memory_;
  PinnedBuffer host_memory_;
  QuantView view_;
};

}  // namespace stoker::gpu
