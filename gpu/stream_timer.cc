#include "gpu/stream_timer.h"

#include <cuda_runtime_api.h>

#include "gpu/error.h"
#include "gpu/native.h"

namespace stoker::gpu {

Result<StreamTimer> StreamTimer::create() {
  ASSIGN_OR_RETURN(StreamEvent begin, StreamEvent::create(StreamEvent::Timing::kOn));
  ASSIGN_OR_RETURN(StreamEvent end, StreamEvent::create(StreamEvent::Timing::kOn));
  return StreamTimer(std::move(begin), std::move(end));
}

Result<std::optional<double>> StreamTimer::us() const {
  ASSIGN_OR_RETURN(const bool ended, end_.done());
  if (!ended) return std::optional<double>();
  float ms = 0.0F;
  RETURN_IF_ERROR(cuda_status(cudaEventElapsedTime(&ms, native(begin_), native(end_)),
                              "reading how long a stream took"));
  return std::optional<double>(1e3 * static_cast<double>(ms));
}

Result<SampleTimer> SampleTimer::create() {
  ASSIGN_OR_RETURN(StreamTimer timer, StreamTimer::create());
  return SampleTimer(std::move(timer));
}

Status SampleTimer::begin(const Stream& stream) {
  if (state_ == State::kBegun) drop();  // what was begun has failed
  if (!is_due()) {
    pass();
    return {};
  }
  state_ = State::kBegun;
  return timer_.begin(stream);
}

void SampleTimer::pass() {
  if (state_ == State::kNone) --until_next_;
}

Status SampleTimer::end(const Stream& stream) {
  if (state_ != State::kBegun) return {};
  state_ = State::kEnded;
  until_next_ = kPeriod - 1;
  return timer_.end(stream);
}

void SampleTimer::drop() {
  if (state_ != State::kBegun) return;
  state_ = State::kNone;
  until_next_ = 0;
}

Result<std::optional<double>> SampleTimer::take_us() {
  if (state_ != State::kEnded) return std::optional<double>();
  ASSIGN_OR_RETURN(const std::optional<double> us, timer_.us());
  if (us) state_ = State::kNone;
  return us;
}

}  // namespace stoker::gpu
