// How long a stream is busy, for benchmarks: the sum of the spans in which it had something to do.
#pragma once

#include <cstdint>

#include "gpu/stream_timer.h"

namespace stoker::gpu {

// A span ends where the stream has nothing left when the host comes with more. Waiting for another
// stream counts as busy, and so does a gap that is over before the host looks. All calls with the
// stream's device current.
class BusyMeter {
 public:
  static Result<BusyMeter> create();

  // Around everything that the stream is given.
  Status before_work(const Stream& stream);
  Status after_work(const Stream& stream);
  // Ends the span, if the stream has nothing left.
  Status look();

  std::int64_t busy_us() const { return static_cast<std::int64_t>(busy_us_); }

 private:
  explicit BusyMeter(StreamTimer span) : span_(std::move(span)) {}

  StreamTimer span_;
  bool in_span_ = false;
  double busy_us_ = 0.0;
};

}  // namespace stoker::gpu
