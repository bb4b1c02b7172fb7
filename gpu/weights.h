// Weights in device memory, in the form their kernels read.
#pragma once

#include <span>

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
  // Of the device.
  std::int64_t bytes() const override { return payload_.bytes() + scales_.bytes(); }

  const QuantView& view() const { return view_; }

 private:
  CudaWeight(DeviceBuffer payload, DeviceBuffer scales, QuantView view)
      : payload_(std::move(payload)), scales_(std::move(scales)), view_(view) {}
  CudaWeight(PinnedBuffer memory, QuantView view) : host_memory_(std::move(memory)), view_(view) {}
  static Result<std::unique_ptr<CudaWeight>> upload(const QuantView& host,
                                                    std::span<const std::byte> payload,
                                                    std::span<const std::byte> scales,
                                                    DeviceId device);

  DeviceBuffer payload_, scales_;
  PinnedBuffer host_memory_;  // or in here: payload, then scales
  QuantView view_;
};

}  // namespace stoker::gpu
