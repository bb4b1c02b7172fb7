// Brings parts of experts that lie elsewhere into this device's memory while it computes.
#pragma once

#include <array>
#include <optional>
#include <span>

#include "core/tensor/quant_view.h"
#include "gpu/device.h"
#include "gpu/stream_timer.h"

namespace stoker::gpu {

struct TimedUpload {
  std::int64_t bytes = 0;
  double us = 0.0;
};

// A buffer in a few areas that take turns: one is filled by a stream of copies while kernels of the
// compute stream still read those before it. Copies into an area wait for the kernels that read it
// last, kernels for the copies; the host waits for neither. What is copied must be there and stay
// until an event of the compute stream after the kernels that read it.
//
// For a batch of parts: upload() while has_room(), then hand_over(), the kernels, next_area().
class ExpertUploads {
 public:
  static constexpr int kNumAreas = 4;

  // For the current device; without memory.
  static Result<ExpertUploads> create();

  // What a matrix takes of an area.
  static std::int64_t bytes_needed(const QuantView& view);
  // Of the whole buffer, with areas for `area_bytes`.
  static std::int64_t buffer_bytes(std::int64_t area_bytes);

  // Makes areas at least that large. Waits for both streams and allocates if they are not.
  Status reserve(std::int64_t area_bytes, const Stream& compute);
  std::int64_t bytes() const { return buffer_.bytes(); }

  bool empty() const { return used_ == 0; }  // the open area
  bool has_room(std::int64_t bytes) const { return used_ + bytes <= area_bytes_; }
  // Copies matrices of one part into the open area and lets the views say so. Requires: has_room()
  // for all of them.
  Status upload(std::span<QuantView* const> views, DeviceId device);
  // What `compute` is given from now on sees what was uploaded.
  Status hand_over(const Stream& compute);
  // What `compute` was given until now has had its use of the area. Nothing if that is empty.
  Status next_area(const Stream& compute);

  // What filling an area took out of memory of the host alone, of one in many, from when the copies
  // could begin.
  Result<std::optional<TimedUpload>> take_timing();

  // Waits for all copies.
  Status synchronize() const { return stream_.synchronize(); }

 private:
  struct Area {
    StreamEvent filled, freed;
  };
  ExpertUploads(Stream stream, SampleTimer timer, std::array<Area, kNumAreas> areas)
      : stream_(std::move(stream)), timer_(std::move(timer)), areas_(std::move(areas)) {}

  Stream stream_;
  SampleTimer timer_;
  std::int64_t timed_bytes_ = 0;
  std::array<Area, kNumAreas> areas_;
  DeviceBuffer buffer_;
  std::int64_t area_bytes_ = 0;
  int open_ = 0;           // the area that is being filled
  std::int64_t used_ = 0;  // of it
};

}  // namespace stoker::gpu
