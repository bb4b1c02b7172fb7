// How long a stream takes for what stands between two points of it.
#pragma once

#include <cstdint>
#include <optional>

#include "gpu/device.h"

namespace stoker::gpu {

// All calls with the stream's device current; none waits.
class StreamTimer {
 public:
  static Result<StreamTimer> create();

  Status begin(const Stream& stream) { return begin_.record(stream); }
  // May come more than once: the last counts.
  Status end(const Stream& stream) { return end_.record(stream); }
  // From begin to end; nothing while the stream has not come to the end. Requires both.
  Result<std::optional<double>> us() const;

 private:
  StreamTimer(StreamEvent begin, StreamEvent end)
      : begin_(std::move(begin)), end_(std::move(end)) {}

  StreamEvent begin_, end_;  // with timing
};

// Times one in so many of things that come again and again, and says how much was done.
class SampleTimer {
 public:
  static constexpr int kPeriod = 32;

  static Result<SampleTimer> create();

  // Whether the next one that begins is timed: its turn has come, and none is under way.
  bool is_due() const { return state_ != State::kEnded && until_next_ <= 0; }
  // One of them begins: is timed, if it is due.
  Status begin(const Stream& stream);
  // One of them is not timed, but counts.
  void pass();
  bool timing() const { return state_ == State::kBegun; }
  // Ends it, if it is timed.
  Status end(const Stream& stream);
  // It cannot be compared with others: the next one is timed instead.
  void drop();
  // Time of the last one that was timed, once.
  Result<std::optional<double>> take_us();

 private:
  enum class State : std::uint8_t { kNone, kBegun, kEnded };
  explicit SampleTimer(StreamTimer timer) : timer_(std::move(timer)) {}

  StreamTimer timer_;
  State state_ = State::kNone;
  int until_next_ = 0;
};

}  // namespace stoker::gpu
