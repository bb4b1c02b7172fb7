// How long a stream is busy, for benchmarks: from the first work that it is given while it stands
// still until the host sees that all of it is done.
#pragma once

#include <cstdint>

#include "gpu/device.h"

namespace stoker::gpu {

// The gaps between pieces of work that the host gives it in between count as busy; copies of other
// streams do not. All calls with the stream's device current.
class BusyMeter {
 public:
  static Result<BusyMeter> create();

  Status before_work(const Stream& stream);
  // All work so far stands before this point of the stream.
  Status mark_end(const Stream& stream);
  // The host has seen that the stream is past the last mark, and nothing was given to it since.
  Status stands_still();

  std::int64_t busy_us() const { return static_cast<std::int64_t>(busy_us_); }

 private:
  BusyMeter(StreamEvent begin, StreamEvent end) : begin_(std::move(begin)), end_(std::move(end)) {}

  StreamEvent begin_, end_;  // with timing
  bool working_ = false, marked_ = false;
  double busy_us_ = 0.0;
};

}  // namespace stoker::gpu
