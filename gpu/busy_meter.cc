#include "gpu/busy_meter.h"

namespace stoker::gpu {

Result<BusyMeter> BusyMeter::create() {
  ASSIGN_OR_RETURN(StreamTimer span, StreamTimer::create());
  return BusyMeter(std::move(span));
}

Status BusyMeter::before_work(const Stream& stream) {
  RETURN_IF_ERROR(look());
  return in_span_ ? Status() : span_.begin(stream);
}

Status BusyMeter::after_work(const Stream& stream) {
  in_span_ = true;
  return span_.end(stream);
}

Status BusyMeter::look() {
  if (!in_span_) return {};
  ASSIGN_OR_RETURN(const std::optional<double> us, span_.us());
  if (!us) return {};
  in_span_ = false;
  busy_us_ += *us;
  return {};
}

}  // namespace stoker::gpu
